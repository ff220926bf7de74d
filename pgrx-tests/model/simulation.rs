//! One relay, from one seed: writers, a store, a sink that fails, refuses and loses answers, an
//! operator, and crashes between any two effects. The relay's own `step` decides; everything
//! around it is played.

use std::collections::BTreeMap;
use std::sync::Arc;

use pg_outbox::config::Order;
use pg_outbox::cursor::{Position, Snapshot};
use pg_outbox::envelope::Tally;
use pg_outbox::event::EntryId;
use pg_outbox::relay::plan::{Effect, Input, Record, RequestId, Settings, SinkState, State, step};
use pg_outbox::relay::returns::Fate;
use pg_outbox::relay::time::{Duration, Time};
use pg_outbox::sink::{Batch, Failure, FailureKind, Outcome};

mod ending;
mod faults;
mod world;

use crate::audit::Audit;
use crate::chance::Chance;
use crate::database::{Database, ENTRY_BYTES_MAX};
use crate::life::Life;
use crate::retries::Retries;
use crate::setting;
use crate::sink::{Answer, Naming, Sink, TROUBLES, Trouble};
use crate::tale::Tale;

/// Simulated time in which everything must have arrived once nothing fails any more: a few of
/// the longest back-offs, and room for a tenant whose budget is short.
const RECOVERY_MS: u64 = 1_800_000;

/// More than any run has needed: a relay that turns in a circle without waiting is found so.
const STEPS_MAX: u64 = 400_000;

/// Longest way to the sink on a good network, and until an account of what was sent is exact
/// again after a bad one: Realtime's minute, and the tick that it is behind.
const FAST_MS: u64 = 30;
const ACCOUNT_MS: u64 = 70_000;

/// Requests that the search for one event may take: with new messages always coming, each halving
/// of up to 64 messages and then of up to 16,384 events costs three.
const SEARCH_REQUESTS: usize = 3 * (6 + 14);

/// What splitting costs in memory beyond the limit: the parts of the entries being searched.
const SPLIT_BYTES: usize = 64 * 256;

/// What happens at its time.
enum Happening {
    /// A writer does something.
    Write,
    /// Something that the relay is told in any life.
    Tell(Input),
    /// An answer to an effect reaches the life of the relay that asked.
    Answer(Input),
    /// The relay asked to be called.
    Deadline,
    /// The store carries out an effect, and the answer follows.
    Read {
        from: Position,
        bytes_max: usize,
    },
    Look {
        events_max: usize,
        bytes_max: usize,
        with_held: bool,
    },
    Record(Record),
    /// A batch reaches the sink, and the answer follows unless it is lost.
    Arrive {
        request: RequestId,
        batch: Arc<Batch>,
        order: Order,
    },
    Crash,
    /// Somebody pauses, resumes or reconfigures the sink.
    Disturb,
    /// Somebody redrives, replays or prunes.
    Operate,
    Trouble(Option<Trouble>),
    DiskFull(bool),
    FaultsEnd,
    /// After all is quiet: what lies among the dead letters gets another chance.
    LastRedrive,
}

pub struct Simulation {
    chance: Chance,
    is_told: bool,
    now_ms: u64,
    queue: BTreeMap<(u64, u64), (u64, Happening)>,
    happenings: u64,
    database: Database,
    retries: Retries,
    sink: Sink,
    audit: Audit,
    settings: Settings,
    relay: State,
    /// Which life of the relay this is, and where its clock began.
    life: u64,
    epoch_ms: u64,
    deadline_ms: Option<u64>,
    witness: Life,
    durable: Position,
    has_faults: bool,
    fault_percent: u64,
    writes_left: u64,
    is_paused: bool,
    /// The disk is full: what is there is read, and nothing is recorded.
    is_full: bool,
    /// Since when the relay's account of the tenant's budget is what the tenant's counter has.
    exact_since_ms: Option<u64>,
    requests_in_trouble: usize,
    requests_allowed: usize,
    tale: Tale,
}

impl Simulation {
    pub fn new(seed: u64, writes_max: u64, is_told: bool) -> Self {
        let mut chance = Chance::new(seed);
        let settings = setting::random(&mut chance);
        let orgs = chance.pick(&[1, 2, 5, 20, 60]);
        let end = chance.between(1_000, 60_000);
        let start = Position::at(Snapshot::empty());
        let mut simulation = Self {
            is_told,
            now_ms: 0,
            queue: BTreeMap::new(),
            happenings: 0,
            database: Database::new(orgs),
            retries: Retries::default(),
            sink: Sink::new(&mut chance, 2 * end),
            audit: Audit::default(),
            relay: State::new(settings.clone(), start.clone()),
            settings,
            life: 0,
            epoch_ms: chance.below(1 << 40),
            deadline_ms: None,
            witness: Life::new(start.clone()),
            durable: start,
            has_faults: true,
            fault_percent: chance.pick(&[0, 1, 10, 40]),
            writes_left: chance.between(20, 300).min(writes_max),
            is_paused: false,
            is_full: false,
            exact_since_ms: None,
            requests_in_trouble: 0,
            requests_allowed: 0,
            tale: Tale::default(),
            chance,
        };
        simulation.account_anew(true);
        simulation.after(end, Happening::FaultsEnd);
        simulation.after(0, Happening::Write);
        simulation.after(0, Happening::Tell(Input::Tick));
        simulation.plan_faults(end);
        simulation
    }

    /// Plays until nothing is left to happen, and checks that nothing is left to do.
    pub fn run(mut self) -> Tale {
        let mut quiet_since_ms = None;
        let mut is_last = false;
        loop {
            let Some(((at, _), (life, happening))) = self.queue.pop_first() else {
                self.check_quiet();
                if is_last {
                    break;
                }
                is_last = true;
                quiet_since_ms = None;
                let cured = self.sink_is_cured_in_ms();
                self.after(cured, Happening::LastRedrive);
                continue;
            };
            self.now_ms = at;
            self.happen(life, happening);
            assert!(self.tale.steps < STEPS_MAX, "it turns in a circle");
            if !self.has_faults && self.writes_left == 0 {
                let began = *quiet_since_ms.get_or_insert(self.now_ms);
                let is_in_time = self.now_ms < began + RECOVERY_MS;
                assert!(is_in_time, "no progress: {:?}", self.relay.status());
            }
        }
        self.audit.check_end(&self.database, &self.retries, &self.sink);
        self.check_searches();
        self.check_idle();
        self.tale.entries = self.database.rows().count();
        self.tale.deliveries = self.audit.deliveries;
        self.tale.duplicates = self.audit.duplicates;
        self.tale
    }

    fn happen(&mut self, life: u64, happening: Happening) {
        let is_current = life == self.life;
        match happening {
            Happening::Write => self.write(),
            Happening::Tell(input) => self.input(input),
            // What the sink has on its way arrives although its sender is gone.
            Happening::Arrive { request, batch, order } => {
                self.arrive(is_current, request, &batch, order)
            }
            Happening::Crash => self.crash(),
            Happening::Disturb => self.disturb(),
            Happening::Operate => self.operate(),
            Happening::Trouble(trouble) => self.trouble(trouble),
            Happening::DiskFull(is_full) => self.is_full = is_full && self.has_faults,
            Happening::FaultsEnd => {
                self.has_faults = false;
                self.is_full = false;
                self.is_paused = false;
                self.trouble(None);
                self.input(Input::Resume);
            }
            Happening::LastRedrive => self.redrive(100),
            _ if !is_current => {}
            Happening::Answer(input) => self.input(input),
            Happening::Deadline if self.deadline_ms != Some(self.now_ms) => {}
            Happening::Deadline => {
                self.deadline_ms = None;
                self.input(Input::Tick);
            }
            Happening::Read { from, bytes_max } => self.read(&from, bytes_max),
            Happening::Look { events_max, bytes_max, with_held } => {
                self.look(events_max, bytes_max, with_held)
            }
            Happening::Record(record) => self.record(&record),
        }
    }

    fn now(&self) -> Time {
        Time::from_ms(self.epoch_ms + self.now_ms)
    }

    fn input(&mut self, input: Input) {
        self.notice(&input);
        self.tell(&input);
        let mut effects = Vec::new();
        let (now, chance) = (self.now(), self.chance.bits());
        self.tale.steps += 1;
        step(&mut self.relay, now, chance, input, &mut effects);
        let gauges = self.relay.gauges();
        let (bound, most) = (self.settings.memory_limit_bytes, self.memory_max());
        assert!(gauges.held_bytes <= most, "{} bytes are held", gauges.held_bytes);
        self.tale.full_memory += usize::from(gauges.held_bytes >= bound);
        let life = self.life;
        for effect in effects {
            if self.has_faults && self.fault_percent > 0 && self.chance.below(1_000) == 0 {
                self.crash();
            }
            if life != self.life {
                return;
            }
            self.tell(&effect);
            self.carry_out(effect);
        }
        let deadline = self.relay.next_deadline(now);
        assert!(deadline.is_none_or(|at| at > now), "a deadline that has passed");
        let deadline_ms = deadline.map(|at| self.now_ms + at.since(now).as_ms());
        if let Some(at) = deadline_ms.filter(|_| deadline_ms != self.deadline_ms) {
            self.after(at - self.now_ms, Happening::Deadline);
        }
        self.deadline_ms = deadline_ms;
    }

    /// What an input means for what is expected of the relay.
    fn notice(&mut self, input: &Input) {
        match input {
            Input::Answered { request, outcome, .. } => {
                let (now, retries) = (self.now(), self.settings.retries);
                let refusal =
                    self.witness.answered(now, *request, *outcome, retries, &self.database);
                if let Some(refusal) = refusal {
                    self.audit.refused(&refusal, self.settings.order);
                    self.tale.refused += 1;
                    self.tale.refused_new += usize::from(refusal.is_new);
                    self.tale.dead += usize::from(refusal.is_dead);
                }
            }
            Input::Read(chunk) => {
                self.witness.read(chunk);
                self.witness.is_reading = false;
            }
            Input::ReadFailed => self.witness.is_reading = false,
            Input::Returns(page) => {
                self.witness.found(page);
                self.witness.is_looking = false;
            }
            Input::ReturnsFailed => self.witness.is_looking = false,
            Input::Recorded | Input::RecordFailed => self.witness.is_recording = false,
            _ => {}
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Report(status) => {
                let expects_retry = status.state == SinkState::BackingOff;
                assert!(!expects_retry || status.retry_at.is_some() && status.failure.is_some());
            }
            Effect::Read { from, bytes_max } => {
                assert!(!self.witness.is_reading, "two readings at once");
                assert!(!self.is_paused, "a reading during a pause");
                self.witness.is_reading = true;
                let delay = self.chance.below(20);
                self.after(delay, Happening::Read { from, bytes_max });
            }
            Effect::LookForReturns { events_max, bytes_max, with_held } => {
                assert!(!self.is_paused, "a look during a pause");
                self.witness.looks();
                let delay = self.chance.below(20);
                self.after(delay, Happening::Look { events_max, bytes_max, with_held });
            }
            Effect::Record(record) => {
                self.witness.records(&record);
                let bytes: usize = record.fates.iter().map(fate_bytes).sum();
                assert!(bytes <= self.memory_max(), "{bytes} bytes wait to be recorded");
                let delay = self.chance.below(50);
                self.after(delay, Happening::Record(record));
            }
            Effect::Send { lane, request, batch } => self.send(lane, request, batch),
        }
    }

    fn send(&mut self, lane: usize, request: RequestId, batch: Arc<Batch>) {
        assert!(!self.is_paused, "a request during a pause");
        assert!(lane < self.settings.lanes);
        let (now, recorded) = (self.now(), self.relay.recorded());
        self.witness.sent(now, (lane, request), batch.clone(), recorded, &self.database);
        let is_slow = self.has_faults && self.chance.in_percent(self.fault_percent / 3);
        let delay = self.chance.below(if is_slow { 5_000 } else { FAST_MS });
        if is_slow {
            self.account_anew(false);
        }
        let order = self.settings.order;
        self.after(delay, Happening::Arrive { request, batch, order });
    }

    fn memory_max(&self) -> usize {
        2 * self.settings.memory_limit_bytes + 2 * ENTRY_BYTES_MAX + SPLIT_BYTES
    }

    fn answer_soon(&mut self, input: Input) {
        let delay = self.chance.pick(&[0, 0, 1, 20]);
        self.after(delay, Happening::Answer(input));
    }

    fn after(&mut self, delay_ms: u64, happening: Happening) {
        self.happenings += 1;
        let at = (self.now_ms + delay_ms, self.happenings);
        self.queue.insert(at, (self.life, happening));
    }

    fn sink_is_cured_in_ms(&self) -> u64 {
        self.sink.cured_ms.saturating_sub(self.now_ms)
    }

    fn tell(&self, what: &impl std::fmt::Debug) {
        if self.is_told {
            println!("{:>8} life {} {what:?}", self.now_ms, self.life);
        }
    }
}

fn fate_bytes(fate: &Fate) -> usize {
    match fate {
        Fate::Retry { event, .. } | Fate::Dead { event, .. } => event.memory_bytes(),
        Fate::Arrived { .. } => 0,
    }
}
