//! Runs a case in a background worker, where it owns its transactions as a relay does.
#![allow(unsafe_code, reason = "a worker's process begins at a symbol, and is told what to run")]

use crate::pg::tx::{self, Durability, Failure};
use crate::pg::worker;
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder};
use pgrx::pg_sys::Datum;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

/// Runs `case` to its end and fails as it fails.
pub fn run(case: fn()) {
    let started = BackgroundWorkerBuilder::new("pg_outbox test")
        .set_library("pg_outbox")
        .set_function("outbox_test_main")
        .enable_spi_access()
        .set_restart_time(None::<Duration>)
        .set_extra(&worker::database().to_string())
        .set_argument(Some(Datum::from(case as usize)))
        .set_notify_pid(worker::pid())
        .load_dynamic()
        .expect("a worker to spare");
    let pid = started.wait_for_startup().expect("the worker to start");
    started.wait_for_shutdown().expect("the worker to end");
    let said = std::fs::read_to_string(outcome_of(pid)).expect("the worker says how it ended");
    let _ = std::fs::remove_file(outcome_of(pid));
    assert!(said.is_empty(), "in the worker: {said}");
}

/// A file in the data directory, where every process of the server works: a database would be
/// part of what is tested.
fn outcome_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("pg_outbox_test_{pid}"))
}

/// The process of a case.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn outbox_test_main(argument: Datum) {
    // SAFETY: `run` passes a function of this library, which the postmaster has loaded: it lies at
    // the same address in every process.
    let case: fn() = unsafe { std::mem::transmute(argument.value()) };
    worker::install_signal_handlers();
    worker::connect(BackgroundWorker::get_extra().parse().ok());
    let failure = PgTryBuilder::new(AssertUnwindSafe(|| {
        case();
        String::new()
    }))
    .catch_others(|error| words(&error))
    .catch_rust_panic(|error| words(&error))
    .execute();
    std::fs::write(outcome_of(worker::pid()), failure).expect("the data directory is writable");
    worker::exit(0);
}

fn words(error: &CaughtError) -> String {
    match error {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => {
            format!("{} ({}:{})", report.message(), report.file(), report.line_number())
        }
    }
}

/// Runs statements in a transaction of their own.
pub fn sql(statements: &str) -> Result<(), Failure> {
    tx::run(Durability::Asynchronous, || {
        Spi::run(statements).map_err(|error| Failure::internal(&error.to_string()))
    })
}

/// The value of a query in a transaction of its own; `None` is null or no row.
pub fn value<T: FromDatum + IntoDatum>(query: &str) -> Option<T> {
    let value = tx::run(Durability::Asynchronous, || {
        Spi::get_one(query).map_err(|error| Failure::internal(&error.to_string()))
    });
    value.expect("the query runs")
}
