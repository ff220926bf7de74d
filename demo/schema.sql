-- A cataloguing application as one might find it: organisations with their people, the jobs that
-- they work on, and flags that they raise on them. Nothing in it knows of pg_outbox.
--
-- It expects what every Supabase database has: the roles anon and authenticated, and auth.uid().

create table public.organisations (
    id uuid primary key,
    name text not null
);
comment on table public.organisations is 'pg_outbox demo';

create table public.people (
    id uuid primary key,
    name text not null
);

create table public.memberships (
    org_id uuid not null references public.organisations,
    person_id uuid not null references public.people,
    duty text not null,
    primary key (person_id, org_id)
);

create table public.cataloging_jobs (
    id uuid primary key default gen_random_uuid(),
    org_id uuid not null references public.organisations,
    number integer not null,
    title text not null,
    status text not null default 'queued'
        check (status in ('queued', 'in_progress', 'in_review', 'done')),
    assignee uuid references public.people,
    progress smallint not null default 0 check (progress between 0 and 100),
    updated_at timestamptz not null default now(),
    unique (org_id, number)
);

create table public.flags (
    id bigint generated always as identity primary key,
    org_id uuid not null references public.organisations,
    job_id uuid not null references public.cataloging_jobs on delete cascade,
    reason text not null check (length(reason) between 1 and 200),
    raised_by uuid references public.people,
    raised_at timestamptz not null default now(),
    resolved boolean not null default false
);
create index on public.flags (job_id) where not resolved;
create index on public.flags (org_id, id);

create function public.advance_job() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.updated_at := now();
    if new.status is distinct from old.status then
        new.progress := case new.status
            when 'queued' then 0
            when 'in_progress' then least(greatest(old.progress, 10), 70)
            when 'in_review' then 90
            else 100
        end;
    end if;
    return new;
end
$$;
create trigger advance_job before update on public.cataloging_jobs
    for each row execute function public.advance_job();

-- Who may see what: each person the rows of the organisations that they belong to.

create function public.member_org_ids() returns setof uuid
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select m.org_id from public.memberships m where m.person_id = auth.uid();
$$;
comment on function public.member_org_ids() is 'The organisations of the signed-in person.';

create function public.is_org_member(org_id text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from public.member_org_ids() as m (id) where m.id::text = is_org_member.org_id
    );
$$;
comment on function public.is_org_member(text) is
    'Whether the signed-in person belongs to the organisation.';

alter table public.organisations enable row level security;
alter table public.people enable row level security;
alter table public.memberships enable row level security;
alter table public.cataloging_jobs enable row level security;
alter table public.flags enable row level security;

create policy members on public.organisations for select to authenticated
    using (id in (select public.member_org_ids()));
create policy members on public.memberships for select to authenticated
    using (org_id in (select public.member_org_ids()));
create policy colleagues on public.people for select to authenticated
    using (id in (select m.person_id from public.memberships m));
create policy members on public.cataloging_jobs for all to authenticated
    using (org_id in (select public.member_org_ids()))
    with check (org_id in (select public.member_org_ids()));
create policy members on public.flags for all to authenticated
    using (org_id in (select public.member_org_ids()))
    with check (org_id in (select public.member_org_ids()));

grant usage on schema public to authenticated;
grant select on public.organisations, public.people, public.memberships to authenticated;
grant select, update (status, assignee, progress) on public.cataloging_jobs to authenticated;
grant select, insert (org_id, job_id, reason, raised_by), update (resolved) on public.flags
    to authenticated;
