-- What an operator looks at. Names and counts only: no secret, no column value.

create function _private.nth_event_id(event_id uuid, n integer) returns uuid
language c immutable strict parallel safe as 'MODULE_PATHNAME', 'nth_event_id_wrapper';
comment on function _private.nth_event_id(uuid, integer) is
    'Id of the n-th event, from 0, of the entry whose first event has this id.';

create function _private.named_ids(key json, key_names text[]) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when key_names is null then key::jsonb
        when cardinality(key_names) = 1 then jsonb_build_object(key_names[1], key)
        else (select jsonb_object_agg(k.name, key -> (k.place - 1)::integer)
              from unnest(key_names) with ordinality as k (name, place))
    end;
$$;
comment on function _private.named_ids(json, text[]) is
    'The ids of an event as they stand on the wire.';

create function _private.sink_states(entry _private.outbox, place integer)
returns table (sink text, state text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select
        c.sink,
        case
            when not _private.has_passed(c, (entry).id, (entry).xid, (entry).home) then 'pending'
            when exists (
                select from _private.outbox_dlq q
                where q.sink = c.sink
                  and q.event_id = _private.nth_event_id((entry).event_id, place)) then 'dead'
            when exists (
                select from _private.retries r
                where r.sink = c.sink
                  and r.event_id = _private.nth_event_id((entry).event_id, place)) then 'retrying'
            else 'delivered'
        end
    from _private.cursors c;
$$;
comment on function _private.sink_states(_private.outbox, integer) is
    'State of the n-th event of an entry, from 0, at each sink.';

create view outbox.events as
select
    _private.nth_event_id(o.event_id, (e.place - 1)::integer) as event_id,
    t.event_type,
    coalesce(o.topic, s.topic) as topic,
    o.org_id,
    _private.named_ids(e.key, s.key_names) as ids,
    (o.data -> (e.place - 1)::integer)::jsonb as data,
    o.origin,
    coalesce(o.version, 1::smallint) as version,
    o.created_at,
    case
        when d.states is null then 'stored'
        when 'dead' = any (d.states) then 'dead'
        when 'pending' = any (d.states) then 'pending'
        when 'retrying' = any (d.states) then 'retrying'
        else 'delivered'
    end as state,
    d.sinks,
    o.id as entry_id,
    (e.place - 1)::integer as place
from _private.outbox o
join _private.event_types t on t.type_id = o.type_id
left join _private.sources s on s.source_id = o.source_id
cross join lateral json_array_elements(o.ids) with ordinality as e (key, place)
cross join lateral (
    select array_agg(c.state) as states, jsonb_object_agg(c.sink, c.state) as sinks
    from _private.sink_states(o, (e.place - 1)::integer) c
) d;
comment on view outbox.events is
    'Retained events, one row each; order by entry_id, place gives the order of each organisation.';
comment on column outbox.events.event_id is 'Globally unique, the same in every delivery.';
comment on column outbox.events.event_type is 'Name, <entity>.<verb>.';
comment on column outbox.events.topic is 'Product area.';
comment on column outbox.events.org_id is 'Organisation.';
comment on column outbox.events.ids is 'Keys of the row, as on the wire.';
comment on column outbox.events.data is 'Values of the included columns; null without any.';
comment on column outbox.events.origin is 'Who caused the change; null when the writer did not say.';
comment on column outbox.events.version is 'Version of an emitted event, else 1.';
comment on column outbox.events.created_at is 'Clock just before the commit.';
comment on column outbox.events.state is 'delivered: at every sink; pending: some sink has not passed it; retrying: it is being sent again; dead: a dead letter at some sink; stored: there is no sink.';
comment on column outbox.events.sinks is 'The state at each sink; null when there is none.';
comment on column outbox.events.entry_id is 'Entry that holds the event.';
comment on column outbox.events.place is 'Place in the entry, from 0.';

create function _private.relay_status() returns table (
    sink text,
    shard smallint,
    state text,
    in_flight integer,
    attempts integer,
    last_error text,
    last_error_at timestamptz,
    retry_at timestamptz,
    started_at timestamptz,
    events_delivered bigint,
    events_collapsed bigint,
    refreshes bigint,
    messages bigint,
    requests bigint,
    failures bigint,
    refused bigint,
    dead_letters bigint,
    bytes_sent bigint,
    event_rate double precision
)
language c as 'MODULE_PATHNAME', 'relay_status_wrapper';
comment on function _private.relay_status() is
    'What the relay of this database says of its sinks, from shared memory; no rows when none runs.';

create view outbox.status as
select
    c.sink,
    c.shard,
    s.kind,
    case
        when not s.enabled or not current_setting('pg_outbox.enabled')::boolean then 'disabled'
        when s.paused then 'paused'
        else coalesce(r.state, 'not running')
    end as state,
    l.lag_events,
    l.lag_ms,
    l.oldest_unsent_at,
    coalesce(r.in_flight, 0) as in_flight,
    coalesce(r.event_rate, 0) as rate,
    r.last_error,
    r.last_error_at,
    coalesce(r.attempts, 0) as attempts,
    r.retry_at,
    (select count(*) from _private.retries t where t.sink = c.sink) as retries,
    (select count(*) from _private.outbox_dlq d where d.sink = c.sink) as dead_letters,
    _private.encode_position(c.position::text) as cursor,
    c.updated_at as cursor_at
from _private.cursors c
join _private.sinks s on s.sink = c.sink
left join _private.relay_status() r on r.sink = c.sink and r.shard = c.shard
cross join lateral (
    select
        coalesce(sum(e.event_count), 0)::bigint as lag_events,
        (1000 * extract(epoch from clock_timestamp() - min(e.created_at)))::double precision
            as lag_ms,
        min(e.created_at) as oldest_unsent_at
    from _private.entries_after(c) e
) l;
comment on view outbox.status is 'How each sink is doing: one row for each sink and shard.';
comment on column outbox.status.sink is 'Name of the sink.';
comment on column outbox.status.shard is 'Share of the organisations; 0 while there is one.';
comment on column outbox.status.kind is 'Kind of the sink.';
comment on column outbox.status.state is 'running; waiting: the sink failed and is tried again at retry_at; paused; disabled, or pg_outbox.enabled is off; not running: this database has no relay, see outbox.check().';
comment on column outbox.status.lag_events is 'Committed events without an outcome.';
comment on column outbox.status.lag_ms is 'Age of the oldest of them in milliseconds; null when there is none.';
comment on column outbox.status.oldest_unsent_at is 'When the oldest of them was written; null when there is none.';
comment on column outbox.status.in_flight is 'Requests on their way.';
comment on column outbox.status.rate is 'Events a second that were delivered of late.';
comment on column outbox.status.last_error is 'What went wrong last and what to do; null when nothing has since the start of the relay.';
comment on column outbox.status.last_error_at is 'When that was.';
comment on column outbox.status.attempts is 'Failed attempts since the last success.';
comment on column outbox.status.retry_at is 'Time of the next try; null when none is waited for.';
comment on column outbox.status.retries is 'Events that are to be sent again.';
comment on column outbox.status.dead_letters is 'Events that it refused for good: see outbox.dead_letters.';
comment on column outbox.status.cursor is 'Position as the opaque text that messages carry.';
comment on column outbox.status.cursor_at is 'When the cursor last moved.';

create function _private.source_counts() returns table (
    source_id integer, null_orgs bigint, truncates bigint
)
language c as 'MODULE_PATHNAME', 'source_counts_wrapper';
comment on function _private.source_counts() is
    'What capture has counted for the sources of this database since the server started, from shared memory; no rows without preload.';

create function _private.is_preloaded() returns boolean
language c stable as 'MODULE_PATHNAME', 'is_preloaded_wrapper';
comment on function _private.is_preloaded() is 'Whether the library was loaded at the server''s start.';

create view outbox.sources as
select
    s.source_id,
    s.relation as source,
    s.entity,
    s.topic,
    s.org_column,
    s.key_columns,
    s.watch,
    s.events,
    s.include,
    array_remove(array[c.event_type, u.event_type, d.event_type], null) as event_types,
    not exists (select from _private.uncaptured_relations(s)) as captured,
    case when p.is_preloaded then coalesce(n.null_orgs, 0) end as null_orgs,
    case when p.is_preloaded then coalesce(n.truncates, 0) end as truncates,
    s.attached_by,
    s.attached_at
from _private.sources s
left join _private.event_types c on c.type_id = s.created_type
left join _private.event_types u on u.type_id = s.updated_type
left join _private.event_types d on d.type_id = s.deleted_type
left join _private.source_counts() n on n.source_id = s.source_id
cross join (select _private.is_preloaded()) as p (is_preloaded)
where s.detached_at is null;
comment on view outbox.sources is 'Attached tables.';
comment on column outbox.sources.source_id is 'Id that attach returned.';
comment on column outbox.sources.source is 'The table; a bare number when it was dropped.';
comment on column outbox.sources.entity is 'What a row is to consumers.';
comment on column outbox.sources.topic is 'Product area.';
comment on column outbox.sources.org_column is 'Column of the organisation, named as it was when attached.';
comment on column outbox.sources.key_columns is 'Columns that identify a row.';
comment on column outbox.sources.watch is 'Columns whose change is an event; null means all.';
comment on column outbox.sources.events is 'Which of insert, update and delete are captured.';
comment on column outbox.sources.include is 'Columns whose values travel in data.';
comment on column outbox.sources.event_types is 'Event types that it makes.';
comment on column outbox.sources.captured is 'False when a trigger is missing or disabled, or the table is gone: see outbox.check().';
comment on column outbox.sources.null_orgs is 'Changes without an organisation, which made no event, since the server started; null without preload.';
comment on column outbox.sources.truncates is 'TRUNCATEs, which make no events, since the server started; null without preload.';
comment on column outbox.sources.attached_by is 'Role that attached it.';
comment on column outbox.sources.attached_at is 'When it was attached.';

create view outbox.dead_letters as
select d.sink, d.event_id, d.event_type, d.topic, d.org_id, d.ids::jsonb as ids, d.origin,
       d.version, d.created_at, d.error_kind, d.error, d.status, d.attempts, d.redrives,
       d.first_failed_at, d.last_failed_at
from _private.outbox_dlq d;
comment on view outbox.dead_letters is
    'Events that a sink refused until no retries were left: see outbox.redrive and outbox.discard.';
comment on column outbox.dead_letters.sink is 'Sink that refused it.';
comment on column outbox.dead_letters.event_id is 'The event, the same in every delivery.';
comment on column outbox.dead_letters.event_type is 'Name, <entity>.<verb>.';
comment on column outbox.dead_letters.topic is 'Product area.';
comment on column outbox.dead_letters.org_id is 'Organisation.';
comment on column outbox.dead_letters.ids is 'Keys of the row, as on the wire.';
comment on column outbox.dead_letters.origin is 'Who caused the change; null when the writer did not say.';
comment on column outbox.dead_letters.version is 'Version of the event type.';
comment on column outbox.dead_letters.created_at is 'When the event happened.';
comment on column outbox.dead_letters.error_kind is 'Kind of the last refusal, a word for programs.';
comment on column outbox.dead_letters.error is 'What went wrong and what to do.';
comment on column outbox.dead_letters.status is 'HTTP status of the last refusal; null when there was no answer.';
comment on column outbox.dead_letters.attempts is 'Refusals since it was last redriven.';
comment on column outbox.dead_letters.redrives is 'How often it was redriven before.';
comment on column outbox.dead_letters.first_failed_at is 'First refusal.';
comment on column outbox.dead_letters.last_failed_at is 'Last refusal, which made it a dead letter.';

create view outbox.replays as
select r.replay_id, r.sink, r.since, r.until, r.org_id, r.topic, r.event_type, r.event_count,
       r.requested_by, r.requested_at, r.done_at
from _private.replays r;
comment on view outbox.replays is 'Replays under way, and those done within the retention.';
comment on column outbox.replays.replay_id is 'Id that outbox.replay returned; one row for each sink.';
comment on column outbox.replays.sink is 'The sink.';
comment on column outbox.replays.since is 'Events from here on.';
comment on column outbox.replays.until is 'Events before this.';
comment on column outbox.replays.org_id is 'Of this organisation; null means of all.';
comment on column outbox.replays.topic is 'Of this topic; null means of all.';
comment on column outbox.replays.event_type is 'Of this type; null means of all.';
comment on column outbox.replays.event_count is 'Events taken so far.';
comment on column outbox.replays.requested_by is 'Role that asked for it.';
comment on column outbox.replays.requested_at is 'When.';
comment on column outbox.replays.done_at is 'When the last of its events was taken to be sent; null before.';

create view outbox.event_types as
select t.event_type, t.entity, t.description, t.created_at
from _private.event_types t;
comment on view outbox.event_types is 'The registered event types.';
comment on column outbox.event_types.event_type is 'Name, <entity>.<verb>.';
comment on column outbox.event_types.entity is 'The part before the first dot.';
comment on column outbox.event_types.description is 'In the user''s words; null when none was given.';
comment on column outbox.event_types.created_at is 'When it was first registered.';

create view outbox.sink_options as
select o.option, o.type, o.default_value, o.description
from _private.sink_options() o;
comment on view outbox.sink_options is 'The options that outbox.set_sink knows.';
comment on column outbox.sink_options.option is 'Name of the option.';
comment on column outbox.sink_options.type is 'JSON type of its value.';
comment on column outbox.sink_options.default_value is 'What it is when left out; null when it must be given or has none.';
comment on column outbox.sink_options.description is 'What it does, with its unit and bounds.';

create view outbox.metrics as
select m.name, jsonb_build_object('sink', s.sink, 'shard', s.shard) as labels, m.value
from outbox.status s
left join _private.relay_status() r on r.sink = s.sink and r.shard = s.shard
cross join lateral (values
    ('pg_outbox_lag_events', s.lag_events::double precision),
    ('pg_outbox_lag_seconds', coalesce(s.lag_ms, 0) / 1000),
    ('pg_outbox_up', (s.state = 'running')::integer::double precision),
    ('pg_outbox_requests_in_flight', s.in_flight::double precision),
    ('pg_outbox_events_delivered_total', r.events_delivered::double precision),
    ('pg_outbox_events_collapsed_total', r.events_collapsed::double precision),
    ('pg_outbox_refreshes_total', r.refreshes::double precision),
    ('pg_outbox_messages_total', r.messages::double precision),
    ('pg_outbox_requests_total', r.requests::double precision),
    ('pg_outbox_failures_total', r.failures::double precision),
    ('pg_outbox_refused_events_total', r.refused::double precision),
    ('pg_outbox_dead_letters_total', r.dead_letters::double precision),
    ('pg_outbox_retries', s.retries::double precision),
    ('pg_outbox_dead_letters', s.dead_letters::double precision),
    ('pg_outbox_sent_bytes_total', r.bytes_sent::double precision)
) as m (name, value)
where m.value is not null
union all
select m.name, jsonb_build_object('source', s.source::text), m.value
from outbox.sources s
cross join lateral (values
    ('pg_outbox_null_org_changes_total', s.null_orgs::double precision),
    ('pg_outbox_truncates_total', s.truncates::double precision)
) as m (name, value)
where m.value is not null;
comment on view outbox.metrics is
    'Numbers for an exporter, named after Prometheus'' conventions. Totals begin at the start of the relay or the server.';
comment on column outbox.metrics.name is 'Name of the metric, its unit last.';
comment on column outbox.metrics.labels is 'What it is of.';
comment on column outbox.metrics.value is 'The value now.';
