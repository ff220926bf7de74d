//! Transactions of the relay.
//!
//! pgrx's own `BackgroundWorker::transaction` commits when its closure returns `Err`, and an SQL
//! error inside it ends the process. Here every failure is an `Err` and leaves nothing behind.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, prelude::*};
use std::panic::{AssertUnwindSafe, UnwindSafe};

/// Why a transaction was rolled back.
#[derive(Clone, Debug)]
pub struct Failure {
    pub sqlstate: PgSqlErrorCode,
    pub message: String,
}

impl Failure {
    /// Something that Postgres did not report and should not be.
    pub fn internal(message: &str) -> Failure {
        let sqlstate = PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
        Failure { sqlstate, message: message.to_owned() }
    }
}

/// How a transaction is committed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The commit is on disk when the call returns.
    Synchronous,
    /// A crash may forget the commit, never its order.
    Asynchronous,
}

/// Runs `work` in a transaction with one snapshot: every read-only statement in it sees the same
/// state. `Ok` commits; `Err`, an SQL error and a panic roll back.
///
/// # Errors
/// The error of `work`, or what was raised in it or by the commit.
pub fn run<T>(
    durability: Durability,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    // SAFETY: starts a transaction; none is open between two turns of a worker.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
    }
    // SAFETY: reads and writes a variable of this process; put back below.
    let usual = unsafe { pg_sys::synchronous_commit };
    if durability == Durability::Asynchronous {
        // SAFETY: as above.
        unsafe {
            pg_sys::synchronous_commit = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32
        };
    }
    let result = caught(AssertUnwindSafe(|| {
        // SAFETY: pushed and popped in pairs; an abort drops what is left.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        let value = work()?;
        // SAFETY: see above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        Ok(value)
    }));
    // SAFETY: outside the transaction now, or rolling it back.
    unsafe {
        if result.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        pg_sys::synchronous_commit = usual;
        pg_sys::pgstat_report_stat(false);
    }
    result
}

fn caught<T>(work: impl FnOnce() -> Result<T, Failure> + UnwindSafe) -> Result<T, Failure> {
    let work = AssertUnwindSafe(work);
    PgTryBuilder::new(AssertUnwindSafe(move || work.0()))
        .catch_others(|error| Err(failure(&error)))
        .catch_rust_panic(|error| Err(failure(&error)))
        .execute()
}

fn failure(error: &CaughtError) -> Failure {
    match error {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => {
            Failure { sqlstate: report.sql_error_code(), message: report.message().to_owned() }
        }
    }
}
