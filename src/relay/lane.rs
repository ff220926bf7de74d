#![forbid(unsafe_code)]
//! The orgs that have something to send, and the lanes they wait in.
//!
//! An org is in one of four places. *Idle*: it has nothing; it is forgotten once its bucket is
//! full. *Waiting* for its next token, in a heap by time. *Due*, in the queue of its lane, oldest
//! first. *In flight*: its message is on the way, and what comes meanwhile stays behind, so the
//! order of an org is kept however many lanes there are. Every change of place costs the
//! logarithm of the orgs that wait, and no step looks at the others.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use crate::event::Entry;
use crate::relay::ledger::ChunkId;
use crate::relay::pace::{Bucket, Rate};
use crate::relay::time::Time;

/// JSON that an event costs in a message beside its own text: member names, ids, time, topic.
const EVENT_WIRE_BYTES: usize = 320;

/// JSON that a message costs beside its events: the envelope, a cursor, a refresh.
const MESSAGE_WIRE_BYTES: usize = 1_024;

/// The place of an org in the table; given away again once it is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrgKey(u32);

/// Entries of one chunk, in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub chunk: ChunkId,
    pub entries: usize,
}

/// All that an org had to send.
#[derive(Debug)]
pub struct Parcel {
    pub org: OrgKey,
    pub org_id: Arc<str>,
    pub entries: Vec<Arc<Entry>>,
    pub runs: Vec<Run>,
}

/// What one request may carry.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub messages: usize,
    pub bytes: usize,
    /// What a message is cut to, whatever the org has pending.
    pub message_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Idle,
    Waiting,
    Due,
    InFlight,
}

#[derive(Debug)]
struct Org {
    id: Arc<str>,
    place: Place,
    bucket: Bucket,
    entries: Vec<Arc<Entry>>,
    runs: Vec<Run>,
    /// An upper bound, in most cases, of the message that the entries make.
    wire_bytes: usize,
}

/// When an org became due, by number.
type DueNumber = u64;

#[derive(Debug)]
pub struct Lanes {
    rate: Rate,
    orgs: Vec<Option<Org>>,
    by_id: HashMap<Arc<str>, OrgKey>,
    free: Vec<OrgKey>,
    waiting: BinaryHeap<Reverse<(Time, DueNumber, OrgKey)>>,
    due: Vec<VecDeque<(DueNumber, OrgKey)>>,
    /// Orgs that became idle, and when their bucket is full. An org may be here more than once,
    /// or have been taken up again: what it is now decides.
    idle: VecDeque<(Time, OrgKey)>,
    next_number: DueNumber,
}

impl Lanes {
    pub fn new(count: usize, rate: Rate) -> Self {
        Self {
            rate,
            orgs: Vec::new(),
            by_id: HashMap::new(),
            free: Vec::new(),
            waiting: BinaryHeap::new(),
            due: vec![VecDeque::new(); count.max(1)],
            idle: VecDeque::new(),
            next_number: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.due.len()
    }

    /// Orgs that are remembered.
    pub fn org_count(&self) -> usize {
        self.by_id.len()
    }

    /// Changes the rate, and the number of lanes: due orgs move to the lanes they hash to now.
    pub fn configure(&mut self, count: usize, rate: Rate) {
        self.rate = rate;
        if count.max(1) == self.due.len() {
            return;
        }
        let queues = mem::replace(&mut self.due, vec![VecDeque::new(); count.max(1)]);
        let mut all: Vec<_> = queues.into_iter().flatten().collect();
        all.sort_unstable();
        for (number, key) in all {
            if let Some(queue) = self.queue_of(key) {
                queue.push_back((number, key));
            }
        }
    }

    /// Adds an entry to what its org has to send.
    pub fn push(&mut self, now: Time, entry: Arc<Entry>, chunk: ChunkId) {
        let key = self.key_of(&entry.org_id);
        let Some(org) = self.org_mut(key) else { return };
        org.wire_bytes = org.wire_bytes.saturating_add(wire_bytes(&entry));
        org.entries.push(entry);
        match org.runs.last_mut() {
            Some(run) if run.chunk == chunk => run.entries += 1,
            _ => org.runs.push(Run { chunk, entries: 1 }),
        }
        if org.place == Place::Idle {
            self.line_up(now, key);
        }
    }

    /// Moves the orgs whose token has come to their lanes, and forgets those that are idle and
    /// have a full bucket.
    pub fn tick(&mut self, now: Time) {
        while self.next_token_at().is_some_and(|at| at <= now) {
            if let Some(Reverse((_, _, key))) = self.waiting.pop() {
                self.make_due(key);
            }
        }
        while let Some((_, key)) = self.idle.pop_front_if(|(full_at, _)| *full_at <= now) {
            self.forget(now, key);
        }
    }

    /// When the next org gets its token.
    pub fn next_token_at(&self) -> Option<Time> {
        self.waiting.peek().map(|&Reverse((at, _, _))| at)
    }

    /// When the org that has waited longest in this lane became due; smaller is older.
    pub fn oldest_due(&self, lane: usize) -> Option<DueNumber> {
        let (number, _) = self.due.get(lane)?.front()?;
        Some(*number)
    }

    /// Takes what the next request of the lane carries: all that each of the orgs has, oldest
    /// first, as many as there is room for and one at least, if there is room for a message.
    pub fn take(&mut self, now: Time, lane: usize, room: Room) -> Vec<Parcel> {
        let mut parcels = Vec::new();
        let mut bytes = 0usize;
        while parcels.len() < room.messages {
            let Some(&(_, key)) = self.due.get(lane).and_then(VecDeque::front) else {
                break;
            };
            let rate = self.rate;
            let Some(org) = self.org_mut(key) else { break };
            bytes += org.wire_bytes.min(room.message_bytes) + MESSAGE_WIRE_BYTES;
            if bytes > room.bytes && !parcels.is_empty() {
                break;
            }
            org.place = Place::InFlight;
            org.bucket.spend(now, rate);
            org.wire_bytes = 0;
            parcels.push(Parcel {
                org: key,
                org_id: org.id.clone(),
                entries: mem::take(&mut org.entries),
                runs: mem::take(&mut org.runs),
            });
            if let Some(queue) = self.due.get_mut(lane) {
                queue.pop_front();
            }
        }
        parcels
    }

    /// The message of the org was delivered: what came meanwhile is next.
    pub fn delivered(&mut self, now: Time, key: OrgKey) {
        let Some(org) = self.org_mut(key) else { return };
        debug_assert_eq!(org.place, Place::InFlight);
        org.place = Place::Idle;
        if !org.entries.is_empty() {
            self.line_up(now, key);
        } else {
            let full_at = org.bucket.full_at();
            self.idle.push_back((full_at, key));
        }
    }

    /// A request failed: its parcels go back to the front, of their orgs and of their lanes.
    pub fn put_back(&mut self, parcels: impl DoubleEndedIterator<Item = Parcel>) {
        for parcel in parcels.rev() {
            let Some(org) = self.org_mut(parcel.org) else {
                continue;
            };
            debug_assert_eq!(org.place, Place::InFlight);
            org.place = Place::Due;
            let newer = mem::replace(&mut org.entries, parcel.entries);
            org.wire_bytes += org.entries.iter().map(|e| wire_bytes(e)).sum::<usize>();
            org.entries.extend(newer);
            let newer = mem::replace(&mut org.runs, parcel.runs);
            org.runs.extend(newer);
            // Older than all that is due, whenever it became so.
            if let Some(queue) = self.queue_of(parcel.org) {
                queue.push_front((0, parcel.org));
            }
        }
    }

    fn line_up(&mut self, now: Time, key: OrgKey) {
        let rate = self.rate;
        let Some(org) = self.org_mut(key) else { return };
        let token_at = org.bucket.token_at(rate);
        if token_at <= now {
            self.make_due(key);
        } else {
            org.place = Place::Waiting;
            self.next_number += 1;
            self.waiting.push(Reverse((token_at, self.next_number, key)));
        }
    }

    fn make_due(&mut self, key: OrgKey) {
        let Some(org) = self.org_mut(key) else { return };
        org.place = Place::Due;
        self.next_number += 1;
        let number = self.next_number;
        if let Some(queue) = self.queue_of(key) {
            queue.push_back((number, key));
        }
    }

    fn forget(&mut self, now: Time, key: OrgKey) {
        let is_over = |org: &mut Org| org.place == Place::Idle && org.bucket.full_at() <= now;
        let slot = self.orgs.get_mut(key.0 as usize);
        if let Some(org) = slot.and_then(|org| org.take_if(is_over)) {
            self.by_id.remove(&org.id);
            self.free.push(key);
        }
    }

    fn key_of(&mut self, id: &Arc<str>) -> OrgKey {
        if let Some(&key) = self.by_id.get(id) {
            return key;
        }
        let key = self.free.pop().unwrap_or_else(|| {
            self.orgs.push(None);
            OrgKey((self.orgs.len() - 1) as u32)
        });
        if let Some(slot) = self.orgs.get_mut(key.0 as usize) {
            *slot = Some(Org {
                id: id.clone(),
                place: Place::Idle,
                bucket: Bucket::default(),
                entries: Vec::new(),
                runs: Vec::new(),
                wire_bytes: 0,
            });
        }
        self.by_id.insert(id.clone(), key);
        key
    }

    fn org_mut(&mut self, key: OrgKey) -> Option<&mut Org> {
        self.orgs.get_mut(key.0 as usize)?.as_mut()
    }

    fn queue_of(&mut self, key: OrgKey) -> Option<&mut VecDeque<(DueNumber, OrgKey)>> {
        let org = self.orgs.get(key.0 as usize)?.as_ref()?;
        let lane = lane_of(&org.id, self.due.len());
        self.due.get_mut(lane)
    }
}

/// The lane of an org: FNV-1a, and a multiplication that carries its low bits, in which short
/// names differ, into the high ones, which choose.
fn lane_of(org_id: &str, lanes: usize) -> usize {
    let hash = org_id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mixed) * lanes as u128) >> 64) as usize
}

fn wire_bytes(entry: &Entry) -> usize {
    let origin = entry.origin.as_deref().map_or(0, str::len);
    let events = entry.event_count as usize;
    let each = events.saturating_mul(EVENT_WIRE_BYTES + origin);
    each.saturating_add(entry.text_bytes())
}

#[cfg(test)]
#[path = "lane_test.rs"]
mod tests;
