-- What Realtime finds or makes in the database of a project: the roles, the schema `realtime` with
-- the partitioned table that policies are written on, the functions that send from SQL, and, where
-- the schema `auth` is missing, the two functions of it that policies call.
--
-- Applied once, to a database that has no realtime.messages; see database.mjs.

do $$
declare
    r text;
    needed text[] := array['anon', 'authenticated', 'service_role', 'supabase_realtime_admin'];
begin
    foreach r in array needed loop
        if not exists (select from pg_catalog.pg_roles where rolname = r) then
            execute pg_catalog.format('create role %I nologin noinherit', r);
        end if;
    end loop;
    -- Row level security is not for the server's own key.
    if not (select rolbypassrls from pg_catalog.pg_roles where rolname = 'service_role') then
        alter role service_role bypassrls;
    end if;
end
$$;

create schema if not exists realtime;
grant usage on schema realtime to anon, authenticated, service_role;
grant all on schema realtime to supabase_realtime_admin;

create table realtime.messages (
    topic text not null,
    extension text not null,
    payload jsonb,
    event text,
    private boolean default false,
    updated_at timestamp not null default pg_catalog.timezone('utc', pg_catalog.now()),
    -- The start of the transaction: replay knows no order among the rows of one.
    inserted_at timestamp not null default pg_catalog.timezone('utc', pg_catalog.now()),
    id uuid not null default pg_catalog.gen_random_uuid(),
    binary_payload bytea,
    primary key (id, inserted_at),
    constraint messages_one_payload check (payload is null or binary_payload is null)
) partition by range (inserted_at);

create index messages_inserted_at_topic_index on realtime.messages (inserted_at desc, topic)
    where extension = 'broadcast' and private;

alter table realtime.messages enable row level security;
alter table realtime.messages owner to supabase_realtime_admin;
grant select, insert, update on realtime.messages to anon, authenticated, service_role;

create function realtime.topic() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select nullif(current_setting('realtime.topic', true), '')::text;
$$;

-- Sending never fails the caller's transaction: whatever goes wrong is a warning.
create function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    message_id uuid := gen_random_uuid();
    content jsonb := send.payload;
begin
    if not content ? 'id' then
        content := content || jsonb_build_object('id', message_id);
    end if;
    perform set_config('realtime.topic', send.topic, true);
    insert into realtime.messages (id, payload, event, topic, private, extension)
    values (message_id, content, send.event, send.topic, send.private, 'broadcast');
exception when others then
    raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end
$$;

create function realtime.send_binary(
    payload bytea, event text, topic text, private boolean default true
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform set_config('realtime.topic', send_binary.topic, true);
    insert into realtime.messages (binary_payload, event, topic, private, extension)
    values (
        send_binary.payload, send_binary.event, send_binary.topic, send_binary.private, 'broadcast'
    );
exception when others then
    raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end
$$;

create function realtime.broadcast_changes(
    topic_name text, event_name text, operation text, table_name text, table_schema text,
    new record, old record, level text default 'ROW'
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if level = 'STATEMENT' then
        raise exception 'function can only be triggered for each row, not for each statement';
    end if;
    if operation not in ('INSERT', 'UPDATE', 'DELETE') then
        raise exception 'invalid operation %', operation;
    end if;
    perform realtime.send(
        jsonb_build_object(
            'old_record', case when operation <> 'INSERT' then to_jsonb(old) end,
            'record', case when operation <> 'DELETE' then to_jsonb(new) end,
            'operation', operation,
            'table', table_name,
            'schema', table_schema
        ),
        event_name,
        topic_name
    );
end
$$;

do $$
begin
    if pg_catalog.to_regnamespace('auth') is not null then
        return;
    end if;
    create schema auth;
    grant usage on schema auth to anon, authenticated, service_role;

    create function auth.jwt() returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $body$
        select coalesce(
            nullif(current_setting('request.jwt.claim', true), ''),
            nullif(current_setting('request.jwt.claims', true), '')
        )::jsonb;
    $body$;

    create function auth.uid() returns uuid
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $body$
        select coalesce(
            nullif(current_setting('request.jwt.claim.sub', true), ''),
            nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
        )::uuid;
    $body$;

    create function auth.role() returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $body$
        select coalesce(
            nullif(current_setting('request.jwt.claim.role', true), ''),
            nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
        );
    $body$;
end
$$;
