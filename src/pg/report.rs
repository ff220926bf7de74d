//! Errors and warnings for people.

use crate::error::{Error, ErrorKind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

/// Raises an SQL error; the statement ends here.
pub fn raise(error: Error) -> ! {
    report(error, PgLogLevel::ERROR);
    unreachable!("an error does not return")
}

/// Warns the client of the current statement.
pub fn warn(warning: Error) {
    report(warning, PgLogLevel::WARNING);
}

fn report(error: Error, level: PgLogLevel) {
    let Error { kind, message, detail, hint } = error;
    let mut report = ErrorReport::new(sqlstate(kind), message, "pg_outbox");
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    if let Some(hint) = hint {
        report = report.set_hint(hint);
    }
    report.report(level);
}

fn sqlstate(kind: ErrorKind) -> PgSqlErrorCode {
    // Postgres packs five characters into six bits each: MAKE_SQLSTATE in elog.h.
    let packed = kind
        .sqlstate()
        .bytes()
        .rev()
        .fold(0, |packed, byte| packed << 6 | (i32::from(byte - b'0') & 0x3f));
    PgSqlErrorCode::from(packed as isize)
}
