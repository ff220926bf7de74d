//! Waking the relay when a transaction commits.
//!
//! A transaction asks as often as it likes; the bell rings once, after the commit is visible, and
//! never for a rollback. Ringing is two atomics and, when the relay sleeps, one signal: nothing
//! that can fail or wait. `COMMIT PREPARED` happens in another session and rings nothing; the
//! relay's slow poll covers it.

use crate::pg::shmem::{self, Shared};
use crate::pg::{worker, xact};
use std::cell::Cell;
use std::sync::atomic::Ordering;

/// What a transaction has to tell when it commits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// There are entries to deliver.
    Entries,
    /// Sinks or secrets have changed.
    Configuration,
    /// This database wants a relay, if it has none.
    Wanted,
    /// The extension was dropped here, and its relay should go.
    Dropped,
}

thread_local! {
    static ASKED: Cell<u8> = const { Cell::new(0) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Rings for `news` if the current transaction commits.
pub fn ring_at_commit(news: News) {
    if !REGISTERED.replace(true) {
        static CALLBACKS: xact::Callbacks = xact::Callbacks {
            before_commit: || {},
            committed: ring,
            forgotten: || ASKED.set(0),
            before_release: |_| {},
            level_released: |_| {},
            level_rolled_back: |_| {},
        };
        xact::register(&CALLBACKS);
    }
    ASKED.set(ASKED.get() | 1 << news as u8);
}

fn ring() {
    let asked = ASKED.replace(0);
    if asked == 0 {
        return;
    }
    if let Some(shared) = shmem::shared() {
        ring_for(shared, worker::database(), |news| asked & 1 << news as u8 != 0);
    }
}

fn ring_for(shared: &Shared, database: u32, told: impl Fn(News) -> bool) {
    if told(News::Wanted) {
        shared.launcher.wanted.put(database);
        shared.launcher.bell.ring();
    }
    let Some(relay) = shared.relay(database) else { return };
    if told(News::Configuration) || told(News::Dropped) {
        relay.configuration.fetch_add(1, Ordering::AcqRel);
    }
    relay.bell.ring();
}
