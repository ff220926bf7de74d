-- Nobody but the owner may do anything until somebody is granted it. This file is the last: it
-- finds every function and table above it.
do $$
declare
    routine regprocedure;
    object regclass;
begin
    for routine in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace in ('outbox'::regnamespace, '_private'::regnamespace)
    loop
        execute format('revoke all on routine %s from public', routine);
    end loop;
    for object in
        select c.oid from pg_catalog.pg_class c
        where c.relnamespace in ('outbox'::regnamespace, '_private'::regnamespace)
          and c.relkind in ('r', 'v', 'S')
    loop
        execute format('revoke all on %s %s from public',
                       case when (select relkind from pg_catalog.pg_class where oid = object) = 'S'
                            then 'sequence' else 'table' end, object);
    end loop;
end
$$;

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
