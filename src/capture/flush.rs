//! From the buffer to the heap: before the commit, or earlier when the buffer is full.

use super::{CAPTURE, Capture, moved, with_state};
use crate::doorbell::{self, News};
use crate::error::{Error, ErrorKind};
use crate::gucs;
use crate::home::Home;
use crate::pg::heap::{self, Entry, Outbox, SEGMENTS};
use crate::pg::report::raise;
use crate::pg::{invalidation, xact};
use pgrx::pg_sys::Oid;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;

/// Microseconds between Postgres' epoch (2000) and Unix' (1970).
const EPOCH_OFFSET_US: i64 = 946_684_800_000_000;
const US_PER_SECOND: i64 = 1_000_000;

/// Segments that the retention fills; the rest of the ring is one being filled and slack.
const SEGMENTS_PER_RETENTION: i64 = 12;

thread_local! {
    static PREPARED: Cell<bool> = const { Cell::new(false) };
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    /// Where entries go; looked up again when one of its tables has changed.
    static OUTBOX: RefCell<Option<Outbox>> = const { RefCell::new(None) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// Registers this backend's callbacks, once.
pub fn prepare() {
    if PREPARED.replace(true) {
        return;
    }
    static CALLBACKS: xact::Callbacks = xact::Callbacks {
        before_commit,
        committed: || with_state(Capture::clear),
        forgotten: || with_state(Capture::clear),
        before_release,
        level_released: |level| {
            with_state(|state| {
                state.buffer.release_level(level);
                moved::release_level(state, level);
            });
        },
        level_rolled_back: |level| {
            with_state(|state| {
                state.buffer.rollback_level(level);
                moved::rollback_level(state, level);
            });
        },
    };
    xact::register(&CALLBACKS);
    watch();
}

/// Registers for word of relations that have changed, once: before any of them is looked up.
fn watch() {
    if !WATCHING.replace(true) {
        invalidation::register(forget);
    }
}

fn forget(relation: Oid) {
    super::source::forget(relation);
    OUTBOX.with(|outbox| {
        if let Ok(mut outbox) = outbox.try_borrow_mut() {
            outbox.take_if(|outbox| relation == Oid::INVALID || outbox.contains(relation));
        }
    });
}

fn before_commit() {
    with_state(moved::settle_all);
    write();
    with_state(|state| state.closing = true);
}

fn before_release(_level: i32) {
    if with_state(|state| state.buffer.wants_spill_before_release()) {
        write();
    }
}

/// A buffer that is full is written early, and one that was closed at once.
pub fn after_append() {
    let is_due = with_state(|state| state.buffer.wants_spill(xact::level()) || state.closing);
    if is_due {
        write();
    }
}

/// Writes what the current transaction level may write.
fn write() {
    if with_state(|state| state.buffer.is_empty()) {
        return;
    }
    // A transaction that drops the extension has nowhere to put its events, and nobody to read
    // them.
    let Some(outbox) = find_outbox() else {
        return with_state(Capture::clear);
    };
    heap::in_transaction_context(|| {
        let created_at = heap::now();
        let segment = outbox.open_segment(current_segment(created_at));
        let home = outbox.home().mark();
        let wrote = CAPTURE.with_borrow_mut(|state| {
            state.buffer.flush(
                xact::level(),
                || Ok::<_, Infallible>(outbox.draw_id()),
                |id, run, kind| {
                    segment.insert(&Entry {
                        id,
                        created_at,
                        event_id: run.event_id.unwrap_or_else(|| event_id(created_at)),
                        source_id: kind.source_id,
                        event_count: run.event_count,
                        type_id: kind.type_id,
                        home,
                        version: kind.version,
                        org_id: &run.org_id,
                        ids: &run.ids,
                        data: run.data.as_deref(),
                        origin: kind.origin.as_deref(),
                        topic: kind.topic.as_deref(),
                    });
                    Ok(())
                },
            )
        });
        match wrote {
            Ok(()) => {}
        }
    });
    doorbell::ring_at_commit(News::Entries);
}

fn find_outbox() -> Option<Outbox> {
    let known = OUTBOX.with_borrow(Option::clone);
    known.or_else(|| {
        watch();
        let found = Outbox::find();
        OUTBOX.with_borrow_mut(|outbox| outbox.clone_from(&found));
        found
    })
}

/// Where the entries of this database are at home; `None` without the extension.
pub fn home() -> Option<Home> {
    find_outbox().map(|outbox| outbox.home())
}

/// The segment that writers fill now.
pub fn current_segment_now() -> i32 {
    current_segment(heap::now()) as i32
}

/// The segment that writers fill at this time (Postgres' microseconds). A function of the clock
/// and a setting alone, so that nobody has to agree on anything.
fn current_segment(now: i64) -> usize {
    let length = (gucs::retention_seconds() / SEGMENTS_PER_RETENTION).max(60) * US_PER_SECOND;
    (now.div_euclid(length)).rem_euclid(SEGMENTS as i64) as usize
}

/// A new event id of now.
pub fn new_event_id() -> [u8; 16] {
    event_id(heap::now())
}

/// A UUIDv7 (RFC 9562 §5.7): milliseconds, then the fraction of the millisecond in `rand_a`
/// (§6.2, method 3), then 62 random bits whose highest is 0, so that the ids of a run (first plus
/// n) never carry into the variant.
fn event_id(created_at: i64) -> [u8; 16] {
    let unix_us = u128::from((created_at + EPOCH_OFFSET_US).unsigned_abs());
    let (ms, us) = (unix_us / 1000, unix_us % 1000);
    let fraction = us * 4096 / 1000;
    let random = u128::from(random() >> 3);
    (ms << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | random).to_be_bytes()
}

/// SplitMix64 (Steele, Lea, Flood 2014), seeded once by the system: ids must differ, nobody must
/// be kept from guessing them. The system's own generator costs a hundred times as much.
fn random() -> u64 {
    let seed = match RANDOM.get() {
        0 => heap::random_seed().unwrap_or_else(|| {
            raise(Error::new(ErrorKind::System, "could not get random bits from the system"));
        }),
        seed => seed,
    };
    let next = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    RANDOM.set(next);
    let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
