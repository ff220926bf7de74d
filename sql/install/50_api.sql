-- Sinks, steering, pruning: what an operator calls.

create function _private.current_home() returns table (
    system_identifier bigint, database oid, outbox oid
)
language c stable rows 1 as 'MODULE_PATHNAME', 'current_home_wrapper';
comment on function _private.current_home() is
    'Home of this database''s entries: whose transactions they count. A copy of the database has another.';

create function _private.home_mark() returns smallint
language c stable as 'MODULE_PATHNAME', 'home_mark_wrapper';
comment on function _private.home_mark() is 'The two bytes of the current home that entries bear.';

create function _private.home_mark(system_identifier bigint, database oid, outbox oid)
returns smallint
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'home_mark_of_wrapper';
comment on function _private.home_mark(bigint, oid, oid) is
    'The two bytes of a home that its entries bear.';

create function _private.is_home(system_identifier bigint, database oid, outbox oid) returns boolean
language c stable strict as 'MODULE_PATHNAME', 'is_home_wrapper';
comment on function _private.is_home(bigint, oid, oid) is 'Whether this database is that home.';

create function _private.is_at_home(cursor_row _private.cursors) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select _private.is_home(
        (cursor_row).system_identifier, (cursor_row).database, (cursor_row).outbox);
$$;
comment on function _private.is_at_home(_private.cursors) is
    'Whether a cursor is of this database. If not, the database is a copy: nothing is sent by it, and nothing pruned.';

create function _private.is_at_home() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(bool_and(_private.is_at_home(c)), true) from _private.cursors c;
$$;
comment on function _private.is_at_home() is
    'Whether every cursor is of this database; true when there is no sink.';

create function outbox.wake() returns void
language c as 'MODULE_PATHNAME', 'wake_wrapper';
comment on function outbox.wake() is
    'Wakes the relay of this database when the transaction commits, and makes it try a sink at once that waits after a failure. Needed for nothing else; harmless.';

create function _private.reconfigured() returns trigger
language c as 'MODULE_PATHNAME', 'outbox_reconfigured';
comment on function _private.reconfigured() is
    'Tells the relay at commit to read its sinks and secrets again.';
create trigger reconfigured after insert or update or delete or truncate on _private.sinks
    for each statement execute function _private.reconfigured();
create trigger reconfigured after insert or update or delete or truncate on _private.secrets
    for each statement execute function _private.reconfigured();
-- Not for updates, which are the relay's own; a restored dump inserts.
create trigger reconfigured after insert or delete or truncate on _private.cursors
    for each statement execute function _private.reconfigured();

create function _private.check_sink_options(kind text, options text) returns void
language c as 'MODULE_PATHNAME', 'check_sink_options_wrapper';
comment on function _private.check_sink_options(text, text) is
    'Raises an error that names the mistake when the options of a sink are wrong.';

create function _private.sink_options() returns table (
    option text, type text, default_value text, description text
)
language c as 'MODULE_PATHNAME', 'sink_options_wrapper';
comment on function _private.sink_options() is 'The options that set_sink knows.';

create function outbox.set_sink(name text, kind text, options jsonb) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    missing text;
begin
    if name is null or name !~ '^[a-z][a-z0-9_-]{0,62}$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid name of a sink %L', name),
            hint = 'Use lower-case letters, digits, dashes and underscores, such as realtime.';
    end if;
    if kind is null or options is null or jsonb_typeof(options) <> 'object' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'a sink needs a kind and an object of options',
            hint = 'As in outbox.set_sink(''realtime'', ''realtime'', ''{"url": "…", "secret": "…"}'').';
    end if;
    perform _private.check_sink_options(kind, options::text);
    missing := coalesce(options ->> 'secret', options ->> 'jwt_secret');
    if missing is not null
       and not exists (select from _private.secrets s where s.name = missing) then
        raise exception using
            errcode = 'undefined_object',
            message = format('secret %L does not exist', missing),
            hint = format('Set it first: select outbox.set_secret(%L, ''…'').', missing);
    end if;
    -- As many as have a place in shared memory: SINKS in src/pg/shmem.rs.
    if (select count(*) from _private.sinks s where s.sink <> name) >= 16 then
        raise exception using
            errcode = 'configuration_limit_exceeded',
            message = 'a database can have 16 sinks',
            hint = 'Drop one that is not needed with outbox.drop_sink.';
    end if;
    insert into _private.sinks (sink, kind, options)
    values (set_sink.name, set_sink.kind, set_sink.options)
    on conflict (sink) do update
    set kind = excluded.kind, options = excluded.options, updated_at = now();
    insert into _private.cursors (sink, position, system_identifier, database, outbox)
    select set_sink.name,
           case options ->> 'start'
               when 'beginning' then '1:1:'::pg_snapshot
               else _private.current_position()
           end,
           h.system_identifier, h.database, h.outbox
    from _private.current_home() h
    on conflict do nothing;
end
$$;
comment on function outbox.set_sink(text, text, jsonb) is
    'Adds a sink, or changes the options of one without moving its cursor. select * from outbox.sink_options lists the options; unknown ones are refused.';

create function _private.require_sink(sink text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if sink is not null
       and not exists (select from _private.sinks s where s.sink = require_sink.sink) then
        raise exception using
            errcode = 'undefined_object',
            message = format('sink %L does not exist', sink),
            hint = coalesce(
                'There is: ' || (select string_agg(s.sink, ', ' order by s.sink) from _private.sinks s) || '.',
                'There is none yet; make one with outbox.set_sink.');
    end if;
end
$$;
comment on function _private.require_sink(text) is 'Raises an error when a sink is named that does not exist.';

create function outbox.drop_sink(name text) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if name is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'name must not be null',
            hint = 'Name a sink; select sink from outbox.status lists them.';
    end if;
    perform _private.require_sink(name);
    delete from _private.sinks where sink = name;
    perform _private.follow_setups();
end
$$;
comment on function outbox.drop_sink(text) is
    'Removes a sink and its cursor: what it has not been sent is not sent. Undoes what outbox.setup_realtime made beside it.';

create function _private.steer(sink text, enabled boolean, paused boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform _private.require_sink(sink);
    update _private.sinks s
    set enabled = coalesce(steer.enabled, s.enabled),
        paused = coalesce(steer.paused, s.paused),
        updated_at = now()
    where s.sink = coalesce(steer.sink, s.sink);
end
$$;
comment on function _private.steer(text, boolean, boolean) is
    'Changes the switches of one sink, or of all when it is null. A null switch stays as it is.';

create function outbox.pause(sink text default null) returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select _private.steer(sink, null, true);
$$;
comment on function outbox.pause(text) is
    'Lets a sink, or all of them, wait with its cursor where it is. Capture goes on. Outlives a restart.';

-- What a cursor that is not at home had not passed when the database was copied. Its numbers say
-- it of the entries of its own home. Entries of a third home are older than the cursor's arrival
-- there, or were captured in a copy on the way here: their ids tell.
create function _private.left_behind(cursor_row _private.cursors) returns setof _private.outbox
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select o.*
    from _private.outbox o
    cross join (
        select _private.home_mark(),
               _private.home_mark(
                   (cursor_row).system_identifier, (cursor_row).database, (cursor_row).outbox)
    ) as mark (here, there)
    where case
        when o.home <> mark.there then o.home <> mark.here and o.id > (cursor_row).since_id
        -- Two marks that are equal by chance take the clock as well: what the cursor had passed was
        -- older than its last move, and what was captured here is younger.
        when o.home = mark.here and o.created_at > (cursor_row).updated_at then true
        else not (
            pg_visible_in_snapshot(o.xid, (cursor_row).position)
            or ((cursor_row).window_end is not null and o.id <= (cursor_row).last_processed_id
                and pg_visible_in_snapshot(o.xid, (cursor_row).window_end)))
    end;
$$;
comment on function _private.left_behind(_private.cursors) is
    'Entries that came with a copy of the database and have no outcome at this cursor, which came with them. Looks at every entry.';

-- The position that a cursor gets is told by numbers that no transaction of a user ever had: those
-- below 512 were spent by initdb. Entries that the same sinks have yet to be sent share one, and
-- each cursor has its own among the transactions still running. So an entry goes to those sinks
-- that lack it and to no other, and all that was captured here, whatever its number, lies after
-- the position. More groups than 64 share the last number: their sinks may be sent some again.
create function _private.move_in() returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    arrived text[];
    first bigint;
begin
    select array_agg(c.sink)
    into arrived
    from (select * from _private.cursors c where not _private.is_at_home(c) for update) c;
    if arrived is null then
        return '{}';
    end if;
    select least(coalesce(max(xid)::text::bigint, 2) + 1, 448)
    into first
    from _private.outbox
    where xid < '512' and home = _private.home_mark();
    -- Where two marks are equal by chance, what every cursor has passed must not look like ours.
    if exists (
        select from _private.cursors c
        where not _private.is_at_home(c)
          and _private.home_mark(c.system_identifier, c.database, c.outbox) = _private.home_mark())
    then
        update _private.outbox o
        set xid = '2'
        where o.home = _private.home_mark()
          and o.id not in (
              select e.id
              from _private.cursors c
              cross join lateral _private.left_behind(c) e
              where not _private.is_at_home(c));
    end if;
    with lacking as materialized (
        select e.id, array_agg(distinct c.sink order by c.sink) as sinks
        from _private.cursors c
        cross join lateral _private.left_behind(c) e
        where not _private.is_at_home(c)
        group by e.id
    ),
    numbered as materialized (
        select id, sinks, first - 1 + least(dense_rank() over (order by sinks), 64) as number
        from lacking
    ),
    adopted as (
        update _private.outbox o
        set xid = n.number::text::xid8, home = _private.home_mark()
        from numbered n
        where n.id = o.id
    ),
    running as (
        select n.sink, string_agg(n.number::text, ',' order by n.number) as numbers
        from (select distinct unnest(sinks) as sink, number from numbered) n
        group by n.sink
    )
    update _private.cursors c
    set position = format('3:%s:%s', first + 64, r.numbers)::pg_snapshot,
        window_end = null,
        last_processed_id = null,
        system_identifier = h.system_identifier,
        database = h.database,
        outbox = h.outbox,
        since_id = nextval('_private.entry_ids'),
        updated_at = clock_timestamp()
    from _private.current_home() h
    cross join unnest(arrived) as a (sink)
    left join running r on r.sink = a.sink
    where c.sink = a.sink and not _private.is_at_home(c);
    return arrived;
end
$$;
comment on function _private.move_in() is
    'Makes this database the home of cursors that came with a copy, without anything lost, and returns their sinks. Locks the rows of those cursors.';

create function outbox.resume(sink text default null) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    arrived text[];
begin
    perform _private.require_sink(sink);
    arrived := _private.move_in();
    -- All cursors move at once, because they judge the same entries; a sink that was not asked for
    -- must not send for that.
    update _private.sinks s
    set paused = true, updated_at = now()
    where s.sink = any (arrived) and s.sink <> resume.sink;
    perform _private.steer(sink, null, false);
    perform outbox.wake();
end
$$;
comment on function outbox.resume(text) is
    'Ends a pause of one sink, or of all. In a database that is a copy of another, where no sink sends, it makes the copy send from now on: what was unsent when it was copied and all since.';

create function outbox.enable_sink(name text) returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select _private.steer(coalesce(name, ''), true, null);
$$;
comment on function outbox.enable_sink(text) is 'Lets a disabled sink go on from its cursor.';

create function outbox.disable_sink(name text) returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select _private.steer(coalesce(name, ''), false, null);
$$;
comment on function outbox.disable_sink(text) is
    'Stops a sink. Its cursor stays and holds pruning back until it is enabled or dropped.';

create function outbox.set_secret(name text, value text) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if name is null or length(name) not between 1 and 128 or coalesce(value, '') = '' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'a secret needs a name of at most 128 characters and a value',
            hint = 'As in outbox.set_secret(''realtime'', ''eyJ…'').';
    end if;
    insert into _private.secrets (name, value)
    values (set_secret.name, btrim(set_secret.value, E' \t\r\n'))
    on conflict on constraint secrets_pkey do update
    set value = excluded.value, updated_at = now();
end
$$;
comment on function outbox.set_secret(text, text) is
    'Keeps a token for a sink''s option secret or jwt_secret. It is never shown again; setting it anew replaces it without a restart. It stands in the statement: set log_statement accordingly, or use the option key_file.';

-- Entries that a cursor has not passed, by the index on (xid, id): what began after its position,
-- and what was running then. The cost goes with the answer and not with the table: a function's
-- plan does not know its arguments, so it is told to walk the index, and JIT would take longer to
-- compile that plan than it takes to run. Only in a copy of a database, whose cursors are not at
-- home, is every entry looked at.
create function _private.entries_after(cursor_row _private.cursors) returns setof _private.outbox
language sql stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
    select o.*
    from (
        select * from _private.outbox
        where xid >= pg_snapshot_xmax((cursor_row).position)
        union all
        select * from _private.outbox
        where xid = any (array(select pg_snapshot_xip((cursor_row).position)))
    ) o
    where (select _private.is_at_home(cursor_row))
      and o.home = (select _private.home_mark())
      and ((cursor_row).window_end is null
           or o.id > (cursor_row).last_processed_id
           or not pg_visible_in_snapshot(o.xid, (cursor_row).window_end))
    union all
    select *
    from _private.left_behind(cursor_row)
    where not (select _private.is_at_home(cursor_row))
    union all
    select o.*
    from _private.outbox o
    where not (select _private.is_at_home(cursor_row))
      and o.home = (select _private.home_mark())
      and o.home <> (select _private.home_mark(
          (cursor_row).system_identifier, (cursor_row).database, (cursor_row).outbox));
$$;
comment on function _private.entries_after(_private.cursors) is
    'Entries visible to the caller that have no outcome at this cursor yet.';

create function outbox.wait_until_delivered(timeout interval default '10 s') returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    seen pg_snapshot;
    asked_at timestamptz := clock_timestamp();
    deadline timestamptz;
begin
    if timeout is null or timeout < interval '0' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'timeout must not be negative or null',
            hint = 'As in outbox.wait_until_delivered(''10 s'').';
    end if;
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception using
            errcode = 'invalid_transaction_state',
            message = 'wait_until_delivered needs READ COMMITTED',
            detail = 'The snapshot of this transaction would never see the cursor move.',
            hint = 'Call it outside the transaction.';
    end if;
    seen := pg_current_snapshot();
    deadline := clock_timestamp() + timeout;
    loop
        if not exists (
            select
            from _private.cursors c
            join _private.sinks s on s.sink = c.sink and s.enabled
            cross join lateral _private.entries_after(c) e
            where pg_visible_in_snapshot(e.xid, seen) or not _private.is_at_home(c))
           and not exists (
            select
            from _private.retries r
            join _private.sinks s on s.sink = r.sink and s.enabled
            where r.created_at <= asked_at)
        then
            return true;
        end if;
        if clock_timestamp() >= deadline then
            return false;
        end if;
        perform pg_sleep(0.005);
    end loop;
end
$$;
comment on function outbox.wait_until_delivered(interval) is
    'Waits until every event that was committed before the call has an outcome at every enabled sink: it has arrived, or is a dead letter. False when the time is up; true at once when there is no sink. The caller''s own uncommitted events are not waited for.';

create function _private.current_segment() returns integer
language c stable as 'MODULE_PATHNAME', 'current_segment_wrapper';
comment on function _private.current_segment() is 'Number of the segment that writers fill now.';

create function _private.has_passed(
    cursor_row _private.cursors, entry_id bigint, entry_xid xid8, entry_home smallint
)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when entry_home = _private.home_mark(
            (cursor_row).system_identifier, (cursor_row).database, (cursor_row).outbox)
        then pg_visible_in_snapshot(entry_xid, (cursor_row).position)
            or ((cursor_row).window_end is not null and entry_id <= (cursor_row).last_processed_id
                and pg_visible_in_snapshot(entry_xid, (cursor_row).window_end))
        -- What came with a copy of the database and was not taken over when the cursor moved in.
        when _private.is_home(
            (cursor_row).system_identifier, (cursor_row).database, (cursor_row).outbox)
        then true
        else entry_home <> _private.home_mark() and entry_id <= (cursor_row).since_id
    end;
$$;
comment on function _private.has_passed(_private.cursors, bigint, xid8, smallint) is
    'Whether an entry has an outcome at this cursor.';

create function _private.is_done(entry_id bigint, entry_xid xid8, entry_home smallint)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(bool_and(_private.has_passed(c, entry_id, entry_xid, entry_home)), true)
    from _private.cursors c;
$$;
comment on function _private.is_done(bigint, xid8, smallint) is
    'Whether every cursor has passed an entry; true when there is no sink.';

-- Empties a segment when all of it may go. SHARE ROW EXCLUSIVE keeps writers out (they take
-- another segment without waiting) while the rows are looked at; the stronger lock that TRUNCATE
-- wants is then held for an instant.
create function _private.prune_segment(segment regclass, cutoff timestamptz) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
declare
    newest timestamptz;
    newest_xid xid8;
    newest_id bigint;
    events bigint;
    behind _private.cursors;
    done boolean;
begin
    -- The youngest transaction's row tells cheaply that a segment is still wanted.
    execute format('select created_at from only %s order by xid desc, id desc limit 1', segment)
    into newest;
    if newest is null or newest >= cutoff then
        return 0;
    end if;
    execute format('lock table only %s in share row exclusive mode', segment);
    -- Entries that are not at home were done before the cursors were, and before any position.
    execute format(
        'select max(created_at), max(xid) filter (where home = _private.home_mark()), max(id), sum(event_count) from only %s',
        segment)
    into newest, newest_xid, newest_id, events;
    if newest >= cutoff then
        return 0;
    end if;
    -- Row by row only for a cursor that does not lie beyond the segment as a whole.
    for behind in
        select c.* from _private.cursors c where newest_xid >= pg_snapshot_xmin(c.position)
    loop
        execute format(
            -- Between windows $2 and $3 are null, and an aggregate would skip what is unknown.
            'select bool_and(home <> _private.home_mark() or pg_visible_in_snapshot(xid, $1) or coalesce(id <= $3 and pg_visible_in_snapshot(xid, $2), false)) from only %s',
            segment)
        into done using behind.position, behind.window_end, behind.last_processed_id;
        if done is not true then
            return 0;
        end if;
    end loop;
    execute format('truncate only %s', segment);
    perform _private.mark_pruned(newest_xid, newest_id);
    return events;
exception
    when lock_not_available then
        return 0;
end
$$;
comment on function _private.prune_segment(regclass, timestamptz) is
    'Empties one segment if everything in it is older than the cutoff and passed by every cursor, and returns the number of events.';

create function outbox.prune(
    older_than interval default null, exact boolean default false
) returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    cutoff timestamptz;
    current integer;
    segment integer;
    segment_table regclass;
    newest_xid xid8;
    newest_id bigint;
    events bigint;
    pruned bigint := 0;
begin
    -- TRUNCATE removes what an older snapshot does not see, and so has not looked at.
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception using
            errcode = 'invalid_transaction_state',
            message = 'prune needs READ COMMITTED',
            detail = 'The snapshot of this transaction does not show what was written since, and a segment is emptied as a whole.',
            hint = 'Call it in a transaction of its own: begin isolation level read committed.';
    end if;
    if older_than < interval '0' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'older_than must not be negative',
            hint = 'As in outbox.prune(''24 hours''), or leave it out to take pg_outbox.retention.';
    end if;
    -- In a copy nothing is sent, and so nothing is done.
    if not _private.is_at_home() then
        return 0;
    end if;
    -- The first call of a session loads the library, and with it the setting.
    current := _private.current_segment();
    cutoff := clock_timestamp() - coalesce(older_than, current_setting('pg_outbox.retention')::interval);
    for segment in 0..15 loop
        segment_table := format('_private.outbox_%s', segment)::regclass;
        if segment <> current then
            pruned := pruned + _private.prune_segment(segment_table, cutoff);
        end if;
        if exact then
            execute format(
                'with gone as (delete from only %s where created_at < $1 and _private.is_done(id, xid, home) returning event_count, xid, id, home) select coalesce(sum(event_count), 0), max(xid) filter (where home = _private.home_mark()), max(id) from gone',
                segment_table)
            into events, newest_xid, newest_id using cutoff;
            perform _private.mark_pruned(newest_xid, newest_id);
            pruned := pruned + events;
        end if;
    end loop;
    delete from _private.deliveries d where d.answered_at < cutoff;
    delete from _private.replays r where r.done_at < cutoff;
    return pruned;
end
$$;
comment on function outbox.prune(interval, boolean) is
    'Removes events that every sink has passed and returns their number. older_than: default the setting pg_outbox.retention. It empties whole segments of the ring, so that some events stay up to a twelfth of the retention longer; exact deletes those too, row by row. Writers never wait for it. What a sink has not been sent is never removed.';
