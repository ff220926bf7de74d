//! Secrets: whatever goes wrong with one, nothing that people see quotes it.

#[pgrx::pg_schema]
mod tests {
    use pgrx::pg_sys::panic::CaughtError;
    use pgrx::prelude::*;

    const SECRET: &str = "hunter2-is-the-secret";

    /// Everything that a failing statement says.
    fn said_by(statement: &str) -> String {
        PgTryBuilder::new(|| {
            Spi::run(statement).unwrap();
            panic!("it was accepted: {statement}");
        })
        .catch_others(|caught| match caught {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => format!(
                "{} | {} | {}",
                report.message(),
                report.detail().unwrap_or_default(),
                report.hint().unwrap_or_default()
            ),
            CaughtError::RustPanic { .. } => panic!("{statement} panicked"),
        })
        .execute()
    }

    #[pg_test]
    fn no_refusal_quotes_it() {
        let long = "n".repeat(129);
        for statement in [
            format!("select outbox.set_secret('', '{SECRET}')"),
            format!("select outbox.set_secret('{long}', '{SECRET}')"),
            format!("select outbox.set_secret(null, '{SECRET}')"),
            format!("insert into _private.secrets values ('{long}', '{SECRET}')"),
            format!(
                "select outbox.set_sink('s', 'realtime',
                     '{{\"url\": \"http://u:{SECRET}@localhost\", \"secret\": \"token\"}}')"
            ),
        ] {
            // What a table says of a row that breaks its check would quote all of it.
            let is_of_the_table = statement.starts_with("insert");
            assert_eq!(said_by(&statement).contains(SECRET), is_of_the_table, "{statement}");
        }
    }

    #[pg_test]
    fn the_doctor_does_not_quote_it() {
        // Port 9 of the loopback, where nobody listens: the probe fails at once.
        let options = r#"{"url": "http://127.0.0.1:9", "secret": "token", "timeout_ms": 1000}"#;
        let jwt_options = options.replace("\"secret\"", "\"jwt_secret\"");
        for secret in [SECRET, "a.b.c", "", "hunter2\nline", "e30.e30.hunter2-is-the-secret"] {
            for options in [options, &jwt_options] {
                let found = Spi::get_one_with_args::<String>(
                    "select string_agg(c::text, ' ')
                     from _private.check_sink('realtime', $1, $2) c",
                    &[options.into(), secret.into()],
                );
                let found = found.unwrap().unwrap();
                assert!(!found.contains("hunter2"), "{found}");
                assert!(found.contains(",f,"), "something is wrong with it: {found}");
            }
        }
    }

    #[pg_test]
    fn whitespace_around_it_is_no_part_of_it() {
        Spi::run("select outbox.set_secret('padded', E' \\n token \\r\\n')").unwrap();
        let kept = Spi::get_one::<String>("select value from _private.secrets");
        assert_eq!(kept.unwrap().as_deref(), Some("token"));
    }
}
