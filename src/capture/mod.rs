//! Capture: what happens inside the user's transaction.
//!
//! A row trigger decides whether a change is an event and appends it to the buffer of this
//! backend. The buffer is written as entries just before the commit, under the row locks, so that
//! the ids of entries follow the order of changes; a transaction that rolls back writes nothing.
//!
//! One rule covers every update: it is an event for each distinct (organisation, key) of the old
//! and the new row, the old first. So a row that changes its organisation is an event for both.
//!
//! Deliberately not here: sinks, the relay, the network. A commit must not know that they exist;
//! it rings a bell.

pub mod buffer;
mod flush;
mod moved;
pub mod origin;
pub mod source;

use crate::error::{Error, ErrorKind};
use crate::gucs;
use crate::pg::report::warn;
use crate::pg::row::{Row, same_image};
use crate::pg::shmem::{self, Skipped};
use crate::pg::trigger::{Change, TriggerCall};
use crate::pg::{worker, xact};
use buffer::{Kind, Record};
use moved::Moved;
use source::Source;
use std::cell::RefCell;

/// A row's identity, and what travels with it.
pub struct Identity {
    pub org_id: Vec<u8>,
    /// A JSON value.
    pub key: Vec<u8>,
    /// A JSON object.
    pub data: Option<Vec<u8>>,
}

/// The state of the current transaction in this backend.
#[derive(Default)]
pub struct Capture {
    buffer: buffer::Buffer,
    moved: Option<Moved>,
    origin: origin::Origin,
    /// The last kind that was interned, so that a statement interns it once.
    last_kind: Option<(Kind, u32)>,
    /// The buffer was written before the commit: whatever still comes is written at once.
    closing: bool,
}

thread_local! {
    static CAPTURE: RefCell<Capture> = RefCell::new(Capture::default());
}

/// A row trigger was fired.
pub fn on_row(call: &TriggerCall<'_>) {
    if !gucs::capture_is_on() {
        return;
    }
    let Some(source) = source::of(call) else { return };
    let Some(change) = call.change() else { return };
    flush::prepare();
    let moved = with_state(|state| moved::settle(state, &source, &change));
    // The output functions of a row's types are anybody's code, which may change a source itself:
    // nothing of ours is held while they run.
    if let Change::Delete { old, to_other_partition: true } = change {
        let moved = moved::depart(&source, old);
        return with_state(|state| state.moved = Some(moved));
    }
    let Some(events) = Events::of(&source, change, moved) else { return };
    with_state(|state| {
        for identity in events.identities.iter().flatten() {
            state.append(source.id, events.type_id, identity);
        }
    });
    flush::after_append();
}

/// A source was truncated: that makes no events, so it is counted, and said.
pub fn on_truncate(call: &TriggerCall<'_>) {
    let source_id = call.arguments().first().and_then(|id| id.parse::<i32>().ok());
    if let (Some(shared), Some(source_id)) = (shmem::shared(), source_id) {
        shared.count(worker::database(), source_id, Skipped::Truncate);
    }
    warn(
        Error::new(
            ErrorKind::Warning,
            format!("TRUNCATE of \"{}\" makes no events", call.relation_name()),
        )
        .detail("Clients keep what they have until they refetch.")
        .hint("Use DELETE where they should be told."),
    );
}

/// Adds an event that is no change of a table. Its id is the caller's to return.
pub fn emit(kind: Kind, identity: &Identity, event_id: [u8; 16]) {
    flush::prepare();
    with_state(|state| {
        let kind = Kind { origin: state.origin.current(), ..kind };
        let kind = state.buffer.intern(kind);
        let record = Record {
            org_id: &identity.org_id,
            key: &identity.key,
            data: identity.data.as_deref(),
            event_id: Some(event_id),
        };
        state.buffer.append(xact::level(), kind, record);
    });
    flush::after_append();
}

pub use flush::{current_segment_now, home, new_event_id};

fn with_state<R>(work: impl FnOnce(&mut Capture) -> R) -> R {
    CAPTURE.with_borrow_mut(work)
}

/// What a change comes to: an event for each identity, the old one first.
struct Events {
    type_id: i16,
    identities: [Option<Identity>; 2],
}

impl Events {
    fn of(source: &Source, change: Change<'_>, moved: Option<Moved>) -> Option<Events> {
        match (change, moved) {
            (Change::Insert { new }, Some(moved)) => Events::of_arrival(source, moved, new),
            (Change::Insert { new }, None) => Events::of_row(source, source.created_type, new),
            (Change::Update { old, new }, _) => Events::of_update(source, old, new),
            (Change::Delete { old, .. }, _) => Events::of_row(source, source.deleted_type, old),
        }
    }

    /// `type_id` is none where this kind of change is no event.
    fn of_row(source: &Source, type_id: Option<i16>, row: Row<'_>) -> Option<Events> {
        Some(Events { type_id: type_id?, identities: [identity(source, row), None] })
    }

    fn of_update(source: &Source, old: Row<'_>, new: Row<'_>) -> Option<Events> {
        let type_id = source.updated_type?;
        let stays = source
            .keys
            .iter()
            .chain([&source.org])
            .all(|value| same_image(old, new, value.attribute));
        if !stays {
            let identities = [identity(source, old), identity(source, new)];
            return Some(Events { type_id, identities });
        }
        let differs = source.watch.iter().any(|&watched| !same_image(old, new, watched));
        differs.then(|| Events::of_row(source, Some(type_id), new)).flatten()
    }

    /// The end of an update that carried a row to another partition.
    fn of_arrival(source: &Source, moved: Moved, new: Row<'_>) -> Option<Events> {
        let type_id = source.updated_type?;
        let identity = identity(source, new);
        let stays = match (&moved.identity, &identity) {
            (Some(old), Some(new)) => old.org_id == new.org_id && old.key == new.key,
            (None, None) => true,
            _ => false,
        };
        if !stays {
            return Some(Events { type_id, identities: [moved.identity, identity] });
        }
        moved.differs(source, new).then_some(Events { type_id, identities: [identity, None] })
    }
}

impl Capture {
    fn append(&mut self, source_id: i32, type_id: i16, identity: &Identity) {
        let origin = self.origin.current();
        let kind = match &self.last_kind {
            Some((kind, id))
                if kind.source_id == Some(source_id)
                    && kind.type_id == type_id
                    && kind.origin == origin =>
            {
                *id
            }
            _ => {
                let kind = Kind { source_id: Some(source_id), type_id, origin, ..Kind::default() };
                let id = self.buffer.intern(kind.clone());
                self.last_kind = Some((kind, id));
                id
            }
        };
        let record = Record {
            org_id: &identity.org_id,
            key: &identity.key,
            data: identity.data.as_deref(),
            event_id: None,
        };
        self.buffer.append(xact::level(), kind, record);
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.moved = None;
        self.origin = origin::Origin::default();
        self.last_kind = None;
        self.closing = false;
    }
}

/// Who a row belongs to and what it is called; `None`, and counted, without an organisation.
fn identity(source: &Source, row: Row<'_>) -> Option<Identity> {
    let Some(org) = row.value(source.org.attribute.number) else {
        if let Some(shared) = shmem::shared() {
            shared.count(worker::database(), source.id, Skipped::NullOrg);
        }
        return None;
    };
    let mut org_id = Vec::with_capacity(36);
    source.org.encoding.write_text(org, &mut org_id);
    let mut key = Vec::with_capacity(40);
    match source.keys.as_slice() {
        [single] => write_value(row, *single, &mut key),
        several => {
            key.push(b'[');
            for (place, value) in several.iter().enumerate() {
                if place > 0 {
                    key.push(b',');
                }
                write_value(row, *value, &mut key);
            }
            key.push(b']');
        }
    }
    let data = (!source.include.is_empty()).then(|| {
        let mut data = vec![b'{'];
        for (place, (name, value)) in source.include.iter().enumerate() {
            if place > 0 {
                data.push(b',');
            }
            data.extend_from_slice(name);
            data.push(b':');
            write_value(row, *value, &mut data);
        }
        data.push(b'}');
        data
    });
    Some(Identity { org_id, key, data })
}

fn write_value(row: Row<'_>, value: source::Value, out: &mut Vec<u8>) {
    match row.value(value.attribute.number) {
        Some(datum) => value.encoding.write_json(datum, out),
        None => out.extend_from_slice(b"null"),
    }
}
