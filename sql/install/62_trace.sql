-- One event's way, put together from where its traces lie anyway: the outbox, the journal of
-- requests, the retries, the dead letters. Nothing is written for it on the way but one row a
-- request.

-- The entry that holds an event. A UUIDv7 begins with its milliseconds, and an entry is written
-- no earlier than the ids of its events are made; an emitted event waits for its commit.
create function _private.entry_of(event_id uuid) returns setof _private.outbox
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select o.*
    from _private.outbox o
    where o.event_id <= entry_of.event_id
      and _private.nth_event_id(o.event_id, o.event_count - 1) >= entry_of.event_id;
$$;
comment on function _private.entry_of(uuid) is
    'The entry that holds an event; no row when it was pruned or never was. Reads the outbox.';

create function _private.trace_captured(event_id uuid)
returns table (at timestamptz, sink text, step text, detail text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select o.created_at, null::text, 'captured',
           format('%s of organisation %s, entry %s, transaction %s%s', t.event_type, o.org_id, o.id,
                  o.xid, case when o.source_id is null then ', emitted' else '' end)
    from _private.entry_of(trace_captured.event_id) o
    join _private.event_types t on t.type_id = o.type_id;
$$;
comment on function _private.trace_captured(uuid) is 'The capture of an event.';

-- Why an event that has an outcome at a sink may not stand in its message by itself.
create function _private.message_place(
    entry _private.outbox, event_id uuid, first_id bigint, last_id bigint, sink text
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    newer uuid;
    older bigint;
    events_max bigint;
begin
    with events as (
        select _private.nth_event_id(o.event_id, (k.place - 1)::integer) as event_id, o.id, k.place,
               row(o.type_id, o.source_id, o.topic, o.version, o.origin, k.key::text) as identity
        from _private.outbox o
        cross join lateral json_array_elements(o.ids) with ordinality as k (key, place)
        where o.org_id = (entry).org_id and o.id between first_id and last_id
    )
    select n.event_id into newer
    from events e
    join events n on n.identity = e.identity and (n.id, n.place) > (e.id, e.place)
    where e.event_id = message_place.event_id
    order by n.id desc, n.place desc
    limit 1;
    if newer is not null then
        return format('; it was collapsed into %s, a newer event of the same kind and ids', newer);
    end if;
    -- Collapsed ones among them are counted too, so this may say so of one that is listed.
    select coalesce(sum(o.event_count), 0) into older
    from _private.outbox o
    where o.org_id = (entry).org_id and o.id between first_id and (entry).id;
    select coalesce((s.options ->> 'message_events_max')::bigint, o.default_value::bigint)
    into events_max
    from _private.sinks s, _private.sink_options() o
    where s.sink = message_place.sink and o.option = 'message_events_max';
    if older > events_max then
        return format(
            '; a message lists %s events, a refresh of the entity stands for the rest', events_max);
    end if;
    return '';
end
$$;
comment on function _private.message_place(_private.outbox, uuid, bigint, bigint, text) is
    'What became of an event inside its message: nothing, which newer event stands for it, or that a refresh does.';

create function _private.trace_sent(event_id uuid)
returns table (at timestamptz, sink text, step text, detail text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The milliseconds at the head of the id: no request was answered before.
    with born as (
        select to_timestamp(
            ('x' || left(replace(trace_sent.event_id::text, '-', ''), 12))::bit(48)::bigint
            / 1000.0) - interval '1 second' as at
    ),
    sent as (
        select d.*, m.message, m.message -> 4 as again
        from _private.deliveries d
        cross join born b
        cross join lateral json_array_elements(d.messages) as m (message)
        where d.answered_at >= b.at
    ),
    hits as (
        select s.*, o as entry
        from sent s
        left join _private.entry_of(trace_sent.event_id) o on true
        where case
            when s.again is not null
            then exists (
                select from json_array_elements_text(s.again) i (id)
                where i.id = trace_sent.event_id::text)
            else o.org_id = s.message ->> 0
                 and o.id between (s.message ->> 1)::bigint and (s.message ->> 2)::bigint
        end
    )
    select h.sent_at, h.sink, case when h.again is null then 'sent' else 'sent again' end,
           format('in a message of %s events, one of %s in the request%s', h.message ->> 3,
                  json_array_length(h.messages),
                  case when h.again is null and h.outcome = 'delivered'
                       then _private.message_place(h.entry, trace_sent.event_id,
                                                   (h.message ->> 1)::bigint,
                                                   (h.message ->> 2)::bigint, h.sink)
                       else '' end)
    from hits h
    union all
    select h.answered_at, h.sink, h.outcome,
           case when h.outcome = 'delivered' then 'the sink has taken the request'
                else format('the whole request: %s%s', h.error_kind,
                            coalesce(format(' (HTTP %s)', h.status), '')) end
    from hits h;
$$;
comment on function _private.trace_sent(uuid) is 'The requests that carried an event.';

create function _private.trace_now(event_id uuid)
returns table (at timestamptz, sink text, step text, detail text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select r.last_failed_at, r.sink, 'retrying',
           format('attempt %s was refused: %s; next attempt at %s', r.attempts, r.error,
                  r.next_attempt_at)
    from _private.retries r
    where r.event_id = trace_now.event_id and r.attempts > 0
    union all
    select r.next_attempt_at, r.sink, 'to be sent again',
           case when r.redrives > 0 then 'it was redriven' else 'a replay takes it' end
    from _private.retries r
    where r.event_id = trace_now.event_id and r.attempts = 0
    union all
    select d.last_failed_at, d.sink, 'dead',
           format('refused %s times since %s: %s', d.attempts, d.first_failed_at, d.error)
    from _private.outbox_dlq d
    where d.event_id = trace_now.event_id
    union all
    select clock_timestamp(), s.sink, 'waiting',
           case s.state
               when 'running' then format('%s events are before it or with it', s.lag_events)
               when 'waiting'
               then format('the sink fails, next try at %s: %s', s.retry_at, s.last_error)
               when 'paused' then 'the sink is paused: outbox.resume() lets it go on'
               when 'disabled' then 'the sink is disabled: outbox.enable_sink lets it go on'
               else 'no relay runs in this database: select * from outbox.check()'
           end
    from _private.entry_of(trace_now.event_id) o
    cross join _private.cursors c
    join outbox.status s on s.sink = c.sink and s.shard = c.shard
    where not _private.has_passed(c, o.id, o.xid, o.home)
    union all
    select clock_timestamp(), null, 'stored', 'there is no sink: outbox.set_sink makes one'
    where exists (select from _private.entry_of(trace_now.event_id))
      and not exists (select from _private.sinks);
$$;
comment on function _private.trace_now(uuid) is 'What an event is waiting for, or how it ended.';

create function outbox.trace(event_id uuid)
returns table (at timestamptz, sink text, step text, detail text)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    if event_id is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'event_id must not be null',
            hint = 'outbox.events lists recent events.';
    end if;
    return query
    select t.at, t.sink, t.step, t.detail
    from (
        select 1 as place, c.* from _private.trace_captured(trace.event_id) c
        union all
        select 2, s.* from _private.trace_sent(trace.event_id) s
        union all
        select 3, n.* from _private.trace_now(trace.event_id) n
    ) t
    order by t.at, t.place;
    if not found then
        return query
        select null::timestamptz, null::text, 'unknown'::text,
               'no event with this id is retained: it was pruned, its transaction was rolled back, or it never was; select * from outbox.check() says what keeps a source from making events'::text;
    end if;
end
$$;
comment on function outbox.trace(uuid) is
    'One event''s way, oldest step first: captured, sent, its answer, retrying, dead, sent again, and what it waits for now. sink is null where a step is about none. Reads the retained outbox: some seconds when it holds millions of entries.';
