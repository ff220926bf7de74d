//! Errors as SQL sees them.

#[pgrx::pg_schema]
mod tests {
    use crate::error::{Error, ErrorKind};
    use crate::pg::report;
    use pgrx::pg_sys::panic::CaughtError;
    use pgrx::prelude::*;

    const KINDS: [ErrorKind; 11] = [
        ErrorKind::InvalidParameter,
        ErrorKind::InvalidText,
        ErrorKind::NullNotAllowed,
        ErrorKind::ObjectState,
        ErrorKind::TriggerProtocol,
        ErrorKind::Warning,
        ErrorKind::NotSupported,
        ErrorKind::UndefinedObject,
        ErrorKind::UnusableFile,
        ErrorKind::UnusableSecret,
        ErrorKind::System,
    ];

    /// The five characters of a packed SQLSTATE, as `unpack_sql_state` in elog.h makes them.
    fn unpacked(code: PgSqlErrorCode) -> String {
        let letter = |at: i32| char::from((code as i32 >> (6 * at) & 0x3f) as u8 + b'0');
        (0..5).map(letter).collect()
    }

    #[pg_test]
    fn each_kind_has_its_sqlstate() {
        for kind in KINDS {
            let error = Error::new(kind, "what happened").detail("how").hint("what to do");
            let said = PgTryBuilder::new(|| report::raise(error))
                .catch_others(|caught| match caught {
                    CaughtError::PostgresError(report)
                    | CaughtError::ErrorReport(report)
                    | CaughtError::RustPanic { ereport: report, .. } => [
                        Some(unpacked(report.sql_error_code())),
                        Some(report.message().to_owned()),
                        report.detail().map(str::to_owned),
                        report.hint().map(str::to_owned),
                    ],
                })
                .execute();
            let expected = [kind.sqlstate(), "what happened", "how", "what to do"];
            assert_eq!(said, expected.map(|text| Some(text.to_owned())), "{kind:?}");
        }
    }

    #[pg_test]
    fn a_warning_does_not_end_the_statement() {
        report::warn(Error::new(ErrorKind::Warning, "be careful"));
        assert_eq!(Spi::get_one::<i32>("select 1").unwrap(), Some(1));
    }
}
