//! One sink at work: carries out what the plan decides and tells it what came of it.
//!
//! No decision is made here. Reading and recording are transactions of this process; sending is
//! handed to threads, so that no transaction is open while the network is used.

use super::clock::Clock;
use super::plan::{self, Effect, Input, SinkState, State, Status};
use super::setup::Setup;
use super::time::Time;
use crate::error::Error;
use crate::pg::tx::Failure;
use crate::pg::{heap, worker};
use crate::sink::FailureKind;
use crate::sink::http::Couriers;
use crate::status::{Counters, SinkStatus};
use crate::store::{self, PageBounds, Reader, SinkRow};
use pgrx::log;
use std::collections::VecDeque;

/// Over how long the rate of events is measured, at least.
const RATE_INTERVAL_MS: u64 = 1000;

/// A sink that this relay serves.
pub struct SinkRun {
    row: SinkRow,
    setup: Setup,
    plan: State,
    couriers: Couriers,
    reader: Reader,
    status: SinkStatus,
    was_failing: bool,
    is_enabled: bool,
    rate_from: (Time, u64),
    /// Takes over when nothing is on its way any more, so that nothing is sent twice or out of
    /// order for a change of options.
    successor: Option<(SinkRow, Setup)>,
    /// The database has refused something; the extension may be gone.
    trouble: Option<Failure>,
}

impl SinkRun {
    /// Starts to serve a sink. `number` tells the runs of one relay apart.
    ///
    /// # Errors
    /// What is wrong with its options or its secret.
    pub fn start(row: SinkRow, setup: Setup, number: usize) -> Result<SinkRun, Error> {
        Ok(SinkRun {
            plan: setup.plan(&row),
            couriers: setup.couriers()?,
            setup,
            reader: Reader::new(number),
            status: SinkStatus { sink: row.name.clone(), ..SinkStatus::default() },
            was_failing: false,
            is_enabled: false,
            rate_from: (Time::from_ms(0), 0),
            successor: None,
            trouble: None,
            row,
        })
    }

    pub fn name(&self) -> &str {
        &self.row.name
    }

    pub fn status(&self) -> &SinkStatus {
        &self.status
    }

    /// What the database has refused since the last call.
    pub fn take_trouble(&mut self) -> Option<Failure> {
        self.trouble.take()
    }

    /// Takes over what has changed. A sink that waits is tried at once: the change, or what made
    /// somebody ask, may be its cure.
    pub fn reconfigure(&mut self, clock: &mut Clock, row: SinkRow, setup: Setup) {
        self.reader.forget_kinds();
        if setup != self.setup {
            self.successor = Some((row, setup));
            self.feed(clock, Input::Pause);
            return;
        }
        self.row.is_paused = row.is_paused;
        self.comply(clock);
        self.feed(clock, Input::Configure(self.setup.settings()));
        self.feed(clock, Input::ReturnsExpected);
    }

    /// Pauses or resumes, as the sink's row and the settings say. Paused until the first call.
    pub fn steer(&mut self, clock: &mut Clock, enabled: bool) {
        self.is_enabled = enabled;
        self.comply(clock);
    }

    fn comply(&mut self, clock: &mut Clock) {
        let should_run = self.is_enabled && !self.row.is_paused && self.successor.is_none();
        let runs = self.plan.status().state != SinkState::Paused;
        match (should_run, runs) {
            (true, false) => self.feed(clock, Input::Resume),
            (false, true) => self.feed(clock, Input::Pause),
            _ => {}
        }
    }

    /// There may be something new.
    pub fn wake(&mut self, clock: &mut Clock) {
        self.feed(clock, Input::Woken);
    }

    /// There may be events to be sent again that nobody rang for.
    pub fn look_again(&mut self, clock: &mut Clock) {
        self.feed(clock, Input::ReturnsExpected);
    }

    /// Takes what has come back from the network and what has become due. Returns when to be
    /// called again at the latest; `None` waits for the network or a wake.
    pub fn turn(&mut self, clock: &mut Clock) -> Option<Time> {
        while let Some(answer) = self.couriers.answer() {
            let input = Input::Answered {
                request: answer.request,
                outcome: answer.outcome,
                named: answer.named,
                tally: answer.tally,
            };
            self.feed(clock, input);
        }
        let is_due = |deadline: Option<Time>| deadline.is_some_and(|at| at <= clock.now());
        if is_due(self.plan.next_deadline(clock.now())) {
            self.feed(clock, Input::Tick);
        }
        self.succeed(clock);
        self.plan.next_deadline(clock.now())
    }

    /// Lets the successor take over once nothing is on its way.
    fn succeed(&mut self, clock: &mut Clock) {
        if self.plan.gauges().requests_in_flight > 0 {
            return;
        }
        let Some((row, setup)) = self.successor.take() else { return };
        let row = SinkRow { position: self.plan.recorded().clone(), ..row };
        match setup.couriers() {
            Ok(couriers) => {
                self.couriers = couriers;
                self.plan = setup.plan(&row);
                self.setup = setup;
                self.row = row;
                self.comply(clock);
            }
            Err(error) => {
                log!("pg_outbox: sink {} keeps its old options: {}", self.row.name, error.message);
                self.comply(clock);
            }
        }
    }

    /// Gives the plan an input and carries out what it calls for, until it calls for nothing.
    fn feed(&mut self, clock: &mut Clock, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut effects = Vec::new();
        while let Some(input) = inputs.pop_front() {
            plan::step(&mut self.plan, clock.now(), clock.chance(), input, &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Read { from, bytes_max } => {
                        worker::report_activity(Some("reading the outbox"));
                        inputs.push_back(match self.reader.read(&from, bytes_max) {
                            Ok(chunk) => Input::Read(chunk),
                            Err(failure) => {
                                self.trouble = Some(failure);
                                Input::ReadFailed
                            }
                        });
                    }
                    Effect::Send { lane, request, batch } => {
                        self.couriers.send(lane, request, batch)
                    }
                    Effect::LookForReturns { events_max, bytes_max, with_held } => {
                        worker::report_activity(Some("looking for retries"));
                        let bounds = PageBounds { events_max, bytes_max };
                        let page = store::look(&self.row.name, bounds, with_held);
                        inputs.push_back(match page {
                            Ok(page) => Input::Returns(page),
                            Err(failure) => {
                                self.trouble = Some(failure);
                                Input::ReturnsFailed
                            }
                        });
                    }
                    Effect::Record(record) => {
                        worker::report_activity(Some("recording the cursor"));
                        let recorded = store::record(&self.row.name, clock.now(), &record);
                        inputs.push_back(match recorded {
                            Ok(true) => Input::Recorded,
                            Ok(false) => Input::RecordFailed,
                            Err(failure) => {
                                self.trouble = Some(failure);
                                Input::RecordFailed
                            }
                        });
                    }
                    Effect::Report(status) => self.report(clock, status),
                }
            }
        }
    }

    /// Says once that the sink fails, and once that it is well again.
    fn report(&mut self, clock: &Clock, status: Status) {
        let is_failing = status.failure.is_some();
        if let Some(failure) = status.failure {
            self.status.last_error = format!("{failure}: {}", failure.kind.advice());
            self.status.last_error_at = heap::now();
            if !self.was_failing {
                log!("pg_outbox: sink {} waits: {}", self.row.name, self.status.last_error);
            }
            if failure.kind == FailureKind::Unauthorized {
                self.look_for_new_secret();
            }
        } else if self.was_failing {
            log!("pg_outbox: sink {} delivers again", self.row.name);
        }
        self.was_failing = is_failing;
        self.status.retry_at = status.retry_at.map_or(0, |at| clock.to_timestamp(at));
        self.status.attempts = i32::try_from(status.attempts).unwrap_or(i32::MAX);
        self.status.is_waiting = is_failing;
    }

    /// A token that is refused may have been replaced in its file.
    fn look_for_new_secret(&mut self) {
        if self.successor.is_none()
            && let Ok(setup) = Setup::of(&self.row, self.setup.memory_bytes_max, store::secret)
            && setup != self.setup
        {
            self.successor = Some((self.row.clone(), setup));
        }
    }

    /// Brings the counters up to date.
    pub fn measure(&mut self, clock: &Clock) {
        let counters = self.plan.counters();
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.status.counters = Counters {
            events_delivered: number(counters.events),
            events_collapsed: number(counters.collapsed),
            refreshes: number(counters.refreshes),
            messages: number(counters.messages),
            requests: number(counters.requests),
            failures: number(counters.failures),
            refused: number(counters.refused),
            dead_letters: number(counters.dead_letters),
            bytes_sent: number(counters.bytes),
        };
        self.status.in_flight = self.plan.gauges().requests_in_flight as i32;
        let (since, events) = self.rate_from;
        let elapsed_ms = clock.now().since(since).as_ms();
        if elapsed_ms >= RATE_INTERVAL_MS {
            let delivered = counters.events.saturating_sub(events);
            self.status.event_rate_milli = number(delivered.saturating_mul(1_000_000) / elapsed_ms);
            self.rate_from = (clock.now(), counters.events);
        }
    }
}
