-- Nobody but the owner may do anything until somebody is granted it. This file is the last: it
-- finds every function and table above it, and leaves alone what a schema that was there before
-- holds of others.
do $$
declare
    routine regprocedure;
    object regclass;
begin
    for routine in
        select d.objid
        from pg_catalog.pg_depend d
        join pg_catalog.pg_extension e on e.oid = d.refobjid
        where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
          and d.classid = 'pg_proc'::regclass and e.extname = 'pg_outbox'
    loop
        execute format('revoke all on routine %s from public', routine);
    end loop;
    for object in
        select d.objid
        from pg_catalog.pg_depend d
        join pg_catalog.pg_extension e on e.oid = d.refobjid
        where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
          and d.classid = 'pg_class'::regclass and e.extname = 'pg_outbox'
    loop
        execute format('revoke all on %s %s from public',
                       case when (select relkind from pg_catalog.pg_class where oid = object) = 'S'
                            then 'sequence' else 'table' end, object);
    end loop;
end
$$;

-- Who may see everything else of a server may see how we are: names, counts, errors and times, but
-- no event and no id of a row. The functions are those that the views call.
grant usage on schema outbox to pg_monitor;
grant select on outbox.status, outbox.sources, outbox.metrics, outbox.replays, outbox.event_types,
    outbox.sink_options to pg_monitor;
grant execute on function
    outbox.check(), _private.relay_status(), _private.source_counts(), _private.is_preloaded(),
    _private.entries_after(_private.cursors), _private.uncaptured_relations(_private.sources),
    _private.encode_position(text, text, bigint),
    _private.sink_options()
to pg_monitor;

-- The relay of this database starts when the transaction commits.
select outbox.wake();

do $$
begin
    if not _private.is_preloaded() then
        raise warning using
            message = 'pg_outbox is not preloaded: changes are captured, nothing is sent',
            hint = 'Add pg_outbox to shared_preload_libraries in postgresql.conf and restart the server.';
    end if;
end
$$;
