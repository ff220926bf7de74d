-- Sinks, steering, pruning: what an operator calls.

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

create function _private.system_identifier() returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select system_identifier from pg_control_system();
$$;
comment on function _private.system_identifier() is 'Identifier of this cluster.';

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
    insert into _private.cursors (sink, position, system_identifier)
    values (set_sink.name,
            case options ->> 'start'
                when 'beginning' then '1:1:'::pg_snapshot
                else _private.current_position()
            end,
            _private.system_identifier())
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
end
$$;
comment on function outbox.drop_sink(text) is
    'Removes a sink and its cursor: what it has not been sent is not sent.';

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

create function outbox.resume(sink text default null) returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select _private.steer(sink, null, false);
$$;
comment on function outbox.resume(text) is 'Ends a pause of one sink, or of all.';

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

create function _private.encode_position(seen text) returns text
language c stable as 'MODULE_PATHNAME', 'encode_position_wrapper';
comment on function _private.encode_position(text) is
    'A snapshot as the opaque cursor that messages carry.';

create function outbox.cursor() returns text
language sql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select _private.encode_position(_private.current_position()::text);
$$;
comment on function outbox.cursor() is
    'The position of the caller''s snapshot. Read it together with the state, in one statement or one REPEATABLE READ transaction, and follow from there.';

-- Entries that a cursor has not passed, by the index on (xid, id): what began after its position,
-- and what was running then. The cost goes with the answer and not with the table: a function's
-- plan does not know its arguments, so it is told to walk the index, and JIT would take longer to
-- compile that plan than it takes to run.
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
    where (cursor_row).window_end is null
       or o.id > (cursor_row).last_processed_id
       or not pg_visible_in_snapshot(o.xid, (cursor_row).window_end);
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
            where pg_visible_in_snapshot(e.xid, seen))
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

create function _private.has_passed(cursor_row _private.cursors, entry_id bigint, entry_xid xid8)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pg_visible_in_snapshot(entry_xid, (cursor_row).position)
        or ((cursor_row).window_end is not null and entry_id <= (cursor_row).last_processed_id
            and pg_visible_in_snapshot(entry_xid, (cursor_row).window_end));
$$;
comment on function _private.has_passed(_private.cursors, bigint, xid8) is
    'Whether an entry has an outcome at this cursor.';

create function _private.is_done(entry_id bigint, entry_xid xid8) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(bool_and(_private.has_passed(c, entry_id, entry_xid)), true)
    from _private.cursors c;
$$;
comment on function _private.is_done(bigint, xid8) is
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
    execute format('select max(created_at), max(xid), sum(event_count) from only %s', segment)
    into newest, newest_xid, events;
    if newest >= cutoff then
        return 0;
    end if;
    -- Row by row only for a cursor that does not lie beyond the segment as a whole.
    for behind in
        select c.* from _private.cursors c where newest_xid >= pg_snapshot_xmin(c.position)
    loop
        execute format(
            -- Between windows $2 and $3 are null, and an aggregate would skip what is unknown.
            'select bool_and(pg_visible_in_snapshot(xid, $1) or coalesce(id <= $3 and pg_visible_in_snapshot(xid, $2), false)) from only %s',
            segment)
        into done using behind.position, behind.window_end, behind.last_processed_id;
        if done is not true then
            return 0;
        end if;
    end loop;
    execute format('truncate only %s', segment);
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
    events bigint;
    pruned bigint := 0;
begin
    if older_than < interval '0' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'older_than must not be negative',
            hint = 'As in outbox.prune(''24 hours''), or leave it out to take pg_outbox.retention.';
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
                'with gone as (delete from only %s where created_at < $1 and _private.is_done(id, xid) returning event_count) select coalesce(sum(event_count), 0) from gone',
                segment_table)
            into events using cutoff;
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
