//! The relay under simulation: the same `step` that the worker runs, with everything around it
//! played from one seed.
//!
//! 1. Every committed entry reaches the sink at least once. Silent loss would be the breach.
//! 2. The durable position never passes an entry that the sink has not got.
//! 3. Entries of one org reach the sink first in the order of their ids, unless the earlier id
//!    committed later.
//! 4. The cursor of a message covers exactly what its org has got.
//! 5. One reading, one record, one request a lane and one message an org at a time.
//! 6. What is held in memory stays within the limit.
//! 7. Once nothing fails, everything arrives in bounded time, and then the relay is silent.
//!
//! `SEED=n` plays one run again; `MODEL_SECONDS=n` plays for longer.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod chance;
mod database;
mod simulation;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use simulation::{Simulation, Tale};

/// Names the seed if the run of it fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("play it again with SEED={}", self.0);
        }
    }
}

fn play(seed: u64) -> Tale {
    let _replay = Replay(seed);
    Simulation::new(seed).run()
}

#[test]
fn every_run_keeps_the_promises() {
    if let Ok(seed) = std::env::var("SEED") {
        println!("{:#?}", play(seed.parse().unwrap()));
        return;
    }
    let seconds = std::env::var("MODEL_SECONDS").map_or(2, |text| text.parse().unwrap());
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = since_epoch.as_nanos() as u64;
    let (began, mut runs, mut total) = (Instant::now(), 0u64, Tale::default());
    while runs < 50 || began.elapsed() < Duration::from_secs(seconds) {
        let tale = play(first.wrapping_add(runs));
        runs += 1;
        total.entries += tale.entries;
        total.deliveries += tale.deliveries;
        total.duplicates += tale.duplicates;
        total.crashes += tale.crashes;
        total.failures += tale.failures;
        total.incomplete_reads += tale.incomplete_reads;
        total.full_memory += tale.full_memory;
    }
    println!("{runs} runs from SEED={first}: {total:?}");
    // A simulation in which nothing goes wrong shows nothing.
    let happened = [total.duplicates, total.crashes, total.failures, total.incomplete_reads];
    assert!(happened.iter().all(|&count| count > 0), "{total:?}");
    assert!(total.full_memory > 0, "{total:?}");
}
