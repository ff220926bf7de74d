-- The two rooms of the extension. `outbox` is what people call; `_private` is where things are
-- kept, and is named in the control file, so that it exists when this script begins.

-- For all files of the script: whoever may create objects in a schema of the caller's path must
-- not be able to put them in the way. Postgres puts the caller's path back at the end.
set local search_path = pg_catalog, pg_temp;

do $$
begin
    if current_setting('server_encoding') <> 'UTF8' then
        raise exception using
            errcode = 'feature_not_supported',
            message = 'pg_outbox needs a database in UTF8',
            detail = format('This database is in %s.', current_setting('server_encoding')),
            hint = 'Create the database with encoding ''UTF8''.';
    end if;
    -- A schema that somebody else owns could hold objects that shadow ours.
    if not exists (
        select from pg_catalog.pg_namespace
        where nspname = '_private' and pg_catalog.pg_has_role(nspowner, 'USAGE')
    ) then
        raise exception using
            errcode = 'insufficient_privilege',
            message = 'schema _private belongs to somebody else',
            hint = 'Drop or rename the schema, or create the extension as its owner.';
    end if;
end
$$;

create schema outbox;
comment on schema outbox is 'pg_outbox: what you call. See select * from outbox.check().';

revoke all on schema outbox from public;
revoke all on schema _private from public;
