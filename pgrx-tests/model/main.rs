//! The relay under simulation: the same `step` that the worker runs, with everything around it
//! played from one seed.
//!
//! 1. Every committed event is delivered, or lies in the table of retries or dead letters, once
//!    the recorded position passes it. Silent loss would be the breach.
//! 2. Nothing is delivered that was not committed, and no text but what was written.
//! 3. Events of one org are first delivered in their order, unless the earlier one committed
//!    later or was refused; in strict order, unless the earlier one was a dead letter.
//! 4. What is recorded with a position is what the answers said, all of it, in order: a retry or
//!    a dead letter for each event refused alone, with its attempts; none for anything else.
//! 5. The cursor of a message covers exactly what its org has got or what has left the outbox.
//! 6. One reading, one look, one record, one request a lane and one message an org at a time.
//! 7. What is held in memory stays within the limit, and the tenant's counter within its own.
//! 8. A sink that fails is asked seldom, and what it refuses is found by halves.
//! 9. Once nothing fails, everything arrives in bounded time, and then the relay is silent.
//!
//! Every run of the tests plays so many steps from a new seed, which it prints. `SEED=n` plays one
//! run again, `WRITES=n` makes it shorter, `TELL=1` tells all that happens in it. `STEPS=n` plays
//! so many steps, `FIRST=n` from this seed, `HOURS=n` for so long on all processors.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod audit;
mod chance;
mod database;
mod life;
mod retries;
mod setting;
mod simulation;
mod sink;
mod tale;

use std::panic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use simulation::Simulation;
use tale::Tale;

/// What an unoptimised build plays in some twenty seconds; `make test-unit` builds an optimised
/// one and asks for more.
const STEPS: u64 = 300_000;

/// Seeds that have found something, most of them a bug that was put in again on purpose. They say
/// something for as long as the simulation draws the same numbers: `pgrx-tests/bin/mutants`
/// prints new ones.
const SEEDS: &[u64] = &[];

/// Runs that are tried in search of a shorter one with the same end.
const SHRINK_RUNS: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn play(seed: u64, writes_max: u64) -> Tale {
    Simulation::new(seed, writes_max, number("TELL").is_some()).run()
}

fn fails(seed: u64, writes_max: u64) -> bool {
    panic::catch_unwind(|| play(seed, writes_max)).is_err()
}

/// Plays a run, and says how to play it again when it fails, and one that is shorter.
fn play_or_tell(seed: u64) -> Tale {
    if let Ok(tale) = panic::catch_unwind(|| play(seed, u64::MAX)) {
        return tale;
    }
    eprintln!("play it again with SEED={seed}");
    panic::set_hook(Box::new(|_| {}));
    let near = (0..SHRINK_RUNS).map(|n| (seed.wrapping_add(n % 100), 5 + 2 * (n / 100)));
    let shorter = near.into_iter().find(|&(seed, writes)| fails(seed, writes));
    let _ = panic::take_hook();
    if let Some((seed, writes)) = shorter {
        eprintln!("or a shorter one, which may fail otherwise, with SEED={seed} WRITES={writes}");
    }
    panic!("a promise is broken with SEED={seed}");
}

/// A seed that no other run has had.
fn new_seed() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    number("FIRST").unwrap_or(since_epoch.as_nanos() as u64)
}

fn play_steps(first: u64, steps: u64) -> (u64, Tale) {
    let (mut runs, mut total) = (0, Tale::default());
    while total.steps < steps {
        total.add(play_or_tell(first.wrapping_add(runs)));
        runs += 1;
    }
    (runs, total)
}

/// Plays on all processors until the time is over or a promise is broken.
fn play_hours(first: u64, hours: f64) -> (u64, Tale) {
    let end = Instant::now() + Duration::from_secs_f64(hours * 3_600.0);
    let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new((0, Tale::default()));
    let work = || {
        while Instant::now() < end && !is_over.load(Ordering::Relaxed) {
            let seed = first.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
            let played = panic::catch_unwind(|| play_or_tell(seed));
            let Ok(tale) = played else {
                is_over.store(true, Ordering::Relaxed);
                return;
            };
            let mut total = total.lock().unwrap();
            total.0 += 1;
            total.1.add(tale);
            if total.0 % 10_000 == 0 {
                println!("{} runs, {} steps", total.0, total.1.steps);
            }
        }
    };
    thread::scope(|scope| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        (0..processors).for_each(|_| drop(scope.spawn(work)));
    });
    assert!(!is_over.into_inner(), "a promise is broken: see above");
    total.into_inner().unwrap()
}

#[test]
fn every_run_keeps_the_promises() {
    if let Some(seed) = number("SEED") {
        println!("{:#?}", play(seed, number("WRITES").unwrap_or(u64::MAX)));
        return;
    }
    let first = new_seed();
    println!("from SEED={first}");
    let (runs, total) = match std::env::var("HOURS") {
        Ok(hours) => play_hours(first, hours.parse().unwrap()),
        Err(_) => play_steps(first, number("STEPS").unwrap_or(STEPS)),
    };
    println!("{runs} runs from SEED={first}: {total:#?}");
    total.check_all_happened();
}

#[test]
fn seeds_that_found_something_find_nothing() {
    for &seed in SEEDS {
        play_or_tell(seed);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        assert_eq!(play(seed, u64::MAX), play(seed, u64::MAX), "seed {seed}");
    }
}
