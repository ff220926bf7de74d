#![forbid(unsafe_code)]
//! What was sent and what became of it, for `outbox.trace`: one line a request, written with the
//! next record and kept as long as the events. A line names the entries of each message by their
//! first and last place, so an event costs nothing here.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::{EntryId, EventId};
use crate::relay::time::Time;
use crate::sink::Outcome;

/// Lines that wait for a record; beyond, the oldest are forgotten. Only a database that takes no
/// record lets so many come together.
const LINES_MAX: usize = 1_000;

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

#[derive(Debug, Default)]
pub struct Journal {
    lines: VecDeque<Line>,
    recording: Vec<Line>,
    /// A request failed: that is worth a record of its own, and never comes in numbers.
    is_urgent: bool,
}

impl Journal {
    pub fn write(&mut self, line: Line) {
        self.is_urgent |= line.outcome != Outcome::Delivered;
        self.lines.push_back(line);
        if self.lines.len() > LINES_MAX {
            self.lines.pop_front();
        }
    }

    pub const fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    pub fn begin_record(&mut self) -> Vec<Line> {
        self.is_urgent = false;
        self.recording = std::mem::take(&mut self.lines).into();
        self.recording.clone()
    }

    pub fn record_succeeded(&mut self) {
        self.recording.clear();
    }

    pub fn record_failed(&mut self) {
        for line in std::mem::take(&mut self.recording).into_iter().rev() {
            self.lines.push_front(line);
        }
    }
}
