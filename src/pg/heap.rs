//! Writing entries into the ring of segments, by hand.
//!
//! An INSERT through the executor costs a writer three times as much. The price is that the
//! layout of `_private.outbox` is known here: it is checked before the first tuple is formed,
//! because `heap_form_tuple` believes what it is told.

use super::report::raise;
use crate::error::{Error, ErrorKind};
use crate::home::Home;
use pgrx::pg_sys::{self, Datum, Oid};

pub const SEGMENTS: usize = 16;

unsafe extern "C-unwind" {
    /// commands/sequence.h; not among pgrx's bindings.
    fn nextval_internal(relid: Oid, check_permissions: bool) -> i64;
}

/// The columns of `_private.outbox`: sql/install/30_tables.sql.
const LAYOUT: [Oid; 14] = [
    pg_sys::INT8OID,        // id
    pg_sys::XID8OID,        // xid
    pg_sys::TIMESTAMPTZOID, // created_at
    pg_sys::UUIDOID,        // event_id
    pg_sys::INT4OID,        // source_id
    pg_sys::INT4OID,        // event_count
    pg_sys::INT2OID,        // type_id
    pg_sys::INT2OID,        // home
    pg_sys::INT2OID,        // version
    pg_sys::TEXTOID,        // org_id
    pg_sys::JSONOID,        // ids
    pg_sys::JSONOID,        // data
    pg_sys::TEXTOID,        // origin
    pg_sys::TEXTOID,        // topic
];

/// Where the entries of this database go.
#[derive(Clone)]
pub struct Outbox {
    sequence: Oid,
    segments: [Oid; SEGMENTS],
    home: Home,
}

/// One entry; the transaction's id is added when it is written.
pub struct Entry<'a> {
    pub id: i64,
    /// Microseconds since 2000-01-01, as Postgres counts.
    pub created_at: i64,
    pub event_id: [u8; 16],
    pub source_id: Option<i32>,
    pub event_count: i32,
    pub type_id: i16,
    pub home: i16,
    pub version: Option<i16>,
    pub org_id: &'a [u8],
    pub ids: &'a [u8],
    pub data: Option<&'a [u8]>,
    pub origin: Option<&'a str>,
    pub topic: Option<&'a str>,
}

impl Outbox {
    /// Finds the outbox by name; `None` when this database has none (any more).
    pub fn find() -> Option<Outbox> {
        let mut segments = [Oid::INVALID; SEGMENTS];
        // SAFETY: catalog look-ups inside a transaction.
        unsafe {
            let schema = pg_sys::get_namespace_oid(c"_private".as_ptr(), true);
            if schema == Oid::INVALID {
                return None;
            }
            for (number, segment) in segments.iter_mut().enumerate() {
                let name = std::ffi::CString::new(format!("outbox_{number}")).ok()?;
                *segment = pg_sys::get_relname_relid(name.as_ptr(), schema);
                if *segment == Oid::INVALID {
                    return None;
                }
            }
            let sequence = pg_sys::get_relname_relid(c"entry_ids".as_ptr(), schema);
            let parent = pg_sys::get_relname_relid(c"outbox".as_ptr(), schema);
            let home = Home {
                system_identifier: pg_sys::GetSystemIdentifier(),
                database: pg_sys::MyDatabaseId.to_u32(),
                outbox: parent.to_u32(),
            };
            let is_whole = sequence != Oid::INVALID && parent != Oid::INVALID;
            is_whole.then_some(Outbox { sequence, segments, home })
        }
    }

    /// Where its entries are at home.
    pub fn home(&self) -> Home {
        self.home
    }

    pub fn contains(&self, relation: Oid) -> bool {
        self.sequence == relation || self.segments.contains(&relation)
    }

    /// The next id. The order of ids is the order of events, so it must be called under the row
    /// locks of the changes, and the sequence has no cache.
    pub fn draw_id(&self) -> i64 {
        // SAFETY: a sequence by its oid; errors are turned into panics by the guard.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(self.sequence, false)) }
    }

    /// Opens the segment with this number or, when somebody holds it, the next that is free: a
    /// commit waits for a segment only when all of the ring are locked.
    pub fn open_segment(&self, number: usize) -> Segment {
        let turns = (0..SEGMENTS).map(|turn| (number + turn) % SEGMENTS);
        let free = turns.filter_map(|at| self.segments.get(at).copied()).find(|&segment| {
            // SAFETY: a conditional lock on a relation by its oid; kept until the transaction ends.
            unsafe { pg_sys::ConditionalLockRelationOid(segment, pg_sys::RowExclusiveLock as i32) }
        });
        match free.or(self.segments.get(number % SEGMENTS).copied()) {
            Some(segment) => Segment::open(segment, free.is_some()),
            None => raise(Error::new(ErrorKind::ObjectState, "the ring of segments is empty")),
        }
    }
}

/// A segment, open for writing.
pub struct Segment {
    relation: pg_sys::Relation,
    indexes: pg_sys::CatalogIndexState,
}

impl Segment {
    fn open(segment: Oid, is_locked: bool) -> Segment {
        let mode = if is_locked { pg_sys::NoLock } else { pg_sys::RowExclusiveLock };
        // SAFETY: opened with the lock held, checked, closed in `drop`; the lock stays until the
        // transaction ends.
        unsafe {
            let relation = pg_sys::table_open(segment, mode as i32);
            let descriptor = pgrx::PgTupleDesc::from_pg_copy((*relation).rd_att);
            let fits = descriptor.len() == LAYOUT.len()
                && LAYOUT.iter().enumerate().all(|(index, &type_oid)| {
                    descriptor
                        .get(index)
                        .is_some_and(|column| !column.attisdropped && column.atttypid == type_oid)
                });
            if !fits {
                raise(
                    Error::new(
                        ErrorKind::ObjectState,
                        "table _private.outbox has other columns than this version writes",
                    )
                    .hint(
                        "Run alter extension pg_outbox update; leave the extension's tables alone.",
                    ),
                );
            }
            let indexes = pg_sys::CatalogOpenIndexes(relation);
            if !are_plain(indexes) {
                raise(
                    Error::new(
                        ErrorKind::ObjectState,
                        "a segment of _private.outbox has an index that capture cannot fill",
                    )
                    .hint(
                        "Drop it, or make it one of plain columns, without expressions or WHERE.",
                    ),
                );
            }
            Segment { relation, indexes }
        }
    }

    /// Appends one entry of the current transaction.
    pub fn insert(&self, entry: &Entry<'_>) {
        // SAFETY: the values have the types of LAYOUT, which the segment was checked against. The
        // tuple and its texts are in the current memory context, which ends with the transaction.
        unsafe {
            let xid = pg_sys::GetTopFullTransactionId().value;
            let mut event_id = entry.event_id;
            let texts = [
                Some(entry.org_id),
                Some(entry.ids),
                entry.data,
                entry.origin.map(str::as_bytes),
                entry.topic.map(str::as_bytes),
            ]
            .map(|bytes| bytes.map(text_datum));
            let mut values = [
                Some(Datum::from(entry.id)),
                Some(Datum::from(xid)),
                Some(Datum::from(entry.created_at)),
                Some(Datum::from(event_id.as_mut_ptr())),
                entry.source_id.map(Datum::from),
                Some(Datum::from(entry.event_count)),
                Some(Datum::from(entry.type_id)),
                Some(Datum::from(entry.home)),
                entry.version.map(Datum::from),
                texts[0],
                texts[1],
                texts[2],
                texts[3],
                texts[4],
            ]
            .map(|value| (value.unwrap_or(Datum::from(0usize)), value.is_none()));
            let mut datums = values.map(|(datum, _)| datum);
            let mut nulls = values.each_mut().map(|(_, is_null)| *is_null);
            let tuple = pg_sys::heap_form_tuple(
                (*self.relation).rd_att,
                datums.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            pg_sys::CatalogTupleInsertWithInfo(self.relation, tuple, self.indexes);
            pg_sys::heap_freetuple(tuple);
            for text in texts.into_iter().flatten() {
                pg_sys::pfree(text.cast_mut_ptr());
            }
        }
    }
}

/// Whether all indexes are of plain columns. Those of the catalog always are, and what fills them
/// has no executor to compute an expression with: it would crash the server.
///
/// # Safety
/// `indexes` must be those of an open relation.
unsafe fn are_plain(indexes: pg_sys::CatalogIndexState) -> bool {
    // SAFETY: there are as many descriptions as it says.
    unsafe {
        let count = usize::try_from((*indexes).ri_NumIndices).unwrap_or(0);
        (0..count).all(|index| {
            let info = &**(*indexes).ri_IndexRelationInfo.add(index);
            info.ii_Expressions.is_null()
                && info.ii_Predicate.is_null()
                && info.ii_ExclusionOps.is_null()
        })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The transaction's abort closes what it has open.
            return;
        }
        // SAFETY: opened by `open`, closed once.
        unsafe {
            pg_sys::CatalogCloseIndexes(self.indexes);
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
        }
    }
}

/// Runs `work` in the memory context of the transaction, with its resource owner: what a callback
/// before the commit needs in order to write.
pub fn in_transaction_context<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: the context lives as long as the transaction that we are in; on an error the abort
    // switches contexts by itself.
    unsafe {
        let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopTransactionContext);
        let result = work();
        pg_sys::MemoryContextSwitchTo(previous);
        result
    }
}

/// Now, in Postgres' microseconds.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Random bits from the system, for seeding.
pub fn random_seed() -> Option<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: fills as many bytes as it is given.
    let filled = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    filled.then(|| u64::from_ne_bytes(bytes))
}

fn text_datum(bytes: &[u8]) -> Datum {
    // SAFETY: copies the bytes into a new varlena of the current memory context.
    unsafe {
        let text = pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32);
        Datum::from(text)
    }
}
