//! What the simulation cannot show: single decisions, at their time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::collections::VecDeque;
use std::time::Instant;

use super::*;
use crate::cursor::Snapshot;
use crate::event::{EntryId, EventId, EventKind, EventType};
use crate::relay::returns::Return;
use crate::sink::FailureKind;

const DOWN: Outcome = Outcome::Refused(Failure::with_status(FailureKind::ServerError, 503));

/// A state, its clock, and the effects of the last step.
struct Desk {
    state: State,
    now_ms: u64,
    kind: Arc<EventKind>,
    next_id: i64,
    xmax: u64,
    /// What the next looks at the table of retries bring.
    pages: VecDeque<Page>,
    /// How many bytes each look was allowed.
    looks: Vec<usize>,
    /// What was recorded beside positions.
    records: Vec<Record>,
}

impl Desk {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            lanes: 4,
            rate: Rate { burst: 4, window: Duration::from_ms(250) },
            events_per_second: 0,
            message_events_max: 500,
            message_bytes_max: 262_144,
            retries: 3,
            order: Order::Relaxed,
            memory_limit_bytes: 64 << 20,
        };
        change(&mut settings);
        let kind = EventKind {
            event_type: EventType { name: "job.updated".into(), entity: "job".into() },
            topic: "t".into(),
            key_names: Box::new(["job_id".into()]),
            version: 1,
        };
        Self {
            state: State::new(settings, position(10)),
            now_ms: 5_000,
            kind: Arc::new(kind),
            next_id: 1,
            xmax: 10,
            pages: VecDeque::new(),
            looks: Vec::new(),
            records: Vec::new(),
        }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        step(&mut self.state, Time::from_ms(self.now_ms), 99, input, &mut effects);
        let looks = effects.extract_if(.., |e| matches!(e, Effect::LookForReturns { .. }));
        let looks: Vec<Effect> = looks.collect();
        for look in looks {
            let Effect::LookForReturns { bytes_max, .. } = look else { continue };
            self.looks.push(bytes_max);
            let page = self.pages.pop_front().unwrap_or_default();
            effects.extend(self.step(Input::Returns(page)));
        }
        self.records.extend(effects.iter().filter_map(|effect| match effect {
            Effect::Record(record) => Some(record.clone()),
            _ => None,
        }));
        effects
    }

    /// A chunk with one entry for each of these orgs, complete.
    fn chunk(&mut self, orgs: &[&str]) -> Chunk {
        let entries = orgs.iter().map(|&org| {
            let id = self.next_id;
            self.next_id += 1;
            Entry {
                id: EntryId(id),
                event_id: EventId::from_bytes(i128::from(id).to_be_bytes()),
                kind: self.kind.clone(),
                org_id: org.into(),
                event_count: 1,
                ids: format!("[{id}]").into(),
                data: None,
                origin: None,
                at_us: 0,
            }
        });
        let entries = entries.collect();
        self.xmax += 1;
        Chunk { entries, after: position(self.xmax), complete: true }
    }

    fn read(&mut self, orgs: &[&str]) -> Vec<Effect> {
        let mut effects = self.step(Input::Woken);
        effects.retain(|effect| !matches!(effect, Effect::Read { .. }));
        let chunk = self.chunk(orgs);
        effects.extend(self.step(Input::Read(chunk)));
        effects
    }

    fn answer(&mut self, request: RequestId, outcome: Outcome) -> Vec<Effect> {
        let tally = Tally { messages: 1, listed: 1, bytes: 100, ..Tally::default() };
        self.step(Input::Answered { request, outcome, named: Vec::new(), tally })
    }

    /// Delivers these requests, and those that follow from it; returns what they carried.
    fn deliver(&mut self, effects: &[Effect]) -> Vec<(String, Vec<i64>)> {
        let (mut pending, mut delivered) = (sends(effects), Vec::new());
        while let Some((request, messages)) = pending.pop() {
            delivered.extend(messages);
            pending.extend(sends(&self.answer(request, Outcome::Delivered)));
        }
        delivered
    }

    fn at(&mut self, now_ms: u64) -> Vec<Effect> {
        self.now_ms = now_ms;
        self.step(Input::Tick)
    }

    fn deadline_ms(&self) -> Option<u64> {
        self.state.next_deadline(Time::from_ms(self.now_ms)).map(Time::as_ms)
    }
}

fn position(xmax: u64) -> Position {
    Position::at(Snapshot::new(xmax, xmax, Vec::new()).unwrap())
}

/// A request, and for each message the org and the ids of its entries.
type Request = (RequestId, Vec<(String, Vec<i64>)>);

/// The requests among the effects.
fn sends(effects: &[Effect]) -> Vec<Request> {
    let sends = effects.iter().filter_map(|effect| match effect {
        Effect::Send { request, batch, .. } => Some((request, batch)),
        _ => None,
    });
    let orgs = |batch: &Batch| {
        let message = |message: &Message| {
            let ids = message.entries.iter().map(|entry| entry.id.0).collect();
            (message.org_id.to_string(), ids)
        };
        batch.messages.iter().map(message).collect()
    };
    sends.map(|(&request, batch)| (request, orgs(batch))).collect()
}

fn only_send(effects: &[Effect]) -> Request {
    let mut sends = sends(effects);
    assert_eq!(sends.len(), 1, "{effects:?}");
    sends.remove(0)
}

fn record(effects: &[Effect]) -> Option<&Position> {
    effects.iter().find_map(|effect| match effect {
        Effect::Record(record) => Some(&record.position),
        _ => None,
    })
}

fn report(effects: &[Effect]) -> Option<&Status> {
    effects.iter().find_map(|effect| match effect {
        Effect::Report(status) => Some(status),
        _ => None,
    })
}

#[test]
fn an_event_goes_out_at_once_and_is_recorded_when_it_is_delivered() {
    let mut desk = Desk::new(|_| {});
    let effects = desk.step(Input::Tick);
    let [Effect::Read { from, .. }, Effect::Report(status)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!((from, status.state), (&position(10), SinkState::Running));
    let chunk = desk.chunk(&["a"]);
    let effects = desk.step(Input::Read(chunk));
    assert_eq!(effects.len(), 1);
    let (request, messages) = only_send(&effects);
    assert_eq!(messages, [("a".into(), vec![1])]);
    let effects = desk.answer(request, Outcome::Delivered);
    let [Effect::Record(recorded)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(recorded.position, position(11));
    assert_eq!((recorded.fates.len(), recorded.journal.len()), (0, 1));
    assert!(desk.step(Input::Recorded).is_empty());
    assert_eq!(desk.state.recorded(), &position(11));
    assert_eq!(desk.deadline_ms(), None);
    let counters = desk.state.counters();
    assert_eq!((counters.events, counters.messages, counters.requests), (1, 1, 1));
}

#[test]
fn a_flood_of_an_org_is_a_burst_and_one_message_each_window() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    let mut messages = Vec::new();
    for ms in 0..2_000 {
        desk.now_ms = 5_000 + ms;
        let effects = if ms % 5 == 0 { desk.read(&["a"]) } else { desk.step(Input::Tick) };
        let delivered = desk.deliver(&effects);
        messages.extend(delivered.into_iter().map(|(_, ids)| (ms, ids.len())));
    }
    let times: Vec<u64> = messages.iter().map(|(ms, _)| *ms).collect();
    assert_eq!(times, [0, 5, 10, 15, 250, 500, 750, 1_000, 1_250, 1_500, 1_750]);
    let entries: usize = messages.iter().map(|(_, entries)| entries).sum();
    assert_eq!(entries, 350, "of 400 updates in 2 s, up to the last window");
}

#[test]
fn a_wake_during_a_window_of_several_chunks_is_not_lost() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    desk.step(Input::Woken);
    let end = position(50).base;
    let mut chunk = desk.chunk(&["a"]);
    chunk.after = Position::within(position(10).base, end.clone(), EntryId(1));
    chunk.complete = false;
    let effects = desk.step(Input::Read(chunk));
    assert!(matches!(&effects[1], Effect::Read { from, .. } if from.window.is_some()));
    let mut chunk = desk.chunk(&[]);
    chunk.after = Position::at(end.clone());
    let effects = desk.step(Input::Read(chunk));
    let [Effect::Read { from, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(from, &Position::at(end));
}

#[test]
fn reading_stops_when_memory_is_full_and_goes_on_when_half_is_free() {
    let mut desk = Desk::new(|settings| settings.memory_limit_bytes = 1_000);
    desk.step(Input::Tick);
    let (is_read, entry_bytes) = (|e: &Effect| matches!(e, Effect::Read { .. }), 256 + 3);
    let effects = desk.read(&["a", "b", "c", "d"]);
    assert!(desk.state.gauges().held_bytes >= 1_000);
    assert!(!effects.iter().any(is_read), "{effects:?}");
    let requests: Vec<RequestId> = sends(&effects).iter().map(|(request, _)| *request).collect();
    let mut read_at = None;
    for request in requests {
        let effects = desk.answer(request, Outcome::Delivered);
        if effects.iter().any(is_read) {
            read_at = Some(desk.state.gauges().held_bytes);
            break;
        }
    }
    let held = read_at.unwrap_or_else(|| panic!("reading does not go on"));
    assert!(held < 500 && held.is_multiple_of(entry_bytes), "{held}");
}

#[test]
fn a_failure_stops_all_and_one_probe_starts_all_again() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    let effects = desk.read(&["a", "b", "c", "d", "e"]);
    let requests = sends(&effects);
    assert!(requests.len() > 1, "several lanes");
    let effects = desk.answer(requests[0].0, DOWN);
    assert!(sends(&effects).is_empty());
    assert_eq!(record(&effects), Some(&position(10)), "that it failed, and where it stands");
    let status = report(&effects).unwrap();
    assert_eq!(status.state, SinkState::BackingOff);
    assert_eq!((status.attempts, status.retry_at), (1, Some(Time::from_ms(5_100))));
    assert_eq!(status.failure.unwrap().to_string(), "server_error (HTTP 503)");
    for (request, _) in &requests[1..] {
        assert!(desk.answer(*request, DOWN).is_empty(), "the same failure");
    }
    assert!(desk.read(&["a"]).is_empty(), "no reading and no sending meanwhile");
    assert_eq!(desk.deadline_ms(), Some(5_100));

    let effects = desk.at(5_100);
    let (probe, messages) = only_send(&effects);
    assert_eq!(messages.len(), 1, "one message is enough to try");
    assert_eq!(report(&effects).unwrap().state, SinkState::Probing);
    assert_eq!(desk.deadline_ms(), None);
    let effects = desk.answer(probe, Outcome::Delivered);
    let status = report(&effects).unwrap();
    assert_eq!((status.state, status.attempts, status.failure), (SinkState::Running, 0, None));
    let mut orgs: Vec<String> = messages.into_iter().map(|(org, _)| org).collect();
    for (_, sent) in sends(&effects) {
        orgs.extend(sent.into_iter().map(|(org, _)| org));
    }
    orgs.sort();
    assert_eq!(orgs, ["a", "b", "c", "d", "e"], "nothing is dropped");
    assert_eq!(desk.state.counters().failures, requests.len() as u64);
}

#[test]
fn a_lost_answer_is_sent_again_with_what_came_since() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    let (request, _) = only_send(&desk.read(&["a"]));
    desk.read(&["a"]);
    desk.answer(request, Outcome::Unknown(Failure::of(FailureKind::AnswerLost)));
    desk.step(Input::Recorded);
    let (again, messages) = only_send(&desk.at(5_100));
    assert_eq!(messages, [("a".into(), vec![1, 2])]);
    let effects = desk.answer(again, Outcome::Delivered);
    assert_eq!(record(&effects), Some(&position(desk.xmax)));
}

#[test]
fn new_settings_and_a_resume_try_at_once() {
    for input in [Input::Resume, Input::Configure(Desk::new(|_| {}).state.settings)] {
        let mut desk = Desk::new(|_| {});
        desk.step(Input::Tick);
        let (request, _) = only_send(&desk.read(&["a"]));
        desk.answer(request, DOWN);
        assert_eq!(sends(&desk.step(input)).len(), 1);
    }
}

#[test]
fn a_pause_lets_the_way_end_and_begins_nothing() {
    for (input, state) in [(Input::Pause, SinkState::Paused), (Input::Stop, SinkState::Stopped)] {
        let mut desk = Desk::new(|_| {});
        desk.step(Input::Tick);
        let (request, _) = only_send(&desk.read(&["a"]));
        assert_eq!(report(&desk.step(input)).unwrap().state, state);
        assert!(desk.read(&["b"]).is_empty());
        assert_eq!(desk.deadline_ms(), None);
        let effects = desk.answer(request, Outcome::Delivered);
        assert!(record(&effects).is_some(), "what was delivered is recorded");
        let effects = desk.step(Input::Resume);
        assert_eq!(sends(&effects).len(), usize::from(state == SinkState::Paused));
    }
}

#[test]
fn a_budget_that_is_short_is_shared_and_orgs_coalesce_in_their_turn() {
    let mut desk = Desk::new(|settings| settings.events_per_second = 20);
    desk.step(Input::Tick);
    let orgs: Vec<String> = (0..40).map(|org| org.to_string()).collect();
    let orgs: Vec<&str> = orgs.iter().map(String::as_str).collect();
    let (mut messages, mut first_seen) = (0, Vec::new());
    let mut effects = desk.read(&orgs);
    for ms in 0..10_000 {
        for (org, _) in desk.deliver(&effects) {
            messages += 1;
            if !first_seen.contains(&org) {
                first_seen.push(org);
            }
        }
        desk.now_ms = 5_000 + ms;
        effects = if ms % 100 == 0 { desk.read(&orgs) } else { desk.step(Input::Tick) };
    }
    assert!((140..=165).contains(&messages), "{messages} messages in 10 s at 75 % of 20");
    assert_eq!(first_seen.len(), 40, "each org has had its turn");
}

#[test]
fn a_failed_reading_is_tried_again() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    assert!(desk.step(Input::ReadFailed).is_empty());
    assert_eq!(desk.deadline_ms(), Some(5_100));
    assert!(matches!(desk.at(5_100)[..], [Effect::Read { .. }]));
    assert_eq!(desk.deadline_ms(), None);
}

#[test]
fn an_unknown_answer_is_ignored() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    assert!(desk.answer(RequestId(77), Outcome::Delivered).is_empty());
    assert_eq!(desk.state.counters(), Counters::default());
}

#[test]
fn a_hundred_thousand_orgs_cost_no_more_each_than_a_hundred() {
    let names: Vec<String> = (0..100_000).map(|org| format!("org-{org}")).collect();
    let time = |orgs: &[String]| {
        let mut desk = Desk::new(|settings| settings.memory_limit_bytes = 1 << 30);
        desk.step(Input::Tick);
        let began = Instant::now();
        let orgs: Vec<&str> = orgs.iter().map(String::as_str).collect();
        let effects = desk.read(&orgs);
        assert_eq!(desk.deliver(&effects).len(), orgs.len());
        desk.at(desk.now_ms + 10_000);
        assert_eq!(desk.state.gauges().orgs, 0);
        began.elapsed().as_secs_f64() / orgs.len() as f64
    };
    let few = (0..5).map(|_| time(&names[..1_000])).fold(f64::MAX, f64::min);
    let many = time(&names);
    assert!(many < few * 20.0, "{:.1} us against {:.1} us an org", many * 1e6, few * 1e6);
}

const INVALID: Outcome = Outcome::Refused(Failure::with_status(FailureKind::Invalid, 422));

/// A sink that refuses whatever holds one of these ids, and keeps an account.
struct Poisoned {
    ids: Vec<i64>,
    /// Whether it names the messages.
    names: bool,
    /// It names places that the batch does not have.
    misnames: bool,
    delivered: Vec<i64>,
    requests: usize,
}

impl Poisoned {
    fn new(ids: &[i64], names: bool) -> Self {
        let (delivered, misnames) = (Vec::new(), false);
        Self { ids: ids.to_vec(), names, misnames, delivered, requests: 0 }
    }

    /// Answers until nothing is on the way.
    fn serve(&mut self, desk: &mut Desk, effects: &[Effect]) {
        let mut pending = sends(effects);
        while let Some((request, messages)) = pending.pop() {
            self.requests += 1;
            assert!(self.requests < 500, "it never ends");
            let is_bad = |ids: &Vec<i64>| ids.iter().any(|id| self.ids.contains(id));
            let places = messages.iter().enumerate().filter(|(_, (_, ids))| is_bad(ids));
            let named: Vec<usize> = places.map(|(place, _)| place).collect();
            let missing = vec![messages.len(), usize::MAX];
            let (outcome, named) = match (named.is_empty(), self.names) {
                (false, _) if self.misnames => (INVALID, missing),
                (true, _) => {
                    self.delivered.extend(messages.iter().flat_map(|(_, ids)| ids));
                    (Outcome::Delivered, Vec::new())
                }
                (false, true) => (INVALID, named),
                (false, false) => (INVALID, Vec::new()),
            };
            let tally = Tally::default();
            let effects = desk.step(Input::Answered { request, outcome, named, tally });
            pending.extend(sends(&effects));
            if record(&effects).is_some() {
                pending.extend(sends(&desk.step(Input::Recorded)));
            }
        }
    }
}

/// What was recorded, one letter for each fate, and its event.
fn fates(desk: &Desk) -> Vec<(char, i64)> {
    let fates = desk.records.iter().flat_map(|record| &record.fates);
    fates
        .map(|fate| match fate {
            Fate::Retry { event, .. } => ('r', event.id.0),
            Fate::Dead { event, .. } => ('d', event.id.0),
            Fate::Arrived { .. } => ('a', 0),
        })
        .collect()
}

#[test]
fn one_poisoned_event_is_found_and_the_others_are_delivered() {
    for names in [false, true] {
        for orgs in [vec!["a"; 300], (0..300).map(|n| ["a", "b", "c", "d"][n % 4]).collect()] {
            let mut desk = Desk::new(|settings| settings.lanes = 1);
            desk.step(Input::Tick);
            let mut sink = Poisoned::new(&[137], names);
            let effects = desk.read(&orgs);
            sink.serve(&mut desk, &effects);
            sink.delivered.sort_unstable();
            let expected: Vec<i64> = (1..=300).filter(|&id| id != 137).collect();
            assert_eq!(sink.delivered, expected);
            assert_eq!(fates(&desk), [('r', 137)]);
            assert!(sink.requests <= 30, "{} requests", sink.requests);
            assert_eq!(desk.state.recorded(), &position(11), "the cursor goes on");
            assert_eq!(desk.state.status().state, SinkState::Running);
            assert_eq!(desk.state.gauges().held_bytes, 0);
        }
    }
}

#[test]
fn a_place_that_the_batch_does_not_have_names_nothing() {
    let mut desk = Desk::new(|settings| settings.lanes = 1);
    desk.step(Input::Tick);
    let mut sink = Poisoned { misnames: true, ..Poisoned::new(&[3], true) };
    let effects = desk.read(&["a", "b", "c", "d"]);
    sink.serve(&mut desk, &effects);
    sink.delivered.sort_unstable();
    assert_eq!(sink.delivered, [1, 2, 4]);
    assert_eq!(fates(&desk), [('r', 3)]);
}

#[test]
fn an_org_keeps_its_order_while_its_poison_is_looked_for() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    let mut sink = Poisoned::new(&[20, 50], false);
    let effects = desk.read(&["a"; 60]);
    sink.serve(&mut desk, &effects);
    assert!(sink.delivered.is_sorted(), "{:?}", sink.delivered);
    assert_eq!(fates(&desk), [('r', 20), ('r', 50)]);
}

/// A page with one event that was refused so often.
fn page(desk: &mut Desk, org: &str, id: i64, attempts: u32) -> Page {
    let mut event = desk.chunk(&[org]).entries.remove(0);
    event.id = EntryId(id);
    event.event_id = EventId::from_bytes(i128::from(id).to_be_bytes());
    Page { returns: vec![Return { event, attempts }], ..Page::default() }
}

#[test]
fn retries_end_in_a_dead_letter_or_an_arrival() {
    for (is_cured, last) in [(false, ('d', 1)), (true, ('a', 0))] {
        let mut desk = Desk::new(|_| {});
        desk.step(Input::Tick);
        let mut sink = Poisoned::new(&[1], true);
        let effects = desk.read(&["a"]);
        sink.serve(&mut desk, &effects);
        for attempts in 1..=3 {
            if is_cured && attempts == 3 {
                sink.ids.clear();
            }
            let page = page(&mut desk, "a", 1, attempts);
            desk.pages.push_back(page);
            let due = desk.deadline_ms().unwrap();
            assert!(due > desk.now_ms && due <= desk.now_ms + 1_000, "a retry waits a while");
            let effects = desk.at(due);
            sink.serve(&mut desk, &effects);
        }
        assert_eq!(fates(&desk), [('r', 1), ('r', 1), ('r', 1), last]);
        assert_eq!(desk.deadline_ms(), None);
        let counters = desk.state.counters();
        assert_eq!(counters.dead_letters, u64::from(!is_cured));
    }
}

#[test]
fn in_strict_order_an_org_waits_for_its_retry_and_the_others_do_not() {
    let mut desk = Desk::new(|settings| settings.order = Order::Strict);
    desk.step(Input::Tick);
    let mut sink = Poisoned::new(&[2], true);
    let effects = desk.read(&["a", "a", "a", "b"]);
    sink.serve(&mut desk, &effects);
    assert_eq!(sink.delivered, [4, 1]);
    let effects = desk.read(&["a", "b"]);
    sink.serve(&mut desk, &effects);
    assert_eq!(sink.delivered, [4, 1, 6]);
    let page = page(&mut desk, "a", 2, 1);
    desk.pages.push_back(page);
    sink.ids.clear();
    let due = desk.deadline_ms().unwrap();
    let effects = desk.at(due);
    sink.serve(&mut desk, &effects);
    assert_eq!(sink.delivered, [4, 1, 6, 2, 3, 5]);
}

#[test]
fn memory_that_is_full_of_held_orgs_is_freed_by_their_retry() {
    let mut desk = Desk::new(|settings| {
        settings.order = Order::Strict;
        settings.memory_limit_bytes = 1_000;
    });
    desk.step(Input::Tick);
    let mut sink = Poisoned::new(&[1], true);
    let effects = desk.read(&["a"; 6]);
    sink.serve(&mut desk, &effects);
    assert!(desk.state.gauges().held_bytes > 1_000);
    let page = page(&mut desk, "a", 1, 1);
    desk.pages.push_back(page);
    sink.ids.clear();
    let due = desk.deadline_ms().unwrap();
    let effects = desk.at(due);
    assert_eq!(desk.looks.last(), Some(&1), "one event, whatever it takes");
    sink.serve(&mut desk, &effects);
    assert_eq!(sink.delivered, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn in_strict_order_a_relay_begins_by_asking_whom_to_hold() {
    let mut desk = Desk::new(|settings| settings.order = Order::Strict);
    let now = Time::from_ms(desk.now_ms);
    let mut effects = Vec::new();
    step(&mut desk.state, now, 99, Input::Tick, &mut effects);
    let [Effect::LookForReturns { with_held: true, .. }, Effect::Report(_)] = &effects[..] else {
        panic!("{effects:?}");
    };
    let held = vec![("a".into(), EventId::from_bytes([1; 16]))];
    let next_in = Some(Duration::from_ms(500));
    let effects = desk.step(Input::Returns(Page { returns: Vec::new(), next_in, held }));
    assert!(matches!(&effects[..], [Effect::Read { .. }]), "{effects:?}");
    let effects = desk.read(&["a", "b"]);
    assert_eq!(sends(&effects), [(RequestId(1), vec![("b".into(), vec![2])])]);
}

#[test]
fn an_outage_blames_no_event() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    let effects = desk.read(&["a", "b"]);
    for (request, _) in sends(&effects) {
        desk.answer(request, DOWN);
    }
    for _ in 0..20 {
        let due = desk.deadline_ms().unwrap();
        let effects = desk.at(due);
        desk.step(Input::Recorded);
        let (request, _) = only_send(&effects);
        desk.answer(request, DOWN);
    }
    assert_eq!(fates(&desk), []);
    assert_eq!(desk.state.counters().refused, 0);
    assert!(desk.records.iter().all(|record| record.position == position(10)));
}

#[test]
fn a_message_that_breaks_the_sink_is_not_its_only_probe() {
    let mut desk = Desk::new(|settings| settings.lanes = 1);
    desk.step(Input::Tick);
    let effects = desk.read(&["a", "b"]);
    let (request, _) = only_send(&effects);
    desk.answer(request, DOWN);
    let mut tried = Vec::new();
    for _ in 0..4 {
        let due = desk.deadline_ms().unwrap();
        let effects = desk.at(due);
        let (request, messages) = only_send(&effects);
        tried.extend(messages.into_iter().map(|(org, _)| org));
        desk.answer(request, DOWN);
    }
    assert_eq!(tried, ["a", "b", "a", "b"]);
}

#[test]
fn what_is_expected_again_is_looked_for_once_and_shares_messages() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    let events = desk.chunk(&["a", "b", "a"]).entries;
    let returns = events.into_iter().map(|event| Return { event, attempts: 0 }).collect();
    desk.pages.push_back(Page { returns, ..Page::default() });
    let effects = desk.step(Input::ReturnsExpected);
    let mut messages: Vec<_> = sends(&effects).into_iter().flat_map(|(_, m)| m).collect();
    messages.sort();
    assert_eq!(messages, [("a".into(), vec![1, 3]), ("b".into(), vec![2])]);
    assert!(desk.pages.is_empty());
    let mut sink = Poisoned::new(&[], true);
    sink.serve(&mut desk, &effects);
    assert_eq!(fates(&desk), [('a', 0), ('a', 0), ('a', 0)]);
    assert_eq!(desk.state.gauges().held_events, 0);
}

#[test]
fn a_look_takes_no_more_than_memory_has() {
    let mut desk = Desk::new(|settings| settings.memory_limit_bytes = 2_000);
    desk.step(Input::Tick);
    desk.read(&["a", "b", "c"]);
    desk.step(Input::ReturnsExpected);
    assert_eq!(desk.looks, [2_000, 2_000 - 3 * 259]);
}

#[test]
fn a_damaged_entry_is_found_among_what_is_sent_again() {
    let mut desk = Desk::new(|_| {});
    desk.step(Input::Tick);
    let mut events = desk.chunk(&["a", "a"]).entries;
    // It counts more events than its text has, and is never divided.
    events[0].event_count = 50;
    let returns = events.into_iter().map(|event| Return { event, attempts: 0 }).collect();
    desk.pages.push_back(Page { returns, ..Page::default() });
    let effects = desk.step(Input::ReturnsExpected);
    let mut sink = Poisoned::new(&[1], false);
    sink.serve(&mut desk, &effects);
    assert_eq!(fates(&desk), [('r', 1), ('a', 0)]);
}

#[test]
fn an_event_that_is_in_two_places_holds_its_org_once() {
    let mut desk = Desk::new(|settings| settings.order = Order::Strict);
    desk.step(Input::Tick);
    // A dead letter was redriven, and a crash has brought the cursor back before it.
    let mut sink = Poisoned::new(&[1], true);
    let effects = desk.read(&["a", "a"]);
    sink.serve(&mut desk, &effects);
    let redriven = page(&mut desk, "a", 1, 0);
    desk.pages.push_back(redriven);
    let effects = desk.step(Input::ReturnsExpected);
    sink.serve(&mut desk, &effects);
    assert_eq!(fates(&desk), [('r', 1), ('r', 1)]);
    let retry = page(&mut desk, "a", 1, 1);
    desk.pages.push_back(retry);
    sink.ids.clear();
    let due = desk.deadline_ms().unwrap();
    let effects = desk.at(due);
    sink.serve(&mut desk, &effects);
    assert_eq!(sink.delivered, [1, 2]);
}

#[test]
fn what_is_refused_is_held_until_its_fate_is_recorded() {
    let mut desk = Desk::new(|settings| settings.memory_limit_bytes = 500);
    desk.step(Input::Tick);
    let (request, _) = only_send(&desk.read(&["a"]));
    let effects = desk.answer(request, INVALID);
    assert!(record(&effects).is_some());
    let (request, _) = only_send(&desk.read(&["b"]));
    let reads = |effects: &[Effect]| effects.iter().any(|e| matches!(e, Effect::Read { .. }));
    assert!(!reads(&desk.answer(request, INVALID)));
    assert_eq!(desk.state.gauges().held_events, 2);
    assert!(!reads(&desk.step(Input::Woken)), "memory is full of what the database must take");
    desk.step(Input::RecordFailed);
    let due = desk.deadline_ms().unwrap();
    assert!(record(&desk.at(due)).is_some());
    assert!(reads(&desk.step(Input::Recorded)));
    assert_eq!(desk.state.gauges().held_bytes, 0);
}

#[test]
fn refusals_that_cannot_be_recorded_stop_what_would_add_to_them() {
    let mut desk = Desk::new(|settings| settings.memory_limit_bytes = 1_000);
    desk.step(Input::Tick);
    let mut chunk = desk.chunk(&["a"]);
    let keys: Vec<String> = (0..60).map(|key| key.to_string()).collect();
    chunk.entries[0].event_count = 60;
    chunk.entries[0].ids = format!("[{}]", keys.join(",")).into();
    let mut effects = desk.step(Input::Read(chunk));
    let mut recordings = 0;
    while let [(request, _)] = &sends(&effects)[..] {
        let request = *request;
        effects = desk.answer(request, INVALID);
        recordings += usize::from(record(&effects).is_some());
    }
    let held = desk.state.gauges().held_bytes;
    assert!((2_000..3_000).contains(&held), "{held} bytes");
    assert_eq!((recordings, desk.deadline_ms()), (1, None), "it waits for the record");
    desk.step(Input::RecordFailed);
    let due = desk.deadline_ms().unwrap();
    assert!(sends(&desk.at(due)).is_empty());
    assert!(desk.records.last().unwrap().fates.len() > 1);
    assert_eq!(sends(&desk.step(Input::Recorded)).len(), 1);
}

#[test]
fn a_wake_does_not_forget_what_a_429_taught() {
    let mut desk = Desk::new(|settings| settings.events_per_second = 100);
    desk.step(Input::Tick);
    let (request, _) = only_send(&desk.read(&["a"]));
    let throttled = Failure::with_status(FailureKind::RateLimited, 429);
    desk.answer(request, Outcome::Refused(throttled));
    assert_eq!(desk.state.budget.limit(), 50);
    let same = desk.state.settings.clone();
    desk.step(Input::Configure(same.clone()));
    assert_eq!(desk.state.budget.limit(), 50);
    desk.step(Input::Configure(Settings { events_per_second: 80, ..same }));
    assert_eq!(desk.state.budget.limit(), 80);
}
