//! Statements of the relay: parameters in, rows out, cursors across transactions.

#[pgrx::pg_schema]
mod tests {
    use super::super::worker::{self, sql};
    use crate::pg::query::{self, Row, Statement};
    use crate::pg::tx::{self, Durability, Failure};
    use pgrx::prelude::*;

    static EVERY_TYPE: Statement = Statement::new(
        c"select 9007199254740993::bigint, -7::int, -3::smallint, true,
                 '00112233-4455-6677-8899-aabbccddeeff'::uuid, $1, '{\"a\": \"\xc3\xa4\"}'::json,
                 timestamptz '2000-01-01 00:00:01+00', null::bigint, null::uuid, null::text,
                 null::boolean",
        1,
    );

    #[pg_test]
    fn each_type_is_read_as_what_it_is() {
        let mut seen = 0;
        let text = "\u{1f600} 'quoted' \\ \n";
        let count = query::session(|| {
            EVERY_TYPE.run(&[Some(text)], |row: &Row| {
                seen += 1;
                assert_eq!(row.i64(1), Some(9_007_199_254_740_993));
                assert_eq!((row.i32(2), row.i16(3), row.bool(4)), (Some(-7), Some(-3), Some(true)));
                let uuid = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128;
                assert_eq!(row.uuid(5), Some(uuid.to_be_bytes()));
                assert_eq!(row.text(6).as_deref(), Some(text));
                assert_eq!(row.text(7).as_deref(), Some("{\"a\": \"\u{e4}\"}"));
                assert_eq!(row.i64(8), Some(1_000_000), "a timestamp in microseconds from 2000");
                assert_eq!((row.i64(9), row.uuid(10)), (None, None));
                assert_eq!((row.text(11), row.bool(12)), (None, None));
            })
        });
        assert_eq!((count, seen), (1, 1));
    }

    static LONG: Statement = Statement::new(c"select repeat('x', 1000000)", 0);
    static ECHO: Statement = Statement::new(c"select $1 is null, length($1)", 1);

    #[pg_test]
    fn a_text_may_be_null_empty_or_long() {
        let answers = [None, Some(""), Some("a".repeat(100_000).as_str())].map(|argument| {
            let mut answer = None;
            query::session(|| {
                ECHO.read(&[argument], |row| answer = Some((row.bool(1), row.i32(2))))
            });
            answer.unwrap()
        });
        let expected = [(true, None), (false, Some(0)), (false, Some(100_000))];
        assert_eq!(answers, expected.map(|(is_null, length)| (Some(is_null), length)));
        let mut long = None;
        query::session(|| LONG.read(&[], |row| long = row.text(1)));
        assert_eq!(long.map(|text| text.len()), Some(1_000_000));
    }

    static NUMBERS: Statement =
        Statement::new(c"select n from generate_series(1, $1::pg_catalog.int8) n", 1);
    static STORED: Statement = Statement::new(c"select count(*) from public.shared", 0);

    fn fetched(count: i64) -> Option<Vec<i64>> {
        let mut rows = Vec::new();
        query::fetch(c"numbers", count, |row| rows.extend(row.i64(1))).map(|counted| {
            assert_eq!(counted as usize, rows.len());
            rows
        })
    }

    fn in_transaction<T>(work: impl FnOnce() -> T) -> T {
        tx::run(Durability::Asynchronous, || Ok(query::session(work))).unwrap()
    }

    fn cursors() {
        in_transaction(|| NUMBERS.open(c"numbers", &[Some("5")]));
        assert_eq!(in_transaction(|| fetched(2)), Some(vec![1, 2]));
        let failed = tx::run(Durability::Asynchronous, || {
            query::session(|| fetched(1));
            Err::<(), _>(Failure::internal("no"))
        });
        assert!(failed.is_err());
        assert_eq!(in_transaction(|| fetched(9)), Some(vec![4, 5]), "a rollback does not go back");
        assert_eq!(in_transaction(|| fetched(9)), Some(vec![]));
        in_transaction(|| query::close(c"numbers"));
        assert_eq!(in_transaction(|| fetched(1)), None);
        in_transaction(|| query::close(c"numbers"));

        let abandoned = tx::run(Durability::Asynchronous, || {
            query::session(|| NUMBERS.open(c"numbers", &[Some("5")]));
            Err::<(), _>(Failure::internal("no"))
        });
        assert!(abandoned.is_err());
        assert_eq!(in_transaction(|| fetched(1)), None, "it dies with a transaction that fails");
    }

    #[pg_test]
    fn a_cursor_outlives_its_transaction() {
        worker::run(cursors);
    }

    fn reads() {
        sql("drop table if exists public.shared; create table public.shared (n int)").unwrap();
        let mut seen = Vec::new();
        in_transaction(|| {
            STORED.read(&[], |row| seen.extend(row.i64(1)));
            Spi::run("insert into public.shared values (1)").unwrap();
            STORED.read(&[], |row| seen.extend(row.i64(1)));
            STORED.run(&[], |row| seen.extend(row.i64(1)));
        });
        assert_eq!(seen, [0, 0, 1]);
    }

    #[pg_test]
    fn reading_statements_share_one_snapshot() {
        worker::run(reads);
    }

    static FAILS: Statement = Statement::new(c"select 1 / $1::pg_catalog.int4", 1);

    fn plans() {
        for _ in 0..3 {
            let failed = tx::run(Durability::Asynchronous, || {
                query::session(|| FAILS.run(&[Some("0")], |_| {}));
                Ok(())
            });
            let expected = PgSqlErrorCode::ERRCODE_DIVISION_BY_ZERO;
            assert_eq!(failed.unwrap_err().sqlstate, expected);
            let mut one = None;
            in_transaction(|| FAILS.run(&[Some("1")], |row| one = row.i32(1)));
            assert_eq!(one, Some(1));
        }
    }

    #[pg_test]
    fn a_plan_survives_the_failure_of_its_statement() {
        worker::run(plans);
    }
}
