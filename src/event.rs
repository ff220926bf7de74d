#![forbid(unsafe_code)]
//! What the reader takes out of the outbox: entries, each a run of events.
//!
//! An entry holds its events as the JSON text in which they were captured. Nothing here parses
//! it: `envelope` cuts that text into slices and copies them, so that a key is never decoded,
//! re-encoded or rounded on its way to a client.

use std::fmt;
use std::sync::Arc;

use serde_json::value::RawValue;

/// The place of an entry in the outbox: the order in which the events of one org happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub i64);

/// The globally unique identity of one event: a UUIDv7, the same in every delivery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId([u8; 16]);

/// Length of a UUID as text.
const UUID_TEXT_LENGTH: usize = 36;

impl EventId {
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// The identity of the event that is `n` places further in the same run.
    pub const fn plus(self, n: u32) -> Self {
        Self(u128::from_be_bytes(self.0).wrapping_add(n as u128).to_be_bytes())
    }

    /// Gives the lower-case hyphenated text to `use_text`, without an allocation.
    pub fn with_text<R>(self, use_text: impl FnOnce(&str) -> R) -> R {
        let mut text = [b'-'; UUID_TEXT_LENGTH];
        let mut places = text.iter_mut();
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                places.next();
            }
            for nibble in [byte >> 4, byte & 0x0f] {
                if let Some(place) = places.next() {
                    *place = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
                }
            }
        }
        // Only hexadecimal digits and hyphens were written, so this is never the default.
        use_text(str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

/// The name of a kind of change, `<entity>.<verb>`, and the entity it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventType {
    pub name: Box<str>,
    pub entity: Box<str>,
}

/// What all events of a run have in common; one is shared by all entries of its source and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventKind {
    pub event_type: EventType,
    pub topic: Box<str>,
    /// JSON member names for the keys in `ids`, in their order. Empty: each element of `ids` is a
    /// whole JSON object already, as an emitted event has it.
    pub key_names: Box<[Box<str>]>,
    /// Version of the event type; 1 does not travel.
    pub version: u32,
}

/// One row of the outbox: consecutive events of one transaction, org, type and origin.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: EntryId,
    /// The identity of the first event; the n-th is this one plus n.
    pub event_id: EventId,
    pub kind: Arc<EventKind>,
    pub org_id: Arc<str>,
    pub event_count: u32,
    /// A JSON array with one element for each event: a scalar for a key of one column, an array
    /// for a composite key, an object when the kind names no keys.
    pub ids: Box<str>,
    /// A JSON array of objects parallel to `ids`, when the source includes columns.
    pub data: Option<Box<str>>,
    /// The writer's name for itself, by which a client knows its own echo.
    pub origin: Option<Arc<str>>,
    /// When the entry was written, in microseconds since the Unix epoch.
    pub at_us: i64,
}

/// What an entry costs in memory beside its texts: the struct, its two allocations and its place
/// in the queue, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 256;

impl Entry {
    /// The identity of the last event of the run.
    pub fn last_event_id(&self) -> EventId {
        self.event_id.plus(self.event_count.saturating_sub(1))
    }

    /// The first `count` events and the others, each as an entry of its own with the place and the
    /// ids that they have here. `None` when one side would be empty, or when the text is not what
    /// it should be: then the entry is only ever whole.
    pub fn split(&self, count: u32) -> Option<(Self, Self)> {
        let ids = Halves::of(&self.ids, self.event_count, count)?;
        let data = match &self.data {
            Some(data) => {
                let data = Halves::of(data, self.event_count, count)?;
                (Some(data.head), Some(data.tail))
            }
            None => (None, None),
        };
        let head = Self { event_count: count, ids: ids.head, data: data.0, ..self.clone() };
        let tail = Self {
            event_id: self.event_id.plus(count),
            event_count: self.event_count - count,
            ids: ids.tail,
            data: data.1,
            ..self.clone()
        };
        Some((head, tail))
    }

    /// What the entry counts against the relay's memory limit.
    pub fn memory_bytes(&self) -> usize {
        ENTRY_OVERHEAD_BYTES + self.text_bytes()
    }

    /// Bytes of captured text: what of this entry can at most be copied into a message.
    pub fn text_bytes(&self) -> usize {
        self.ids.len() + self.data.as_deref().map_or(0, str::len)
    }
}

/// A JSON array cut in two, its elements as they were written.
struct Halves {
    head: Box<str>,
    tail: Box<str>,
}

impl Halves {
    fn of(array: &str, length: u32, at: u32) -> Option<Self> {
        let elements: Vec<&RawValue> = serde_json::from_str(array).ok()?;
        if elements.len() != length as usize || at == 0 || at >= length {
            return None;
        }
        let (head, tail) = elements.split_at_checked(at as usize)?;
        let join = |part: &[&RawValue]| {
            let texts: Vec<&str> = part.iter().map(|element| element.get()).collect();
            format!("[{}]", texts.join(",")).into()
        };
        Some(Self { head: join(head), tail: join(tail) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn id(number: u128) -> EventId {
        EventId::from_bytes(number.to_be_bytes())
    }

    #[test]
    fn an_event_id_is_written_as_a_uuid() {
        let event_id = id(0x0192_a0b1_c2d3_7e4f_8091_a2b3_c4d5_e6f7);
        assert_eq!(event_id.to_string(), "0192a0b1-c2d3-7e4f-8091-a2b3c4d5e6f7");
        assert_eq!(id(0).to_string(), "00000000-0000-0000-0000-000000000000");
        assert_eq!(id(u128::MAX).to_string(), "ffffffff-ffff-ffff-ffff-ffffffffffff");
        assert_eq!(format!("{event_id:?}"), event_id.to_string());
    }

    #[test]
    fn adding_carries_over_all_bytes() {
        assert_eq!(id(0x00ff_ffff).plus(1), id(0x0100_0000));
        assert_eq!(id(u128::from(u64::MAX)).plus(u32::MAX), id((1 << 64) + (1 << 32) - 2));
        assert_eq!(id(u128::MAX).plus(1), id(0));
        assert_eq!(id(7).plus(0), id(7));
    }

    #[test]
    fn the_last_event_of_a_run_is_the_first_plus_the_others() {
        let kind = EventKind {
            event_type: EventType { name: "job.created".into(), entity: "job".into() },
            topic: "cataloging".into(),
            key_names: ["job_id".into()].into(),
            version: 1,
        };
        let mut entry = Entry {
            id: EntryId(1),
            event_id: id(40),
            kind: Arc::new(kind),
            org_id: "1".into(),
            event_count: 3,
            ids: "[1,2,3]".into(),
            data: None,
            origin: None,
            at_us: 0,
        };
        assert_eq!(entry.last_event_id(), id(42));
        entry.event_count = 0;
        assert_eq!(entry.last_event_id(), id(40));
        assert_eq!(entry.text_bytes(), 7);
        entry.data = Some("[{},{},{}]".into());
        assert_eq!(entry.text_bytes(), 17);
    }

    #[test]
    fn an_entry_is_cut_between_its_events() {
        let kind = EventKind {
            event_type: EventType { name: "job.created".into(), entity: "job".into() },
            topic: "cataloging".into(),
            key_names: ["job_id".into()].into(),
            version: 1,
        };
        let entry = Entry {
            id: EntryId(1),
            event_id: id(40),
            kind: Arc::new(kind),
            org_id: "1".into(),
            event_count: 3,
            ids: r#"[1, "a,b" ,[3]]"#.into(),
            data: Some(r#"[{},{"a":1.0},{}]"#.into()),
            origin: Some("tab".into()),
            at_us: 7,
        };
        let (head, tail) = entry.split(1).unwrap();
        assert_eq!((head.event_count, &*head.ids, head.event_id), (1, "[1]", id(40)));
        assert_eq!((tail.event_count, &*tail.ids, tail.event_id), (2, r#"["a,b",[3]]"#, id(41)));
        assert_eq!(tail.data.as_deref(), Some(r#"[{"a":1.0},{}]"#));
        assert_eq!((tail.id, tail.at_us, tail.origin), (EntryId(1), 7, Some("tab".into())));
        assert!(entry.split(0).is_none() && entry.split(3).is_none() && head.split(1).is_none());
        let damaged = Entry { event_count: 4, ..entry.clone() };
        assert!(damaged.split(2).is_none());
        let damaged = Entry { data: Some("[{}]".into()), ..entry };
        assert!(damaged.split(2).is_none());
    }
}
