-- Takes the demo out of a database that is not its own. The extension stays.

do $$
begin
    if to_regnamespace('outbox') is not null then
        perform outbox.detach(source) from outbox.sources
        where source in (to_regclass('public.cataloging_jobs'), to_regclass('public.flags'));
        perform outbox.drop_sink(sink) from outbox.status where sink = 'realtime';
    end if;
end
$$;

drop table if exists public.flags, public.cataloging_jobs, public.memberships, public.people,
    public.organisations;
drop function if exists public.advance_job, public.is_org_member, public.member_org_ids;
