//! What one life of the relay was given, what it has on the way and what it owes, kept beside it
//! by the rules alone. Whatever the relay does is compared with this.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use pg_outbox::cursor::{Cursor, Era, Position};
use pg_outbox::envelope::Message;
use pg_outbox::event::{Entry, EntryId, EventId};
use pg_outbox::relay::journal::Line;
use pg_outbox::relay::plan::{Chunk, Record, RequestId};
use pg_outbox::relay::returns::{Fate, Page};
use pg_outbox::relay::time::Time;
use pg_outbox::sink::{Batch, FailureKind, Outcome};

use crate::database::{Database, entry_id};
use crate::retries::AGAIN;

/// A fate that is to be recorded next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Retry { event_id: EventId, attempts: u32 },
    Dead { event_id: EventId, attempts: u32 },
    Arrived { event_id: EventId },
}

struct Way {
    lane: usize,
    sent_at: Time,
    batch: Arc<Batch>,
}

/// A refusal of one event alone.
pub struct Refusal {
    pub events: Vec<EventId>,
    pub is_dead: bool,
    pub is_new: bool,
}

pub struct Life {
    begun_at: Position,
    /// The entries of each reading that have no outcome, and where the cursor stands after them.
    chunks: VecDeque<(HashSet<EntryId>, Position)>,
    /// Where the cursor may stand.
    reached: Position,
    /// What was read and has no outcome, org by org, in the order of reading.
    new: HashMap<Arc<str>, VecDeque<EventId>>,
    /// Entries all of whose events have their outcome.
    done: HashSet<EntryId>,
    /// Taken out of the table of retries, without a recorded fate, and how often refused before.
    out: BTreeMap<EventId, u32>,
    ways: HashMap<RequestId, Way>,
    lanes_of: HashMap<Arc<str>, usize>,
    /// With each whether it had been taken out of the table.
    owed: Vec<(Owed, bool)>,
    owed_lines: Vec<Line>,
    /// Places that recorded lines name.
    lines: HashMap<Arc<str>, Vec<(EntryId, EntryId)>>,
    pub is_reading: bool,
    pub is_looking: bool,
    pub is_recording: bool,
}

/// The events of an entry or of a part of one.
pub fn events(entry: &Entry) -> impl Iterator<Item = EventId> {
    let first = entry.event_id;
    (0..entry.event_count).map(move |place| first.plus(place))
}

impl Life {
    pub fn new(begun_at: Position) -> Self {
        Self {
            reached: begun_at.clone(),
            begun_at,
            chunks: VecDeque::new(),
            new: HashMap::new(),
            done: HashSet::new(),
            out: BTreeMap::new(),
            ways: HashMap::new(),
            lanes_of: HashMap::new(),
            owed: Vec::new(),
            owed_lines: Vec::new(),
            lines: HashMap::new(),
            is_reading: false,
            is_looking: false,
            is_recording: false,
        }
    }

    pub fn read(&mut self, chunk: &Chunk) {
        for entry in &chunk.entries {
            self.new.entry(entry.org_id.clone()).or_default().extend(events(entry));
        }
        let ids: HashSet<EntryId> = chunk.entries.iter().map(|entry| entry.id).collect();
        match self.chunks.back_mut() {
            Some((_, after)) if ids.is_empty() => *after = chunk.after.clone(),
            _ => self.chunks.push_back((ids, chunk.after.clone())),
        }
        self.reach();
    }

    fn reach(&mut self) {
        while let Some((_, after)) = self.chunks.pop_front_if(|(ids, _)| ids.is_empty()) {
            self.reached = after;
        }
    }

    pub fn looks(&mut self) {
        assert!(!self.is_looking, "two looks at once");
        assert!(self.out.is_empty(), "a look while {:?} have no fate", self.out);
        self.is_looking = true;
    }

    pub fn found(&mut self, page: &Page) {
        for each in &page.returns {
            self.out.insert(each.event.event_id, each.attempts);
        }
    }

    pub fn sent(
        &mut self,
        now: Time,
        (lane, request): (usize, RequestId),
        batch: Arc<Batch>,
        recorded: &Position,
        database: &Database,
    ) {
        assert!(!batch.messages.is_empty());
        assert!(self.ways.values().all(|way| way.lane != lane), "two requests on lane {lane}");
        for message in &batch.messages {
            let org_id = &message.org_id;
            assert!(!message.entries.is_empty());
            assert!(message.entries.iter().all(|entry| entry.org_id == *org_id));
            let in_flight = self.ways.values().flat_map(|way| &way.batch.messages);
            let others = in_flight.filter(|other| other.org_id == *org_id);
            let twins = batch.messages.iter().filter(|other| other.org_id == *org_id);
            assert_eq!(others.count() + twins.count(), 1, "messages of org {org_id} on the way");
            let its_lane = *self.lanes_of.entry(org_id.clone()).or_insert(lane);
            assert_eq!(lane, its_lane, "org {org_id} has changed its lane");
            self.check_message(message, recorded, database);
        }
        self.ways.insert(request, Way { lane, sent_at: now, batch });
    }

    /// The message is the next of what its org has, or what it was told to send again; and its
    /// cursor covers exactly what its org has got with it, or what has left the outbox.
    fn check_message(&self, message: &Message, recorded: &Position, database: &Database) {
        let is_again = is_again(message);
        if is_again {
            for event_id in message.entries.iter().map(|entry| entry.event_id) {
                assert!(self.out.contains_key(&event_id), "{event_id} was not taken");
            }
            assert_eq!(&message.cursor, recorded, "the cursor of what is sent again");
        }
        let mut next = self.new.get(&message.org_id).into_iter().flatten().copied().peekable();
        let mut complete = HashSet::new();
        for event_id in message.entries.iter().filter(|_| !is_again).flat_map(|e| events(e)) {
            assert_eq!(next.next(), Some(event_id), "not the next of org {}", message.org_id);
            let goes_on = next.peek().is_some_and(|&next| entry_id(next) == entry_id(event_id));
            if !goes_on {
                complete.insert(entry_id(event_id));
            }
        }
        let cursor = &message.cursor;
        let text = cursor.clone().stamped(Era::of(1, 1, 1)).to_string();
        assert_eq!(&Cursor::parse(&text).unwrap().position, cursor);
        for row in database.rows_of(&message.org_id) {
            let id = row.entry.id;
            let has_got = self.begun_at.covers(row.xid, id)
                || self.done.contains(&id)
                || complete.contains(&id);
            let is_covered = cursor.covers(row.xid, id);
            let is_right = if is_again { has_got || !is_covered } else { has_got == is_covered };
            assert!(is_right, "the cursor and {id:?} of org {}", message.org_id);
        }
    }

    /// What an answer makes the relay owe. Returns what was refused alone; nothing is known of a
    /// request that was answered before.
    pub fn answered(
        &mut self,
        now: Time,
        request: RequestId,
        outcome: Outcome,
        retries: u32,
        database: &Database,
    ) -> Option<Refusal> {
        let way = self.ways.remove(&request)?;
        self.owed_lines.push(line(now, &way, outcome));
        match outcome {
            Outcome::Delivered => {
                for message in &way.batch.messages {
                    if is_again(message) {
                        let ids = message.entries.iter().map(|entry| entry.event_id);
                        self.owed.extend(ids.map(|event_id| (Owed::Arrived { event_id }, true)));
                    } else {
                        self.settle(message);
                    }
                }
                None
            }
            Outcome::Refused(failure) if is_a_messages_fault(failure.kind) => {
                let [message] = &way.batch.messages[..] else { return None };
                let [unit] = &message.entries[..] else { return None };
                let is_single = unit.event_count == 1
                    || database.row(unit.id).is_some_and(|row| row.is_damaged);
                is_single.then(|| self.refused(message, unit, retries))
            }
            _ => None,
        }
    }

    fn refused(&mut self, message: &Message, unit: &Entry, retries: u32) -> Refusal {
        let event_id = unit.event_id;
        let is_new = !is_again(message);
        let before = if is_new { 0 } else { self.out[&event_id] };
        let (attempts, is_dead) = (before + 1, before + 1 > retries);
        let owed = match is_dead {
            true => Owed::Dead { event_id, attempts },
            false => Owed::Retry { event_id, attempts },
        };
        self.owed.push((owed, !is_new));
        if is_new {
            self.settle(message);
        }
        Refusal { events: events(unit).collect(), is_dead, is_new }
    }

    /// All that the message carried has its outcome.
    fn settle(&mut self, message: &Message) {
        let Some(new) = self.new.get_mut(&message.org_id) else { return };
        for event_id in message.entries.iter().flat_map(|entry| events(entry)) {
            assert_eq!(new.pop_front(), Some(event_id));
            if new.front().is_none_or(|&next| entry_id(next) != entry_id(event_id)) {
                let id = entry_id(event_id);
                self.done.insert(id);
                for (ids, _) in &mut self.chunks {
                    ids.remove(&id);
                }
            }
        }
        self.reach();
    }

    /// What is handed over to be recorded is all that is owed, in its order, and a position as far
    /// as everything before has its outcome.
    pub fn records(&mut self, record: &Record) {
        assert!(!self.is_recording, "two records at once");
        self.is_recording = true;
        assert_eq!(record.position, self.reached, "the position of a record");
        let fates = record.fates.iter().map(|fate| match fate {
            Fate::Retry { event, attempts, .. } => {
                Owed::Retry { event_id: event.event_id, attempts: *attempts }
            }
            Fate::Dead { event, attempts, .. } => {
                Owed::Dead { event_id: event.event_id, attempts: *attempts }
            }
            Fate::Arrived { event_id } => Owed::Arrived { event_id: *event_id },
        });
        let owed: Vec<Owed> = self.owed.iter().map(|(owed, _)| *owed).collect();
        assert_eq!(fates.collect::<Vec<_>>(), owed, "the fates of a record");
        assert_eq!(record.journal, self.owed_lines, "the journal of a record");
    }

    /// The record is durable.
    pub fn recorded(&mut self, record: &Record) {
        for (owed, was_taken) in self.owed.drain(..record.fates.len()) {
            let (Owed::Retry { event_id, .. }
            | Owed::Dead { event_id, .. }
            | Owed::Arrived { event_id }) = owed;
            if was_taken {
                self.out.remove(&event_id);
            }
        }
        for line in self.owed_lines.drain(..record.journal.len()) {
            for sent in line.messages {
                let lines = self.lines.entry(sent.org_id).or_default();
                lines.push((sent.first_id, sent.last_id));
            }
        }
    }

    /// Whether a recorded line of this life tells what became of an entry.
    pub fn tells_of(&self, entry: &Entry) -> bool {
        let mut lines = self.lines.get(&entry.org_id).into_iter().flatten().rev();
        lines.any(|&(first, last)| first <= entry.id && entry.id <= last)
    }
}

fn is_again(message: &Message) -> bool {
    let copies = message.entries.iter().filter(|entry| entry.at_us == AGAIN).count();
    assert!(copies == 0 || copies == message.entries.len(), "new and old share a message");
    copies > 0
}

fn is_a_messages_fault(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Invalid | FailureKind::TooLarge)
}

fn line(now: Time, way: &Way, outcome: Outcome) -> Line {
    let sent = |message: &Message| {
        let ids = message.entries.iter().map(|entry| entry.id);
        let again = message.entries.iter().filter(|_| is_again(message));
        pg_outbox::relay::journal::Sent {
            org_id: message.org_id.clone(),
            first_id: ids.clone().min().unwrap(),
            last_id: ids.max().unwrap(),
            event_count: message.entries.iter().map(|entry| entry.event_count).sum(),
            again: again.map(|entry| entry.event_id).collect(),
        }
    };
    let messages = way.batch.messages.iter().map(sent).collect();
    Line { sent_at: way.sent_at, answered_at: now, outcome, messages }
}
