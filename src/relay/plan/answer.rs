#![forbid(unsafe_code)]
//! What an answer means for the events that the request carried.
//!
//! | outcome | the sink | the events |
//! | --- | --- | --- |
//! | delivered | works | have their outcome |
//! | refused, a message's fault | works | are sent again in smaller parts; one alone is retried |
//! | refused otherwise, unknown | waits | are sent again as they are, no attempt counted |
//!
//! One that is refused once more than it has retries is a dead letter.

use std::sync::Arc;

use super::{InFlight, RequestId, Share, State};
use crate::config::Order;
use crate::event::Entry;
use crate::relay::journal::{Line, Sent};
use crate::relay::lane::{Again, Backing, Parcel};
use crate::relay::returns::Fate;
use crate::relay::time::Time;
use crate::retry;
use crate::sink::{Blame, Failure, Outcome};

impl State {
    /// True when the request was delivered.
    pub(super) fn answered(
        &mut self,
        now: Time,
        chance: u64,
        request: RequestId,
        outcome: Outcome,
        named: &[usize],
    ) -> bool {
        let Some(in_flight) = self.requests.remove(&request) else {
            return false;
        };
        self.journal.write(line(now, &in_flight, outcome));
        match outcome {
            Outcome::Delivered => {
                self.health.worked(request);
                self.lanes.widen(in_flight.lane, super::REQUEST_MESSAGES_MAX);
                self.delivered(now, in_flight);
                return true;
            }
            Outcome::Refused(failure) if failure.kind.blame() == Blame::Message => {
                self.counters.failures += 1;
                self.health.worked(request);
                self.refused(now, chance, in_flight, failure, named);
            }
            Outcome::Refused(failure) | Outcome::Unknown(failure) => {
                self.counters.failures += 1;
                if failure.kind.blame() == Blame::Pace {
                    self.budget.throttled(now);
                }
                let was_probe = self.health.is_probe(request);
                self.health.failed(now, chance, request, failure);
                // A message that breaks the sink must not be its only probe for ever.
                let again = if was_probe { Again::Last } else { Again::First };
                for parcel in parcels(in_flight).into_iter().rev() {
                    self.lanes.put_back(parcel, again);
                }
            }
        }
        false
    }

    /// All that the request carried has its outcome.
    fn delivered(&mut self, now: Time, in_flight: InFlight) {
        for parcel in parcels(in_flight) {
            for entry in &parcel.entries {
                self.let_go(entry);
                self.counters.events += u64::from(entry.event_count);
            }
            match parcel.backing {
                Backing::Outbox(runs) => {
                    for run in runs {
                        self.ledger.settle(run.chunk, run.entries);
                    }
                    self.lanes.delivered(now, parcel.org);
                }
                Backing::Retries { .. } => {
                    for event in &parcel.entries {
                        let fate = Fate::Arrived { event_id: event.event_id };
                        self.returns.settle(now, fate, true);
                        self.lanes.release(now, parcel.org, event.event_id);
                    }
                    self.lanes.returned(now, parcel.org);
                }
            }
        }
        self.have_let_go();
    }

    /// The sink does not take a message of this request: finds out which, and which event of it.
    fn refused(
        &mut self,
        now: Time,
        chance: u64,
        in_flight: InFlight,
        failure: Failure,
        named: &[usize],
    ) {
        let lane = in_flight.lane;
        let mut parcels = parcels(in_flight);
        if parcels.len() == 1 {
            if let Some(parcel) = parcels.pop() {
                self.refused_message(now, chance, parcel, failure);
            }
            return;
        }
        let is_new = |parcel: &Parcel| matches!(parcel.backing, Backing::Outbox(_));
        // Places that the batch does not have name nothing: believed, they would be asked for in
        // the same batch for ever.
        let named: Vec<usize> =
            named.iter().copied().filter(|&place| place < parcels.len()).collect();
        if named.is_empty() && parcels.iter().all(is_new) {
            self.lanes.narrow(lane, parcels.len());
        }
        for (place, parcel) in parcels.into_iter().enumerate().rev() {
            // Nobody looks for the one among many that are sent again: each goes alone.
            let is_suspect = named.contains(&place) || (named.is_empty() && !is_new(&parcel));
            let events_max = parcel.event_count();
            let again = if is_suspect { Again::Alone { events_max } } else { Again::First };
            self.lanes.put_back(parcel, again);
        }
    }

    /// The sink does not take this message, which was alone in its request.
    fn refused_message(&mut self, now: Time, chance: u64, parcel: Parcel, failure: Failure) {
        if parcel.is_divisible() {
            let events_max = parcel.half();
            return self.lanes.put_back(parcel, Again::Alone { events_max });
        }
        let Some(event) = parcel.entries.first() else { return };
        let event_id = event.event_id;
        let before = match parcel.backing {
            Backing::Outbox(_) => 0,
            Backing::Retries { attempts, .. } => attempts,
        };
        let attempts = before.saturating_add(1);
        let fate = self.fate(now, chance, event.clone(), attempts, failure);
        let is_dead = matches!(fate, Fate::Dead { .. });
        match parcel.backing {
            Backing::Outbox(runs) => {
                self.returns.settle(now, fate, false);
                for run in runs {
                    self.ledger.settle(run.chunk, run.entries);
                }
                let holds = self.settings.order == Order::Strict && !is_dead;
                self.lanes.refused(now, parcel.org, holds.then_some(event_id));
            }
            Backing::Retries { .. } => {
                self.returns.settle(now, fate, true);
                // One that was redriven or replayed holds nothing: its place is past.
                if is_dead {
                    self.lanes.release(now, parcel.org, event_id);
                }
                self.lanes.returned(now, parcel.org);
            }
        }
    }

    fn fate(
        &mut self,
        now: Time,
        chance: u64,
        event: Arc<Entry>,
        attempts: u32,
        failure: Failure,
    ) -> Fate {
        self.counters.refused += 1;
        if attempts > self.settings.retries {
            self.counters.dead_letters += 1;
            return Fate::Dead { event, attempts, failure };
        }
        let wait = retry::retry_at(now, attempts, chance).since(now);
        Fate::Retry { event, attempts, wait, failure }
    }

    /// Needs the entry no longer: it was delivered, or its fate is recorded and holds it.
    pub(super) fn let_go(&mut self, entry: &Entry) {
        self.gauges.held_bytes -= entry.memory_bytes();
        self.gauges.held_events -= u64::from(entry.event_count);
    }

    pub(super) fn have_let_go(&mut self) {
        self.sated &= self.gauges.held_bytes >= self.settings.memory_limit_bytes / 2;
    }
}

/// What the request carried, message by message.
fn parcels(in_flight: InFlight) -> Vec<Parcel> {
    let messages = in_flight.batch.messages.iter().zip(in_flight.shares);
    let parcels = messages.map(|(message, Share { org, backing })| Parcel {
        org,
        org_id: message.org_id.clone(),
        entries: message.entries.clone(),
        backing,
        is_cut: false,
        split: None,
    });
    parcels.collect()
}

fn line(now: Time, in_flight: &InFlight, outcome: Outcome) -> Line {
    let messages = in_flight.batch.messages.iter().zip(&in_flight.shares);
    let messages = messages.filter_map(|(message, share)| {
        let ids = message.entries.iter().map(|entry| entry.id);
        let events = message.entries.iter().map(|entry| entry.event_count);
        let again = match share.backing {
            Backing::Outbox(_) => Vec::new(),
            Backing::Retries { .. } => message.entries.iter().map(|event| event.event_id).collect(),
        };
        Some(Sent {
            org_id: message.org_id.clone(),
            first_id: ids.clone().min()?,
            last_id: ids.max()?,
            event_count: events.fold(0, u32::saturating_add),
            again,
        })
    });
    Line { sent_at: in_flight.sent_at, answered_at: now, outcome, messages: messages.collect() }
}
