-- The doctor: each usual mistake, and how to mend it.

create function _private.relay_pid() returns integer
language c stable as 'MODULE_PATHNAME', 'relay_pid_wrapper';
comment on function _private.relay_pid() is 'Process of the relay of this database; null when there is none.';

create function _private.check_sink(kind text, options text, secret text) returns table (
    name text, ok boolean, detail text, hint text
)
language c as 'MODULE_PATHNAME', 'check_sink_wrapper';
comment on function _private.check_sink(text, text, text) is
    'Looks at a sink''s token and asks the sink whether it would take what is sent. Waits for the network, at most as long as the sink''s timeout_ms.';

create function _private.check_server() returns table (
    name text, ok boolean, detail text, hint text
)
language sql
set search_path = pg_catalog, pg_temp
as $$
    select 'preload', p.ok,
           case when p.ok then 'the library was loaded at the server''s start'
                else 'the library is not preloaded: changes are captured, nothing is sent' end,
           case when not p.ok
                then 'Add pg_outbox to shared_preload_libraries in postgresql.conf and restart the server.' end
    from (select _private.is_preloaded()) p (ok)
    union all
    select 'relay', p.pid is not null,
           case when p.pid is not null then format('process %s', p.pid)
                else 'no relay runs for this database' end,
           case when p.pid is not null then null
                when not _private.is_preloaded() then 'See preload.'
                else 'See the server''s log; pg_outbox.databases must name this database, and max_worker_processes must leave a worker. Then select outbox.wake().' end
    from (select _private.relay_pid()) p (pid)
    union all
    select 'enabled', e.ok, case when e.ok then 'on' else 'pg_outbox.enabled is off' end,
           case when not e.ok then 'alter system set pg_outbox.enabled = on; select pg_reload_conf().' end
    from (select current_setting('pg_outbox.enabled')::boolean) e (ok)
    union all
    select 'home', h.ok,
           case when h.ok then 'the cursors are of this database'
                else 'this database is a copy of another one, and sends nothing' end,
           case when not h.ok
                then 'select outbox.resume() to send from here what was unsent when it was copied and all since; outbox.drop_sink and set_sink to send only what comes.' end
    from (select _private.is_at_home()) h (ok);
$$;
comment on function _private.check_server() is 'What outbox.check() says of the server and the relay.';

create function _private.check_sinks() returns table (
    name text, ok boolean, detail text, hint text
)
language sql
set search_path = pg_catalog, pg_temp
as $$
    select 'sinks', exists (select from _private.sinks where enabled),
           format('%s enabled', (select count(*) from _private.sinks where enabled)),
           case when not exists (select from _private.sinks where enabled)
                then 'Nothing is sent until there is one: outbox.set_sink, or outbox.enable_sink.' end
    union all
    select format('sink %s: %s', s.sink, c.name), c.ok, c.detail, c.hint
    from _private.sinks s
    left join _private.secrets k
      on k.name = coalesce(s.options ->> 'secret', s.options ->> 'jwt_secret')
    cross join lateral _private.check_sink(s.kind, s.options::text, k.value) c
    where s.enabled
    union all
    select format('sink %s: delivery', s.sink),
           s.state = 'running' and (s.lag_ms is null or s.lag_ms < 60000),
           format('%s, %s events wait', s.state, s.lag_events) || coalesce(': ' || s.last_error, ''),
           case when s.state = 'paused' then format('select outbox.resume(%L).', s.sink)
                when s.state = 'disabled'
                then format('It holds pruning back: outbox.enable_sink(%L), or outbox.drop_sink(%1$L).', s.sink)
                when not _private.is_at_home() then 'See home.'
                when s.state = 'waiting' then format('The next try is at %s.', s.retry_at)
                when s.state = 'not running' then 'See relay.'
                when s.lag_ms >= 60000 then 'It holds pruning back; see its rate in outbox.status and the sink''s own log.' end
    from outbox.status s;
$$;
comment on function _private.check_sinks() is 'What outbox.check() says of the sinks.';

create function _private.null_org_exists(source _private.sources) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    found_null boolean;
begin
    -- A sample: on a table of any size the doctor takes a moment, not a scan.
    execute format('select exists (select from (select %I as org from %s limit 10000) s where s.org is null)',
                   source.org_column, source.relation)
    into found_null;
    return found_null;
exception
    when undefined_column or undefined_table then
        return false;
end
$$;
comment on function _private.null_org_exists(_private.sources) is
    'Whether a sample of a source''s rows has one without an organisation.';

create function _private.check_sources() returns table (
    name text, ok boolean, detail text, hint text
)
language sql
set search_path = pg_catalog, pg_temp
as $$
    select 'sources', exists (select from outbox.sources),
           format('%s attached', (select count(*) from outbox.sources)),
           case when not exists (select from outbox.sources)
                then 'Attach a table: select outbox.attach(''cataloging_jobs'').' end
    union all
    select format('source %s: capture', s.source), s.captured,
           case when s.captured then array_to_string(s.event_types, ', ')
                when not exists (select from pg_class where oid = s.source) then 'the table is gone'
                else 'a trigger is missing or disabled on ' || (
                    select string_agg(u.relation::text, ', ')
                    from _private.uncaptured_relations(r) as u (relation)) end,
           case when s.captured then null
                when not exists (select from pg_class where oid = s.source)
                then format('select outbox.detach(%s).', s.source::oid)
                else format('alter table … enable trigger outbox_capture; or attach it again: select outbox.attach(%L, …).', s.source) end
    from outbox.sources s
    join _private.sources r on r.source_id = s.source_id
    union all
    select format('source %s: organisations', s.source), n.ok,
           case when n.ok then 'every change had one'
                else format('changes of rows without %I make no events; %s so far', s.org_column, coalesce(s.null_orgs::text, 'not counted')) end,
           case when not n.ok then format('Fill %I, and make it not null.', s.org_column) end
    from outbox.sources s
    join _private.sources r on r.source_id = s.source_id
    cross join lateral (
        select coalesce(s.null_orgs, 0) = 0 and not _private.null_org_exists(r)) n (ok)
    where s.captured
    union all
    select format('source %s: truncates', s.source), false,
           format('%s since the server started, which made no events', s.truncates),
           'Use DELETE where clients should be told, or emit an event of your own.'
    from outbox.sources s
    where s.truncates > 0;
$$;
comment on function _private.check_sources() is 'What outbox.check() says of the attached tables.';

create function outbox.check() returns table (name text, ok boolean, detail text, hint text)
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select * from _private.check_server()
    union all
    select * from _private.check_sinks()
    union all
    select * from _private.check_sources()
    union all
    select * from _private.check_policies();
$$;
comment on function outbox.check() is
    'A doctor: one row for each thing that must be right, and for what is wrong the way to mend it; ok is null where it could not be tried, and detail says why. Asks each sink over the network, and tries on realtime.messages what people may do, which is undone.';
