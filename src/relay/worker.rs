//! The relay of one database: the process around its sinks.
//!
//! It sleeps on its latch until a commit, an answer, a deadline or a signal; quiet when idle. It
//! leaves when the extension does, and whatever else ends it, the launcher starts another.

use super::clock::Clock;
use super::run::SinkRun;
use super::setup::Setup;
use super::time::Time;
use crate::error::Error;
use crate::gucs::{self, Settings};
use crate::pg::shmem::{self, Relay, Shared};
use crate::pg::tx::{self, Durability};
use crate::pg::{heap, latch, setting, worker};
use crate::status::{self, SinkStatus};
use crate::store::{self, SinkRow};
use pgrx::log;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Before a sink that could not be started is looked at again: its secret may be a file.
const BROKEN_RETRY: Duration = Duration::from_secs(10);

/// How often the table of events to be sent again is looked at without being told.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How often the counters are published while there is work.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);

/// A sink of this database.
enum Sink {
    Running(Box<SinkRun>),
    /// It cannot be started as it is set up.
    Broken(SinkStatus),
}

struct Worker {
    shared: &'static Shared,
    place: &'static Relay,
    settings: Settings,
    clock: Clock,
    sinks: Vec<Sink>,
    /// Tells the runs of this process apart.
    runs_started: usize,
    /// What `Relay::configuration` was when the sinks were read.
    configuration: u32,
    poll_at: Instant,
    prune_at: Option<Instant>,
    broken_at: Option<Instant>,
    looked_at: Instant,
    published_at: Instant,
}

/// Runs until the process is told to end.
pub fn run(database: u32) -> ! {
    worker::install_signal_handlers();
    worker::connect(Some(database));
    let Some(shared) = shmem::shared() else { worker::exit(1) };
    worker::at_exit(leave);
    let Some(place) = shared.claim_relay(database, worker::pid()) else {
        // Every place is taken, or a relay runs here already; the launcher tries again.
        worker::exit(1)
    };
    // A statement that wants the database without us has asked for it before it looked for us.
    if shared.launcher.held_until(database, heap::now()).is_some() {
        worker::exit(1);
    }
    place.started_at.store(heap::now(), Ordering::Release);
    worker::report_application_name("pg_outbox relay");
    let settings = gucs::snapshot();
    Worker {
        configuration: place.configuration.load(Ordering::Acquire),
        prune_at: next_prune(&settings),
        shared,
        place,
        settings,
        clock: Clock::new(),
        sinks: Vec::new(),
        runs_started: 0,
        poll_at: Instant::now(),
        broken_at: None,
        looked_at: Instant::now(),
        published_at: Instant::now(),
    }
    .run()
}

/// Gives the place in shared memory back, however the process ends.
fn leave() {
    if let Some(relay) = shmem::shared().and_then(|shared| {
        let is_mine = |place: &&Relay| place.pid.load(Ordering::Acquire) == worker::pid();
        shared.relays.iter().find(is_mine)
    }) {
        relay.release();
    }
    if let Some(shared) = shmem::shared() {
        // It may not be the launcher that started us.
        shared.launcher.bell.ring();
    }
}

impl Worker {
    fn run(mut self) -> ! {
        self.leave_without_extension();
        self.take_role();
        if tx::run(Durability::Asynchronous, || {
            worker::listen(c"pg_outbox");
            Ok(())
        })
        .is_err()
        {
            log!("pg_outbox: could not listen on channel pg_outbox");
        }
        self.place.bell.take();
        self.load_sinks();
        loop {
            let next = self.turn();
            worker::report_activity(None);
            latch::wait(Some(next.saturating_duration_since(Instant::now())));
        }
    }

    /// One round: what is new, what has come back, what is due. Returns when the next one is due
    /// if nothing happens.
    fn turn(&mut self) -> Instant {
        if worker::reload_if_asked() {
            self.reload();
        }
        let mut woken = worker::take_notifications();
        if self.place.bell.is_rung() {
            // More commits are likely on their way, and one reading serves them all.
            if !self.settings.wake_debounce.is_zero() {
                latch::wait(Some(self.settings.wake_debounce));
            }
            self.place.bell.answer();
            woken = true;
        }
        if Instant::now() >= self.poll_at {
            self.poll_at = Instant::now() + self.settings.poll_interval;
            woken = true;
            self.look_again();
        }
        self.notice_configuration();
        if self.prune_at.is_some_and(|at| Instant::now() >= at) {
            self.prune();
        }
        let next = self.turn_sinks(woken);
        let mut due = vec![self.poll_at];
        due.extend(self.prune_at);
        due.extend(self.broken_at);
        due.extend(next.map(|at| Instant::now() + self.clock.until(at)));
        self.publish(&mut due);
        due.into_iter().min().unwrap_or(self.poll_at)
    }

    /// Whoever puts events among those to be sent again rings; this finds what was put there
    /// otherwise, by a restore or by hand.
    fn look_again(&mut self) {
        if self.looked_at.elapsed() < LOOK_INTERVAL {
            return;
        }
        self.looked_at = Instant::now();
        for sink in &mut self.sinks {
            if let Sink::Running(run) = sink {
                run.look_again(&mut self.clock);
            }
        }
    }

    fn turn_sinks(&mut self, woken: bool) -> Option<Time> {
        let mut next: Option<Time> = None;
        let mut troubles = Vec::new();
        for sink in &mut self.sinks {
            let Sink::Running(run) = sink else { continue };
            run.steer(&mut self.clock, self.settings.enabled);
            if woken {
                run.wake(&mut self.clock);
            }
            next = next.into_iter().chain(run.turn(&mut self.clock)).min();
            troubles.extend(run.take_trouble().map(|failure| (run.name().to_owned(), failure)));
        }
        for (sink, failure) in troubles {
            self.leave_without_extension();
            log!("pg_outbox: sink {sink}: {} ({:?})", failure.message, failure.sqlstate);
        }
        next
    }

    /// Tells shared memory what there is to see: at once when the state of a sink changes, else
    /// from time to time while there is work.
    fn publish(&mut self, due: &mut Vec<Instant>) {
        let is_due = self.published_at.elapsed() >= PUBLISH_INTERVAL;
        let mut changed = false;
        let mut all = Vec::new();
        for sink in &mut self.sinks {
            let status = match sink {
                Sink::Broken(status) => &*status,
                Sink::Running(run) => {
                    let before = run.status().clone();
                    run.measure(&self.clock);
                    changed |= before != *run.status();
                    run.status()
                }
            };
            all.push(status.clone());
        }
        if is_due {
            status::publish(self.place, &all);
            self.published_at = Instant::now();
        } else if changed {
            due.push(self.published_at + PUBLISH_INTERVAL);
        }
    }

    fn reload(&mut self) {
        self.settings = gucs::snapshot();
        self.poll_at = Instant::now();
        self.prune_at = next_prune(&self.settings);
        self.load_sinks();
    }

    /// Sinks or secrets have changed, or a sink could not be started some time ago.
    fn notice_configuration(&mut self) {
        let configuration = self.place.configuration.load(Ordering::Acquire);
        let retry = self.broken_at.is_some_and(|at| Instant::now() >= at);
        if configuration != self.configuration || retry {
            self.configuration = configuration;
            self.leave_without_extension();
            self.load_sinks();
        }
    }

    /// Brings the sinks in line with their table.
    fn load_sinks(&mut self) {
        let rows = match store::sinks() {
            Ok(rows) => rows,
            Err(failure) => {
                self.leave_without_extension();
                log!("pg_outbox: could not read the sinks: {}", failure.message);
                self.broken_at = Some(Instant::now() + BROKEN_RETRY);
                return;
            }
        };
        self.broken_at = None;
        let mut running: Vec<SinkRun> = Vec::new();
        let mut broken: Vec<SinkStatus> = Vec::new();
        for sink in std::mem::take(&mut self.sinks) {
            match sink {
                Sink::Running(run) => running.push(*run),
                Sink::Broken(status) => broken.push(status),
            }
        }
        // The limit is the relay's, whatever the number of its sinks.
        let memory_bytes_max = self.settings.memory_bytes_max / rows.len().max(1);
        for row in rows {
            let known = running.iter().position(|run| run.name() == row.name);
            let known = known.map(|index| running.swap_remove(index));
            let sink = self.sink(known, row, memory_bytes_max);
            if let Sink::Broken(status) = &sink
                && !broken.iter().any(|known| known.says_the_same(status))
            {
                log!("pg_outbox: sink {} cannot start: {}", status.sink, status.last_error);
            }
            self.sinks.push(sink);
        }
        self.published_at = Instant::now() - PUBLISH_INTERVAL;
    }

    fn sink(&mut self, known: Option<SinkRun>, row: SinkRow, memory_bytes_max: usize) -> Sink {
        let setup = Setup::of(&row, memory_bytes_max, store::secret);
        let started = match (known, setup) {
            (Some(mut run), Ok(setup)) => {
                run.reconfigure(&mut self.clock, row, setup);
                return Sink::Running(Box::new(run));
            }
            (_, Err(error)) => Err((row, error)),
            (None, Ok(setup)) => {
                self.runs_started += 1;
                SinkRun::start(row.clone(), setup, self.runs_started).map_err(|error| (row, error))
            }
        };
        match started {
            Ok(run) => Sink::Running(Box::new(run)),
            Err((row, error)) => {
                self.broken_at = Some(Instant::now() + BROKEN_RETRY);
                Sink::Broken(broken(&row, &error))
            }
        }
    }

    fn prune(&mut self) {
        worker::report_activity(Some("pruning"));
        match store::prune() {
            Ok(0) => {}
            Ok(events) => log!("pg_outbox: pruned {events} events"),
            Err(failure) => {
                self.leave_without_extension();
                log!("pg_outbox: could not prune: {}", failure.message);
            }
        }
        self.prune_at = next_prune(&self.settings);
    }

    /// Works in the name of the role that is set for it, or of the extension's owner.
    fn take_role(&self) {
        let role = self.settings.role.clone();
        let taken = tx::run(Durability::Asynchronous, || {
            setting::take_role(role.as_deref());
            setting::work_undisturbed();
            Ok(())
        });
        if let Err(failure) = taken {
            log!("pg_outbox: could not take the relay's role: {}", failure.message);
            worker::exit(1);
        }
    }

    /// Ends the process when the extension is not here (any more): nobody starts it again until
    /// the extension is created.
    fn leave_without_extension(&self) {
        if matches!(store::exists(), Ok(false)) {
            self.shared.launcher.without_extension.put(worker::database());
            self.shared.launcher.bell.ring();
            worker::exit(0);
        }
    }
}

fn next_prune(settings: &Settings) -> Option<Instant> {
    settings.prune_interval.map(|interval| Instant::now() + interval)
}

fn broken(row: &SinkRow, error: &Error) -> SinkStatus {
    let hint = error.hint.as_deref().unwrap_or_default();
    let now = heap::now();
    SinkStatus {
        sink: row.name.clone(),
        is_waiting: true,
        last_error: format!("{}. {hint}", error.message).trim_end().to_owned(),
        last_error_at: now,
        retry_at: now + BROKEN_RETRY.as_micros() as i64,
        ..SinkStatus::default()
    }
}
