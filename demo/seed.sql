-- Two organisations, their people, and enough jobs in the first to change 10,000 of them at once.
-- The same rows every time: the ids are digests of names and numbers. Names are sample data.

insert into public.organisations (id, name) values
    ('10000000-0000-4000-8000-000000000001', 'City Library'),
    ('20000000-0000-4000-8000-000000000002', 'University Archive');

insert into public.people (id, name)
select md5('person ' || name)::uuid, name
from unnest('{Amara,Bo,Chidi,Dana,Elif,Farid}'::text[]) as name;

insert into public.memberships (org_id, person_id, duty)
select o.id, p.id, m.duty
from (values
    ('City Library', 'Amara', 'Head of cataloguing'),
    ('City Library', 'Bo', 'Cataloguer'),
    ('City Library', 'Chidi', 'Cataloguer, maps'),
    ('University Archive', 'Dana', 'Archivist'),
    ('University Archive', 'Elif', 'Archivist, photographs'),
    ('University Archive', 'Farid', 'Archive assistant')
) as m (organisation, person, duty)
join public.organisations o on o.name = m.organisation
join public.people p on p.name = m.person;

insert into public.cataloging_jobs (
    id, org_id, number, title, status, assignee, progress, updated_at
)
select
    md5(format('job %s %s', o.name, n))::uuid,
    o.id,
    n,
    format('%s %s, %s', m.kinds[1 + h % 8], m.subjects[1 + h / 8 % 16], 1780 + h / 128 % 190),
    s.status,
    team.people[1 + h / 4096 % array_length(team.people, 1)],
    case s.status
        when 'queued' then 0
        when 'in_progress' then 10 + h % 60
        when 'in_review' then 90
        else 100
    end,
    now() - make_interval(mins => h % 40000)
from public.organisations o
cross join (select
    '{Letters,Map,Diary,Photographs,Minute book,Account book,Pamphlet,Oral history}'::text[],
    array['of the harbour office', 'of a lighthouse keeper', 'of the bakers'' guild',
          'from the river survey', 'of the night school', 'of the tram company',
          'from the botanical garden', 'of a travelling theatre', 'of the weavers'' quarter',
          'from the flood year', 'of the observatory', 'of the fish market', 'of a village choir',
          'from the old town hall', 'of the ferry crews', 'of the seed exchange']
) as m (kinds, subjects)
cross join lateral (
    select array_agg(person_id order by person_id) from public.memberships where org_id = o.id
) as team (people)
cross join lateral generate_series(1, case o.name when 'City Library' then 12000 else 900 end) as n
cross join lateral (
    select ('x' || substr(md5(format('title %s %s', o.name, n)), 1, 7))::bit(28)::integer
) as hash (h)
cross join lateral (
    select ('{queued,queued,queued,in_progress,in_progress,in_review,done,done}'::text[])
           [1 + h / 32 % 8]
) as s (status);

insert into public.flags (org_id, job_id, reason, raised_by, raised_at, resolved)
select j.org_id, j.id, r.reasons[1 + j.number % 5], j.assignee,
       now() - make_interval(mins => 7 * j.number), j.number % 3 = 0
from public.cataloging_jobs j
cross join (select array[
    'Title differs from the spine', 'Date is uncertain', 'Two items in one folder',
    'Author is missing', 'Shelf mark is taken'
]) as r (reasons)
where j.number % 2 = 1 and j.number <= 40
order by j.org_id, j.number desc;

analyze public.cataloging_jobs, public.flags;
