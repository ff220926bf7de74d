-- Positions: what a snapshot has seen, as text for clients, and what pruning has taken away.

create function _private.current_position() returns pg_snapshot
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A snapshot leaves the caller's own transaction out of its running ones, and would so claim
    -- to have seen what the caller has yet to write.
    select case
        when own.xid is null or own.xid >= pg_snapshot_xmax(now.position) then now.position
        else format('%s:%s:%s', least(pg_snapshot_xmin(now.position), own.xid),
                    pg_snapshot_xmax(now.position), (
            select string_agg(distinct_xids.xid::text, ',' order by distinct_xids.xid)
            from (select own.xid union select pg_snapshot_xip(now.position)) distinct_xids (xid)
        ))::pg_snapshot
    end
    from (select pg_current_snapshot()) as now (position),
         (select pg_current_xact_id_if_assigned()) as own (xid);
$$;
comment on function _private.current_position() is
    'The caller''s snapshot, with the caller''s own transaction among those still running.';

create function _private.era() returns bigint
language c stable as 'MODULE_PATHNAME', 'era_wrapper';
comment on function _private.era() is
    'Which numbering of transactions this database is in. Another cluster, timeline or database has another.';

-- Not dumped: a restored database is of another era, and its clients begin anew.
create table _private.prune_mark (
    is_only boolean primary key default true check (is_only),
    era bigint not null,
    xid_max xid8 not null,
    id_max bigint not null,
    seen pg_snapshot not null,
    pruned_at timestamptz not null default now()
);
comment on table _private.prune_mark is
    'How far pruning has come: what tells a client that the events it missed are no longer there. One row.';
comment on column _private.prune_mark.is_only is 'True.';
comment on column _private.prune_mark.era is 'Era of the transactions below.';
comment on column _private.prune_mark.xid_max is 'Youngest transaction of which an entry was removed.';
comment on column _private.prune_mark.id_max is 'Largest id of a removed entry.';
comment on column _private.prune_mark.seen is
    'Snapshot of the last pruning: a transaction that was still running then has lost nothing.';
comment on column _private.prune_mark.pruned_at is 'When an entry was last removed.';

-- What was before this extension is not there, and positions of an earlier one may be around. Its
-- ids do not matter: such a position, and the end of its window, are older than this transaction.
insert into _private.prune_mark (era, xid_max, id_max, seen)
values (_private.era(), pg_current_xact_id(), 0, pg_current_snapshot());

create function _private.mark_pruned(xid_max xid8, id_max bigint) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into _private.prune_mark as m (era, xid_max, id_max, seen)
    select _private.era(), mark_pruned.xid_max, mark_pruned.id_max, pg_current_snapshot()
    where mark_pruned.xid_max is not null
    on conflict (is_only) do update
    set era = excluded.era,
        xid_max = case when m.era = excluded.era then greatest(m.xid_max, excluded.xid_max)
                       else excluded.xid_max end,
        id_max = case when m.era = excluded.era then greatest(m.id_max, excluded.id_max)
                      else excluded.id_max end,
        seen = excluded.seen,
        pruned_at = now();
$$;
comment on function _private.mark_pruned(xid8, bigint) is
    'Notes, in the transaction that removes entries and after it has, the youngest transaction and the largest id among them. Nothing when the first is null. Locks the row of prune_mark until the commit.';

create function _private.sees_all_pruned(seen pg_snapshot) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select not exists (
        select
        from _private.prune_mark m
        where m.era = _private.era()
          and (m.xid_max >= pg_snapshot_xmax(sees_all_pruned.seen)
               or exists (
                   select
                   from pg_snapshot_xip(sees_all_pruned.seen) as running (xid)
                   where running.xid <= m.xid_max
                     and pg_visible_in_snapshot(running.xid, m.seen))));
$$;
comment on function _private.sees_all_pruned(pg_snapshot) is
    'Whether a snapshot sees every entry that was pruned. May say no when it does: of a transaction that ran at the snapshot and is older than the youngest pruned one, it is not known whether it wrote anything.';

create function _private.encode_position(
    base text, window_end text default null, last_id bigint default null
) returns text
language c stable as 'MODULE_PATHNAME', 'encode_position_wrapper';
comment on function _private.encode_position(text, text, bigint) is
    'A position as the opaque cursor that messages carry.';

create function _private.durable_cursor(seen text) returns text
language c stable as 'MODULE_PATHNAME', 'durable_cursor_wrapper';
comment on function _private.durable_cursor(text) is
    'The caller''s snapshot as an opaque cursor that a crash of the server cannot belie: waits until the transactions that have ended are on disk. Refused on a standby, whose snapshots do not say what is running.';

create function outbox.cursor() returns text
language sql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select _private.durable_cursor(_private.current_position()::text);
$$;
comment on function outbox.cursor() is
    'The position of the caller''s snapshot. Read it together with the state, in one statement or one REPEATABLE READ transaction, and follow from there. Not on a standby.';
