//! The sink: what it refuses, when it is down, and how it counts what is sent to it.

use std::collections::VecDeque;

use pg_outbox::envelope::Message;
use pg_outbox::event::{Entry, EventId};
use pg_outbox::sink::{Batch, Failure, FailureKind, Outcome};

use crate::chance::{Chance, mix};

/// How it tells which message it does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    Never,
    Always,
    Sometimes,
    /// Well ones too.
    Wrongly,
    /// Places that the batch does not have.
    OutOfRange,
}

/// What is wrong with all of it for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Down,
    Silent,
    Unreachable,
    Unauthorized,
    /// Somebody else uses up the tenant's budget.
    Crowded,
}

pub const TROUBLES: [Trouble; 5] =
    [Trouble::Down, Trouble::Silent, Trouble::Unreachable, Trouble::Unauthorized, Trouble::Crowded];

pub struct Answer {
    pub outcome: Outcome,
    pub named: Vec<usize>,
    pub is_received: bool,
    /// The tenant's counter refused it.
    pub is_over_budget: bool,
}

pub struct Sink {
    seed: u64,
    /// Of a thousand events so many are refused at first.
    poison_permille: u64,
    /// Until when the last of those is cured that ever are.
    pub cured_ms: u64,
    /// Beyond, a message is too large.
    pub message_events_max: Option<u32>,
    pub naming: Naming,
    pub trouble: Option<Trouble>,
    meter: Option<Meter>,
}

impl Sink {
    pub fn new(chance: &mut Chance, cured_ms: u64) -> Self {
        let naming =
            [Naming::Never, Naming::Always, Naming::Sometimes, Naming::Wrongly, Naming::OutOfRange];
        let limit = chance.pick(&[None, None, Some(10), Some(20), Some(100)]);
        Self {
            seed: chance.bits(),
            poison_permille: chance.pick(&[0, 0, 2, 10, 100, 500]),
            cured_ms,
            message_events_max: chance.pick(&[None, None, None, Some(1), Some(7), Some(100)]),
            naming: chance.pick(&naming),
            trouble: None,
            meter: limit.map(|limit| Meter::new(limit, chance.below(METER_TICK_MS))),
        }
    }

    /// Messages a second that the tenant has; none: no limit.
    pub fn limit(&self) -> Option<u32> {
        self.meter.as_ref().map(|meter| meter.limit)
    }

    pub fn answer(&mut self, chance: &mut Chance, now_ms: u64, batch: &Batch) -> Answer {
        match self.trouble {
            None => self.judge(chance, now_ms, batch),
            Some(Trouble::Down) => {
                let failure = Failure::with_status(FailureKind::ServerError, 503);
                answer(Outcome::Unknown(failure), false)
            }
            Some(Trouble::Silent) => {
                let is_taken = chance.in_percent(20)
                    && self.judge(chance, now_ms, batch).outcome == Outcome::Delivered;
                answer(Outcome::Unknown(Failure::of(FailureKind::TimedOut)), is_taken)
            }
            Some(Trouble::Unreachable) => {
                answer(Outcome::Refused(Failure::of(FailureKind::Unreachable)), false)
            }
            Some(Trouble::Unauthorized) => answer(refused(FailureKind::Unauthorized, 401), false),
            Some(Trouble::Crowded) => answer(refused(FailureKind::RateLimited, 429), false),
        }
    }

    /// The answer of a sink that works.
    fn judge(&mut self, chance: &mut Chance, now_ms: u64, batch: &Batch) -> Answer {
        let is_too_large = |message: &Message| {
            let events: u32 = message.entries.iter().map(|entry| entry.event_count).sum();
            self.message_events_max.is_some_and(|max| events > max)
        };
        if batch.messages.iter().any(is_too_large) {
            return answer(refused(FailureKind::TooLarge, 413), false);
        }
        let bad = batch.messages.iter().enumerate().filter(|(_, message)| {
            message.entries.iter().any(|entry| self.is_poison(now_ms, entry))
        });
        let bad: Vec<usize> = bad.map(|(place, _)| place).collect();
        if !bad.is_empty() {
            let invalid = answer(refused(FailureKind::Invalid, 422), false);
            let named = self.name(chance, bad, batch.messages.len());
            return Answer { named, ..invalid };
        }
        let is_over_budget = match &mut self.meter {
            Some(meter) => !meter.take(now_ms, batch.messages.len() as u32),
            None => false,
        };
        if is_over_budget {
            return Answer {
                is_over_budget,
                ..answer(refused(FailureKind::RateLimited, 429), false)
            };
        }
        answer(Outcome::Delivered, true)
    }

    fn name(&self, chance: &mut Chance, bad: Vec<usize>, messages: usize) -> Vec<usize> {
        match self.naming {
            Naming::Never => Vec::new(),
            Naming::Always => bad,
            Naming::Sometimes => bad.into_iter().filter(|_| chance.in_percent(50)).collect(),
            Naming::Wrongly => vec![chance.below(messages as u64) as usize],
            Naming::OutOfRange => vec![messages, usize::MAX],
        }
    }

    /// Whether it does not take an event of this entry.
    pub fn is_poison(&self, now_ms: u64, entry: &Entry) -> bool {
        let mut events = (0..entry.event_count).map(|place| entry.event_id.plus(place));
        events.any(|event_id| match self.poison(event_id) {
            None => false,
            Some(None) => true,
            Some(Some(cured_ms)) => now_ms < cured_ms,
        })
    }

    /// Whether it will never take this, which cannot be sent in parts.
    pub fn is_hopeless(&self, unit: &Entry) -> bool {
        let is_too_large = self.message_events_max.is_some_and(|max| unit.event_count > max);
        is_too_large || self.is_poison(u64::MAX, unit)
    }

    /// Whether it refuses an event at first, and until when; none within: for ever.
    fn poison(&self, event_id: EventId) -> Option<Option<u64>> {
        let bits = mix(self.seed ^ u128::from_be_bytes(event_id.to_bytes()) as u64);
        let is_poison = bits % 1_000 < self.poison_permille;
        let cured_ms = (bits >> 32) % self.cured_ms.max(1);
        let is_cured = (bits >> 16) & 1 == 0;
        is_poison.then(|| is_cured.then_some(cured_ms))
    }
}

fn answer(outcome: Outcome, is_received: bool) -> Answer {
    Answer { outcome, named: Vec::new(), is_received, is_over_budget: false }
}

fn refused(kind: FailureKind, status: u16) -> Outcome {
    Outcome::Refused(Failure::with_status(kind, status))
}

const METER_TICK_MS: u64 = 5_000;
const METER_BUCKETS: usize = 12;
const METER_IDLE_MS: u64 = 300_000;

/// Realtime's counter of a tenant: whole buckets of 5 s, at most twelve, and an average that
/// changes at their end alone. It is forgotten when it has not been used for five minutes.
struct Meter {
    limit: u32,
    next_tick_ms: u64,
    used_ms: u64,
    current: u32,
    buckets: VecDeque<u32>,
    average: f64,
}

impl Meter {
    fn new(limit: u32, phase_ms: u64) -> Self {
        let (current, average) = (0, 0.0);
        let buckets = VecDeque::new();
        Self { limit, next_tick_ms: phase_ms, used_ms: 0, current, buckets, average }
    }

    /// Whether the messages are accepted; those that are not are not counted.
    fn take(&mut self, now_ms: u64, messages: u32) -> bool {
        if now_ms - self.used_ms > METER_IDLE_MS {
            *self = Self::new(self.limit, now_ms + METER_TICK_MS);
        }
        self.used_ms = now_ms;
        while self.next_tick_ms <= now_ms {
            self.buckets.push_front(std::mem::take(&mut self.current));
            self.buckets.truncate(METER_BUCKETS);
            let sum: u32 = self.buckets.iter().sum();
            self.average = f64::from(sum) / self.buckets.len() as f64 / 5.0;
            self.next_tick_ms += METER_TICK_MS;
        }
        let is_accepted = f64::from(messages) + self.average <= f64::from(self.limit);
        self.current += if is_accepted { messages } else { 0 };
        is_accepted
    }
}
