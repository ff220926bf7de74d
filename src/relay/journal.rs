#![forbid(unsafe_code)]
//! What was sent and what became of it, for `outbox.trace`: one line a request, written with the
//! next record and kept as long as the events. A line names the entries of each message by their
//! first and last place, so an event costs nothing here.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::{EntryId, EventId};
use crate::relay::time::Time;
use crate::sink::Outcome;

/// Messages, and events that were sent again, of the lines that wait for a record: a megabyte or
/// two. Beyond, the oldest lines are forgotten. Only a database that takes no record lets so many
/// come together.
const PARTS_MAX: usize = 20_000;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub sent_at: Time,
    pub answered_at: Time,
    pub outcome: Outcome,
    pub messages: Vec<Sent>,
}

/// One of its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub org_id: Arc<str>,
    pub first_id: EntryId,
    pub last_id: EntryId,
    pub event_count: u32,
    /// The events, when they were sent again; none for new ones, which are all of the org's
    /// between the two places.
    pub again: Vec<EventId>,
}

impl Line {
    fn parts(&self) -> usize {
        self.messages.iter().map(|sent| 1 + sent.again.len()).sum()
    }
}

#[derive(Debug, Default)]
pub struct Journal {
    lines: VecDeque<Line>,
    /// Of all lines that wait.
    parts: usize,
    recording: Vec<Line>,
    /// A request failed: that is worth a record of its own, and never comes in numbers.
    is_urgent: bool,
}

impl Journal {
    pub fn write(&mut self, line: Line) {
        self.is_urgent |= line.outcome != Outcome::Delivered;
        self.parts += line.parts();
        self.lines.push_back(line);
        self.forget();
    }

    pub const fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    pub fn begin_record(&mut self) -> Vec<Line> {
        self.is_urgent = false;
        self.parts = 0;
        self.recording = std::mem::take(&mut self.lines).into();
        self.recording.clone()
    }

    pub fn record_succeeded(&mut self) {
        self.recording.clear();
    }

    pub fn record_failed(&mut self) {
        for line in std::mem::take(&mut self.recording).into_iter().rev() {
            self.parts += line.parts();
            self.lines.push_front(line);
        }
        self.forget();
    }

    fn forget(&mut self) {
        while self.parts > PARTS_MAX {
            let Some(line) = self.lines.pop_front() else { return };
            self.parts -= line.parts();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{Failure, FailureKind};

    fn line(at_ms: u64, messages: usize) -> Line {
        let sent = Sent {
            org_id: "a".into(),
            first_id: EntryId(1),
            last_id: EntryId(2),
            event_count: 2,
            again: vec![EventId::from_bytes([0; 16])],
        };
        let at = Time::from_ms(at_ms);
        let messages = vec![sent; messages];
        Line { sent_at: at, answered_at: at, outcome: Outcome::Delivered, messages }
    }

    #[test]
    fn a_failed_record_loses_no_line_and_no_order() {
        let mut journal = Journal::default();
        journal.write(line(1, 1));
        journal.write(line(2, 1));
        assert!(!journal.is_urgent());
        assert_eq!(journal.begin_record(), [line(1, 1), line(2, 1)]);
        let failed = Outcome::Refused(Failure::of(FailureKind::Unreachable));
        journal.write(Line { outcome: failed, ..line(3, 1) });
        assert!(journal.is_urgent());
        journal.record_failed();
        let lines = journal.begin_record();
        assert_eq!(lines.iter().map(|line| line.sent_at.as_ms()).collect::<Vec<_>>(), [1, 2, 3]);
        journal.record_succeeded();
        assert!(journal.begin_record().is_empty());
    }

    #[test]
    fn a_database_that_takes_no_record_makes_the_oldest_be_forgotten() {
        let mut journal = Journal::default();
        for turn in 0..50 {
            for at_ms in 0..500 {
                journal.write(line(turn * 500 + at_ms, 100));
            }
            let lines = journal.begin_record();
            assert_eq!(lines.len(), PARTS_MAX / 200);
            assert_eq!(lines.last(), Some(&line(turn * 500 + 499, 100)));
            journal.write(line(0, PARTS_MAX / 2));
            journal.record_failed();
        }
        assert_eq!(journal.begin_record().len(), 1, "what was being recorded is older");
    }
}
