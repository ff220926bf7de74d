//! What is true of the events over all lives of the relay: who has got what, and in which order.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use pg_outbox::config::Order;
use pg_outbox::event::{Entry, EntryId, EventId};
use pg_outbox::sink::Batch;

use crate::database::{Database, entry_id};
use crate::life::{Refusal, events};
use crate::retries::Retries;
use crate::sink::Sink;

#[derive(Default)]
pub struct Audit {
    got: HashSet<EventId>,
    /// Committed, and never received, org by org.
    missing: HashMap<Arc<str>, BTreeSet<EventId>>,
    /// Refused alone at least once: later events need not wait for it if the order is relaxed.
    refused: HashSet<EventId>,
    /// Refused while the order was relaxed. Should it be strict since, these retries have each
    /// their own time, and only what was not refused waits for them.
    refused_relaxed: HashSet<EventId>,
    /// Was a dead letter once: its place is past in any order.
    given_up: HashSet<EventId>,
    pub deliveries: usize,
    pub duplicates: usize,
}

impl Audit {
    pub fn committed(&mut self, database: &Database, shown: &[EntryId]) {
        for entry in shown.iter().filter_map(|&id| database.row(id)).map(|row| &row.entry) {
            self.missing.entry(entry.org_id.clone()).or_default().extend(events(entry));
        }
    }

    pub fn refused(&mut self, refusal: &Refusal, order: Order) {
        self.refused.extend(&refusal.events);
        if order == Order::Relaxed {
            self.refused_relaxed.extend(&refusal.events);
        }
        if refusal.is_dead {
            self.given_up.extend(&refusal.events);
        }
    }

    /// The sink has taken a batch, of a relay that keeps this order.
    pub fn received(&mut self, batch: &Batch, order: Order, database: &Database) {
        for entry in batch.messages.iter().flat_map(|message| &message.entries) {
            let is_known = database.row(entry.id).is_some_and(|row| row.has(entry));
            assert!(is_known, "{entry:?} was invented");
            for event_id in events(entry) {
                self.deliveries += 1;
                if !self.got.insert(event_id) {
                    self.duplicates += 1;
                    continue;
                }
                self.check_order(event_id, &entry.org_id, order, database);
                self.missing.get_mut(&entry.org_id).unwrap().remove(&event_id);
            }
        }
    }

    /// Nothing that comes before it and could be seen as early is missing, but for refusals.
    fn check_order(&self, event_id: EventId, org_id: &str, order: Order, database: &Database) {
        let committed = |event_id| database.row(entry_id(event_id)).unwrap().committed;
        for &earlier in self.missing[org_id].range(..event_id) {
            let is_excused = match order {
                Order::Strict => {
                    self.given_up.contains(&earlier) || self.refused_relaxed.contains(&event_id)
                }
                Order::Relaxed => {
                    self.refused.contains(&earlier) || self.given_up.contains(&earlier)
                }
            };
            let is_late = committed(earlier) > committed(event_id);
            assert!(is_excused || is_late, "{event_id} came before {earlier}, {order:?}");
        }
    }

    /// Everything that the cursor has passed has arrived or is written down.
    pub fn check_passed(&self, passed: &Entry, units: &[Entry], retries: &Retries) {
        for unit in units {
            let is_safe = events(unit).all(|event_id| self.got.contains(&event_id))
                || retries.has(unit.event_id);
            assert!(is_safe, "the cursor passed {} of {:?}", unit.event_id, passed.id);
        }
    }

    /// Nothing is lost at the end, and exactly what no sink would take is a dead letter.
    pub fn check_end(&self, database: &Database, retries: &Retries, sink: &Sink) {
        let dead: BTreeSet<EventId> = retries.dead().collect();
        for unit in database.rows().flat_map(|row| row.units()) {
            let is_hopeless = sink.is_hopeless(&unit);
            let has_arrived = self.got.contains(&unit.event_id);
            let is_dead = dead.contains(&unit.event_id);
            let event_id = unit.event_id;
            assert_eq!(has_arrived, !is_hopeless, "{event_id} has arrived; {is_dead}");
            assert_eq!(is_dead, is_hopeless, "{event_id} is a dead letter");
        }
    }
}
