-- Realtime in one call: the sink, its secret, and who may listen.
--
-- What it makes beside the sink follows from the table of setups, as a whole: each change of the
-- table drops the policies and makes them anew, and gives or takes back grants. So a setup that is
-- replaced or dropped leaves nothing behind, and two of them do not shut each other's members out.

create table _private.realtime_setups (
    sink text primary key references _private.sinks on delete cascade,
    membership text,
    roles name[] not null
);
comment on table _private.realtime_setups is
    'What outbox.setup_realtime was told beside the sink.';
comment on column _private.realtime_setups.sink is 'The sink.';
comment on column _private.realtime_setups.membership is
    'The function that says whether the caller belongs to an organisation, as schema.name(type): a name outlives dump and restore, and pg_upgrade refuses columns of type regprocedure. Null when none was named.';
comment on column _private.realtime_setups.roles is
    'Roles whose members may listen and catch up; none without a membership function.';
select pg_catalog.pg_extension_config_dump('_private.realtime_setups', '');

create table _private.realtime_grants (
    grantee name not null,
    privilege text not null,
    primary key (grantee, privilege)
);
comment on table _private.realtime_grants is
    'Grants that were made for setups and were not there before: these are taken back.';
comment on column _private.realtime_grants.grantee is 'The role.';
comment on column _private.realtime_grants.privilege is 'What was granted, as the statement names it.';
select pg_catalog.pg_extension_config_dump('_private.realtime_grants', '');

create function _private.membership_function(signature text) returns oid
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select p.oid
    from pg_proc p
    where p.oid = to_regprocedure(signature)
      and p.prokind = 'f'
      and not p.proretset
      and p.prorettype = 'boolean'::regtype
      and p.pronargs = 1
      and p.proargtypes[0] in ('text'::regtype, 'uuid'::regtype, 'bigint'::regtype);
$$;
comment on function _private.membership_function(text) is
    'The membership function of this signature; null when there is none (any more) that takes an organisation and returns a boolean.';

-- The organisation must stand in the topic exactly as its type writes it, or 042 would be taken
-- for 42. The casts stand behind the patterns that make them safe: CASE keeps that order.
create function _private.membership_expression(signature text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case p.proargtypes[0]
        when 'text'::regtype then format('%I.%I(%s)', n.nspname, p.proname, o.org)
        when 'uuid'::regtype then format(
            $case$case when %3$s ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then %1$I.%2$I(%3$s::pg_catalog.uuid) else false end$case$,
            n.nspname, p.proname, o.org)
        else format(
            $case$case when %3$s ~ '^(0|-?[1-9][0-9]{0,18})$' then case when %3$s::numeric between -9223372036854775808 and 9223372036854775807 then %1$I.%2$I(%3$s::bigint) else false end else false end$case$,
            n.nspname, p.proname, o.org)
        end
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    cross join (values ('substr(topic, 19)')) as o (org)
    where p.oid = _private.membership_function(signature);
$$;
comment on function _private.membership_expression(text) is
    'SQL that says of a row of realtime.messages whether the caller belongs to the organisation of its topic; never an error. Null when there is no such function.';

-- Channels are told by the topic of the row, which nobody can set but who inserts it, and not by
-- realtime.topic(), a setting of the session. The restrictive policies hold whatever else is
-- allowed on this table.
create function _private.realtime_policies() returns table (policy name, definition text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with setups as (
        select s.sink, s.membership,
               (select string_agg(quote_ident(r.rolname), ', ')
                from pg_roles r where r.rolname = any (s.roles)) as roles,
               -- A function that is gone lets nobody in.
               coalesce(_private.membership_expression(s.membership), 'false') as is_member
        from _private.realtime_setups s
    ), channel (is_ours) as (
        values ('left(topic, 18) = ''notifications:org_''')
    )
    select format('pg_outbox: members receive (%s)', s.sink)::name,
           format('for select to %s using (extension = ''broadcast'' and %s and %s)',
                  s.roles, c.is_ours, s.is_member)
    from setups s, channel c
    where s.membership is not null and s.roles is not null
    union all
    select 'pg_outbox: none but members receive',
           format('as restrictive for select to public using (not %s or extension = ''broadcast'' and (%s))',
                  c.is_ours, string_agg(s.is_member, ' or '))
    from setups s, channel c
    where s.membership is not null
    group by c.is_ours
    union all
    select format('pg_outbox: none but the relay %ss', w.verb),
           format('as restrictive for %s to public %s (not %s)', w.verb, w.clause, c.is_ours)
    from channel c,
         (values ('insert', 'with check'), ('update', 'using'), ('delete', 'using')) as w (verb, clause)
    where exists (select from setups);
$$;
comment on function _private.realtime_policies() is
    'The policies on realtime.messages that the setups call for.';

create function _private.create_policies(messages regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted record;
begin
    for wanted in select * from _private.realtime_policies() loop
        execute format('create policy %I on %s %s', wanted.policy, messages, wanted.definition);
    end loop;
end
$$;
comment on function _private.create_policies(regclass) is
    'Makes the policies that the setups call for on realtime.messages, or on a table like it.';

create function _private.follow_policies() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    messages regclass := to_regclass('realtime.messages');
    old_policy name;
begin
    if messages is null then
        return;
    end if;
    for old_policy in
        select p.polname from pg_policy p
        where p.polrelid = messages and p.polname like 'pg\_outbox: %'
    loop
        execute format('drop policy %I on %s', old_policy, messages);
    end loop;
    perform _private.create_policies(messages);
exception
    when insufficient_privilege then
        raise exception using
            errcode = 'insufficient_privilege',
            message = 'the owner of pg_outbox may not make policies on realtime.messages',
            detail = sqlerrm,
            hint = format('Make %s a member of the role that owns realtime.messages.',
                          quote_ident(current_user));
end
$$;
comment on function _private.follow_policies() is
    'Brings the policies on realtime.messages in line with the setups. Locks that table in ACCESS EXCLUSIVE mode until the end of the transaction. Nothing when it is not in this database.';

create function _private.follow_grants() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    privileges constant text[] := array[
        'usage on schema outbox',
        'execute on function outbox.events_since(text, text, integer)',
        'execute on function outbox.cursor()'
    ];
    change record;
begin
    for change in
        delete from _private.realtime_grants g
        where not exists (
            select from _private.realtime_setups s where g.grantee = any (s.roles))
        returning g.grantee, g.privilege
    loop
        if exists (select from pg_roles where rolname = change.grantee) then
            execute format('revoke %s from %I', change.privilege, change.grantee);
        end if;
    end loop;
    for change in
        select r.rolname as grantee, p.privilege
        from pg_roles r
        cross join unnest(privileges) as p (privilege)
        where exists (select from _private.realtime_setups s where r.rolname = any (s.roles))
          and not case
            when p.privilege like 'usage%' then has_schema_privilege(r.oid, 'outbox', 'usage')
            else has_function_privilege(r.oid, split_part(p.privilege, ' function ', 2), 'execute')
        end
    loop
        execute format('grant %s to %I', change.privilege, change.grantee);
        insert into _private.realtime_grants (grantee, privilege)
        values (change.grantee, change.privilege);
    end loop;
end
$$;
comment on function _private.follow_grants() is
    'Brings the grants on outbox.events_since and outbox.cursor in line with the setups.';

create function _private.follow_setups() returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    select _private.follow_policies()
    where exists (select from _private.realtime_policies())
       or exists (
            select from pg_policy p
            where p.polrelid = to_regclass('realtime.messages') and p.polname like 'pg\_outbox: %');
    select _private.follow_grants();
$$;
comment on function _private.follow_setups() is
    'Brings everything that setup_realtime makes beside the sinks in line with its table.';

create function _private.checked_membership(membership regproc, roles name[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    signature text := membership::oid::regprocedure;
    role name;
begin
    if membership is null then
        return null;
    end if;
    if _private.membership_function(signature) is null then
        raise exception using
            errcode = 'wrong_object_type',
            message = format('%s cannot say who is a member', signature),
            detail = 'It must take the organisation, as text, uuid or bigint, and return a boolean.',
            hint = 'As in create function public.is_org_member(org_id text) returns boolean.';
    end if;
    if coalesce(cardinality(roles), 0) = 0 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'roles must not be null or empty',
            hint = 'Name the roles that your users have in the database, such as authenticated.';
    end if;
    foreach role in array roles loop
        if role is null or not exists (select from pg_roles where rolname = role) then
            raise exception using
                errcode = 'undefined_object',
                message = format('role %s does not exist', coalesce(quote_ident(role), 'null')),
                hint = 'Name the roles that your users have in the database: roles => ''{…}''.';
        end if;
        if (select rolbypassrls or rolsuper from pg_roles where rolname = role) then
            raise exception using
                errcode = 'invalid_parameter_value',
                message = format('row level security does not hold for role %I', role),
                hint = 'Name the roles that your users have in the database, such as authenticated.';
        end if;
        if not has_function_privilege(role, membership, 'execute') then
            raise exception using
                errcode = 'insufficient_privilege',
                message = format('role %I may not execute %s', role, signature),
                detail = 'Realtime asks whether a person is a member in the name of that role.',
                hint = format('grant execute on function %s to %I;', signature, role);
        end if;
    end loop;
    return signature;
end
$$;
comment on function _private.checked_membership(regproc, name[]) is
    'Raises an error that names the mistake when a function cannot decide for these roles; else returns its signature. Null without a function.';

-- The credential as an option of the sink; sets the secret that was given.
create function _private.realtime_credential(
    name text, jwt_secret text, token text, options jsonb
) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    kinds constant text[] := '{secret,key_file,vault_secret,jwt_secret}';
    kept jsonb;
    secret text;
begin
    if (options ?| kinds)::integer + num_nonnulls(jwt_secret, token) > 1 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'more than one credential for the sink',
            hint = 'Give one of jwt_secret, token, and the options secret, key_file and vault_secret.';
    end if;
    if options ?| kinds then
        return '{}';
    end if;
    if token is not null then
        perform outbox.set_secret(name, token);
        return jsonb_build_object('secret', name);
    end if;
    if jwt_secret is not null then
        perform outbox.set_secret(name, jwt_secret);
        return jsonb_build_object('jwt_secret', name);
    end if;
    select jsonb_object_agg(o.key, o.value) into kept
    from _private.sinks s
    cross join lateral jsonb_each(s.options) as o (key, value)
    where s.sink = name and s.kind = 'realtime' and o.key = any (kinds);
    if kept is not null then
        return kept;
    end if;
    select k.value into secret from _private.secrets k where k.name = realtime_credential.name;
    if found then
        -- A JWT begins with a brace, in base64.
        return jsonb_build_object(
            case when secret ~ '^eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.' then 'secret' else 'jwt_secret' end,
            name);
    end if;
    -- Where Supabase keeps it for its own extensions.
    secret := current_setting('app.settings.jwt_secret', true);
    if secret <> '' then
        perform outbox.set_secret(name, secret);
        return jsonb_build_object('jwt_secret', name);
    end if;
    raise exception using
        errcode = 'invalid_authorization_specification',
        message = 'Realtime wants a credential, and there is none',
        detail = format('There is no secret %L, and no setting app.settings.jwt_secret.', name),
        hint = format('Set the project''s JWT secret, or a service_role token, and call again: select outbox.set_secret(%L, ''…'').', name);
end
$$;
comment on function _private.realtime_credential(text, text, text, jsonb) is
    'Where the token of a Realtime sink comes from: what was given, else what the sink has, else the secret of its name, else Supabase''s own setting.';

create function outbox.setup_realtime(
    url text,
    membership regproc default null,
    jwt_secret text default null,
    token text default null,
    name text default 'realtime',
    roles name[] default '{authenticated}',
    options jsonb default '{}'
) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    signature text := _private.checked_membership(membership, roles);
begin
    if name is null or length(name) > 30 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid name of a sink %L', name),
            hint = 'Use at most 30 lower-case letters, digits, dashes and underscores: policies are named after it.';
    end if;
    if options is null or jsonb_typeof(options) <> 'object' or options ? 'url' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'options must be an object, without the url',
            hint = 'As in options => ''{"window_ms": 100}''; select * from outbox.sink_options lists them.';
    end if;
    perform outbox.set_sink(
        name, 'realtime',
        jsonb_build_object('url', url)
        || _private.realtime_credential(name, jwt_secret, token, options) || options);
    insert into _private.realtime_setups (sink, membership, roles)
    values (name, signature, case when signature is null then '{}'
                                  else array(select distinct unnest(roles)) end)
    on conflict on constraint realtime_setups_pkey do update
    set membership = excluded.membership, roles = excluded.roles;
    perform _private.follow_setups();
    if to_regclass('realtime.messages') is null then
        raise notice using
            message = 'the schema realtime is not in this database: the sink is set, its channels are not guarded',
            hint = (select 'Run in the database that has it: ' || string_agg(format('create policy %I on realtime.messages %s;', p.policy, p.definition), ' ')
                    from _private.realtime_policies() p);
    elsif signature is null then
        raise notice using
            message = 'nobody may listen yet: no membership function was named',
            hint = 'Name the function that says whether the caller belongs to an organisation: membership => ''public.is_org_member''.';
    end if;
end
$$;
comment on function outbox.setup_realtime(text, regproc, text, text, text, name[], jsonb) is
    'Sets everything that Realtime needs: the sink, its secret, policies on realtime.messages by which members receive the messages of their organisation and nobody but the relay sends any, and the grants by which they may catch up. Again with others replaces it; outbox.drop_sink undoes it. membership: a function of the organisation, as text, uuid or bigint, that says whether the caller belongs to it. jwt_secret or token: the credential; left out, the one that the sink has, the secret of its name, or Supabase''s setting app.settings.jwt_secret. roles: what your users are in the database. options: more options of the sink. Locks realtime.messages in ACCESS EXCLUSIVE mode until the end of the transaction.';
