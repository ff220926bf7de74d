//! One relay, from one seed: writers, a store, a sink that fails and loses answers, and crashes
//! between any two effects. The relay's own `step` decides; everything around it is played.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use pg_outbox::config::Order;
use pg_outbox::cursor::{Cursor, Era, Position, Snapshot};
use pg_outbox::envelope::Tally;
use pg_outbox::event::EntryId;
use pg_outbox::relay::pace::Rate;
use pg_outbox::relay::plan::{Effect, Input, Record, RequestId, Settings, SinkState, State, step};
use pg_outbox::relay::returns::Page;
use pg_outbox::relay::time::{Duration, Time};
use pg_outbox::sink::{Batch, Failure, FailureKind, Outcome};

use crate::chance::Chance;
use crate::database::Database;

/// Simulated time in which everything must have arrived once nothing fails any more: a few of
/// the longest back-offs, and room for a tenant whose budget is short.
const RECOVERY_MS: u64 = 1_800_000;

/// What happens at its time.
enum Happening {
    /// A writer does something.
    Write,
    /// An answer to an effect reaches the relay, unless that has crashed since.
    Input(Input),
    /// The store executes a reading.
    Read {
        from: Position,
        bytes_max: usize,
    },
    /// The store makes a position durable, and the answer follows.
    Record(Record),
    /// A batch reaches the sink, and the answer follows unless it is lost.
    Arrive {
        request: RequestId,
        batch: Arc<Batch>,
    },
    /// The relay asked to be called.
    Deadline,
    Crash,
    Disturb,
    FaultsEnd,
}

/// What the simulation counted, to show that the faults it plays did happen.
#[derive(Default, Debug)]
pub struct Tale {
    pub entries: usize,
    pub deliveries: usize,
    pub duplicates: usize,
    pub crashes: usize,
    pub failures: usize,
    pub incomplete_reads: usize,
    pub full_memory: usize,
}

pub struct Simulation {
    chance: Chance,
    now_ms: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    happenings: Vec<Option<(u64, Happening)>>,
    database: Database,
    settings: Settings,
    relay: State,
    /// Which life of the relay this is.
    life: u64,
    durable: Position,
    /// Where this life began, and what it delivered since: what its cursors must cover.
    begun_at: Position,
    delivered_in_life: HashSet<EntryId>,
    /// In the order in which the sink saw them first.
    delivered: Vec<EntryId>,
    seen: HashSet<EntryId>,
    lanes_busy: HashMap<RequestId, usize>,
    orgs_busy: HashMap<Arc<str>, RequestId>,
    is_reading: bool,
    is_recording: bool,
    has_faults: bool,
    fault_percent: u64,
    writes_left: u64,
    paused: bool,
    pub tale: Tale,
}

impl Simulation {
    pub fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let settings = random_settings(&mut chance);
        let orgs = chance.pick(&[1, 2, 5, 20, 60]);
        let start = Position::at(Snapshot::empty());
        let mut simulation = Self {
            now_ms: chance.below(1 << 40),
            queue: BinaryHeap::new(),
            happenings: Vec::new(),
            database: Database::new(orgs),
            relay: State::new(settings.clone(), start.clone()),
            settings,
            life: 0,
            durable: start.clone(),
            begun_at: start,
            delivered_in_life: HashSet::new(),
            delivered: Vec::new(),
            seen: HashSet::new(),
            lanes_busy: HashMap::new(),
            orgs_busy: HashMap::new(),
            is_reading: false,
            is_recording: false,
            has_faults: true,
            fault_percent: chance.pick(&[0, 5, 30, 70]),
            writes_left: chance.between(20, 300),
            paused: false,
            tale: Tale::default(),
            chance,
        };
        let end = simulation.chance.between(1_000, 60_000);
        simulation.after(end, Happening::FaultsEnd);
        simulation.after(0, Happening::Write);
        simulation.after(0, Happening::Input(Input::Tick));
        for _ in 0..simulation.chance.below(6) {
            let at = simulation.chance.below(end);
            simulation.after(at, Happening::Crash);
            let at = simulation.chance.below(end);
            simulation.after(at, Happening::Disturb);
        }
        simulation
    }

    /// Plays until nothing is left to happen, and checks that nothing is left to do.
    pub fn run(mut self) -> Tale {
        let mut faults_ended_ms = None;
        while let Some(Reverse((at, _, place))) = self.queue.pop() {
            self.now_ms = at;
            let Some((life, happening)) = self.happenings[place].take() else {
                continue;
            };
            self.happen(life, happening);
            if !self.has_faults && self.writes_left == 0 {
                let began = *faults_ended_ms.get_or_insert(self.now_ms);
                assert!(
                    self.now_ms < began + RECOVERY_MS,
                    "no progress: {:?}",
                    self.relay.status()
                );
            }
        }
        self.check_all_arrived();
        self.check_idle();
        self.tale.entries = self.database.rows.len();
        self.tale
    }

    fn happen(&mut self, life: u64, happening: Happening) {
        let is_current = life == self.life;
        match happening {
            Happening::Write => self.write(),
            // What the sink has on its way arrives although its sender is gone.
            Happening::Arrive { request, batch } => self.arrive(is_current, request, &batch),
            Happening::Crash => self.crash(),
            Happening::Disturb => self.disturb(),
            Happening::FaultsEnd => {
                self.has_faults = false;
                self.paused = false;
                self.input(Input::Resume);
            }
            _ if !is_current => {}
            Happening::Input(input) => self.input(input),
            Happening::Deadline => self.input(Input::Tick),
            Happening::Read { from, bytes_max } => self.read(&from, bytes_max),
            Happening::Record(record) => self.record(record),
        }
    }

    // The relay and its effects.

    fn input(&mut self, input: Input) {
        match &input {
            Input::Answered { request, .. } => {
                self.lanes_busy.remove(request);
                self.orgs_busy.retain(|_, other| other != request);
            }
            Input::Read(_) | Input::ReadFailed => self.is_reading = false,
            Input::Recorded | Input::RecordFailed => self.is_recording = false,
            _ => {}
        }
        let mut effects = Vec::new();
        let now = Time::from_ms(self.now_ms);
        step(&mut self.relay, now, self.chance.bits(), input, &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
        let gauges = self.relay.gauges();
        // One reading may exceed its bound by an entry.
        let bound = self.settings.memory_limit_bytes + 1_000;
        assert!(gauges.held_bytes <= bound, "{} bytes are held", gauges.held_bytes);
        self.tale.full_memory += usize::from(gauges.held_bytes >= bound - 1_000);
        if let Some(deadline) = self.relay.next_deadline(now) {
            assert!(deadline > now, "a deadline that has passed");
            self.after(deadline.since(now).as_ms(), Happening::Deadline);
        }
        if self.has_faults && self.fault_percent > 0 && self.chance.below(400) == 0 {
            self.crash();
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Report(status) => {
                let expects_retry = status.state == SinkState::BackingOff;
                assert!(!expects_retry || status.retry_at.is_some() && status.failure.is_some());
            }
            Effect::Read { from, bytes_max } => {
                assert!(!self.is_reading, "two readings at once");
                assert!(!self.paused, "a reading during a pause");
                self.is_reading = true;
                let delay = self.chance.below(20);
                self.after(delay, Happening::Read { from, bytes_max });
            }
            Effect::LookForReturns { .. } => {
                self.after(1, Happening::Input(Input::Returns(Page::default())));
            }
            Effect::Record(record) => {
                assert!(!self.is_recording, "two records at once");
                self.is_recording = true;
                let delay = self.chance.below(50);
                self.after(delay, Happening::Record(record));
            }
            Effect::Send { lane, request, batch } => self.send(lane, request, batch),
        }
    }

    fn send(&mut self, lane: usize, request: RequestId, batch: Arc<Batch>) {
        assert!(!self.paused, "a request during a pause");
        assert!(!batch.messages.is_empty());
        let is_free = self.lanes_busy.values().all(|&busy| busy != lane);
        assert!(is_free, "two requests on lane {lane}");
        self.lanes_busy.insert(request, lane);
        for message in &batch.messages {
            assert!(!message.entries.is_empty());
            assert!(message.entries.iter().all(|entry| entry.org_id == message.org_id));
            let other = self.orgs_busy.insert(message.org_id.clone(), request);
            assert_eq!(other, None, "two messages of org {} on the way", message.org_id);
        }
        let slow = self.has_faults && self.chance.in_percent(self.fault_percent / 3);
        let delay = if slow { self.chance.below(5_000) } else { self.chance.below(30) };
        self.after(delay, Happening::Arrive { request, batch });
    }

    // What is around the relay.

    fn read(&mut self, from: &Position, bytes_max: usize) {
        let input = if self.fails() {
            Input::ReadFailed
        } else {
            let chunk = self.database.read(from, bytes_max);
            self.tale.incomplete_reads += usize::from(!chunk.complete);
            Input::Read(chunk)
        };
        self.input(input);
    }

    fn record(&mut self, record: Record) {
        let position = record.position;
        // A commit may fail, or succeed with its answer lost to a crash.
        let is_made = !self.fails();
        if is_made {
            self.check_record(&position);
            self.durable = position;
        }
        // The relay's own commit is a transaction like any other.
        self.database.pass_xid();
        self.input(if is_made { Input::Recorded } else { Input::RecordFailed });
    }

    fn arrive(&mut self, is_current: bool, request: RequestId, batch: &Batch) {
        let failure = Failure::of(FailureKind::AnswerLost);
        let (is_received, outcome) = match self.fails() {
            false => (true, Outcome::Delivered),
            true if self.chance.in_percent(50) => (true, Outcome::Unknown(failure)),
            true if self.chance.in_percent(50) => (false, Outcome::Unknown(failure)),
            true => (false, Outcome::Refused(failure)),
        };
        self.tale.failures += usize::from(outcome != Outcome::Delivered);
        if is_received {
            self.receive(batch, is_current);
        }
        if is_current {
            let tally = Tally::default();
            let delay = self.chance.below(10);
            let answer = Input::Answered { request, outcome, named: Vec::new(), tally };
            self.after(delay, Happening::Input(answer));
        }
    }

    fn receive(&mut self, batch: &Batch, is_current: bool) {
        for message in &batch.messages {
            for entry in &message.entries {
                self.tale.deliveries += 1;
                if self.seen.insert(entry.id) {
                    self.delivered.push(entry.id);
                } else {
                    self.tale.duplicates += 1;
                }
                if is_current {
                    self.delivered_in_life.insert(entry.id);
                }
            }
            if is_current {
                self.check_cursor(&message.org_id, &message.cursor);
            }
        }
    }

    fn write(&mut self) {
        match self.chance.below(8) {
            0 | 1 => self.database.begin(),
            2..=4 => self.database.flush(&mut self.chance),
            5 => self.database.pass_xid(),
            _ => {
                if self.database.end(&mut self.chance, 0) {
                    self.after(0, Happening::Input(Input::Woken));
                }
            }
        }
        self.writes_left -= 1;
        if self.writes_left > 0 {
            let pause = if self.chance.in_percent(10) { 2_000 } else { 40 };
            let delay = self.chance.below(pause);
            self.after(delay, Happening::Write);
            return;
        }
        // One transaction may stay open for ever, and holds up nobody.
        let keep_open = self.chance.below(2) as usize;
        while self.database.open_xids().count() > keep_open {
            self.database.end(&mut self.chance, keep_open);
        }
        self.input(Input::Woken);
    }

    fn crash(&mut self) {
        self.tale.crashes += 1;
        self.life += 1;
        self.relay = State::new(self.settings.clone(), self.durable.clone());
        self.begun_at = self.durable.clone();
        self.delivered_in_life.clear();
        self.lanes_busy.clear();
        self.orgs_busy.clear();
        self.is_reading = false;
        self.is_recording = false;
        self.paused = false;
        let delay = self.chance.below(1_000);
        self.after(delay, Happening::Input(Input::Tick));
    }

    fn disturb(&mut self) {
        match self.chance.below(3) {
            0 => {
                self.paused = true;
                self.input(Input::Pause);
            }
            1 => {
                self.paused = false;
                self.input(Input::Resume);
            }
            _ => {
                let Settings { lanes, order, memory_limit_bytes, .. } = self.settings;
                self.settings = random_settings(&mut self.chance);
                (self.settings.lanes, self.settings.order) = (lanes, order);
                // What is held already is held; a smaller limit would be kept only later.
                self.settings.memory_limit_bytes = memory_limit_bytes;
                self.input(Input::Configure(self.settings.clone()));
            }
        }
    }

    fn fails(&mut self) -> bool {
        self.has_faults && self.chance.in_percent(self.fault_percent)
    }

    fn after(&mut self, delay_ms: u64, happening: Happening) {
        let place = self.happenings.len();
        self.happenings.push(Some((self.life, happening)));
        self.queue.push(Reverse((self.now_ms + delay_ms, place as u64, place)));
    }

    // What must hold.

    /// The durable position never passes an entry that the sink has not got.
    fn check_record(&self, position: &Position) {
        for row in &self.database.rows {
            let id = row.entry.id;
            let is_passed = position.covers(row.xid, id);
            assert!(!is_passed || self.seen.contains(&id), "the cursor passed {id:?}");
            let was_passed = self.durable.covers(row.xid, id);
            assert!(is_passed || !was_passed, "the cursor went back before {id:?}");
        }
        for xid in self.database.open_xids() {
            assert!(!position.covers(xid, EntryId(i64::MIN)), "the cursor passed open {xid}");
        }
    }

    /// The cursor of a message covers exactly what the org has got.
    fn check_cursor(&self, org_id: &str, cursor: &Position) {
        let stamped = cursor.clone().stamped(Era::of(1, 1, 1));
        assert_eq!(Cursor::parse(&stamped.to_string()).unwrap(), stamped);
        for row in self.database.rows.iter().filter(|row| &*row.entry.org_id == org_id) {
            let id = row.entry.id;
            let has_got = self.begun_at.covers(row.xid, id) || self.delivered_in_life.contains(&id);
            assert_eq!(cursor.covers(row.xid, id), has_got, "{id:?} of org {org_id}");
        }
    }

    fn check_all_arrived(&self) {
        let mut places = HashMap::new();
        for (place, id) in self.delivered.iter().enumerate() {
            places.insert(*id, place);
        }
        let mut orgs: HashMap<&str, Vec<_>> = HashMap::new();
        for row in &self.database.rows {
            let place = places.get(&row.entry.id);
            let place = *place.unwrap_or_else(|| {
                panic!("{:?} of {} was lost; {:?}", row.entry.id, row.xid, self.relay)
            });
            assert!(self.durable.covers(row.xid, row.entry.id), "not recorded");
            orgs.entry(&row.entry.org_id).or_default().push((row, place));
        }
        assert_eq!(self.seen.len(), self.database.rows.len(), "something was invented");
        for rows in orgs.values() {
            for (a, a_place) in rows {
                for (b, b_place) in rows {
                    let is_before = a.entry.id < b.entry.id && a.committed <= b.committed;
                    let in_order = !is_before || a_place < b_place;
                    assert!(in_order, "{:?} came after {:?}", a.entry.id, b.entry.id);
                }
            }
        }
    }

    /// Nothing is left to do, a tick does nothing, and a wake for nothing costs one reading.
    fn check_idle(&mut self) {
        for later_ms in [0, 10, 100_000] {
            let mut effects = Vec::new();
            let now = Time::from_ms(self.now_ms + later_ms);
            assert_eq!(self.relay.next_deadline(now), None, "{:?}", self.relay.status());
            step(&mut self.relay, now, 0, Input::Tick, &mut effects);
            assert!(effects.is_empty(), "an idle relay does {effects:?}");
            step(&mut self.relay, now, 0, Input::Woken, &mut effects);
            let [Effect::Read { from, bytes_max }] = &effects[..] else {
                panic!("a wake did {effects:?}");
            };
            let chunk = self.database.read(from, *bytes_max);
            effects.clear();
            step(&mut self.relay, now, 0, Input::Read(chunk), &mut effects);
            assert!(effects.is_empty(), "reading nothing did {effects:?}");
            self.database.pass_xid();
        }
        assert_eq!(self.relay.gauges().held_bytes, 0);
        assert_eq!(self.relay.gauges().requests_in_flight, 0);
        assert_eq!(self.relay.gauges().orgs, 0, "idle orgs are forgotten");
    }
}

fn random_settings(chance: &mut Chance) -> Settings {
    Settings {
        lanes: chance.pick(&[1, 2, 4, 9]),
        rate: Rate {
            burst: chance.pick(&[1, 4]),
            window: Duration::from_ms(chance.pick(&[0, 10, 250, 1_000])),
        },
        events_per_second: chance.pick(&[0, 0, 20, 100]),
        message_events_max: chance.pick(&[1, 3, 500]),
        message_bytes_max: 262_144,
        retries: chance.pick(&[0, 1, 3]),
        order: chance.pick(&[Order::Relaxed, Order::Strict]),
        memory_limit_bytes: chance.pick(&[2_000, 20_000, 1_000_000]),
    }
}
