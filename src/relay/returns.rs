#![forbid(unsafe_code)]
//! Events that are sent again: what is known of them, and when to look for more.
//!
//! An event that a sink refused is written down with its fate and leaves the outbox's cursor
//! behind. What is to be sent again lies in a table, whoever put it there: a retry of ours, a
//! redriven dead letter, a replay. It is taken in pages, the next one when all of the last have
//! a fate that is recorded, so that memory is bounded and nothing is taken twice.

use std::sync::Arc;

use crate::event::{Entry, EventId};
use crate::relay::time::{Duration, Time};
use crate::retry;
use crate::sink::Failure;

/// What becomes of an event that was refused, or was sent again. Recorded in one transaction with
/// the position.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It is tried again after the wait.
    Retry { event: Arc<Entry>, attempts: u32, wait: Duration, failure: Failure },
    /// It is a dead letter.
    Dead { event: Arc<Entry>, attempts: u32, failure: Failure },
    /// It was sent again, and has arrived.
    Arrived { event_id: EventId },
}

/// An event to be sent again: an entry of one event.
#[derive(Debug)]
pub struct Return {
    pub event: Entry,
    /// How often it was refused since it was last redriven.
    pub attempts: u32,
}

/// What a look at the table brought.
#[derive(Debug, Default)]
pub struct Page {
    pub returns: Vec<Return>,
    /// When the next one is due; zero when more of them are.
    pub next_in: Option<Duration>,
    /// The events that were refused, due or not, each with its org: asked for at the first look
    /// alone.
    pub held: Vec<(Arc<str>, EventId)>,
}

#[derive(Debug, Default)]
pub struct Returns {
    fates: Vec<Fate>,
    /// Handed over to be recorded.
    recording: Vec<Fate>,
    /// Taken, and without a fate.
    taken: usize,
    /// When to look again.
    due_at: Option<Time>,
    looking: bool,
    looked: bool,
    failures: u32,
}

impl Returns {
    /// Nothing is known yet: the first look is due at once.
    pub fn new(now: Time) -> Self {
        Self { due_at: Some(now), ..Self::default() }
    }

    /// Whether the table was ever read by this relay.
    pub const fn has_looked(&self) -> bool {
        self.looked
    }

    /// Events that are there, or are put there now, are due at this time.
    pub fn expect(&mut self, at: Time) {
        self.due_at = Some(self.due_at.map_or(at, |due| due.min(at)));
    }

    /// Whether to look now; if so, the look is under way. What becomes due while it is may not be
    /// in what it sees, and is due after it.
    pub fn look(&mut self, now: Time) -> bool {
        let is_due = self.is_free() && self.due_at.take_if(|at| *at <= now).is_some();
        self.looking |= is_due;
        is_due
    }

    /// When to look next, as far as nothing else has to happen before.
    pub fn deadline(&self) -> Option<Time> {
        self.due_at.filter(|_| self.is_free())
    }

    pub fn found(&mut self, now: Time, count: usize, next_in: Option<Duration>) {
        self.looking = false;
        self.looked = true;
        self.failures = 0;
        self.taken += count;
        // Always later: a look that brings nothing must not call for the next at once.
        if let Some(wait) = next_in {
            self.expect(now.plus(wait.max(Duration::from_ms(1))));
        }
    }

    pub fn look_failed(&mut self, now: Time, chance: u64) {
        self.looking = false;
        self.failures = self.failures.saturating_add(1);
        self.due_at = Some(retry::retry_at(now, self.failures, chance));
    }

    /// An event has a fate. `was_taken`: it came from the table.
    pub fn settle(&mut self, now: Time, fate: Fate, was_taken: bool) {
        if let Fate::Retry { wait, .. } = fate {
            self.expect(now.plus(wait));
        }
        self.taken -= usize::from(was_taken);
        self.fates.push(fate);
    }

    pub fn has_fates(&self) -> bool {
        !self.fates.is_empty()
    }

    /// Whether fates wait to be recorded, or are being recorded.
    pub fn has_unrecorded(&self) -> bool {
        !self.fates.is_empty() || !self.recording.is_empty()
    }

    /// What is to be recorded now, with the position.
    pub fn begin_record(&mut self) -> Vec<Fate> {
        self.recording = std::mem::take(&mut self.fates);
        self.recording.clone()
    }

    /// Returns what is recorded now.
    pub fn record_succeeded(&mut self) -> Vec<Fate> {
        std::mem::take(&mut self.recording)
    }

    pub fn record_failed(&mut self) {
        let newer = std::mem::take(&mut self.fates);
        self.fates = std::mem::take(&mut self.recording);
        self.fates.extend(newer);
    }

    /// No event of the last look is without a fate, and none of their fates is unrecorded.
    fn is_free(&self) -> bool {
        !self.looking && self.taken == 0 && !self.has_unrecorded()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_ms(ms)
    }

    #[test]
    fn what_is_expected_during_a_look_is_looked_for_after_it() {
        let mut returns = Returns::new(at(0));
        assert!(returns.look(at(5)));
        assert_eq!((returns.look(at(5)), returns.deadline()), (false, None));
        returns.expect(at(6));
        returns.found(at(7), 0, Some(Duration::from_ms(100)));
        assert_eq!(returns.deadline(), Some(at(6)));
        assert!(returns.look(at(7)));
        returns.found(at(8), 0, Some(Duration::from_ms(100)));
        assert_eq!(returns.deadline(), Some(at(108)));
        assert!(!returns.look(at(107)));
        assert!(returns.look(at(108)));
        returns.found(at(109), 0, None);
        assert_eq!(returns.deadline(), None);
    }

    #[test]
    fn looks_that_fail_wait_longer_each_time_until_one_succeeds() {
        let mut returns = Returns::new(at(0));
        let mut waits = Vec::new();
        for turn in 0..4 {
            assert!(returns.look(at(0)));
            returns.look_failed(at(0), 499);
            waits.push(returns.deadline().unwrap().as_ms());
            if turn == 2 {
                returns.found(at(0), 0, None);
            }
            returns.expect(at(0));
        }
        assert_eq!(waits, [250, 500, 500, 250]);
    }

    #[test]
    fn the_next_look_waits_until_all_of_the_last_are_recorded() {
        let mut returns = Returns::new(at(0));
        assert!(returns.look(at(0)));
        returns.found(at(0), 1, Some(Duration::from_ms(0)));
        assert_eq!((returns.look(at(1)), returns.deadline()), (false, None));
        returns.settle(at(1), Fate::Arrived { event_id: EventId::from_bytes([1; 16]) }, true);
        assert!(!returns.look(at(1)), "its fate is not recorded");
        assert_eq!(returns.begin_record().len(), 1);
        assert!(!returns.look(at(1)), "nor yet");
        returns.record_failed();
        assert!(returns.has_fates() && !returns.look(at(1)));
        returns.begin_record();
        assert_eq!(returns.record_succeeded().len(), 1);
        assert!(returns.look(at(1)));
    }
}
