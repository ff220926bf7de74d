-- What outbox.check() says of Realtime's table: not only what its policies look like, but what
-- they do, tried as Realtime tries it when somebody joins or sends. Nothing of it stays: each
-- probe is undone.

create function _private.sees_message(role text, message uuid) returns boolean
language c as 'MODULE_PATHNAME', 'sees_message_wrapper';
comment on function _private.sees_message(text, uuid) is
    'Whether a role sees a row of realtime.messages, as the settings of the transaction describe the caller.';

create function _private.send_message(role text, topic text) returns void
language c as 'MODULE_PATHNAME', 'send_message_wrapper';
comment on function _private.send_message(text, text) is
    'Adds a broadcast to realtime.messages in the name of a role, or fails as the role would.';

create function _private.is_member(role text, org_id text) returns boolean
language c as 'MODULE_PATHNAME', 'is_member_wrapper';
comment on function _private.is_member(text, text) is
    'What the membership functions say in the name of a role, as outbox.events_since asks them.';

create function _private.sink_role(kind text, options text, secret text) returns text
language c as 'MODULE_PATHNAME', 'sink_role_wrapper';
comment on function _private.sink_role(text, text, text) is
    'The role in whose name a sink''s token sends; null when the token cannot be read.';

create function _private.probe_channel(
    role name, claims jsonb, topic text,
    out tried boolean, out can_read boolean, out can_write boolean, out trouble text
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    message uuid;
begin
    tried := false;
    insert into realtime.messages (topic, extension)
    values (probe_channel.topic, 'broadcast')
    returning id into message;
    tried := true;
    -- Functions of policies are written for the usual path.
    perform set_config('search_path', s.reset_val, true),
            set_config('realtime.topic', probe_channel.topic, true),
            set_config('request.jwt.claims', claims::text, true),
            set_config('request.jwt.claim.sub', coalesce(claims ->> 'sub', ''), true),
            set_config('request.jwt.claim.role', role::text, true),
            set_config('request.headers', '{}', true)
    from pg_settings s
    where s.name = 'search_path';
    can_read := _private.sees_message(role, message);
    begin
        perform _private.send_message(role, probe_channel.topic);
        can_write := true;
    exception
        when insufficient_privilege then
            can_write := false;
    end;
    -- The variables outlive what is undone.
    raise exception using errcode = 'OUTBX', message = 'undo';
exception
    when sqlstate 'OUTBX' then
        trouble := null;
    when others then
        can_read := null;
        can_write := null;
        trouble := sqlerrm;
end
$$;
comment on function _private.probe_channel(name, jsonb, text) is
    'What a caller with these claims may do on a channel, tried as Realtime tries it, and undone. tried: whether there was a row to look for. trouble: the error that came in the way.';

create function _private.known_orgs(at_most integer) returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    source _private.sources;
    org text;
    found_orgs text[] := '{}';
begin
    for source in
        select s.* from _private.sources s
        where s.detached_at is null and exists (select from pg_class c where c.oid = s.relation)
    loop
        -- A sample: a table of any size costs a moment, and a column that has gone nothing.
        begin
            for org in execute format(
                'select distinct org::text from (select %I as org from %s limit 10000) rows where org is not null limit %s',
                source.org_column, source.relation, at_most)
            loop
                found_orgs := found_orgs || org;
            end loop;
        exception
            when undefined_column or undefined_table or insufficient_privilege then
                continue;
        end;
    end loop;
    return query select distinct f.org from unnest(found_orgs) as f (org) limit at_most;
end
$$;
comment on function _private.known_orgs(integer) is
    'Some organisations that rows of the attached tables have.';

create function _private.policy_texts(messages regclass) returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select concat_ws(' | ', p.polname, p.polcmd, p.polpermissive, p.polroles::regrole[],
                     pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    from pg_policy p
    where p.polrelid = messages and p.polname like 'pg\_outbox: %';
$$;
comment on function _private.policy_texts(regclass) is 'Our policies on a table, whole and comparable.';

create function _private.changed_policies() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted text[];
begin
    -- Made on a table that is undone, so that both have gone through the same deparser and nobody
    -- waits for a lock on Realtime's.
    begin
        create table _private.messages_like_realtime (like realtime.messages);
        perform _private.create_policies('_private.messages_like_realtime');
        wanted := array(select _private.policy_texts('_private.messages_like_realtime'));
        raise exception using errcode = 'OUTBX', message = 'undo';
    exception
        when sqlstate 'OUTBX' then
            null;
    end;
    return query
    with found (policy) as (
        select _private.policy_texts('realtime.messages')
    )
    select distinct split_part(d.policy, ' | ', 1)
    from (
        (select policy from found except select unnest(wanted))
        union all
        (select unnest(wanted) except select policy from found)
    ) d (policy);
end
$$;
comment on function _private.changed_policies() is
    'Policies of ours on realtime.messages that are missing, or not as setup_realtime makes them.';

-- Whoever may check chooses neither whom it acts for nor what it says: of organisations there is
-- no word in its answers.
create function _private.probed_roles() returns setof name
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select r.rolname from pg_roles r
    where not r.rolbypassrls and not r.rolsuper
      and (r.rolname in ('anon', 'authenticated')
           or r.rolname in (select unnest(s.roles) from _private.realtime_setups s));
$$;
comment on function _private.probed_roles() is 'The roles of people, in whose name channels are tried.';

create function _private.check_strangers() returns table (
    name text, ok boolean, detail text, hint text
)
language sql
set search_path = pg_catalog, pg_temp
as $$
    with channels (topic, is_known) as (
        (select 'notifications:org_' || k.org, true from _private.known_orgs(1) as k (org))
        union all
        select 'notifications:org_' || gen_random_uuid(), false
        where not exists (select from _private.known_orgs(1))
    ), probes as materialized (
        select r.role, c.is_known, p.tried, p.can_read, p.can_write, p.trouble
        from _private.probed_roles() as r (role)
        cross join channels c
        cross join lateral _private.probe_channel(
            r.role, jsonb_build_object('sub', gen_random_uuid(), 'role', r.role), c.topic) p
    ), summary as (
        select string_agg(role, ', ') filter (where can_read) as readers,
               string_agg(role, ', ') filter (where can_write) as writers,
               string_agg(role, ', ') as tried_roles,
               min(trouble) filter (where not tried) as untried,
               -- A made-up id may be none of the kind that policies of one's own expect.
               min(trouble) filter (where tried and is_known) as refused
        from probes
    )
    select 'realtime strangers',
           case when readers is not null or refused is not null then false
                when untried is null and tried_roles is not null then true end,
           case when readers is not null then format('%s: a person who is made up may listen to an organisation', readers)
                when refused is not null then format('the policies raise an error: %s', refused)
                when untried is not null then format('could not be tried: %s', untried)
                when tried_roles is null then 'could not be tried: there is no role anon or authenticated'
                else format('%s: a person who is made up may not listen to an organisation', tried_roles) end,
           case when readers is not null then 'Call outbox.setup_realtime with your membership function: its policies hold whatever others allow.'
                when refused is not null then 'Realtime then refuses everybody. Mend the policy; those of outbox.setup_realtime raise none.'
                when untried is not null then 'Realtime makes the partitions of its table when it connects; then check again.'
                when tried_roles is null then 'Call outbox.setup_realtime with the roles of your users.' end
    from summary
    union all
    select 'realtime writers',
           case when writers is not null then false
                when untried is null and refused is null and tried_roles is not null then true end,
           case when writers is not null then format('%s: a person who is made up may write to the channel of an organisation, and so send what looks like our events', writers)
                when untried is not null or refused is not null or tried_roles is null then 'could not be tried'
                else format('%s: a person who is made up may not send to an organisation', tried_roles) end,
           case when writers is not null then 'Call outbox.setup_realtime, or let the check of that policy refuse topics that begin with notifications:org_.'
                when untried is not null or refused is not null or tried_roles is null then 'See realtime strangers.' end
    from summary;
$$;
comment on function _private.check_strangers() is
    'What outbox.check() says of people who belong to no organisation, by trying it.';

create function _private.check_senders() returns table (
    name text, ok boolean, detail text, hint text
)
language sql
set search_path = pg_catalog, pg_temp
as $$
    select format('sink %s: sending', s.sink),
           p.can_write,
           case when r.role is null then 'could not be tried: the token cannot be read'
                when p.can_write is null then format('could not be tried as %s: %s', r.role, p.trouble)
                when p.can_write then format('its role %s may send', r.role)
                else format('its role %s may not send: Realtime answers 202 and drops the message', r.role) end,
           case when r.role is null then 'See the token above.'
                when p.can_write is null then 'See realtime strangers; the owner of pg_outbox must be allowed to act as that role.'
                when not p.can_write then 'Use the service_role key of the project, and let that role bypass row level security.' end
    from _private.sinks s
    left join _private.secrets k
      on k.name = coalesce(s.options ->> 'secret', s.options ->> 'jwt_secret')
    cross join lateral _private.sink_role(s.kind, s.options::text, k.value) as r (role)
    left join lateral _private.probe_channel(
        r.role, jsonb_build_object('role', r.role), 'notifications:org_' || gen_random_uuid()) p
      on r.role is not null
    where s.enabled and s.kind = 'realtime';
$$;
comment on function _private.check_senders() is
    'What outbox.check() says of the roles in whose name the sinks send, by trying it.';

create function _private.check_members() returns table (
    name text, ok boolean, detail text, hint text
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    claims jsonb;
    role name;
    org text;
    probe record;
    looked_at integer := 0;
begin
    name := 'realtime members';
    hint := 'To try it, be somebody: select set_config(''request.jwt.claims'', ''{"sub": "…", "role": "authenticated"}'', false), with the id of a member, and check again.';
    begin
        claims := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
        role := coalesce(claims ->> 'role', 'authenticated');
    exception
        when others then
            claims := null;
    end;
    if claims is null or claims ->> 'sub' is null
       or role not in (select _private.probed_roles()) then
        detail := 'not tried: nobody is signed in, and who is a member only your function knows';
        return next;
        return;
    end if;
    for org in select k.org from _private.known_orgs(100) as k (org) order by k.org loop
        looked_at := looked_at + 1;
        begin
            continue when not _private.is_member(role, org);
        exception
            when others then
                ok := false;
                detail := format('the membership function raises an error: %s', sqlerrm);
                hint := 'It must return true or false for every organisation.';
                return next;
                return;
        end;
        select * into probe
        from _private.probe_channel(role, claims, 'notifications:org_' || org);
        ok := probe.can_read and not probe.can_write;
        detail := case
            when probe.trouble is not null then format('could not be tried: %s', probe.trouble)
            when probe.can_write then 'a member may send to the channel of the organisation'
            when probe.can_read then 'the person signed in may listen to an organisation of theirs, and not send'
            else 'the person signed in is a member of an organisation, and may not listen' end;
        hint := case when not ok then 'Call outbox.setup_realtime again.' end;
        return next;
        return;
    end loop;
    detail := format('not tried: the person signed in is a member of none of %s organisations in the attached tables', looked_at);
    return next;
end
$$;
comment on function _private.check_members() is
    'What outbox.check() says of the person signed in, as request.jwt.claims names them.';

create function _private.check_policies() returns table (
    name text, ok boolean, detail text, hint text
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regclass('realtime.messages') is null
       or not exists (select from _private.sinks where kind = 'realtime') then
        return;
    end if;
    return query
    select 'realtime policies', p.is_secured and p.can_read and p.gone is null and p.changed is null,
           case when not p.is_secured then 'row level security is off on realtime.messages: every channel is open'
                when p.gone is not null then format('the membership function %s is gone, or is another', p.gone)
                when p.changed is not null then format('missing or changed: %s', p.changed)
                when not p.can_read then 'nobody may join a private channel: there is no policy for select on realtime.messages'
                else 'there are policies by which members may listen' end,
           case when not p.is_secured then 'alter table realtime.messages enable row level security.'
                when p.gone is not null or p.changed is not null then 'Call outbox.setup_realtime again, with the membership function.'
                when not p.can_read then 'Call outbox.setup_realtime with your membership function.' end
    from (
        select c.relrowsecurity,
               exists (select from pg_policy y
                       where y.polrelid = c.oid and y.polcmd in ('r', '*') and y.polpermissive),
               (select min(s.membership) from _private.realtime_setups s
                where s.membership is not null
                  and _private.membership_function(s.membership) is null),
               (select string_agg(d.policy, ', ') from _private.changed_policies() as d (policy))
        from pg_class c
        where c.oid = to_regclass('realtime.messages')
    ) p (is_secured, can_read, gone, changed)
    union all
    select * from _private.check_strangers()
    union all
    select * from _private.check_senders()
    union all
    select * from _private.check_members();
end
$$;
comment on function _private.check_policies() is
    'What outbox.check() says of who may listen and send; no rows when Realtime has another database.';
