//! Being told that a relation has changed.

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;
use std::cell::Cell;

thread_local! {
    static FORGET: Cell<fn(Oid)> = const { Cell::new(|_| {}) };
}

/// Calls `forget` with each relation whose descriptors are no longer true; with an invalid oid
/// when all may have changed. It must not look into the catalog. Call once for each backend.
pub fn register(forget: fn(Oid)) {
    FORGET.set(forget);
    // SAFETY: a callback for the life of the backend.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(on_relation), pg_sys::Datum::from(0usize))
    };
}

#[pg_guard]
unsafe extern "C-unwind" fn on_relation(_argument: pg_sys::Datum, relation: Oid) {
    FORGET.get()(relation);
}
