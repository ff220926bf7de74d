-- Catching up: what a client asks for when it comes back.

-- Both statements walk the index on (xid, id) of each segment from where the position ends; the
-- first only counts, and stops at its bound. The planner does not know the position when it makes
-- a generic plan, so it is told to walk the index, and that compiling would take longer than
-- running.
create function _private.missed_events(
    since pg_snapshot, since_end pg_snapshot, since_id bigint, wanted_org text, page_events integer
) returns table (
    event_id uuid, event_type text, topic text, ids jsonb, data jsonb, origin text,
    version integer, at timestamptz, cursor text, complete boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_indexscan = on
set jit = off
as $$
#variable_conflict use_column
declare
    -- Entries of all organisations that one call looks at: a tenth of a second.
    entries_max constant bigint := 100000;
    seen pg_snapshot := _private.current_position();
    seen_cursor text := _private.durable_cursor(seen::text);
    horizon pg_snapshot := coalesce(since_end, since);
begin
    -- A position that sees more than the caller is of a snapshot that is yet to be.
    if pg_snapshot_xmax(horizon) > pg_snapshot_xmax(seen)
       or exists (
            select
            from pg_snapshot_xip(seen) as running (xid)
            where pg_visible_in_snapshot(running.xid, horizon))
       or not (_private.sees_all_pruned(since)
               or since_end is not null
                  and _private.sees_all_pruned(since_end)
                  and since_id >= (select m.id_max from _private.prune_mark m))
       or entries_max < (
            select count(*)
            from (
                select
                from (
                    select from _private.outbox o
                    where o.xid >= pg_snapshot_xmax(since)
                    union all
                    select from _private.outbox o
                    where o.xid = any (array(select pg_snapshot_xip(since)))
                ) later
                limit entries_max + 1
            ) looked_at)
    then
        return query
        select null::uuid, null::text, null::text, null::jsonb, null::jsonb, null::text,
               null::integer, null::timestamptz, seen_cursor, false;
        return;
    end if;

    return query
    with later as (
        select o.*, since_end is null or not pg_visible_in_snapshot(o.xid, since_end) as is_beyond
        from (
            select * from _private.outbox
            where xid >= pg_snapshot_xmax(since)
            union all
            select * from _private.outbox
            where xid = any (array(select pg_snapshot_xip(since)))
        ) o
        where o.org_id = wanted_org
          -- Not what a copy brought with it, whose transactions are those of its origin.
          and o.home = _private.home_mark()
          -- Nor what the caller has not committed.
          and pg_visible_in_snapshot(o.xid, seen)
    ), missed as (
        -- One more than can be needed, which tells whether there is more.
        select *
        from later
        where is_beyond or id > since_id
        order by is_beyond, id
        limit page_events + 1
    ), counted as (
        select missed.*,
               sum(event_count) over in_order - event_count as events_before,
               lead(id) over in_order is null as is_last
        from missed
        window in_order as (order by is_beyond, id)
    ), page as materialized (
        select c.*,
               case when c.is_last then seen_cursor
                    when c.is_beyond then _private.encode_position(horizon::text, seen::text, c.id)
                    else _private.encode_position(since::text, since_end::text, c.id)
               end as cursor_after
        from counted c
        where c.events_before < page_events
    )
    select _private.nth_event_id(p.event_id, (e.place - 1)::integer),
           t.event_type,
           coalesce(p.topic, s.topic),
           _private.named_ids(e.key, s.key_names),
           (p.data -> (e.place - 1)::integer)::jsonb,
           p.origin,
           coalesce(p.version, 1::smallint)::integer,
           p.created_at,
           p.cursor_after,
           true
    from page p
    join _private.event_types t on t.type_id = p.type_id
    left join _private.sources s on s.source_id = p.source_id
    cross join lateral json_array_elements(p.ids) with ordinality as e (key, place)
    order by p.is_beyond, p.id, e.place;
end
$$;
comment on function _private.missed_events(pg_snapshot, pg_snapshot, bigint, text, integer) is
    'The work of outbox.events_since, done as the owner of the extension for a caller who is checked.';

create function outbox.events_since(cursor text, org_id text, max_events integer default 500)
returns table (
    event_id uuid, event_type text, topic text, ids jsonb, data jsonb, origin text,
    version integer, at timestamptz, cursor text, complete boolean
)
language c stable as 'MODULE_PATHNAME', 'outbox_events_since';
comment on function outbox.events_since(text, text, integer) is
    'The committed events of an organisation after a position, oldest first: what a client missed. cursor: as it came in a message, from outbox.cursor() or in an earlier row. Each row carries the position behind its entry, so that all events of an entry share it; go on from the last row''s until no row comes. A page ends with a whole entry, and so may pass max_events (1 to 10000) by less than one run. No row: nothing was missed. One row with complete = false and no event: what was missed cannot be told, because it was pruned, lies more than 100000 entries back, or the position is of another database or of before a failover; read the state anew, and follow from the cursor of that row, which is older than what is read after it. For members of the organisation, as the function given to outbox.setup_realtime says of the caller; without one, for members of the extension''s owner. Not on a standby. Takes no lock.';
