//! Positions: the arithmetic of the core against Postgres' own, on real snapshots.
//!
//! What would break silently: a cursor that claims to have passed an entry which it has not.

#[pgrx::pg_schema]
mod tests {
    use crate::cursor::{Cursor, Era, Position, Snapshot};
    use crate::event::EntryId;
    use pgrx::prelude::*;

    fn text(query: &str) -> String {
        Spi::get_one::<String>(query).unwrap().unwrap()
    }

    #[pg_test]
    fn a_snapshot_reads_back_as_postgres_wrote_it() {
        Spi::run("create temp table writes (n int)").unwrap();
        let long = (1..2000).map(|xid| (xid * 3).to_string()).collect::<Vec<_>>().join(",");
        for snapshot in [
            text("select pg_current_snapshot()::text"),
            text("select _private.current_position()::text"),
            text("select pg_snapshot '10:20:10,14,15'::text"),
            text("select pg_snapshot '3:18446744073709551615:'::text"),
            text(&format!("select pg_snapshot '3:9000:{long}'::text")),
        ] {
            let parsed = Snapshot::parse(&snapshot).unwrap();
            assert_eq!(parsed.to_string(), snapshot);
            let position = Position::at(parsed);
            let cursor = position.clone().stamped(Era::of(1, 2, 3));
            assert_eq!(Cursor::parse(&cursor.to_string()).unwrap(), cursor);
        }
    }

    #[pg_test]
    fn the_cursor_of_a_session_is_its_position() {
        Spi::run("create temp table writes (n int); insert into writes values (1)").unwrap();
        let cursor = Cursor::parse(&text("select outbox.cursor()")).unwrap().position;
        let position = Snapshot::parse(&text("select _private.current_position()::text")).unwrap();
        assert_eq!(cursor, Position::at(position.clone()));
        let own: u64 = text("select pg_current_xact_id()::text").parse().unwrap();
        assert!(!position.sees(own), "what the session has yet to write is not behind it");
    }

    /// Random bits that are the same in every run (xorshift64*, Vigna 2016).
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
        }

        fn snapshot(&mut self) -> Snapshot {
            let xmin = 3 + self.below(10);
            let xmax = xmin + self.below(10);
            let mut xip: Vec<u64> = (xmin..xmax).filter(|_| self.below(3) == 0).collect();
            // Postgres takes none whose lower bound is not in progress, or is the upper one.
            let xmin = xip.first().copied().unwrap_or(xmax);
            xip.retain(|&xid| xid >= xmin);
            Snapshot::new(xmin, xmax, xip).unwrap()
        }
    }

    #[pg_test]
    fn what_a_position_covers_sql_says_too() {
        Spi::run(
            "insert into _private.outbox_3 (id, xid, created_at, event_id, event_count, type_id,
                                            home, org_id, ids)
             select x * 100 + n, x::text::xid8, now(), gen_random_uuid(), 1, 1,
                    _private.home_mark(), 'org', '[1]'
             from generate_series(3, 25) x, generate_series(1, 2) n;
             insert into _private.sinks (sink, kind, options) values ('covered', 'realtime', '{}');
             insert into _private.cursors (sink, position, system_identifier, database, outbox)
             select 'covered', '3:3:', h.* from _private.current_home() h",
        )
        .unwrap();
        let mut chance = Chance(20_260_228);
        for turn in 0..200 {
            let base = chance.snapshot();
            let position = if turn % 2 == 0 {
                Position::at(base)
            } else {
                let mut end = chance.snapshot();
                while !end.covers(&base) {
                    end = chance.snapshot();
                }
                let last_id = 300 + chance.below(2300) as i64;
                Position::within(base, end, EntryId(last_id))
            };
            assert_eq!(uncovered_by(&position), left_after(&position), "{position:?}");
        }
    }

    fn uncovered_by(position: &Position) -> Vec<i64> {
        let ids = (3..=25).flat_map(|xid| [xid * 100 + 1, xid * 100 + 2]);
        ids.filter(|&id| !position.covers((id / 100) as u64, EntryId(id))).collect()
    }

    /// The transactions of these entries are older than any of the server's own, whose entries do
    /// not count. What the views call pending, and what pruning leaves alone: they must agree.
    fn left_after(position: &Position) -> Vec<i64> {
        let window = position.window.as_ref();
        let quoted = |text: String| format!("'{text}'");
        let end = window.map_or("null".to_owned(), |window| quoted(window.end.to_string()));
        let last_id = window.map_or("null".to_owned(), |window| window.last_id.0.to_string());
        Spi::run(&format!(
            "update _private.cursors
             set position = '{}', window_end = {end}, last_processed_id = {last_id}
             where sink = 'covered'",
            position.base
        ))
        .unwrap();
        let ids = |query: &str| Spi::get_one::<Vec<i64>>(query).unwrap().unwrap_or_default();
        let after = ids("select array_agg(e.id order by e.id)
            from _private.cursors c cross join lateral _private.entries_after(c) e
            where c.sink = 'covered' and e.xid < '100'");
        let kept = ids("select array_agg(o.id order by o.id) from _private.outbox_3 o
            where not _private.is_done(o.id, o.xid, o.home) and o.xid < '100'");
        assert_eq!(after, kept, "{position:?}");
        after
    }
}
