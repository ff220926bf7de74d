-- All that the application needs for live notifications. The address and the token of Realtime
-- come as the settings demo.realtime_url and demo.realtime_token of the session.

create extension if not exists pg_outbox;

select outbox.setup_realtime(
    current_setting('demo.realtime_url'),
    membership => 'public.is_org_member',
    token => current_setting('demo.realtime_token'));

select outbox.attach('public.cataloging_jobs', entity => 'job', topic => 'cataloging',
                     watch => '{status}');
select outbox.attach('public.flags', entity => 'flag', topic => 'cataloging');
