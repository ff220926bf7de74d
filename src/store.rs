//! What the relay asks of the database, and nothing else does: every statement it runs.
//! `returns` has those about events that are sent again.
//!
//! Reading happens in one short transaction with one snapshot. A window that is larger than a
//! reading is kept as a cursor that outlives the transaction, sorted by id, so that a transaction
//! of ten million events is read in bounded memory and only once; after a restart it is opened
//! again behind the last entry that has an outcome.

mod returns;

pub use returns::{PageBounds, look};

use crate::cursor::{Position, Snapshot};
use crate::error::{Error, ErrorKind};
use crate::event::{Entry, EntryId, EventId, EventKind, EventType};
use crate::pg::query::{self, Row, Statement};
use crate::pg::tx::{self, Durability, Failure};
use crate::pg::user;
use crate::relay::plan::{Chunk, Record};
use crate::relay::time::Time;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

/// Rows that are fetched at a time.
const FETCH_ROWS: i64 = 256;

/// Microseconds between Postgres' epoch (2000) and Unix' (1970).
const EPOCH_OFFSET_US: i64 = 946_684_800_000_000;

// No table is locked beyond ACCESS SHARE by what reads, and no row is locked but the cursor's.

/// The state of this transaction.
static CURRENT_SNAPSHOT: Statement =
    Statement::new(c"select pg_catalog.pg_current_snapshot()::pg_catalog.text", 0);

/// Entries that one snapshot does not see and the current one does. $1: its xmax, $2: what was
/// running in it. Both arms walk the index on (xid, id) of each segment. Entries that came with a
/// copy of another database speak of its transactions, and are none of this window's.
static ENTRIES: Statement = Statement::new(
    c"select o.id, o.event_id, o.source_id, o.type_id, o.event_count, o.org_id, o.ids, o.data,
             o.origin, o.topic, o.version, o.created_at
      from (
          select * from _private.outbox where xid >= $1::pg_catalog.xid8
          union all
          select * from _private.outbox where xid = any ($2::pg_catalog.xid8[])
      ) o
      where o.home = (select _private.home_mark())
      order by o.id",
    2,
);

/// The same for a window that was begun: $3 its end, $4 the last id that is done.
static ENTRIES_OF_WINDOW: Statement = Statement::new(
    c"select o.id, o.event_id, o.source_id, o.type_id, o.event_count, o.org_id, o.ids, o.data,
             o.origin, o.topic, o.version, o.created_at
      from (
          select * from _private.outbox where xid >= $1::pg_catalog.xid8
          union all
          select * from _private.outbox where xid = any ($2::pg_catalog.xid8[])
      ) o
      where o.home = (select _private.home_mark())
        and pg_catalog.pg_visible_in_snapshot(o.xid, $3::pg_catalog.pg_snapshot)
        and o.id > $4::pg_catalog.int8
      order by o.id",
    4,
);

/// What the events of an entry are called: by the primary keys of two small tables.
static KIND: Statement = Statement::new(
    c"select t.event_type, t.entity, s.topic, pg_catalog.array_to_json(s.key_names)::pg_catalog.text
      from _private.event_types t
      left join _private.sources s on s.source_id = $2::pg_catalog.int4
      where t.type_id = $1::pg_catalog.int2",
    2,
);

/// Moves a cursor. Locks its row until the commit.
static MOVE_CURSOR: Statement = Statement::new(
    c"update _private.cursors
      set position = $2::pg_catalog.pg_snapshot, window_end = $3::pg_catalog.pg_snapshot,
          last_processed_id = $4::pg_catalog.int8, updated_at = pg_catalog.clock_timestamp()
      where sink = $1 and shard = 0",
    4,
);

static SINKS: Statement = Statement::new(
    c"select s.sink, s.kind, s.options::pg_catalog.text, s.paused, c.position::pg_catalog.text,
             c.window_end::pg_catalog.text, c.last_processed_id,
             _private.is_at_home(c)
      from _private.sinks s
      join _private.cursors c on c.sink = s.sink and c.shard = 0
      where s.enabled
      order by s.sink",
    0,
);

static SECRET: Statement = Statement::new(c"select value from _private.secrets where name = $1", 1);

static PRUNE: Statement = Statement::new(c"select outbox.prune()", 0);

/// A sink as its row describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkRow {
    pub name: String,
    pub kind: String,
    pub options: String,
    pub is_paused: bool,
    pub position: Position,
    /// False when the position speaks of another database's transactions.
    pub is_at_home: bool,
}

/// As `tx::run`, and DROP EXTENSION is before it or after it.
fn transaction<T>(
    durability: Durability,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    tx::run(durability, || {
        user::hold_extension();
        work()
    })
}

/// Whether the extension is in this database.
///
/// # Errors
/// What the database said.
pub fn exists() -> Result<bool, Failure> {
    tx::run(Durability::Asynchronous, || Ok(user::extension_owner().is_some()))
}

/// The sinks that are enabled.
///
/// # Errors
/// What the database said.
pub fn sinks() -> Result<Vec<SinkRow>, Failure> {
    transaction(Durability::Asynchronous, || {
        let mut rows = Vec::new();
        query::session(|| SINKS.read(&[], |row| rows.extend(sink_row(row))));
        Ok(rows)
    })
}

fn sink_row(row: &Row) -> Option<SinkRow> {
    let snapshot = |column| row.text(column).and_then(|text| Snapshot::parse(&text).ok());
    let base = snapshot(5)?;
    let position = match (snapshot(6), row.i64(7)) {
        (Some(end), Some(last_id)) => Position::within(base, end, EntryId(last_id)),
        _ => Position::at(base),
    };
    Some(SinkRow {
        name: row.text(1)?,
        kind: row.text(2)?,
        options: row.text(3)?,
        is_paused: row.bool(4)?,
        position,
        is_at_home: row.bool(8)?,
    })
}

/// A secret by its name; `None` when it is not there.
///
/// # Errors
/// What the database said.
pub fn secret(name: &str) -> Result<Option<String>, Error> {
    let found = transaction(Durability::Asynchronous, || {
        let mut value = None;
        query::session(|| SECRET.read(&[Some(name)], |row| value = row.text(1)));
        Ok(value)
    });
    found.map_err(|failure| Error::new(ErrorKind::UnusableSecret, failure.message))
}

/// Makes a position durable, and with it what became of the events that it passes. A position
/// alone may be forgotten by a crash, which costs duplicates and never a loss; fates may not.
/// `now` is the relay's clock. False when the sink is gone.
///
/// # Errors
/// What the database said.
pub fn record(sink: &str, now: Time, record: &Record) -> Result<bool, Failure> {
    let position = &record.position;
    let base = position.base.to_string();
    let end = position.window.as_ref().map(|window| window.end.to_string());
    let last_id = position.window.as_ref().map(|window| window.last_id.0.to_string());
    let durability = match record.fates.is_empty() {
        true => Durability::Asynchronous,
        false => Durability::Synchronous,
    };
    transaction(durability, || {
        let arguments = [Some(sink), Some(&base), end.as_deref(), last_id.as_deref()];
        query::session(|| {
            let is_there = MOVE_CURSOR.run(&arguments, |_| {}) > 0;
            if is_there {
                returns::write_fates(sink, &record.fates);
                returns::write_journal(sink, now, &record.journal);
            }
            Ok(is_there)
        })
    })
}

/// Removes what may go, and returns the number of events.
///
/// # Errors
/// What the database said.
pub fn prune() -> Result<i64, Failure> {
    transaction(Durability::Synchronous, || {
        let mut pruned = 0;
        query::session(|| PRUNE.run(&[], |row| pruned = row.i64(1).unwrap_or(0)));
        Ok(pruned)
    })
}

/// Reads the outbox for one sink.
pub struct Reader {
    cursor: CString,
    /// The window whose cursor is open.
    open: Option<Position>,
    kinds: HashMap<KindKey, Arc<EventKind>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct KindKey {
    source_id: Option<i32>,
    type_id: i16,
    topic: Option<String>,
    version: Option<i16>,
}

/// Kinds that are kept at most: more than a database has sources, and a bound.
const KINDS_MAX: usize = 10_000;

impl Reader {
    /// `number` tells the readers of one process apart.
    pub fn new(number: usize) -> Reader {
        let cursor = CString::new(format!("pg_outbox_window_{number}")).unwrap_or_default();
        Reader { cursor, open: None, kinds: HashMap::new() }
    }

    /// Entries after `from` in the order of their ids, until their texts reach `bytes_max`.
    ///
    /// # Errors
    /// What the database said; nothing has been read then, and the next call starts again.
    pub fn read(&mut self, from: &Position, bytes_max: usize) -> Result<Chunk, Failure> {
        let open = self.open.take();
        let mut kept = None;
        let chunk = transaction(Durability::Asynchronous, || {
            query::session(|| {
                if open.as_ref() != Some(from) {
                    query::close(&self.cursor);
                }
                let end = match &open {
                    Some(window) if window == from => from.horizon().clone(),
                    _ => match self.open(from)? {
                        Some(end) => end,
                        None => {
                            return Ok(Chunk {
                                entries: Vec::new(),
                                after: from.clone(),
                                complete: true,
                            });
                        }
                    },
                };
                let chunk = self.fetch(from, end, bytes_max)?;
                if chunk.complete {
                    query::close(&self.cursor);
                } else {
                    kept = Some(chunk.after.clone());
                }
                Ok(chunk)
            })
        })?;
        self.open = kept;
        Ok(chunk)
    }

    /// Opens the cursor over the window that begins at `from`, and returns its end; `None` when
    /// nothing has happened since.
    fn open(&self, from: &Position) -> Result<Option<Snapshot>, Failure> {
        let xmax = from.base.xmax().to_string();
        let running: Vec<String> = from.base.xip().iter().map(u64::to_string).collect();
        let running = format!("{{{}}}", running.join(","));
        if let Some(window) = &from.window {
            let (end, last_id) = (window.end.to_string(), window.last_id.0.to_string());
            let arguments = [Some(&xmax), Some(&running), Some(&end), Some(&last_id)];
            ENTRIES_OF_WINDOW.open(&self.cursor, &arguments.map(|text| text.map(String::as_str)));
            return Ok(Some(window.end.clone()));
        }
        let mut now = None;
        CURRENT_SNAPSHOT.read(&[], |row| now = row.text(1));
        let end = now.as_deref().map(Snapshot::parse);
        let Some(Ok(end)) = end else { return Err(Failure::internal("no snapshot")) };
        if end == from.base {
            return Ok(None);
        }
        ENTRIES.open(&self.cursor, &[Some(&xmax), Some(&running)]);
        Ok(Some(end))
    }

    fn fetch(
        &mut self,
        from: &Position,
        end: Snapshot,
        bytes_max: usize,
    ) -> Result<Chunk, Failure> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        loop {
            let mut rows = Vec::new();
            let fetched =
                query::fetch(&self.cursor, FETCH_ROWS, |row| rows.extend(RawEntry::of(row)));
            let fetched =
                fetched.ok_or_else(|| Failure::internal("the window's cursor is gone"))?;
            for row in rows {
                let kind = self.kind(&row.key)?;
                let entry = row.named(kind);
                bytes += entry.memory_bytes();
                entries.push(entry);
            }
            if fetched < FETCH_ROWS as u64 {
                return Ok(Chunk { entries, after: Position::at(end), complete: true });
            }
            if bytes >= bytes_max {
                let last_id = entries.last().map_or(EntryId(i64::MIN), |entry: &Entry| entry.id);
                let after = Position::within(from.base.clone(), end, last_id);
                return Ok(Chunk { entries, after, complete: false });
            }
        }
    }

    fn kind(&mut self, key: &KindKey) -> Result<Arc<EventKind>, Failure> {
        if let Some(kind) = self.kinds.get(key) {
            return Ok(kind.clone());
        }
        let mut found = None;
        let source_id = key.source_id.map(|id| id.to_string());
        KIND.read(&[Some(&key.type_id.to_string()), source_id.as_deref()], |row| {
            let names = row.text(4).and_then(|names| serde_json::from_str(&names).ok());
            found = row.text(1).zip(row.text(2)).map(|(name, entity)| EventKind {
                event_type: EventType { name: name.into(), entity: entity.into() },
                topic: key.topic.clone().or(row.text(3)).unwrap_or_default().into(),
                key_names: names.unwrap_or_default(),
                version: key.version.map_or(1, |version| version.unsigned_abs().into()),
            });
        });
        let found = found.ok_or_else(|| Failure::internal("an entry has an unknown event type"))?;
        let kind = Arc::new(found);
        if self.kinds.len() >= KINDS_MAX {
            self.kinds.clear();
        }
        self.kinds.insert(key.clone(), kind.clone());
        Ok(kind)
    }

    /// Sources may have changed their names.
    pub fn forget_kinds(&mut self) {
        self.kinds.clear();
    }
}

/// A row of the outbox, whose kind takes another look-up.
struct RawEntry {
    key: KindKey,
    id: EntryId,
    event_id: EventId,
    org_id: Arc<str>,
    event_count: u32,
    ids: Box<str>,
    data: Option<Box<str>>,
    origin: Option<Arc<str>>,
    at_us: i64,
}

impl RawEntry {
    fn of(row: &Row) -> Option<RawEntry> {
        Some(RawEntry {
            key: KindKey {
                source_id: row.i32(3),
                type_id: row.i16(4)?,
                topic: row.text(10),
                version: row.i16(11),
            },
            id: EntryId(row.i64(1)?),
            event_id: EventId::from_bytes(row.uuid(2)?),
            org_id: row.text(6)?.into(),
            event_count: row.i32(5)?.unsigned_abs(),
            ids: row.text(7)?.into(),
            data: row.text(8).map(Into::into),
            origin: row.text(9).map(Into::into),
            at_us: row.i64(12)? + EPOCH_OFFSET_US,
        })
    }

    fn named(self, kind: Arc<EventKind>) -> Entry {
        let RawEntry { key: _, id, event_id, org_id, event_count, ids, data, origin, at_us } = self;
        Entry { id, event_id, kind, org_id, event_count, ids, data, origin, at_us }
    }
}
