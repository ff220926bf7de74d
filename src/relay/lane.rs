#![forbid(unsafe_code)]
//! The orgs that have something to send, and the lanes they wait in.
//!
//! An org is in one of four places. *Idle*: it has nothing; it is forgotten once its bucket is
//! full. *Waiting* for its next token, in a heap by time. *Due*, in the queue of its lane, oldest
//! first. *In flight*: its message is on the way, and what comes meanwhile stays behind, so the
//! order of an org is kept however many lanes there are. *Held*: one of its events is retried and
//! the sink's order is strict. Every change of place costs the logarithm of the orgs that wait, and
//! no step looks at the others.
//!
//! A refusal is searched for by sending less: a lane fewer messages, an org fewer events, until
//! what is refused is one event. Nothing is set aside meanwhile, so the order stays what it is.
//!
//! Beside the orgs each lane has what is sent again: retries, redriven and replayed events.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;

use crate::event::{Entry, EventId};
use crate::relay::ledger::ChunkId;
use crate::relay::pace::{Bucket, Rate};
use crate::relay::time::Time;

/// JSON that an event costs in a message beside its own text: member names, ids, time, topic.
const EVENT_WIRE_BYTES: usize = 320;

/// JSON that a message costs beside its events: the envelope, a cursor, a refresh.
const MESSAGE_WIRE_BYTES: usize = 1_024;

/// What an org may have in a message after one of it was refused, before it counts as well again.
const WELL_EVENTS: u32 = 1_000;

/// Requests with new events that go before one that sends events again: a replay goes round live
/// traffic, and is not starved by it.
const TURNS_BEFORE_RETURN: u32 = 4;

/// The place of an org in the table; given away again once it is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrgKey(u32);

/// Entries of one chunk, in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub chunk: ChunkId,
    pub entries: usize,
}

/// Where the entries of a parcel are kept until they have an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// In the outbox, behind the cursor.
    Outbox(Vec<Run>),
    /// Each a row of the table of retries, with this many attempts. `alone`: one of them was
    /// refused, so they share no request.
    Retries { attempts: u32, alone: bool },
}

/// What an org sends in one message.
#[derive(Debug)]
pub struct Parcel {
    pub org: OrgKey,
    pub org_id: Arc<str>,
    pub entries: Vec<Arc<Entry>>,
    pub backing: Backing,
    /// Its last entry is a part, and the next part stays behind.
    pub is_cut: bool,
    /// An entry was taken in two for this.
    pub split: Option<Split>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    pub chunk: ChunkId,
    /// What the parts take in memory beyond the whole.
    pub bytes: isize,
}

impl Parcel {
    pub fn event_count(&self) -> u32 {
        let counts = self.entries.iter().map(|entry| entry.event_count);
        counts.fold(0, u32::saturating_add)
    }

    /// Half of its events, rounded down; of what is sent again half of the entries, as one that is
    /// damaged has several events and only goes as a whole.
    pub fn half(&self) -> u32 {
        match self.backing {
            Backing::Outbox(_) => self.event_count() / 2,
            Backing::Retries { .. } => (self.entries.len() / 2) as u32,
        }
    }

    /// Whether it can be sent as two: a single event cannot, nor can an entry that is damaged.
    pub fn is_divisible(&self) -> bool {
        match self.entries.as_slice() {
            [entry] => entry.split(1).is_some(),
            _ => self.entries.len() > 1,
        }
    }
}

/// What one request may carry.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub messages: usize,
    pub bytes: usize,
    /// What a message is cut to, whatever the org has pending.
    pub message_bytes: usize,
}

/// Where a parcel that was not delivered goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Before everything else of its lane.
    First,
    /// After what is due in its lane.
    Last,
    /// So, in a request of its own, and with no more events than this; of what is sent again, with
    /// no more entries.
    Alone { events_max: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Idle,
    Waiting,
    Due,
    InFlight,
    /// One of its events is retried, and the others wait for it.
    Held,
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
    /// A message of it was refused: it travels alone, with so many events, until it is well.
    events_max: Option<u32>,
    /// Retries that its place waits for: by their events, as one that was written down before a
    /// crash may be refused once more, and is still one.
    held: BTreeSet<EventId>,
    /// Parcels of it that are sent again.
    returns: u32,
}

/// When an org became due, by number.
type DueNumber = u64;

#[derive(Debug, Default)]
struct Lane {
    due: VecDeque<(DueNumber, OrgKey)>,
    /// What is sent again beside the new events.
    returns: VecDeque<Parcel>,
    turns: u32,
    /// How many messages a request may have: halved at each refusal that names none, doubled at
    /// each delivery. So the one that is refused is found in as many requests as the number of
    /// messages has digits in base two, and nothing has to remember where the search was.
    messages_max: Option<usize>,
}

#[derive(Debug)]
pub struct Lanes {
    rate: Rate,
    orgs: Vec<Option<Org>>,
    by_id: HashMap<Arc<str>, OrgKey>,
    free: Vec<OrgKey>,
    waiting: BinaryHeap<Reverse<(Time, DueNumber, OrgKey)>>,
    lanes: Vec<Lane>,
    /// Orgs that became idle, and when their bucket is full. An org may be here more than once,
    /// or have been taken up again: what it is now decides.
    idle: VecDeque<(Time, OrgKey)>,
    next_number: DueNumber,
}

impl Lanes {
    /// The number of lanes stays.
    pub fn new(count: usize, rate: Rate) -> Self {
        Self {
            rate,
            orgs: Vec::new(),
            by_id: HashMap::new(),
            free: Vec::new(),
            waiting: BinaryHeap::new(),
            lanes: (0..count.max(1)).map(|_| Lane::default()).collect(),
            idle: VecDeque::new(),
            next_number: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Orgs that are remembered.
    pub fn org_count(&self) -> usize {
        self.by_id.len()
    }

    pub fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
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

    /// Adds events that are sent again, all of one org and with as many attempts. They wait for
    /// no token: a retry is late already, and a replay has a turn now and then.
    pub fn push_return(&mut self, entries: Vec<Arc<Entry>>, attempts: u32) {
        let Some(org_id) = entries.first().map(|entry| entry.org_id.clone()) else { return };
        let org = self.key_of(&org_id);
        let backing = Backing::Retries { attempts, alone: attempts > 0 };
        if let Some(org) = self.org_mut(org) {
            org.returns += 1;
        }
        let parcel = Parcel { org, org_id, entries, backing, is_cut: false, split: None };
        if let Some(lane) = self.lane_of(org) {
            lane.returns.push_back(parcel);
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

    /// When the org that has waited longest in this lane became due; smaller is older, and what
    /// is sent again is youngest. `None` when the lane has nothing to send.
    pub fn oldest_due(&self, lane: usize) -> Option<DueNumber> {
        let lane = self.lanes.get(lane)?;
        match lane.due.front() {
            Some((number, _)) => Some(*number),
            None => lane.returns.front().map(|_| DueNumber::MAX),
        }
    }

    /// Takes what the next request of the lane carries: for each of the orgs all that it has,
    /// oldest first, as many as there is room for and one at least, if there is room for a
    /// message; or events that are sent again, when it is their turn.
    pub fn take(&mut self, now: Time, lane: usize, room: Room) -> Vec<Parcel> {
        let Some(place) = self.lanes.get_mut(lane) else { return Vec::new() };
        let has_returns = !place.returns.is_empty();
        if has_returns && (place.due.is_empty() || place.turns >= TURNS_BEFORE_RETURN) {
            place.turns = 0;
            return place.take_returns(room);
        }
        place.turns = if has_returns { place.turns + 1 } else { 0 };
        let messages = place.messages_max.map_or(room.messages, |max| max.min(room.messages));
        let mut parcels = Vec::new();
        let mut bytes = 0usize;
        while parcels.len() < messages {
            let next = self.lanes.get(lane).and_then(|lane| lane.due.front());
            let Some(&(_, key)) = next else { break };
            let rate = self.rate;
            let Some(org) = self.org_mut(key) else { break };
            bytes += org.wire_bytes.min(room.message_bytes) + MESSAGE_WIRE_BYTES;
            let is_alone = org.events_max.is_some();
            if (bytes > room.bytes || is_alone) && !parcels.is_empty() {
                break;
            }
            org.place = Place::InFlight;
            org.bucket.spend(now, rate);
            parcels.push(org.take(key));
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.due.pop_front();
            }
            if is_alone {
                break;
            }
        }
        parcels
    }

    /// A request of the lane was delivered.
    pub fn widen(&mut self, lane: usize, room: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            let doubled = lane.messages_max.map(|max| max.saturating_mul(2));
            lane.messages_max = doubled.filter(|&max| max < room);
        }
    }

    /// A request of the lane with so many messages was refused, and none was named.
    pub fn narrow(&mut self, lane: usize, messages: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.messages_max = Some((messages / 2).max(1));
        }
    }

    /// The message of the org was delivered: what came meanwhile is next.
    pub fn delivered(&mut self, now: Time, key: OrgKey) {
        let Some(org) = self.org_mut(key) else { return };
        debug_assert_eq!(org.place, Place::InFlight);
        // The rest of a message that had its token waits for no other.
        let is_rest = org.events_max.is_some();
        let doubled = org.events_max.map(|max| max.saturating_mul(2));
        org.events_max = doubled.filter(|&max| max < WELL_EVENTS && !org.entries.is_empty());
        org.place = Place::Idle;
        self.go_on(now, key, is_rest);
    }

    /// The single event that the message of the org was has been refused, and is somewhere else
    /// now. `hold`: what came after this event waits until [`Lanes::release`].
    pub fn refused(&mut self, now: Time, key: OrgKey, hold: Option<EventId>) {
        let Some(org) = self.org_mut(key) else { return };
        debug_assert_eq!(org.place, Place::InFlight);
        org.place = Place::Idle;
        org.held.extend(hold);
        self.go_on(now, key, true);
    }

    /// A parcel was not delivered, and goes back before what its org has got since.
    pub fn put_back(&mut self, parcel: Parcel, again: Again) {
        match parcel.backing {
            Backing::Outbox(_) => self.put_back_new(parcel, again),
            Backing::Retries { .. } => self.put_back_return(parcel, again),
        }
    }

    /// A parcel that was sent again needs the org no longer.
    pub fn returned(&mut self, now: Time, key: OrgKey) {
        let Some(org) = self.org_mut(key) else { return };
        org.returns = org.returns.saturating_sub(1);
        self.let_go(now, key);
    }

    /// What comes after a retried event of the org waits for it, as found when the relay starts.
    pub fn hold(&mut self, org_id: &Arc<str>, event_id: EventId) {
        let key = self.key_of(org_id);
        if let Some(org) = self.org_mut(key) {
            org.held.insert(event_id);
        }
    }

    /// An event of the org that was sent again has its outcome, whether it held others or not.
    pub fn release(&mut self, now: Time, key: OrgKey, event_id: EventId) {
        let Some(org) = self.org_mut(key) else { return };
        if !org.held.remove(&event_id) {
            return;
        }
        if org.held.is_empty() && org.place == Place::Held {
            org.place = Place::Idle;
            self.go_on(now, key, true);
        } else {
            self.let_go(now, key);
        }
    }

    fn put_back_new(&mut self, parcel: Parcel, again: Again) {
        let Some(org) = self.org_mut(parcel.org) else { return };
        debug_assert_eq!(org.place, Place::InFlight);
        org.place = Place::Due;
        let newer = mem::replace(&mut org.entries, parcel.entries);
        org.wire_bytes += org.entries.iter().map(|e| wire_bytes(e)).sum::<usize>();
        org.entries.extend(newer);
        if let Backing::Outbox(runs) = parcel.backing {
            let newer = mem::replace(&mut org.runs, runs);
            org.runs.extend(newer);
        }
        if let Again::Alone { events_max } = again {
            org.events_max = Some(events_max.max(1));
        }
        match again {
            // Older than all that is due, whenever it became so.
            Again::First => {
                if let Some(lane) = self.lane_of(parcel.org) {
                    lane.due.push_front((0, parcel.org));
                }
            }
            Again::Last | Again::Alone { .. } => self.make_due(parcel.org),
        }
    }

    fn put_back_return(&mut self, mut parcel: Parcel, again: Again) {
        let (key, mut rest) = (parcel.org, None);
        if let (Backing::Retries { alone, .. }, Again::Alone { events_max }) =
            (&mut parcel.backing, again)
        {
            *alone = true;
            let size = events_max.max(1) as usize;
            if parcel.entries.len() > size {
                let entries = parcel.entries.split_off(size);
                let (backing, org_id) = (parcel.backing.clone(), parcel.org_id.clone());
                let (is_cut, split) = (false, None);
                rest = Some(Parcel { org: key, org_id, entries, backing, is_cut, split });
            }
        }
        if let Some(org) = self.org_mut(key) {
            org.returns += u32::from(rest.is_some());
        }
        let Some(lane) = self.lane_of(key) else { return };
        match again {
            Again::Last => lane.returns.push_back(parcel),
            Again::First | Again::Alone { .. } => {
                rest.into_iter().for_each(|rest| lane.returns.push_front(rest));
                lane.returns.push_front(parcel);
            }
        }
    }

    /// Finds the next place of an org that has just become free.
    fn go_on(&mut self, now: Time, key: OrgKey, at_once: bool) {
        let Some(org) = self.org_mut(key) else { return };
        match (org.entries.is_empty(), org.held.is_empty(), at_once) {
            (true, ..) => self.let_go(now, key),
            (false, false, _) => org.place = Place::Held,
            (false, true, true) => self.make_due(key),
            (false, true, false) => self.line_up(now, key),
        }
    }

    /// Puts an org that has nothing more to send where it will be forgotten.
    fn let_go(&mut self, now: Time, key: OrgKey) {
        let Some(org) = self.org_mut(key) else { return };
        if org.place == Place::Idle {
            let full_at = org.bucket.full_at().max(now);
            self.idle.push_back((full_at, key));
        }
    }

    fn line_up(&mut self, now: Time, key: OrgKey) {
        let rate = self.rate;
        let Some(org) = self.org_mut(key) else { return };
        let token_at = org.bucket.token_at(rate);
        if !org.held.is_empty() {
            org.place = Place::Held;
        } else if token_at <= now {
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
        if let Some(lane) = self.lane_of(key) {
            lane.due.push_back((number, key));
        }
    }

    fn forget(&mut self, now: Time, key: OrgKey) {
        let is_over = |org: &mut Org| {
            org.place == Place::Idle
                && org.bucket.full_at() <= now
                && org.held.is_empty()
                && org.returns == 0
        };
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
                events_max: None,
                held: BTreeSet::new(),
                returns: 0,
            });
        }
        self.by_id.insert(id.clone(), key);
        key
    }

    fn org_mut(&mut self, key: OrgKey) -> Option<&mut Org> {
        self.orgs.get_mut(key.0 as usize)?.as_mut()
    }

    fn lane_of(&mut self, key: OrgKey) -> Option<&mut Lane> {
        let org = self.orgs.get(key.0 as usize)?.as_ref()?;
        let lane = lane_of(&org.id, self.lanes.len());
        self.lanes.get_mut(lane)
    }
}

impl Lane {
    /// One parcel, or several that were never refused: each of another org, so that there is one
    /// message of an org on the way.
    fn take_returns(&mut self, room: Room) -> Vec<Parcel> {
        let mut parcels: Vec<Parcel> = Vec::new();
        let mut orgs = HashSet::new();
        let mut bytes = 0usize;
        while let Some(next) = self.returns.front() {
            let text = next.entries.iter().map(|entry| wire_bytes(entry)).sum::<usize>();
            bytes += text.min(room.message_bytes) + MESSAGE_WIRE_BYTES;
            let is_alone = matches!(next.backing, Backing::Retries { alone: true, .. });
            let is_full = parcels.len() >= room.messages || bytes > room.bytes || is_alone;
            let is_known = !orgs.insert(next.org);
            if !parcels.is_empty() && (is_full || is_known) {
                break;
            }
            parcels.extend(self.returns.pop_front());
            if is_alone {
                break;
            }
        }
        parcels
    }
}

impl Org {
    /// Takes what the next message carries: everything, or the first so many events.
    fn take(&mut self, key: OrgKey) -> Parcel {
        let (count, split) = match self.events_max {
            Some(events_max) => self.cut(events_max),
            None => (self.entries.len(), None),
        };
        let rest = self.entries.split_off(count.min(self.entries.len()));
        let entries = mem::replace(&mut self.entries, rest);
        let taken = entries.iter().map(|entry| wire_bytes(entry)).sum();
        self.wire_bytes = match self.entries.is_empty() {
            true => 0,
            false => self.wire_bytes.saturating_sub(taken),
        };
        let is_cut = entries.last().zip(self.entries.first()).is_some_and(|(a, b)| a.id == b.id);
        let backing = Backing::Outbox(take_runs(&mut self.runs, entries.len()));
        Parcel { org: key, org_id: self.id.clone(), entries, backing, is_cut, split }
    }

    /// How many entries make up the first `events_max` events, one at least; an entry that goes
    /// beyond is taken in two if it can be.
    fn cut(&mut self, events_max: u32) -> (usize, Option<Split>) {
        let mut left = events_max;
        let mut count = 0;
        while let Some(entry) = self.entries.get(count) {
            if entry.event_count <= left {
                left -= entry.event_count;
                count += 1;
                continue;
            }
            let Some((head, tail)) = entry.split(left) else { break };
            let parts = head.memory_bytes() + tail.memory_bytes();
            let bytes = parts as isize - entry.memory_bytes() as isize;
            self.entries.splice(count..=count, [Arc::new(head), Arc::new(tail)]);
            let chunk = split_run(&mut self.runs, count);
            return (count + 1, chunk.map(|chunk| Split { chunk, bytes }));
        }
        (count.max(1), None)
    }
}

/// Takes the runs of the first `count` entries.
fn take_runs(runs: &mut Vec<Run>, count: usize) -> Vec<Run> {
    let (mut taken, mut left) = (Vec::new(), count);
    let mut whole = 0;
    for run in runs.iter_mut() {
        let entries = run.entries.min(left);
        if entries > 0 {
            taken.push(Run { chunk: run.chunk, entries });
        }
        left -= entries;
        run.entries -= entries;
        if run.entries > 0 {
            break;
        }
        whole += 1;
    }
    runs.drain(..whole.min(runs.len()));
    taken
}

/// Counts the entry at `place` twice, and returns its chunk.
fn split_run(runs: &mut [Run], place: usize) -> Option<ChunkId> {
    let mut before = 0;
    for run in runs {
        before += run.entries;
        if place < before {
            run.entries += 1;
            return Some(run.chunk);
        }
    }
    None
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
