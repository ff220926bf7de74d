//! Transactions of the relay: every failure is an `Err`, and leaves nothing behind.
//!
//! What would break silently: a cursor that moves although its outcomes were not recorded.

#[pgrx::pg_schema]
mod tests {
    use super::super::worker::{self, sql, value};
    use crate::pg::tx::{self, Durability, Failure};
    use pgrx::prelude::*;
    use std::time::{Duration, Instant};

    /// Adds a row and then does `what`.
    fn insert_and(what: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        tx::run(Durability::Asynchronous, || {
            Spi::run("insert into probe values (1)").unwrap();
            what()
        })
    }

    fn make_probe() {
        sql("drop table if exists probe; create table probe (n int check (n < 2))").unwrap();
    }

    fn count() -> Option<i64> {
        value("select count(*) from probe")
    }

    fn failures() {
        make_probe();
        let said = insert_and(|| Err(Failure::internal("no"))).unwrap_err();
        assert_eq!((said.message.as_str(), count()), ("no", Some(0)));

        let refused = insert_and(|| {
            Spi::run("insert into probe values (2)").unwrap();
            Ok(())
        });
        let refused = refused.unwrap_err();
        assert_eq!(refused.sqlstate, PgSqlErrorCode::ERRCODE_CHECK_VIOLATION);
        assert_eq!(count(), Some(0));

        let panicked = insert_and(|| panic!("out of luck")).unwrap_err();
        assert_eq!(panicked.sqlstate, PgSqlErrorCode::ERRCODE_INTERNAL_ERROR);
        assert_eq!((panicked.message.as_str(), count()), ("out of luck", Some(0)));

        insert_and(|| Ok(())).unwrap();
        assert_eq!(count(), Some(1), "and the next one commits");
    }

    #[pg_test]
    fn an_err_an_sql_error_and_a_panic_roll_back() {
        worker::run(failures);
    }

    fn deferred_failure() {
        make_probe();
        sql("alter table probe add constraint once unique (n) deferrable initially deferred")
            .unwrap();
        let failed = insert_and(|| {
            Spi::run("insert into probe values (1)").unwrap();
            Ok(())
        });
        assert_eq!(failed.unwrap_err().sqlstate, PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION);
        assert_eq!(count(), Some(0));
    }

    #[pg_test]
    fn a_commit_that_fails_is_an_err_too() {
        worker::run(deferred_failure);
    }

    fn durability() {
        let current = || Spi::get_one::<String>("select current_setting('synchronous_commit')");
        let in_commit = |durability| {
            let mut seen = None;
            let failed = tx::run(durability, || {
                seen = current().unwrap();
                Err::<(), _>(Failure::internal("no"))
            });
            assert!(failed.is_err());
            seen
        };
        for _ in 0..2 {
            assert_eq!(in_commit(Durability::Asynchronous).as_deref(), Some("off"));
            assert_eq!(in_commit(Durability::Synchronous).as_deref(), Some("on"));
        }
    }

    #[pg_test]
    fn an_asynchronous_commit_is_the_exception() {
        worker::run(durability);
    }

    fn statistics() {
        make_probe();
        insert_and(|| Ok(())).unwrap();
        // The server takes reports of a process once a second at most, so it is asked until then.
        let deadline = Instant::now() + Duration::from_secs(20);
        let inserted = || value::<i64>("select pg_stat_get_tuples_inserted('probe'::regclass)");
        while inserted() != Some(1) {
            assert!(Instant::now() < deadline, "counted {:?} rows", inserted());
            value::<i64>("select 1::bigint from pg_sleep(0.05)");
        }
    }

    #[pg_test]
    fn statistics_are_reported_while_the_process_lives() {
        worker::run(statistics);
    }

    fn memory() {
        make_probe();
        let fail = |times| (0..times).for_each(|_| assert!(sql("select 1 / 0").is_err()));
        let held = || {
            value::<i64>("select sum(total_bytes)::bigint from pg_backend_memory_contexts").unwrap()
        };
        fail(200);
        let before = held();
        fail(5_000);
        let grown = held() - before;
        assert!(grown < 64 << 10, "5,000 failures hold {grown} bytes more");
    }

    #[pg_test]
    fn failures_hold_no_memory() {
        worker::run(memory);
    }

    fn one_snapshot() {
        make_probe();
        let seen = tx::run(Durability::Asynchronous, || {
            let count = || Spi::get_one::<i64>("select count(*) from probe").unwrap();
            let before = count();
            Spi::run("insert into probe values (1)").unwrap();
            Ok((before, count()))
        });
        // Reading and writing statements differ: see pg::query for the ones that share it.
        assert_eq!(seen.unwrap(), (Some(0), Some(1)));
    }

    #[pg_test]
    fn what_it_wrote_it_sees() {
        worker::run(one_snapshot);
    }
}
