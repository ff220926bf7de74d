//! Capture across levels of a transaction, where its buffer meets the heap. Which change makes
//! which event is in `e2e/capture_contract`.

#[pgrx::pg_schema]
mod tests {
    use super::super::worker::{self, sql, value};
    use crate::capture::buffer::SPILL_BYTES;

    use pgrx::prelude::*;

    /// A table of its own for each case, attached; its organisation is the table's name.
    fn make_table(name: &str) {
        sql(&format!(
            "create table {name} (id int primary key, org_id text not null default '{name}');
             select outbox.attach('{name}')"
        ))
        .unwrap();
    }

    /// The keys of the committed events, in their order.
    fn keys(name: &str) -> Vec<i64> {
        value(&format!(
            "select array_agg((ids ->> '{name}_id')::bigint order by entry_id, place)
             from outbox.events where org_id = '{name}'"
        ))
        .unwrap_or_default()
    }

    /// More rows than the buffer holds, for keys of about so many bytes.
    const TOO_MANY: usize = SPILL_BYTES / 10;

    fn insert(name: &str, from: usize, count: usize) -> String {
        format!("insert into {name} select i from generate_series({from}, {}) i;", from + count - 1)
    }

    fn spills() {
        make_table("spilt");
        sql(&format!(
            "insert into spilt values (1);
             do $$ begin {} raise 'no'; exception when raise_exception then end $$;
             insert into spilt values (2);
             do $$ begin {} exception when raise_exception then end $$;
             insert into spilt values (3);",
            insert("spilt", 1_000_000, TOO_MANY),
            insert("spilt", 3_000_000, TOO_MANY),
        ))
        .unwrap();
        let keys = keys("spilt");
        let range = 3_000_000..3_000_000 + TOO_MANY as i64;
        let expected = [1, 2].into_iter().chain(range).chain([3]);
        assert!(keys.iter().copied().eq(expected), "{} events", keys.len());
    }

    #[pg_test]
    fn a_spill_keeps_levels_apart_and_their_order() {
        worker::run(spills);
    }

    fn abandoned() {
        make_table("abandoned");
        let failed = sql(&format!("{} select 1 / 0", insert("abandoned", 1, TOO_MANY)));
        assert!(failed.is_err());
        sql("insert into abandoned values (7)").unwrap();
        assert_eq!(keys("abandoned"), [7]);
    }

    #[pg_test]
    fn a_transaction_that_fails_after_a_spill_leaves_nothing() {
        worker::run(abandoned);
    }
}
