-- All that the application needs for live notifications. The address and the token of Realtime
-- come as the settings demo.realtime_url and demo.realtime_token of the session.

create extension if not exists pg_outbox;

select outbox.set_secret('realtime', current_setting('demo.realtime_token'));
select outbox.set_sink('realtime', 'realtime', jsonb_build_object(
    'url', current_setting('demo.realtime_url'), 'secret', 'realtime'));

select outbox.attach('public.cataloging_jobs', entity => 'job', topic => 'cataloging',
                     watch => '{status}');
select outbox.attach('public.flags', entity => 'flag', topic => 'cataloging');
