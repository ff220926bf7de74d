//! The tables of retries and dead letters as Postgres keeps them.

use std::collections::BTreeMap;

use pg_outbox::event::{Entry, EventId};
use pg_outbox::relay::returns::{Fate, Page, Return};
use pg_outbox::relay::time::Duration;

/// Marks the copies that come out of the table, so that a witness can tell them from what was
/// read from the outbox. The relay looks at no time of an entry.
pub const AGAIN: i64 = 1;

struct Retry {
    event: Entry,
    attempts: u32,
    due_ms: u64,
}

#[derive(Default)]
pub struct Retries {
    retries: BTreeMap<EventId, Retry>,
    dead: BTreeMap<EventId, Entry>,
}

impl Retries {
    /// Part of the transaction that moves the cursor.
    pub fn record(&mut self, now_ms: u64, fates: &[Fate]) {
        for fate in fates {
            match fate {
                Fate::Retry { event, attempts, wait, .. } => {
                    let (event_id, due_ms) = (event.event_id, now_ms + wait.as_ms());
                    // A copy in the outbox whose entry the cursor had not passed at a crash is
                    // refused for the first time again.
                    let known = self.retries.get(&event_id).map_or(0, |row| row.attempts);
                    let attempts = known.max(*attempts);
                    let event = Entry::clone(event);
                    self.retries.insert(event_id, Retry { event, attempts, due_ms });
                }
                Fate::Dead { event, .. } => {
                    self.retries.remove(&event.event_id);
                    self.dead.insert(event.event_id, Entry::clone(event));
                }
                Fate::Arrived { event_id } => {
                    self.retries.remove(event_id);
                }
            }
        }
    }

    /// What is due, the longest due first.
    pub fn look(&self, now_ms: u64, events_max: usize, bytes_max: usize, with_held: bool) -> Page {
        let mut rows: Vec<&Retry> = self.retries.values().collect();
        rows.sort_by_key(|row| (row.due_ms, row.event.event_id));
        let mut bytes = 0;
        let fitting = rows.iter().take(events_max).take_while(|row| {
            let fits = bytes < bytes_max && row.due_ms <= now_ms;
            bytes += row.event.memory_bytes();
            fits
        });
        let (due, later) = rows.split_at(fitting.count());
        let returns = due.iter().map(|row| Return {
            event: Entry { at_us: AGAIN, ..row.event.clone() },
            attempts: row.attempts,
        });
        let wait = |row: &&Retry| Duration::from_ms(row.due_ms.saturating_sub(now_ms));
        let held = rows.iter().filter(|row| with_held && row.attempts > 0);
        Page {
            returns: returns.collect(),
            next_in: later.first().map(wait),
            held: held.map(|row| (row.event.org_id.clone(), row.event.event_id)).collect(),
        }
    }

    /// Sends dead letters again; returns them.
    pub fn redrive(&mut self, now_ms: u64, mut is_meant: impl FnMut() -> bool) -> Vec<EventId> {
        let meant = self.dead.extract_if(.., |_, _| is_meant());
        let mut redriven = Vec::new();
        for (event_id, event) in meant {
            redriven.push(event_id);
            let row = Retry { event, attempts: 0, due_ms: now_ms };
            self.retries.entry(event_id).or_insert(row);
        }
        redriven
    }

    /// Sends a past event again, unless it is to be sent again already.
    pub fn replay(&mut self, now_ms: u64, event: Entry) {
        let row = Retry { event, attempts: 0, due_ms: now_ms };
        self.retries.entry(row.event.event_id).or_insert(row);
    }

    /// Whether nothing is to be sent again.
    pub fn is_empty(&self) -> bool {
        self.retries.is_empty()
    }

    pub fn has(&self, event_id: EventId) -> bool {
        self.retries.contains_key(&event_id) || self.dead.contains_key(&event_id)
    }

    pub fn dead(&self) -> impl Iterator<Item = EventId> {
        self.dead.keys().copied()
    }
}
