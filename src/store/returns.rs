//! Events that are sent again, and the journal, between the plan and their tables.
//!
//! An event there is whole: its keys are named as on the wire, so nothing that may be pruned,
//! renamed or detached meanwhile is needed to send it. Rows travel to the database as one JSON
//! text for each table.

use super::{EPOCH_OFFSET_US, Failure};
use crate::envelope;
use crate::event::{Entry, EntryId, EventId, EventKind, EventType};
use crate::json;
use crate::pg::query::{self, Row, Statement};
use crate::pg::tx::Durability;
use crate::relay::journal::Line;
use crate::relay::returns::{Fate, Page, Return};
use crate::relay::time::{Duration, Time};
use crate::sink::{self, Outcome};
use std::sync::Arc;

/// Replays that are looked at for one page before it is left at what it has: a replay of which
/// nothing matches must not keep the relay from what is new.
const REPLAY_STEPS_MAX: usize = 4;

/// Due rows by the index on (sink, next_attempt_at, entry_id). A row that would be due much later
/// than any wait of ours was written by a clock that has been set back since.
static DUE: Statement = Statement::new(
    c"select r.event_id, r.entry_id, r.org_id, r.event_type, r.topic, r.version, r.ids, r.data,
             r.origin, r.created_at, r.attempts
      from _private.retries r
      where r.sink = $1
        and (r.next_attempt_at <= pg_catalog.clock_timestamp()
             or r.next_attempt_at > pg_catalog.clock_timestamp() + interval '10 minutes')
      order by r.next_attempt_at, r.entry_id
      limit $2::pg_catalog.int4",
    2,
);

/// Milliseconds until the next row is due; no row when there is none.
static NEXT: Statement = Statement::new(
    c"select greatest(0, pg_catalog.ceil(1000 * extract(epoch from
          pg_catalog.min(r.next_attempt_at) - pg_catalog.clock_timestamp())))::pg_catalog.int8
      from _private.retries r
      where r.sink = $1
      having pg_catalog.min(r.next_attempt_at) is not null",
    1,
);

static HELD: Statement = Statement::new(
    c"select r.org_id, r.event_id from _private.retries r where r.sink = $1 and r.attempts > 0",
    1,
);

static TAKE_REPLAYED: Statement =
    Statement::new(c"select _private.take_replayed($1, $2::pg_catalog.int4)", 2);

/// Locks the rows of the events.
static ARRIVED: Statement = Statement::new(
    c"delete from _private.retries r
      where r.sink = $1 and r.event_id = any ($2::pg_catalog.uuid[])",
    2,
);

/// An event whose record was lost with the answer is refused again as if it were new, so the
/// attempts of what is there already count.
static RETRY: Statement = Statement::new(
    c"insert into _private.retries as r (
          sink, event_id, entry_id, event_type, topic, version, org_id, ids, data, origin,
          created_at, attempts, first_failed_at, last_failed_at, error_kind, error, status,
          next_attempt_at)
      select $1, f.event_id, f.entry_id, f.event_type, f.topic, f.version, f.org_id, f.ids, f.data,
             f.origin, f.created_at, f.attempts, pg_catalog.clock_timestamp(),
             pg_catalog.clock_timestamp(), f.error_kind, f.error, f.status,
             pg_catalog.clock_timestamp() + f.wait_ms * interval '1 ms'
      from pg_catalog.json_to_recordset($2::pg_catalog.json) as f (
          event_id pg_catalog.uuid, entry_id pg_catalog.int8, event_type pg_catalog.text,
          topic pg_catalog.text, version pg_catalog.int2, org_id pg_catalog.text,
          ids pg_catalog.json, data pg_catalog.json, origin pg_catalog.text,
          created_at pg_catalog.timestamptz, attempts pg_catalog.int4,
          error_kind pg_catalog.text, error pg_catalog.text, status pg_catalog.int2,
          wait_ms pg_catalog.int8)
      on conflict on constraint retries_pkey do update
      set attempts = greatest(r.attempts, excluded.attempts),
          first_failed_at = coalesce(r.first_failed_at, excluded.first_failed_at),
          last_failed_at = excluded.last_failed_at, error_kind = excluded.error_kind,
          error = excluded.error, status = excluded.status,
          next_attempt_at = excluded.next_attempt_at",
    2,
);

static DEAD: Statement = Statement::new(
    c"with f as (
          select * from pg_catalog.json_to_recordset($2::pg_catalog.json) as f (
              event_id pg_catalog.uuid, entry_id pg_catalog.int8, event_type pg_catalog.text,
              topic pg_catalog.text, version pg_catalog.int2, org_id pg_catalog.text,
              ids pg_catalog.json, data pg_catalog.json, origin pg_catalog.text,
              created_at pg_catalog.timestamptz, attempts pg_catalog.int4,
              error_kind pg_catalog.text, error pg_catalog.text, status pg_catalog.int2)
      ),
      gone as (
          delete from _private.retries r using f
          where r.sink = $1 and r.event_id = f.event_id
          returning r.event_id, r.first_failed_at, r.redrives
      )
      insert into _private.outbox_dlq as d (
          sink, event_id, entry_id, event_type, topic, version, org_id, ids, data, origin,
          created_at, attempts, redrives, first_failed_at, last_failed_at, error_kind, error,
          status)
      select $1, f.event_id, f.entry_id, f.event_type, f.topic, f.version, f.org_id, f.ids, f.data,
             f.origin, f.created_at, f.attempts, coalesce(g.redrives, 0),
             coalesce(g.first_failed_at, pg_catalog.clock_timestamp()),
             pg_catalog.clock_timestamp(), f.error_kind, f.error, f.status
      from f left join gone g on g.event_id = f.event_id
      on conflict on constraint outbox_dlq_pkey do update
      set attempts = excluded.attempts, last_failed_at = excluded.last_failed_at,
          error_kind = excluded.error_kind, error = excluded.error, status = excluded.status",
    2,
);

static JOURNAL: Statement = Statement::new(
    c"insert into _private.deliveries
          (sink, sent_at, answered_at, outcome, error_kind, status, messages)
      select $1, pg_catalog.clock_timestamp() - l.sent_ms * interval '1 ms',
             pg_catalog.clock_timestamp() - l.answered_ms * interval '1 ms', l.outcome,
             l.error_kind, l.status, l.messages
      from pg_catalog.json_to_recordset($2::pg_catalog.json) as l (
          sent_ms pg_catalog.int8, answered_ms pg_catalog.int8, outcome pg_catalog.text,
          error_kind pg_catalog.text, status pg_catalog.int2, messages pg_catalog.json)",
    2,
);

/// How much one look may bring.
#[derive(Clone, Copy)]
pub struct PageBounds {
    pub events_max: usize,
    /// In memory; one event is brought whatever it takes.
    pub bytes_max: usize,
}

/// Takes events that are due to be sent again, oldest first.
///
/// # Errors
/// What the database said.
pub fn look(sink: &str, bounds: PageBounds, with_held: bool) -> Result<Page, Failure> {
    let limit = bounds.events_max.to_string();
    super::transaction(Durability::Asynchronous, || {
        query::session(|| {
            let mut page = Page::default();
            // Rows that a replay has just brought are seen by the next statement, which therefore
            // takes a snapshot of its own.
            for _ in 0..REPLAY_STEPS_MAX {
                let mut looked_at = 0;
                TAKE_REPLAYED.run(&[Some(sink), Some(&limit)], |row| {
                    looked_at = row.i64(1).unwrap_or(0);
                });
                page.returns.clear();
                DUE.run(&[Some(sink), Some(&limit)], |row| page.returns.extend(returned(row)));
                let is_full = page.returns.len() >= bounds.events_max
                    || cut(&mut page.returns, bounds.bytes_max);
                page.next_in = (looked_at > 0 || is_full).then_some(Duration::from_ms(0));
                if looked_at == 0 || !page.returns.is_empty() {
                    break;
                }
            }
            if page.next_in.is_none() {
                NEXT.run(&[Some(sink)], |row| page.next_in = row.i64(1).map(until));
            }
            if with_held {
                HELD.run(&[Some(sink)], |row| {
                    let event_id = row.uuid(2).map(EventId::from_bytes);
                    page.held.extend(row.text(1).map(Into::into).zip(event_id));
                });
            }
            Ok(page)
        })
    })
}

/// Leaves what is beyond the bound for the next look; true when there was any.
fn cut(returns: &mut Vec<Return>, bytes_max: usize) -> bool {
    let mut bytes = 0;
    let fits = |each: &&Return| {
        let fits = bytes < bytes_max;
        bytes += each.event.memory_bytes();
        fits
    };
    let count = returns.iter().take_while(fits).count();
    let is_cut = count < returns.len();
    returns.truncate(count.max(1));
    is_cut
}

fn until(ms: i64) -> Duration {
    Duration::from_ms(ms.unsigned_abs())
}

fn returned(row: &Row) -> Option<Return> {
    let name = row.text(4)?;
    let entity = name.split('.').next().unwrap_or_default().into();
    let kind = EventKind {
        event_type: EventType { name: name.into(), entity },
        topic: row.text(5)?.into(),
        key_names: Box::new([]),
        version: row.i16(6)?.unsigned_abs().into(),
    };
    let event = Entry {
        id: EntryId(row.i64(2)?),
        event_id: EventId::from_bytes(row.uuid(1)?),
        kind: Arc::new(kind),
        org_id: row.text(3)?.into(),
        event_count: 1,
        ids: format!("[{}]", row.text(7)?).into(),
        data: row.text(8).map(|data| format!("[{data}]").into()),
        origin: row.text(9).map(Into::into),
        at_us: row.i64(10)? + EPOCH_OFFSET_US,
    };
    Some(Return { event, attempts: row.i32(11)?.unsigned_abs() })
}

/// Writes fates down. Inside a session.
pub(super) fn write_fates(sink: &str, fates: &[Fate]) {
    let (mut arrived, mut retried, mut dead) = (Vec::new(), Array::default(), Array::default());
    for fate in fates {
        match fate {
            Fate::Arrived { event_id } => arrived.push(event_id.to_string()),
            Fate::Retry { event, attempts, wait, failure } => {
                retried.add(|out| write_refused(out, event, *attempts, failure, Some(*wait)));
            }
            Fate::Dead { event, attempts, failure } => {
                dead.add(|out| write_refused(out, event, *attempts, failure, None));
            }
        }
    }
    if !arrived.is_empty() {
        let ids = format!("{{{}}}", arrived.join(","));
        ARRIVED.run(&[Some(sink), Some(&ids)], |_| {});
    }
    if let Some(rows) = retried.finish() {
        RETRY.run(&[Some(sink), Some(&rows)], |_| {});
    }
    if let Some(rows) = dead.finish() {
        DEAD.run(&[Some(sink), Some(&rows)], |_| {});
    }
}

/// Writes the journal. Inside a session. `now` is the clock by which its times are meant.
pub(super) fn write_journal(sink: &str, now: Time, lines: &[Line]) {
    let mut rows = Array::default();
    for line in lines {
        rows.add(|out| write_line(out, now, line));
    }
    if let Some(rows) = rows.finish() {
        JOURNAL.run(&[Some(sink), Some(&rows)], |_| {});
    }
}

fn write_refused(
    out: &mut Vec<u8>,
    event: &Entry,
    attempts: u32,
    failure: &sink::Failure,
    wait: Option<Duration>,
) {
    json::write_bytes(out, b"{\"event_id\":");
    json::write_text(out, &event.event_id.to_string());
    json::write_bytes(out, format!(",\"entry_id\":{}", event.id.0).as_bytes());
    for (name, text) in [
        (",\"org_id\":", &*event.org_id),
        (",\"event_type\":", &*event.kind.event_type.name),
        (",\"topic\":", &*event.kind.topic),
    ] {
        json::write_bytes(out, name.as_bytes());
        json::write_text(out, text);
    }
    json::write_bytes(out, format!(",\"version\":{},\"ids\":", event.kind.version).as_bytes());
    envelope::write_first_ids(out, event);
    if let Some(data) = envelope::first_data(event) {
        json::write_bytes(out, b",\"data\":");
        json::write_bytes(out, data.as_bytes());
    }
    if let Some(origin) = &event.origin {
        json::write_bytes(out, b",\"origin\":");
        json::write_text(out, origin);
    }
    json::write_bytes(out, b",\"created_at\":\"");
    json::write_timestamp_us(out, event.at_us);
    json::write_bytes(out, format!("\",\"attempts\":{attempts}").as_bytes());
    write_failure(out, failure);
    json::write_bytes(out, b",\"error\":");
    json::write_text(out, &format!("{failure}: {}", failure.kind.advice()));
    if let Some(wait) = wait {
        json::write_bytes(out, format!(",\"wait_ms\":{}", wait.as_ms()).as_bytes());
    }
    out.push(b'}');
}

fn write_line(out: &mut Vec<u8>, now: Time, line: &Line) {
    let (outcome, failure) = match line.outcome {
        Outcome::Delivered => ("delivered", None),
        Outcome::Refused(failure) => ("refused", Some(failure)),
        Outcome::Unknown(failure) => ("unknown", Some(failure)),
    };
    let (sent_ms, answered_ms) = (now.since(line.sent_at), now.since(line.answered_at));
    let times = format!(
        "{{\"sent_ms\":{},\"answered_ms\":{},\"outcome\":\"{outcome}\"",
        sent_ms.as_ms(),
        answered_ms.as_ms()
    );
    json::write_bytes(out, times.as_bytes());
    if let Some(failure) = failure {
        write_failure(out, &failure);
    }
    json::write_bytes(out, b",\"messages\":[");
    for (place, message) in line.messages.iter().enumerate() {
        json::write_bytes(out, if place == 0 { b"[" } else { b",[" });
        json::write_text(out, &message.org_id);
        let (first, last) = (message.first_id.0, message.last_id.0);
        json::write_bytes(out, format!(",{first},{last},{}", message.event_count).as_bytes());
        if !message.again.is_empty() {
            let ids: Vec<String> = message.again.iter().map(|id| format!("\"{id}\"")).collect();
            json::write_bytes(out, format!(",[{}]", ids.join(",")).as_bytes());
        }
        out.push(b']');
    }
    json::write_bytes(out, b"]}");
}

fn write_failure(out: &mut Vec<u8>, failure: &sink::Failure) {
    json::write_bytes(out, b",\"error_kind\":");
    json::write_text(out, failure.kind.name());
    if let Some(status) = failure.status {
        json::write_bytes(out, format!(",\"status\":{status}").as_bytes());
    }
}

/// A JSON array in the making.
#[derive(Default)]
struct Array(Vec<u8>);

impl Array {
    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.0.push(if self.0.is_empty() { b'[' } else { b',' });
        write(&mut self.0);
    }

    /// `None` when nothing was added.
    fn finish(mut self) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        self.0.push(b']');
        // Made of texts and digits.
        String::from_utf8(self.0).ok()
    }
}
