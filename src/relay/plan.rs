#![forbid(unsafe_code)]
//! The state machine of one sink (and shard): what to read, what to send, what to record.
//!
//! The worker and the simulation run this same function. [`step`] takes one input and appends the
//! effects that it calls for; whoever carries them out feeds the results back as inputs. It never
//! waits, and [`State::next_deadline`] says when it wants an [`Input::Tick`] if nothing happens.
//!
//! | effect | answered by |
//! | --- | --- |
//! | [`Effect::Read`] | [`Input::Read`] or [`Input::ReadFailed`], always |
//! | [`Effect::LookForReturns`] | [`Input::Returns`] or [`Input::ReturnsFailed`], always |
//! | [`Effect::Send`] | [`Input::Answered`], always: a lost answer is an outcome too |
//! | [`Effect::Record`] | [`Input::Recorded`] or [`Input::RecordFailed`], always |
//! | [`Effect::Report`] | nothing |
//!
//! What it keeps:
//!
//! 1. The recorded position never passes an entry that has no outcome (`ledger`), and what is
//!    refused is recorded with it, as a retry or a dead letter (`returns`).
//! 2. One reading at a time, overlapping delivery, until `memory_limit_bytes` are held; then none
//!    until half of that is free, so that readings stay large.
//! 3. One message of an org on the way at a time: its events arrive in order (`lane`).
//! 4. One request in a lane, oldest orgs first, within the tenant's budget (`pace`).
//! 5. A failure of the sink stops all lanes; one probe starts them again (`health`). Nothing is
//!    dropped and no event is blamed.
//! 6. A refusal of a message is narrowed down to one event, and that event alone is retried
//!    (`answer`). With strict order its org waits for it.
//! 7. Idle is silent: no effect, no deadline.

mod answer;

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::{Order, SinkOptions};
use crate::cursor::Position;
use crate::envelope::{Message, Tally};
use crate::event::{Entry, EntryId};
use crate::relay::health::{Health, Permit};
use crate::relay::journal::{Journal, Line};
use crate::relay::lane::{Backing, Lanes, OrgKey, Parcel, Room};
use crate::relay::ledger::Ledger;
use crate::relay::pace::{Budget, Rate};
use crate::relay::returns::{Fate, Page, Returns};
use crate::relay::time::{Duration, Time};
use crate::retry;
use crate::sink::{Batch, Failure, Outcome};

/// Most messages of one request: some milliseconds of work for the sink.
const REQUEST_MESSAGES_MAX: usize = 1_000;

/// Most bytes of one request, as estimated: half of what Realtime takes.
const REQUEST_BYTES_MAX: usize = 4_000_000;

/// One reading takes an eighth of the memory that is ours, between these bounds: small enough to
/// overlap with delivery, large enough to be worth a transaction.
const READ_BYTES_MIN: usize = 64 * 1024;
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most events of one look at the table of retries.
const RETURNS_MAX: usize = 2_000;

/// What the plan must know of its sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub lanes: usize,
    pub rate: Rate,
    /// Messages a second that the tenant allows; 0 is no limit.
    pub events_per_second: u32,
    pub message_events_max: usize,
    pub message_bytes_max: usize,
    /// Retries of a refused event before it is a dead letter.
    pub retries: u32,
    pub order: Order,
    /// Bound on the bytes of entries that were read and have no outcome. What comes of taking
    /// them apart may be as much again.
    pub memory_limit_bytes: usize,
}

impl Settings {
    pub fn new(options: &SinkOptions, memory_limit_bytes: usize) -> Self {
        Self {
            lanes: options.connections,
            rate: Rate { burst: options.burst, window: Duration::from_ms(options.window_ms) },
            events_per_second: options.events_per_second,
            message_events_max: options.message_events_max,
            message_bytes_max: options.message_bytes_max,
            retries: options.retries,
            order: options.order,
            memory_limit_bytes,
        }
    }
}

/// The number of a request, counted from the start of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a reading brought.
#[derive(Debug)]
pub struct Chunk {
    /// In the order of their ids.
    pub entries: Vec<Entry>,
    /// Where the cursor stands once these have their outcome. The next reading begins here. With
    /// `complete` it is the end of the window; else it is within it, at the last entry.
    pub after: Position,
    /// False: the window holds more.
    pub complete: bool,
}

#[derive(Debug)]
pub enum Input {
    /// There may be something new.
    Woken,
    Read(Chunk),
    ReadFailed,
    /// Events that are to be sent again.
    Returns(Page),
    ReturnsFailed,
    /// Events that are to be sent again may have been put into the table.
    ReturnsExpected,
    Answered {
        request: RequestId,
        outcome: Outcome,
        /// Messages of the batch that the sink named as the reason of a refusal, by their places.
        named: Vec<usize>,
        /// What the sink made of the batch, for the counters.
        tally: Tally,
    },
    Recorded,
    RecordFailed,
    /// Time has passed.
    Tick,
    /// New settings, lanes and order excepted; also tries a failing sink at once, as they may be
    /// its cure.
    Configure(Settings),
    /// Reads and sends nothing more. What is on the way is waited for and recorded.
    Pause,
    /// Ends a pause; also tries a failing sink at once.
    Resume,
    /// The relay ends: as a pause, for good.
    Stop,
}

#[derive(Debug)]
pub enum Effect {
    /// Read on from `from`: entries in the order of their ids until their `memory_bytes` reach
    /// `bytes_max`, one at least if there is one.
    Read { from: Position, bytes_max: usize },
    /// Send this on the lane, which has nothing on the way.
    Send { lane: usize, request: RequestId, batch: Arc<Batch> },
    /// Take events that are due to be sent again out of the table, until their `memory_bytes`
    /// reach `bytes_max`, one at least if one is due; `with_held`: and say which
    /// were refused, due or not.
    LookForReturns { events_max: usize, bytes_max: usize, with_held: bool },
    /// Make this durable, as one.
    Record(Record),
    /// The state of the sink has changed.
    Report(Status),
}

/// What has happened since the last record.
#[derive(Clone, Debug)]
pub struct Record {
    pub position: Position,
    pub fates: Vec<Fate>,
    pub journal: Vec<Line>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkState {
    Running,
    /// The last request failed; the next try is at `retry_at`.
    BackingOff,
    /// The next try is under way, or waits for something to send.
    Probing,
    Paused,
    Stopped,
}

impl SinkState {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::BackingOff => "backing_off",
            Self::Probing => "probing",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// What an operator is told of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub state: SinkState,
    /// Why the sink is not running, until it has delivered again.
    pub failure: Option<Failure>,
    /// Failures in a row.
    pub attempts: u32,
    pub retry_at: Option<Time>,
}

/// Counted since the start of the relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Delivered, those included that stand collapsed or in a refresh.
    pub events: u64,
    pub messages: u64,
    /// Sent, whatever became of them.
    pub requests: u64,
    /// Requests that were not delivered, whoever was to blame.
    pub failures: u64,
    /// Refusals of single events.
    pub refused: u64,
    pub dead_letters: u64,
    /// Delivered events for which a newer one of the same message stands.
    pub collapsed: u64,
    pub refreshes: u64,
    /// Bodies of delivered requests.
    pub bytes: u64,
}

/// What the relay holds at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Read and without outcome, on the way included; and refused, until that is recorded.
    pub held_events: u64,
    pub held_bytes: usize,
    pub requests_in_flight: usize,
    pub orgs: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Running,
    Paused,
    Stopped,
}

/// A request on the way: for each message of its batch, whose it is and what it settles.
#[derive(Debug)]
struct InFlight {
    lane: usize,
    sent_at: Time,
    batch: Arc<Batch>,
    shares: Vec<Share>,
}

#[derive(Debug)]
struct Share {
    org: OrgKey,
    backing: Backing,
}

#[derive(Debug)]
pub struct State {
    settings: Settings,
    mode: Mode,
    health: Health,
    ledger: Ledger,
    returns: Returns,
    journal: Journal,
    lanes: Lanes,
    budget: Budget,
    /// Up to where entries were read.
    position: Position,
    reading: bool,
    /// The window that is being read holds more.
    more: bool,
    /// There may be something new, which takes a new window to see: a wake that comes while one
    /// is being read is not answered by the rest of it.
    woken: bool,
    /// Memory was full, and is not half empty yet.
    sated: bool,
    read_failures: u32,
    read_retry_at: Option<Time>,
    requests: HashMap<RequestId, InFlight>,
    requests_made: u64,
    gauges: Gauges,
    counters: Counters,
    reported: Option<Status>,
}

impl State {
    /// Begins at the recorded position. The first step, of whatever input, reads.
    pub fn new(settings: Settings, position: Position) -> Self {
        Self {
            mode: Mode::Running,
            health: Health::default(),
            ledger: Ledger::new(position.clone()),
            returns: Returns::new(Time::from_ms(0)),
            journal: Journal::default(),
            lanes: Lanes::new(settings.lanes, settings.rate),
            budget: Budget::new(settings.events_per_second),
            reading: false,
            more: position.window.is_some(),
            woken: true,
            sated: false,
            read_failures: 0,
            read_retry_at: None,
            requests: HashMap::new(),
            requests_made: 0,
            gauges: Gauges::default(),
            counters: Counters::default(),
            reported: None,
            settings,
            position,
        }
    }

    /// Waits for [`Input::Resume`] before it reads.
    pub fn paused(self) -> Self {
        Self { mode: Mode::Paused, ..self }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn gauges(&self) -> Gauges {
        let (orgs, requests_in_flight) = (self.lanes.org_count(), self.requests.len());
        Gauges { requests_in_flight, orgs, ..self.gauges }
    }

    pub fn status(&self) -> Status {
        let state = match (self.mode, self.health.permit(), self.health.retry_at()) {
            (Mode::Stopped, ..) => SinkState::Stopped,
            (Mode::Paused, ..) => SinkState::Paused,
            (Mode::Running, Permit::All, _) => SinkState::Running,
            (Mode::Running, _, Some(_)) => SinkState::BackingOff,
            (Mode::Running, _, None) => SinkState::Probing,
        };
        Status {
            state,
            failure: self.health.failure(),
            attempts: self.health.attempts(),
            retry_at: self.health.retry_at(),
        }
    }

    /// The position that is recorded.
    pub fn recorded(&self) -> &Position {
        self.ledger.recorded()
    }

    /// When to step with a tick if nothing else happens; `None`: only an input changes anything.
    /// Later than the time of the last step.
    pub fn next_deadline(&self, now: Time) -> Option<Time> {
        let running = self.mode == Mode::Running;
        let read = self.read_retry_at.filter(|_| running);
        let send = match self.health.permit() {
            _ if !running => None,
            Permit::None => self.health.retry_at(),
            Permit::Probe | Permit::All => {
                // A lane that is free and has orgs due was left so for want of budget alone.
                let may_send = !self.is_choked();
                let starved = may_send && (0..self.lanes.count()).any(|lane| self.is_ready(lane));
                let budget = starved.then(|| self.budget.next_change(now));
                [budget, self.lanes.next_token_at()].into_iter().flatten().min()
            }
        };
        let returns = self.returns.deadline().filter(|_| self.may_look());
        [read, send, returns, self.ledger.deadline()].into_iter().flatten().min()
    }

    fn read(&mut self, now: Time, chunk: Chunk) {
        self.reading = false;
        self.read_failures = 0;
        self.more = !chunk.complete;
        let count = chunk.entries.len();
        let id = self.ledger.enter(&self.position, chunk.after.clone(), count);
        self.position = chunk.after;
        for entry in chunk.entries {
            self.gauges.held_bytes += entry.memory_bytes();
            self.gauges.held_events += u64::from(entry.event_count);
            self.lanes.push(now, Arc::new(entry), id);
        }
        self.sated |= self.gauges.held_bytes >= self.settings.memory_limit_bytes;
    }

    fn read_failed(&mut self, now: Time, chance: u64) {
        self.reading = false;
        self.woken = true;
        self.read_failures = self.read_failures.saturating_add(1);
        self.read_retry_at = Some(retry::retry_at(now, self.read_failures, chance));
    }

    fn found(&mut self, now: Time, page: Page) {
        let count = page.returns.len();
        self.returns.found(now, count, page.next_in);
        for (org_id, event_id) in &page.held {
            self.lanes.hold(org_id, *event_id);
        }
        // Events of an org that were never refused travel together; a refused one alone.
        let mut together: HashMap<Arc<str>, Vec<Arc<Entry>>> = HashMap::new();
        for each in page.returns {
            self.gauges.held_bytes += each.event.memory_bytes();
            self.gauges.held_events += u64::from(each.event.event_count);
            let event = Arc::new(each.event);
            match each.attempts {
                0 => together.entry(event.org_id.clone()).or_default().push(event),
                attempts => self.lanes.push_return(vec![event], attempts),
            }
        }
        let mut together: Vec<_> = together.into_values().collect();
        together.sort_by_key(|events| events.first().map(|event| event.id));
        for events in together {
            for message in events.chunks(self.settings.message_events_max.max(1)) {
                self.lanes.push_return(message.to_vec(), 0);
            }
        }
    }

    /// With strict order nothing may be read until it is known which orgs wait for a retry: what
    /// is lined up already would not wait.
    fn knows_no_holds(&self) -> bool {
        self.settings.order == Order::Strict && !self.returns.has_looked()
    }

    /// Whether this is a time to take events that are to be sent again. With strict order even when
    /// memory is full: of orgs that are held, and only what is taken here lets them go.
    fn may_look(&self) -> bool {
        let has_room = !self.sated || self.settings.order == Order::Strict;
        self.mode == Mode::Running && self.health.is_closed() && has_room
    }

    fn recorded_all(&mut self) {
        self.ledger.record_succeeded();
        self.journal.record_succeeded();
        for fate in self.returns.record_succeeded() {
            match fate {
                Fate::Retry { event, .. } | Fate::Dead { event, .. } => self.let_go(&event),
                Fate::Arrived { .. } => {}
            }
        }
        self.have_let_go();
    }

    fn record_failed(&mut self, now: Time, chance: u64) {
        self.ledger.record_failed(now, chance);
        self.returns.record_failed();
        self.journal.record_failed();
    }

    fn configure(&mut self, settings: Settings) {
        debug_assert_eq!(
            (settings.lanes, settings.order),
            (self.settings.lanes, self.settings.order)
        );
        self.lanes.set_rate(settings.rate);
        // The same settings again, as a wake brings them, are no reason to forget a lesson.
        if settings.events_per_second != self.settings.events_per_second {
            self.budget.set_limit(settings.events_per_second);
        }
        self.health.try_now();
        let held = self.gauges.held_bytes;
        self.sated = held >= settings.memory_limit_bytes
            || (self.sated && held >= settings.memory_limit_bytes / 2);
        self.settings = settings;
    }

    fn resume(&mut self) {
        if self.mode == Mode::Paused {
            self.mode = Mode::Running;
        }
        self.health.try_now();
        self.woken = true;
    }

    fn count(&mut self, tally: Tally) {
        self.counters.messages += tally.messages;
        self.counters.collapsed += tally.collapsed;
        self.counters.refreshes += tally.refreshes;
        self.counters.bytes += tally.bytes;
    }

    /// Everything that can be done now and was not possible before.
    fn advance(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.health.tick(now);
        self.lanes.tick(now);
        if self.mode == Mode::Running {
            self.send_all(now, effects);
            self.read_on(now, effects);
        }
        if self.may_look() {
            let with_held = self.knows_no_holds();
            if self.returns.look(now) {
                let (events_max, bytes_max) = (RETURNS_MAX, self.bytes_to_read());
                effects.push(Effect::LookForReturns { events_max, bytes_max, with_held });
            }
        }
        let has_outcomes = self.returns.has_fates() || self.journal.is_urgent();
        if let Some(position) = self.ledger.next_record(now, has_outcomes) {
            let (fates, journal) = (self.returns.begin_record(), self.journal.begin_record());
            effects.push(Effect::Record(Record { position, fates, journal }));
        }
        let status = self.status();
        if self.reported != Some(status) {
            self.reported = Some(status);
            effects.push(Effect::Report(status));
        }
    }

    fn read_on(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.read_retry_at = self.read_retry_at.filter(|&at| at > now);
        let waits = self.read_retry_at.is_some();
        // While the sink fails there is enough to try it with.
        let useful = self.health.is_closed() || self.gauges.held_events == 0;
        let hungry = self.more || self.woken;
        if self.reading || !hungry || self.sated || waits || !useful || self.knows_no_holds() {
            return;
        }
        self.reading = true;
        self.woken &= self.more;
        let (from, bytes_max) = (self.position.clone(), self.bytes_to_read());
        effects.push(Effect::Read { from, bytes_max });
    }

    /// What one reading, of the outbox or of what is sent again, may bring now.
    fn bytes_to_read(&self) -> usize {
        let limit = self.settings.memory_limit_bytes;
        let share = (limit / 8).clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        share.min(limit.saturating_sub(self.gauges.held_bytes).max(1))
    }

    /// Whether so much waits to be recorded that nothing may be sent that could add to it. An entry
    /// whose events are all refused takes far more memory in parts than as a whole.
    fn is_choked(&self) -> bool {
        let most = self.settings.memory_limit_bytes.saturating_mul(2);
        self.gauges.held_bytes > most && self.returns.has_unrecorded()
    }

    /// Fills every lane that is free, the one with the oldest org first.
    fn send_all(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.is_choked() {
            return;
        }
        loop {
            let permit = self.health.permit();
            let ready = (0..self.lanes.count()).filter(|&lane| self.is_ready(lane));
            let mut ready: Vec<usize> = ready.collect();
            ready.sort_by_key(|&lane| self.lanes.oldest_due(lane));
            let Some(&lane) = ready.first() else { return };
            let allowance = self.budget.allowance(now);
            let messages = match (permit, allowance) {
                (Permit::None, _) | (_, Some(0)) => return,
                (Permit::Probe, _) => 1,
                (Permit::All, None) => REQUEST_MESSAGES_MAX,
                // What is left is shared by the lanes that want it.
                (Permit::All, Some(left)) => {
                    REQUEST_MESSAGES_MAX.min((left as usize).div_ceil(ready.len()))
                }
            };
            self.send(now, lane, messages, effects);
        }
    }

    fn send(&mut self, now: Time, lane: usize, messages: usize, effects: &mut Vec<Effect>) {
        let room = Room {
            messages,
            bytes: REQUEST_BYTES_MAX,
            message_bytes: self.settings.message_bytes_max,
        };
        let parcels = self.lanes.take(now, lane, room);
        self.split(&parcels);
        self.budget.spend(now, parcels.len() as u32);
        self.requests_made += 1;
        let request = RequestId(self.requests_made);
        self.health.probing(request);
        self.counters.requests += 1;
        let (messages, shares) = parcels.into_iter().map(|parcel| self.address(parcel)).unzip();
        let batch = Arc::new(Batch { messages });
        let in_flight = InFlight { lane, sent_at: now, batch: batch.clone(), shares };
        self.requests.insert(request, in_flight);
        effects.push(Effect::Send { lane, request, batch });
    }

    /// Enters what was taken in two to make the parcels.
    fn split(&mut self, parcels: &[Parcel]) {
        for parcel in parcels {
            if let Some(split) = parcel.split {
                self.ledger.split(split.chunk);
                self.gauges.held_bytes = self.gauges.held_bytes.saturating_add_signed(split.bytes);
            }
        }
    }

    fn address(&self, parcel: Parcel) -> (Message, Share) {
        let cursor = match &parcel.backing {
            Backing::Outbox(runs) => {
                let last = runs.last().zip(parcel.entries.last());
                last.and_then(|(run, entry)| {
                    // An entry that goes on in the next message is not behind this one's cursor.
                    let last_id = EntryId(entry.id.0 - i64::from(parcel.is_cut));
                    self.ledger.cursor(run.chunk, last_id)
                })
            }
            Backing::Retries { .. } => None,
        };
        let message = Message {
            org_id: parcel.org_id,
            // New entries are of a chunk that is open for them. What is sent again moves nobody's
            // cursor: it has the one that all that was new until now lies behind.
            cursor: cursor.unwrap_or_else(|| self.ledger.recorded().clone()),
            entries: parcel.entries,
        };
        (message, Share { org: parcel.org, backing: parcel.backing })
    }

    /// Whether the lane has an org due and nothing on the way.
    fn is_ready(&self, lane: usize) -> bool {
        let busy = self.requests.values().any(|request| request.lane == lane);
        !busy && self.lanes.oldest_due(lane).is_some()
    }
}

/// Takes one input and appends the effects it calls for. `now` never goes back; `chance` is
/// random bits, new ones each time.
pub fn step(state: &mut State, now: Time, chance: u64, input: Input, effects: &mut Vec<Effect>) {
    match input {
        Input::Tick => {}
        Input::Woken => state.woken = true,
        Input::Read(chunk) => state.read(now, chunk),
        Input::ReadFailed => state.read_failed(now, chance),
        Input::Returns(page) => state.found(now, page),
        Input::ReturnsFailed => state.returns.look_failed(now, chance),
        Input::ReturnsExpected => state.returns.expect(now),
        Input::Answered { request, outcome, named, tally } => {
            if state.answered(now, chance, request, outcome, &named) {
                state.count(tally);
            }
        }
        Input::Recorded => state.recorded_all(),
        Input::RecordFailed => state.record_failed(now, chance),
        Input::Configure(settings) => state.configure(settings),
        Input::Pause if state.mode == Mode::Running => state.mode = Mode::Paused,
        Input::Pause => {}
        Input::Resume => state.resume(),
        Input::Stop => state.mode = Mode::Stopped,
    }
    state.advance(now, effects);
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
