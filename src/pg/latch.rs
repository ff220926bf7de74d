//! Waiting, and being woken by threads.

use pgrx::pg_sys;
use std::time::Duration;

/// Sleeps until the latch of this process is set or the time is up; `None` waits for the latch
/// alone. Signals are served before it returns: a terminated process does not come back.
pub fn wait(timeout: Option<Duration>) {
    let mut events = (pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
    let mut timeout_ms = -1;
    if let Some(timeout) = timeout {
        events |= pg_sys::WL_TIMEOUT as i32;
        // Rounded up: waking a moment early would only lead to another wait.
        let rounded = timeout.as_micros().div_ceil(1000);
        timeout_ms = i64::try_from(rounded).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
    }
    // SAFETY: waits on this process's own latch; interrupts are served outside any transaction of
    // ours.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events, timeout_ms, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

/// Sets the latch of this process from one of its threads.
///
/// Only the main thread may call Postgres, so a thread sends the signal whose handler sets the
/// latch. The signal goes to the process, and threads block it (`block_signals`), so the main
/// thread takes it.
pub fn set_from_thread() {
    // SAFETY: a signal to this very process, whose handler Postgres has installed.
    unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) };
}

/// Blocks every signal in the calling thread, so that Postgres' handlers run in the main thread
/// alone. The first thing a thread does.
pub fn block_signals() {
    // SAFETY: fills a set and applies it to this thread.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Starts a thread that signals do not reach.
///
/// # Errors
/// When the system has no thread to give.
pub fn spawn_silent(
    builder: std::thread::Builder,
    work: Box<dyn FnOnce() + Send>,
) -> std::io::Result<()> {
    builder
        .spawn(move || {
            block_signals();
            work();
        })
        .map(drop)
}
