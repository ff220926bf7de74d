//! What happens at the end of transactions and subtransactions.

use pgrx::pg_sys;
use pgrx::prelude::*;

/// What a room wants to be told of.
pub struct Callbacks {
    /// Before the commit is recorded; may write and may raise. Also before a PREPARE.
    pub before_commit: fn(),
    /// The transaction is committed and visible. Must not raise.
    pub committed: fn(),
    /// The transaction is rolled back, or prepared and no longer this session's. Must not raise.
    pub forgotten: fn(),
    /// The subtransaction of this level (2 is the first) is about to be committed into the one
    /// above it; may write and may raise.
    pub before_release: fn(i32),
    /// The subtransaction of this level is committed into the one above it.
    pub level_released: fn(i32),
    /// The subtransaction of this level is rolled back.
    pub level_rolled_back: fn(i32),
}

/// Registers callbacks for the life of this backend. Call once for each room.
pub fn register(callbacks: &'static Callbacks) {
    let argument = std::ptr::from_ref(callbacks).cast_mut().cast();
    // SAFETY: the argument is a static; both callbacks read it back as what it is.
    unsafe {
        pg_sys::RegisterXactCallback(Some(on_xact), argument);
        pg_sys::RegisterSubXactCallback(Some(on_subxact), argument);
    }
}

/// The nesting level of the current transaction: 1 is the top.
pub fn level() -> i32 {
    // SAFETY: reads a variable of this backend.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_xact(
    event: pg_sys::XactEvent::Type,
    argument: *mut std::ffi::c_void,
) {
    // SAFETY: `register` passed a static.
    let callbacks = unsafe { &*argument.cast::<Callbacks>() };
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT | pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => {
            (callbacks.before_commit)();
        }
        pg_sys::XactEvent::XACT_EVENT_COMMIT => (callbacks.committed)(),
        pg_sys::XactEvent::XACT_EVENT_ABORT | pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            (callbacks.forgotten)();
        }
        // Parallel workers read; whatever they do is not captured.
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_subxact(
    event: pg_sys::SubXactEvent::Type,
    _id: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    argument: *mut std::ffi::c_void,
) {
    // SAFETY: `register` passed a static.
    let callbacks = unsafe { &*argument.cast::<Callbacks>() };
    match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_PRE_COMMIT_SUB => (callbacks.before_release)(level()),
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => (callbacks.level_released)(level()),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => (callbacks.level_rolled_back)(level()),
        _ => {}
    }
}
