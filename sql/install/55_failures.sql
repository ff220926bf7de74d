-- What is sent again: dead letters that are redriven or discarded, and past events. None of it
-- is read as a whole: a call moves rows in one statement, a replay goes page by page in the relay.

create function _private.checked_period(since timestamptz, until timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if since > until then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'since must not be later than until',
            detail = format('since is %s, until is %s.', since, until),
            hint = 'Swap them.';
    end if;
end
$$;
comment on function _private.checked_period(timestamptz, timestamptz) is
    'Raises an error when a period ends before it begins; null leaves that side open.';

-- Rows are taken in the order of the events and locked, those that another call has locked
-- excepted: two calls at a time share the work and take nothing twice.
create function _private.picked_dead_letters(
    sink text, org_id text, event_type text, since timestamptz, until timestamptz, event_id uuid,
    max_events integer
) returns setof _private.outbox_dlq
language sql
set search_path = pg_catalog, pg_temp
as $$
    with picked as (
        select d.sink, d.event_id
        from _private.outbox_dlq d
        where d.sink = coalesce(picked_dead_letters.sink, d.sink)
          and d.org_id = coalesce(picked_dead_letters.org_id, d.org_id)
          and d.event_type = coalesce(picked_dead_letters.event_type, d.event_type)
          and d.created_at >= coalesce(picked_dead_letters.since, '-infinity')
          and d.created_at < coalesce(picked_dead_letters.until, 'infinity')
          and d.event_id = coalesce(picked_dead_letters.event_id, d.event_id)
        order by d.created_at, d.event_id
        limit picked_dead_letters.max_events
        for update skip locked
    )
    delete from _private.outbox_dlq d
    using picked p
    where d.sink = p.sink and d.event_id = p.event_id
    returning d.*;
$$;
comment on function _private.picked_dead_letters(
    text, text, text, timestamptz, timestamptz, uuid, integer
) is
    'Takes the dead letters that match out of their table, oldest first. Null matches all.';

create function _private.checked_max_events(max_events integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if max_events < 1 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'max_events must be at least 1',
            hint = 'Leave it out to take all that match.';
    end if;
end
$$;
comment on function _private.checked_max_events(integer) is
    'Raises an error when a number of events is not positive; null means all.';

create function outbox.redrive(
    sink text default null, org_id text default null, event_type text default null,
    since timestamptz default null, until timestamptz default null, event_id uuid default null,
    max_events integer default null
) returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    redriven bigint;
begin
    perform _private.require_sink(sink), _private.checked_period(since, until),
            _private.checked_max_events(max_events);
    insert into _private.retries (
        sink, event_id, entry_id, event_type, topic, version, org_id, ids, data, origin, created_at,
        redrives, first_failed_at, last_failed_at, error_kind, error, status)
    select d.sink, d.event_id, d.entry_id, d.event_type, d.topic, d.version, d.org_id, d.ids,
           d.data, d.origin, d.created_at, d.redrives + 1, d.first_failed_at, d.last_failed_at,
           d.error_kind, d.error, d.status
    from _private.picked_dead_letters(
        sink, org_id, event_type, since, until, event_id, max_events) d
    -- A replay may have put it there already; it is sent once for both.
    on conflict on constraint retries_pkey do update
    set redrives = excluded.redrives, attempts = 0, next_attempt_at = excluded.next_attempt_at;
    get diagnostics redriven = row_count;
    if redriven > 0 then
        perform outbox.wake();
    end if;
    return redriven;
exception
    when foreign_key_violation then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'some of these dead letters are of a sink that does not exist any more',
            hint = 'Name a sink that exists, set that sink again, or discard them.';
end
$$;
comment on function outbox.redrive(text, text, text, timestamptz, timestamptz, uuid, integer) is
    'Sends dead letters again and returns their number. Null matches all; since (inclusive) and until (exclusive) are about when the event happened; max_events takes the oldest so many. They keep their event_id, get all their retries again, and go beside what is new.';

create function outbox.discard(
    sink text default null, org_id text default null, event_type text default null,
    since timestamptz default null, until timestamptz default null, event_id uuid default null,
    max_events integer default null
) returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    discarded bigint;
begin
    -- The sink of a dead letter may be gone, so its name is not checked.
    perform _private.checked_period(since, until), _private.checked_max_events(max_events);
    select count(*) into discarded
    from _private.picked_dead_letters(sink, org_id, event_type, since, until, event_id, max_events);
    return discarded;
end
$$;
comment on function outbox.discard(text, text, text, timestamptz, timestamptz, uuid, integer) is
    'Removes dead letters for good and returns their number. Null matches all; since (inclusive) and until (exclusive) are about when the event happened; max_events takes the oldest so many.';

create function outbox.replay(
    since timestamptz, until timestamptz default now(), org_id text default null,
    topic text default null, event_type text default null, sink text default null
) returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    replay bigint;
begin
    if since is null or until is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'since and until must not be null',
            hint = 'As in outbox.replay(now() - interval ''1 hour'').';
    end if;
    if until > now() or since > now() then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'a replay cannot reach into the future',
            detail = format('It is %s.', now()),
            hint = 'Leave until out to replay up to now; what comes later is sent as it comes.';
    end if;
    perform _private.require_sink(sink), _private.checked_period(since, until);
    if event_type is not null
       and not exists (select from _private.event_types t where t.event_type = replay.event_type)
    then
        raise exception using
            errcode = 'undefined_object',
            message = 'event type is not registered',
            detail = format('There is no event type %L.', event_type),
            hint = 'select event_type from outbox.event_types lists them.';
    end if;
    replay := nextval('_private.replay_ids');
    insert into _private.replays (
        replay_id, sink, since, until, org_id, topic, event_type, requested_by)
    select replay, s.sink, replay.since, replay.until, replay.org_id, replay.topic,
           replay.event_type, session_user
    from _private.sinks s
    where s.sink = coalesce(replay.sink, s.sink) and s.enabled;
    if not found then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = 'there is no enabled sink to replay to',
            hint = 'Set one with outbox.set_sink, or enable it with outbox.enable_sink.';
    end if;
    perform outbox.wake();
    return replay;
end
$$;
comment on function outbox.replay(timestamptz, timestamptz, text, text, text, text) is
    'Sends past events again and returns the id of the replay; outbox.replays shows how far it is. since is inclusive, until exclusive, both about when the event happened; null matches all. Only what is retained and was passed by the sink is sent, with the same event_id, beside what is new and not before it.';

-- One page: what matches among the next entries, by the index on (xid, id) of each segment.
create function _private.take_replayed(sink text, max_events integer) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    -- Entries that are looked at in one call: some milliseconds of the relay's time.
    entries_max constant integer := 5000;
    under_way _private.replays;
    taken bigint := 0;
    page record;
begin
    select r.* into under_way
    from _private.replays r
    where r.sink = take_replayed.sink and r.done_at is null
    order by r.replay_id
    limit 1
    for update;
    if not found then
        return 0;
    end if;
    with entries as materialized (
        select o.*
        from _private.outbox o
        where (o.xid, o.id) > (under_way.after_xid, under_way.after_id)
        order by o.xid, o.id
        limit least(entries_max, max_events)
    ),
    matching as (
        select e.*
        from entries e
        join _private.event_types t on t.type_id = e.type_id
        left join _private.sources s on s.source_id = e.source_id
        where e.created_at >= under_way.since and e.created_at < under_way.until
          and e.org_id = coalesce(under_way.org_id, e.org_id)
          and t.event_type = coalesce(under_way.event_type, t.event_type)
          and coalesce(e.topic, s.topic) = coalesce(under_way.topic, e.topic, s.topic)
          and exists (
              select from _private.cursors c
              where c.sink = under_way.sink and _private.has_passed(c, e.id, e.xid, e.home))
    ),
    inserted as (
        insert into _private.retries (
            sink, event_id, entry_id, event_type, topic, version, org_id, ids, data, origin,
            created_at)
        select under_way.sink, _private.nth_event_id(m.event_id, (k.place - 1)::integer), m.id,
               t.event_type, coalesce(m.topic, s.topic), coalesce(m.version, 1), m.org_id,
               _private.named_ids(k.key, s.key_names)::json, m.data -> (k.place - 1)::integer,
               m.origin, m.created_at
        from matching m
        join _private.event_types t on t.type_id = m.type_id
        left join _private.sources s on s.source_id = m.source_id
        cross join lateral json_array_elements(m.ids) with ordinality as k (key, place)
        on conflict on constraint retries_pkey do nothing
        returning 1
    )
    select (select count(*) from entries) as looked_at, (select count(*) from inserted) as taken,
           l.xid, l.id
    into page
    from (select 1) as one
    left join (select xid, id from entries order by xid desc, id desc limit 1) l on true;
    update _private.replays r
    set after_xid = coalesce(page.xid, r.after_xid),
        after_id = coalesce(page.id, r.after_id),
        event_count = r.event_count + page.taken,
        done_at = case
            when page.looked_at < least(entries_max, max_events) then clock_timestamp()
        end
    where r.replay_id = under_way.replay_id and r.sink = under_way.sink;
    return page.looked_at;
end
$$;
comment on function _private.take_replayed(text, integer) is
    'Puts the next events of the oldest replay under way among those to be sent again, from at most so many entries, and returns how many entries it looked at: 0 when no replay is under way.';
