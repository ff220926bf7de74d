-- What is kept, and who writes it.
--
--   event_types   names of events         attach, create_event_type      read by everyone
--   sources       attached tables         attach, detach                 read by relay and views
--   outbox        entries (runs)          capture, at commit             read by the relay, pruned
--    └ outbox_0 … outbox_15               the ring of segments
--   sinks         destinations            set_sink, pause, …             read by the relay
--   secrets       tokens                  set_secret                     read by the relay
--   cursors       positions of sinks      the relay                      read by views and prune
--   retries       events to be sent again the relay, redrive, replay     read by the relay
--   outbox_dlq    dead letters            the relay                      redrive, discard
--   replays       replays under way       replay, the relay              read by the relay
--   deliveries    requests, for trace     the relay                      read by trace, pruned
--
-- Everything but secrets and deliveries travels with a dump.

create sequence _private.event_type_ids as smallint;
create table _private.event_types (
    type_id smallint primary key default pg_catalog.nextval('_private.event_type_ids'),
    event_type text not null unique
        check (event_type ~ '^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$' and length(event_type) <= 128),
    entity text not null generated always as (split_part(event_type, '.', 1)) stored,
    description text,
    created_at timestamptz not null default now()
);
alter sequence _private.event_type_ids owned by _private.event_types.type_id;
comment on sequence _private.event_type_ids is 'Ids of event types.';
comment on table _private.event_types is
    'The closed set of event types. A table and not an enum: an enum of an extension loses the values that users add when a dump is restored.';
comment on column _private.event_types.type_id is 'What entries hold in place of the name.';
comment on column _private.event_types.event_type is 'Name, <entity>.<verb>.';
comment on column _private.event_types.entity is 'The part before the first dot.';
comment on column _private.event_types.description is 'In the user''s words; null when none was given.';
comment on column _private.event_types.created_at is 'When the type was first registered.';

create sequence _private.source_ids as integer;
create table _private.sources (
    source_id integer primary key default pg_catalog.nextval('_private.source_ids'),
    relation regclass not null,
    entity text not null,
    topic text not null,
    org_column name not null,
    key_columns name[] not null,
    watch name[],
    events text[] not null,
    include name[] not null,
    key_names text[] not null,
    created_type smallint references _private.event_types,
    updated_type smallint references _private.event_types,
    deleted_type smallint references _private.event_types,
    attached_by name not null,
    attached_at timestamptz not null default now(),
    detached_at timestamptz
);
alter sequence _private.source_ids owned by _private.sources.source_id;
-- One live source for a table; earlier ones stay, so that their events can still be read.
create unique index sources_live on _private.sources (relation) where detached_at is null;
comment on sequence _private.source_ids is 'Ids of sources.';
comment on table _private.sources is
    'Attached tables. A row never changes its meaning: attaching with other options detaches it and adds another.';
comment on column _private.sources.source_id is 'What entries and triggers hold.';
comment on column _private.sources.relation is 'The table, a partitioned root or a parent of inheritance included.';
comment on column _private.sources.entity is 'What a row is to consumers, such as job.';
comment on column _private.sources.topic is 'Product area, for consumers to filter on.';
comment on column _private.sources.org_column is 'Column that holds the organisation, named as it was when attached.';
comment on column _private.sources.key_columns is 'Columns that identify a row, named as they were when attached.';
comment on column _private.sources.watch is 'Columns whose change is an event; null means all.';
comment on column _private.sources.events is 'Which of insert, update and delete are captured.';
comment on column _private.sources.include is 'Columns whose values travel in data.';
comment on column _private.sources.key_names is 'Names of the keys on the wire.';
comment on column _private.sources.created_type is 'Event type of an insert; null when inserts are not captured.';
comment on column _private.sources.updated_type is 'Event type of an update; null when updates are not captured.';
comment on column _private.sources.deleted_type is 'Event type of a delete; null when deletes are not captured.';
comment on column _private.sources.attached_by is 'Role that attached the table.';
comment on column _private.sources.attached_at is 'When it was attached.';
comment on column _private.sources.detached_at is 'When it was detached or replaced; null while it is live.';

-- Drawn when an entry is written, under the row locks of its transaction: the order of events.
-- The cache must stay 1, or two sessions would draw out of order.
create sequence _private.entry_ids as bigint cache 1;
comment on sequence _private.entry_ids is 'Ids of entries: the order of events.';

-- Columns from wide to narrow, so that none is padded. Capture writes this layout by hand and
-- checks it first: src/pg/heap.rs.
create table _private.outbox (
    id bigint not null,
    xid xid8 not null,
    created_at timestamptz not null,
    event_id uuid not null,
    source_id integer,
    event_count integer not null,
    type_id smallint not null,
    home smallint not null,
    version smallint,
    org_id text not null,
    ids json not null,
    data json,
    origin text,
    topic text
);
comment on table _private.outbox is
    'Entries: each a run of events of one transaction, organisation and type. Empty itself; the rows are in its ring of segments. Read outbox.events instead.';
comment on column _private.outbox.id is 'Order of entries, drawn at the commit under the row locks.';
comment on column _private.outbox.xid is 'Transaction (top level) that wrote the entry.';
comment on column _private.outbox.created_at is 'Clock when the entry was written, just before its commit.';
comment on column _private.outbox.event_id is 'UUIDv7 of the first event; the n-th has this number plus n.';
comment on column _private.outbox.source_id is 'Source of the events; null when they were emitted by hand.';
comment on column _private.outbox.event_count is 'Number of events in the run.';
comment on column _private.outbox.type_id is 'Event type.';
comment on column _private.outbox.home is 'Mark of the database whose transactions xid counts: _private.home_mark().';
comment on column _private.outbox.version is 'Version of an emitted event; null means 1.';
comment on column _private.outbox.org_id is 'Organisation, as text.';
comment on column _private.outbox.ids is 'One element for each event: its key, an array of a composite key, or an object when emitted.';
comment on column _private.outbox.data is 'Values of the included columns, parallel to ids; null without any.';
comment on column _private.outbox.origin is 'Who caused the change, as the writer said it; null when it said nothing.';
comment on column _private.outbox.topic is 'Topic of emitted events; null means the topic of the source.';

-- A ring in place of declarative partitions: dropping a partition locks the parent, and a missing
-- one fails the writer. A writer takes floor(clock / (retention / 12)) mod 16, so twelve segments
-- hold the retention, one is being filled, and the rest is slack for pruning.
do $$
begin
    for segment in 0..15 loop
        execute format('create table _private.outbox_%s () inherits (_private.outbox)', segment);
        execute format('create index outbox_%s_xid_id on _private.outbox_%1$s (xid, id)', segment);
        execute format('comment on table _private.outbox_%s is %L', segment,
                       'A segment of the ring of _private.outbox.');
        perform pg_catalog.pg_extension_config_dump(format('_private.outbox_%s', segment), '');
    end loop;
end
$$;

create table _private.sinks (
    sink text primary key check (sink ~ '^[a-z][a-z0-9_-]{0,62}$'),
    kind text not null,
    options jsonb not null,
    enabled boolean not null default true,
    paused boolean not null default false,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
comment on table _private.sinks is 'Destinations. Change them with set_sink, pause and their like, which wake the relay.';
comment on column _private.sinks.sink is 'Name.';
comment on column _private.sinks.kind is 'What it is: realtime.';
comment on column _private.sinks.options is 'Options as they were given; select * from outbox.sink_options lists them.';
comment on column _private.sinks.enabled is 'A disabled sink gets nothing, and its cursor still holds pruning back.';
comment on column _private.sinks.paused is 'A paused sink waits with its cursor where it is.';
comment on column _private.sinks.created_at is 'When it was first set.';
comment on column _private.sinks.updated_at is 'When it last changed.';

create table _private.secrets (
    name text primary key check (length(name) between 1 and 128),
    value text not null check (value <> ''),
    updated_at timestamptz not null default now()
);
comment on table _private.secrets is 'Tokens and signing secrets. Read by the relay alone, and never dumped.';
comment on column _private.secrets.name is 'What a sink''s options call it by.';
comment on column _private.secrets.value is 'The secret.';
comment on column _private.secrets.updated_at is 'When it was last set.';

create table _private.cursors (
    sink text not null references _private.sinks on delete cascade,
    shard smallint not null default 0,
    position pg_snapshot not null,
    window_end pg_snapshot,
    last_processed_id bigint,
    system_identifier bigint not null,
    database oid not null,
    outbox oid not null,
    since_id bigint not null default pg_catalog.nextval('_private.entry_ids'),
    updated_at timestamptz not null default now(),
    primary key (sink, shard),
    check ((window_end is null) = (last_processed_id is null))
) with (fillfactor = 50);
comment on table _private.cursors is 'How far each sink has come. A snapshot and not a number, so that a transaction that commits late is never skipped.';
comment on column _private.cursors.sink is 'The sink.';
comment on column _private.cursors.shard is 'Share of the organisations; 0 while there is one.';
comment on column _private.cursors.position is 'Every entry that this snapshot sees has an outcome.';
comment on column _private.cursors.window_end is 'End of the window that is being worked on; null between windows.';
comment on column _private.cursors.last_processed_id is 'Entries of the window up to this id have an outcome, too.';
comment on column _private.cursors.system_identifier is 'Home of the cursor, whose transactions the position speaks of: its cluster.';
comment on column _private.cursors.database is 'Its database.';
comment on column _private.cursors.outbox is 'Its _private.outbox, which is another one after the extension was created anew.';
comment on column _private.cursors.since_id is 'Last id before the cursor was at home there. Entries of a third home were passed up to here; later ones were captured in a copy on the way.';
comment on column _private.cursors.updated_at is 'When it last moved.';

-- An event here is whole: it needs neither its entry, which may be pruned, nor its source. The
-- same columns in both tables, so that a dead letter becomes a retry again as it is.
create table _private.retries (
    sink text not null references _private.sinks on delete cascade,
    event_id uuid not null,
    entry_id bigint not null,
    event_type text not null,
    topic text not null,
    version smallint not null,
    org_id text not null,
    ids json not null,
    data json,
    origin text,
    created_at timestamptz not null,
    attempts integer not null default 0,
    redrives integer not null default 0,
    first_failed_at timestamptz,
    last_failed_at timestamptz,
    error_kind text,
    error text,
    status smallint,
    next_attempt_at timestamptz not null default clock_timestamp(),
    primary key (sink, event_id)
);
create index retries_due on _private.retries (sink, next_attempt_at, entry_id);
comment on table _private.retries is
    'Events that are sent again, each to one sink: refused ones, redriven dead letters, replayed ones. A row goes when its event has arrived or is a dead letter.';
comment on column _private.retries.sink is 'The sink.';
comment on column _private.retries.event_id is 'The event, the same in every delivery.';
comment on column _private.retries.entry_id is 'Entry that held it: the order of events.';
comment on column _private.retries.event_type is 'Name, <entity>.<verb>.';
comment on column _private.retries.topic is 'Product area.';
comment on column _private.retries.version is 'Version of the event type.';
comment on column _private.retries.org_id is 'Organisation.';
comment on column _private.retries.ids is 'Keys of the row, as on the wire.';
comment on column _private.retries.data is 'Values of the included columns; null without any.';
comment on column _private.retries.origin is 'Who caused the change; null when the writer did not say.';
comment on column _private.retries.created_at is 'Clock just before the commit.';
comment on column _private.retries.attempts is 'Refusals since the event was last redriven; 0 for one that was not refused.';
comment on column _private.retries.redrives is 'How often it was a dead letter that was sent back.';
comment on column _private.retries.first_failed_at is 'First refusal; null when there was none.';
comment on column _private.retries.last_failed_at is 'Last refusal; null when there was none.';
comment on column _private.retries.error_kind is 'Kind of the last refusal, a word for programs.';
comment on column _private.retries.error is 'What the operator should know of it.';
comment on column _private.retries.status is 'HTTP status of the last refusal; null when there was no answer.';
comment on column _private.retries.next_attempt_at is 'When it is due.';

-- No reference to the sink: a dead letter stays when its sink is dropped.
create table _private.outbox_dlq (
    sink text not null,
    event_id uuid not null,
    entry_id bigint not null,
    event_type text not null,
    topic text not null,
    version smallint not null,
    org_id text not null,
    ids json not null,
    data json,
    origin text,
    created_at timestamptz not null,
    attempts integer not null,
    redrives integer not null,
    first_failed_at timestamptz not null,
    last_failed_at timestamptz not null,
    error_kind text not null,
    error text not null,
    status smallint,
    primary key (sink, event_id)
);
create index outbox_dlq_order on _private.outbox_dlq (created_at, event_id);
comment on table _private.outbox_dlq is
    'Dead letters: events that a sink refused until no retries were left. They stay until they are redriven or discarded.';
comment on column _private.outbox_dlq.sink is 'Sink that refused it.';
comment on column _private.outbox_dlq.event_id is 'The event, the same in every delivery.';
comment on column _private.outbox_dlq.entry_id is 'Entry that held it: the order of events.';
comment on column _private.outbox_dlq.event_type is 'Name, <entity>.<verb>.';
comment on column _private.outbox_dlq.topic is 'Product area.';
comment on column _private.outbox_dlq.version is 'Version of the event type.';
comment on column _private.outbox_dlq.org_id is 'Organisation.';
comment on column _private.outbox_dlq.ids is 'Keys of the row, as on the wire.';
comment on column _private.outbox_dlq.data is 'Values of the included columns; null without any.';
comment on column _private.outbox_dlq.origin is 'Who caused the change; null when the writer did not say.';
comment on column _private.outbox_dlq.created_at is 'Clock just before the commit.';
comment on column _private.outbox_dlq.attempts is 'Refusals since it was last redriven.';
comment on column _private.outbox_dlq.redrives is 'How often it was redriven before.';
comment on column _private.outbox_dlq.first_failed_at is 'First refusal.';
comment on column _private.outbox_dlq.last_failed_at is 'Last refusal, which made it a dead letter.';
comment on column _private.outbox_dlq.error_kind is 'Kind of the last refusal, a word for programs.';
comment on column _private.outbox_dlq.error is 'What the operator should know of it.';
comment on column _private.outbox_dlq.status is 'HTTP status of the last refusal; null when there was no answer.';

create sequence _private.replay_ids as bigint;
create table _private.replays (
    replay_id bigint not null,
    sink text not null references _private.sinks on delete cascade,
    since timestamptz not null,
    until timestamptz not null,
    org_id text,
    topic text,
    event_type text,
    after_xid xid8 not null default '0',
    after_id bigint not null default 0,
    event_count bigint not null default 0,
    requested_by name not null,
    requested_at timestamptz not null default now(),
    done_at timestamptz,
    primary key (replay_id, sink)
);
create index replays_under_way on _private.replays (sink, replay_id) where done_at is null;
alter sequence _private.replay_ids owned by _private.replays.replay_id;
comment on sequence _private.replay_ids is 'Ids of replays.';
comment on table _private.replays is
    'Past events that are sent again. The relay takes them page by page, beside what is new.';
comment on column _private.replays.replay_id is 'Id that replay returned; one row for each sink.';
comment on column _private.replays.sink is 'The sink.';
comment on column _private.replays.since is 'Events from here on.';
comment on column _private.replays.until is 'Events before this.';
comment on column _private.replays.org_id is 'Of this organisation; null means of all.';
comment on column _private.replays.topic is 'Of this topic; null means of all.';
comment on column _private.replays.event_type is 'Of this type; null means of all.';
comment on column _private.replays.after_xid is 'Transaction of the last entry that was looked at.';
comment on column _private.replays.after_id is 'The last entry that was looked at.';
comment on column _private.replays.event_count is 'Events taken so far.';
comment on column _private.replays.requested_by is 'Role that asked for it.';
comment on column _private.replays.requested_at is 'When.';
comment on column _private.replays.done_at is 'When the last of its events was taken; null before.';

create table _private.deliveries (
    sink text not null,
    sent_at timestamptz not null,
    answered_at timestamptz not null,
    outcome text not null,
    error_kind text,
    status smallint,
    messages json not null
);
create index deliveries_answered_at on _private.deliveries (answered_at);
comment on table _private.deliveries is
    'Requests to sinks, for outbox.trace: one row each, kept as long as events.';
comment on column _private.deliveries.sink is 'The sink.';
comment on column _private.deliveries.sent_at is 'When the request was begun.';
comment on column _private.deliveries.answered_at is 'When its outcome was known.';
comment on column _private.deliveries.outcome is 'delivered, refused or unknown.';
comment on column _private.deliveries.error_kind is 'Kind of the failure; null when it was delivered.';
comment on column _private.deliveries.status is 'HTTP status of the failure; null without.';
comment on column _private.deliveries.messages is
    'For each message an array: organisation, first and last entry, number of events, and for events that were sent again their ids.';

select pg_catalog.pg_extension_config_dump('_private.event_types', '');
select pg_catalog.pg_extension_config_dump('_private.event_type_ids', '');
select pg_catalog.pg_extension_config_dump('_private.sources', '');
select pg_catalog.pg_extension_config_dump('_private.source_ids', '');
select pg_catalog.pg_extension_config_dump('_private.entry_ids', '');
select pg_catalog.pg_extension_config_dump('_private.sinks', '');
select pg_catalog.pg_extension_config_dump('_private.cursors', '');
select pg_catalog.pg_extension_config_dump('_private.retries', '');
select pg_catalog.pg_extension_config_dump('_private.outbox_dlq', '');
select pg_catalog.pg_extension_config_dump('_private.replays', '');
select pg_catalog.pg_extension_config_dump('_private.replay_ids', '');
