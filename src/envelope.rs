#![forbid(unsafe_code)]
//! A message on the wire: the payload that a client of an org receives (version 1).
//!
//! Written straight into the buffer of the request. Keys and included columns are slices of the
//! captured JSON, copied as they are: no number changes its digits, and nothing is built only to
//! be written and dropped.
//!
//! A message is bounded. What repeats is collapsed to the newest, and what does not fit becomes
//! one `refresh` for each topic and entity, which tells a client to read that entity anew. So an
//! org that changed a million rows costs a few hundred kilobytes, and a client that is told so
//! is as well off as with a million ids. The bound holds whatever is in the outbox: an event that
//! is too large alone, or whose captured text is damaged, is told as a refresh too.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use crate::cursor::{Era, Position};
use crate::event::{Entry, EventId, EventKind};
use crate::json;

/// Version of the wire format. A client must not read a message with a higher one.
const FORMAT_VERSION: u32 = 1;

/// Distinct events that are looked at for one message, as a multiple of what it may list: what
/// repeats beyond is counted and not looked for, so that a backlog costs no memory.
const DISTINCT_FACTOR: usize = 8;

/// What a refresh takes beside its names and its origin: members, two ids, a count.
const REFRESH_BYTES: usize = 220;

/// What a member takes beside its text, and what escaping makes of a byte at most.
const ORIGIN_BYTES: usize = 12;
const ESCAPED_BYTES: usize = 6;

/// All that an org had to send, and where its cursor stands once it has it.
#[derive(Debug)]
pub struct Message {
    pub org_id: Arc<str>,
    pub cursor: Position,
    /// In the order in which they happened; at least one.
    pub entries: Vec<Arc<Entry>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Events that a message lists.
    pub events_max: usize,
    /// Bytes of a payload. Passed only by the refreshes of a message with very many entities.
    pub bytes_max: usize,
    /// What the cursor of a message is stamped with.
    pub era: Era,
}

/// What became of the events of a batch when it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub messages: u64,
    /// Events listed one by one.
    pub listed: u64,
    /// Events for which a newer one stands.
    pub collapsed: u64,
    /// Refreshes, each of which stands for many events.
    pub refreshes: u64,
    /// Bytes of the body.
    pub bytes: u64,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.listed += other.listed;
        self.collapsed += other.collapsed;
        self.refreshes += other.refreshes;
        self.bytes += other.bytes;
    }
}

/// Appends the payload of the message.
pub fn write_payload(out: &mut Vec<u8>, message: &Message, limits: Limits) -> Tally {
    let start = out.len();
    json::write_bytes(out, b"{\"v\":");
    json::write_number(out, u64::from(FORMAT_VERSION));
    json::write_bytes(out, b",\"org_id\":");
    json::write_text(out, &message.org_id);
    json::write_bytes(out, b",\"cursor\":");
    json::write_text(out, &message.cursor.clone().stamped(limits.era).to_string());
    json::write_bytes(out, b",\"events\":[");

    let mut selection = Selection::default();
    selection.read(&message.entries, limits.events_max.saturating_mul(DISTINCT_FACTOR));
    let end = start + limits.bytes_max.saturating_sub(selection.reserve() + b"]}".len());
    let listed = selection.write_events(out, limits.events_max, end);
    let refreshes = selection.write_refreshes(out, listed == 0);
    json::write_bytes(out, b"]}");
    Tally {
        messages: 1,
        listed,
        collapsed: selection.collapsed,
        refreshes,
        bytes: (out.len() - start) as u64,
    }
}

/// Appends the keys of the first event of an entry as they stand on the wire; an empty object when
/// its text is damaged.
pub fn write_first_ids(out: &mut Vec<u8>, entry: &Entry) {
    let start = out.len();
    let first = split(entry).and_then(|events| events.into_iter().next());
    let is_whole = first.is_some_and(|event| write_ids(out, &entry.kind.key_names, event.ids));
    if !is_whole {
        out.truncate(start);
        json::write_bytes(out, b"{}");
    }
}

/// The included columns of the first event of an entry.
pub fn first_data(entry: &Entry) -> Option<&str> {
    split(entry)?.into_iter().next()?.data
}

/// One event, as slices of its entry.
struct Event<'a> {
    entry: &'a Entry,
    event_id: EventId,
    ids: &'a str,
    data: Option<&'a str>,
    /// A newer one stands for it.
    collapsed: bool,
}

/// Events that are not listed, of one topic and entity.
struct Refresh<'a> {
    topic: &'a str,
    entity: &'a str,
    count: u64,
    first: EventId,
    last: EventId,
    /// Of all of its events; none as soon as one differs.
    origin: Option<&'a str>,
}

/// What makes two events the same to a client that has yet to hear of either.
#[derive(PartialEq, Eq, Hash)]
struct Identity<'a> {
    event_type: &'a str,
    topic: &'a str,
    version: u32,
    origin: Option<&'a str>,
    ids: &'a str,
}

#[derive(Default)]
struct Selection<'a> {
    events: Vec<Event<'a>>,
    refreshes: Vec<Refresh<'a>>,
    collapsed: u64,
}

impl<'a> Selection<'a> {
    /// Takes events apart until `distinct_max` different ones are there, and counts the rest.
    fn read(&mut self, entries: &'a [Arc<Entry>], distinct_max: usize) {
        let mut newest = HashMap::new();
        for entry in entries {
            let parts = (newest.len() < distinct_max).then(|| split(entry)).flatten();
            match parts {
                Some(events) => events.into_iter().for_each(|event| self.add(event, &mut newest)),
                None => self.defer(entry, entry.event_id, entry.event_count),
            }
        }
    }

    fn add(&mut self, event: Event<'a>, newest: &mut HashMap<Identity<'a>, usize>) {
        let identity = Identity {
            event_type: &event.entry.kind.event_type.name,
            topic: &event.entry.kind.topic,
            version: event.entry.kind.version,
            origin: event.entry.origin.as_deref(),
            ids: event.ids,
        };
        let older = newest.insert(identity, self.events.len());
        if let Some(older) = older.and_then(|place| self.events.get_mut(place)) {
            older.collapsed = true;
            self.collapsed += 1;
        }
        self.events.push(event);
    }

    /// Leaves `count` events, of which `first` is the first, to the refresh of their entity.
    fn defer(&mut self, entry: &'a Entry, first: EventId, count: u32) {
        let EventKind { event_type, topic, .. } = &*entry.kind;
        let last = first.plus(count.saturating_sub(1));
        let origin = entry.origin.as_deref();
        let known = self.refreshes.iter_mut().rev();
        let mut known = known.filter(|r| *r.entity == *event_type.entity && *r.topic == **topic);
        match known.next() {
            Some(refresh) => {
                refresh.count += u64::from(count);
                // Deferred in two passes, so neither end is simply the newest.
                refresh.first = refresh.first.min(first);
                refresh.last = refresh.last.max(last);
                refresh.origin = refresh.origin.filter(|_| refresh.origin == origin);
            }
            None => self.refreshes.push(Refresh {
                topic,
                entity: &event_type.entity,
                count: u64::from(count),
                first,
                last,
                origin,
            }),
        }
    }

    /// Bytes to keep free for refreshes, should each entity of the message need one.
    fn reserve(&self) -> usize {
        let mut names: Vec<(&str, &str)> = Vec::new();
        let mut origin_bytes = 0;
        let events = self.events.iter().map(|event| {
            let kind = &*event.entry.kind;
            ((&*kind.topic, &*kind.event_type.entity), event.entry.origin.as_deref())
        });
        let refreshes = self.refreshes.iter().map(|refresh| {
            let name = (refresh.topic, refresh.entity);
            (name, refresh.origin)
        });
        for (name, origin) in events.chain(refreshes) {
            if names.last() != Some(&name) && !names.contains(&name) {
                names.push(name);
            }
            let bytes = origin.map_or(0, |origin| ORIGIN_BYTES + ESCAPED_BYTES * origin.len());
            origin_bytes = origin_bytes.max(bytes);
        }
        let each = REFRESH_BYTES + origin_bytes;
        names.iter().map(|(topic, entity)| each + topic.len() + entity.len()).sum()
    }

    /// Writes what fits before `end`, up to `events_max`; returns how many. Leaves the rest to
    /// refreshes.
    fn write_events(&mut self, out: &mut Vec<u8>, events_max: usize, end: usize) -> u64 {
        let mut listed = 0;
        let mut is_full = false;
        let empty = out.len();
        for event in std::mem::take(&mut self.events) {
            if event.collapsed {
                continue;
            }
            let before = out.len();
            is_full |= listed >= events_max;
            let is_written = !is_full && {
                if listed > 0 {
                    out.push(b',');
                }
                write_event(out, &event) && out.len() <= end
            };
            if is_written {
                listed += 1;
                continue;
            }
            // One that no message could hold leaves the room to others; after one that came too
            // late nothing more is listed, so that what is listed is the oldest part.
            let is_oversized = out.len() - before > end.saturating_sub(empty);
            is_full |= out.len() > end && !is_oversized;
            out.truncate(before);
            self.defer(event.entry, event.event_id, 1);
        }
        listed as u64
    }

    fn write_refreshes(&self, out: &mut Vec<u8>, is_first: bool) -> u64 {
        for (index, refresh) in self.refreshes.iter().enumerate() {
            let comma: &[u8] = if is_first && index == 0 { b"" } else { b"," };
            json::write_bytes(out, comma);
            json::write_bytes(out, b"{\"event_type\":\"refresh\",\"topic\":");
            json::write_text(out, refresh.topic);
            json::write_bytes(out, b",\"entity\":");
            json::write_text(out, refresh.entity);
            json::write_bytes(out, b",\"count\":");
            json::write_number(out, refresh.count);
            json::write_bytes(out, b",\"first_event_id\":\"");
            refresh.first.with_text(|text| json::write_bytes(out, text.as_bytes()));
            json::write_bytes(out, b"\",\"last_event_id\":\"");
            refresh.last.with_text(|text| json::write_bytes(out, text.as_bytes()));
            out.push(b'"');
            if let Some(origin) = refresh.origin {
                json::write_bytes(out, b",\"origin\":");
                json::write_text(out, origin);
            }
            out.push(b'}');
        }
        self.refreshes.len() as u64
    }
}

/// The events of an entry. `None`: its text is not what it should be.
fn split(entry: &Entry) -> Option<Vec<Event<'_>>> {
    let count = entry.event_count as usize;
    let ids: Vec<&RawValue> = serde_json::from_str(&entry.ids).ok()?;
    let data: Option<Vec<&RawValue>> = match &entry.data {
        Some(data) => Some(serde_json::from_str(data).ok()?),
        None => None,
    };
    if ids.len() != count || data.as_ref().is_some_and(|data| data.len() != count) {
        return None;
    }
    let mut data = data.into_iter().flatten();
    let events = ids.into_iter().enumerate().map(|(index, ids)| Event {
        entry,
        event_id: entry.event_id.plus(index as u32),
        ids: ids.get(),
        data: data.next().map(RawValue::get),
        collapsed: false,
    });
    Some(events.collect())
}

/// Appends one event; false, with something appended, when its keys are not as the kind says.
fn write_event(out: &mut Vec<u8>, event: &Event) -> bool {
    let entry = event.entry;
    let kind = &*entry.kind;
    json::write_bytes(out, b"{\"event_id\":\"");
    event.event_id.with_text(|text| json::write_bytes(out, text.as_bytes()));
    json::write_bytes(out, b"\",\"event_type\":");
    json::write_text(out, &kind.event_type.name);
    if kind.version != 1 {
        json::write_bytes(out, b",\"version\":");
        json::write_number(out, u64::from(kind.version));
    }
    json::write_bytes(out, b",\"topic\":");
    json::write_text(out, &kind.topic);
    json::write_bytes(out, b",\"ids\":");
    let is_whole = write_ids(out, &kind.key_names, event.ids);
    json::write_bytes(out, b",\"at\":\"");
    json::write_timestamp(out, entry.at_us);
    out.push(b'"');
    if let Some(origin) = &entry.origin {
        json::write_bytes(out, b",\"origin\":");
        json::write_text(out, origin);
    }
    if let Some(data) = event.data {
        json::write_bytes(out, b",\"data\":");
        json::write_bytes(out, data.as_bytes());
    }
    out.push(b'}');
    is_whole
}

/// Appends the keys as an object; false when there are not as many as names.
fn write_ids(out: &mut Vec<u8>, key_names: &[Box<str>], ids: &str) -> bool {
    let keys: Vec<&str> = match key_names {
        [] => {
            json::write_bytes(out, ids.as_bytes());
            return ids.starts_with('{');
        }
        [_] => vec![ids],
        _ => match serde_json::from_str::<Vec<&RawValue>>(ids) {
            Ok(keys) => keys.into_iter().map(RawValue::get).collect(),
            Err(_) => return false,
        },
    };
    for (index, (name, key)) in key_names.iter().zip(&keys).enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        json::write_text(out, name);
        out.push(b':');
        json::write_bytes(out, key.as_bytes());
    }
    out.push(b'}');
    keys.len() == key_names.len()
}

#[cfg(test)]
#[path = "envelope_test.rs"]
mod tests;
