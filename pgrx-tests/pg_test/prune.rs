//! When a segment may be emptied. What pruning promises to users is in `e2e/storage_contract`.

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    /// A segment that is not being filled, now or at the next turn of the ring.
    const SEGMENT: &str = "((_private.current_segment() + 5) % 16)";

    /// Entries in the segment, of the transactions `xids`, so many minutes old.
    fn entries(xids: &[u64], minutes: u32) {
        let xids = xids.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        Spi::run(&format!(
            "do $$ begin execute format(
                 'insert into _private.outbox_%s (id, xid, created_at, event_id, event_count,
                                                  type_id, home, org_id, ids)
                  select x, x::text::xid8, now() - interval ''{minutes} minutes'',
                         gen_random_uuid(), 3, 1, _private.home_mark(), ''org'',
                         ''[1,2,3]''
                  from unnest(''{{{xids}}}''::bigint[]) x', {SEGMENT}); end $$"
        ))
        .unwrap();
    }

    fn cursor(position: &str, window: Option<(&str, i64)>) {
        let (end, last_id) = window.map_or(("null".into(), "null".into()), |(end, last_id)| {
            (format!("'{end}'"), last_id.to_string())
        });
        Spi::run(&format!(
            "insert into _private.sinks (sink, kind, options) values ('pruned', 'realtime', '{{}}')
             on conflict do nothing;
             insert into _private.cursors (sink, position, window_end, last_processed_id,
                                           system_identifier, database, outbox)
             select 'pruned', '{position}', {end}, {last_id}, h.* from _private.current_home() h
             on conflict (sink, shard) do update
             set position = excluded.position, window_end = excluded.window_end,
                 last_processed_id = excluded.last_processed_id"
        ))
        .unwrap();
    }

    fn prune(minutes: u32) -> i64 {
        Spi::get_one(&format!(
            "select _private.prune_segment(format('_private.outbox_%s', {SEGMENT})::regclass,
                                           now() - interval '{minutes} minutes')"
        ))
        .unwrap()
        .unwrap()
    }

    #[pg_test]
    fn an_empty_segment_has_nothing_to_prune() {
        assert_eq!(prune(0), 0);
    }

    #[pg_test]
    fn without_a_sink_age_alone_decides() {
        entries(&[100, 101], 60);
        assert_eq!(prune(61), 0);
        assert_eq!(prune(59), 6);
        assert_eq!(prune(59), 0, "it is empty now");
    }

    #[pg_test]
    fn one_young_entry_keeps_its_segment() {
        entries(&[200], 60);
        // Of an older transaction than the rest: the youngest by xid is not the youngest by time.
        entries(&[100], 1);
        assert_eq!(prune(30), 0);
        assert_eq!(prune(0), 6);
    }

    #[pg_test]
    fn a_cursor_beyond_the_segment_lets_it_go() {
        entries(&[100, 101], 60);
        cursor("102:102:", None);
        assert_eq!(prune(30), 6);
    }

    #[pg_test]
    fn a_cursor_within_the_segment_keeps_it() {
        entries(&[100, 101], 60);
        for position in ["3:3:", "100:100:", "101:101:", "100:102:100", "101:103:101"] {
            cursor(position, None);
            assert_eq!(prune(30), 0, "{position}");
        }
        cursor("99:103:99", None);
        assert_eq!(prune(30), 6, "what runs is older than the segment");
    }

    #[pg_test]
    fn a_window_counts_as_far_as_it_is_done() {
        entries(&[100, 101], 60);
        cursor("100:100:", Some(("102:102:", 100)));
        assert_eq!(prune(30), 0);
        cursor("100:100:", Some(("101:101:", 101)));
        assert_eq!(prune(30), 0, "the window ends before the last entry");
        cursor("100:100:", Some(("102:102:", 101)));
        assert_eq!(prune(30), 6);
    }

    #[pg_test]
    fn the_slowest_sink_decides() {
        entries(&[100], 60);
        cursor("200:200:", None);
        Spi::run(
            "insert into _private.sinks (sink, kind, options, enabled)
             values ('disabled', 'realtime', '{}', false);
             insert into _private.cursors (sink, position, system_identifier, database, outbox)
             select 'disabled', '50:50:', h.* from _private.current_home() h",
        )
        .unwrap();
        assert_eq!(prune(30), 0);
        Spi::run("delete from _private.sinks where sink = 'disabled'").unwrap();
        assert_eq!(prune(30), 3);
    }

    #[pg_test]
    fn a_lock_timeout_of_the_caller_is_untouched() {
        Spi::run("set local lock_timeout = '7s'").unwrap();
        assert_eq!(prune(0), 0);
        let timeout = Spi::get_one::<String>("select current_setting('lock_timeout')");
        assert_eq!(timeout.unwrap().as_deref(), Some("7s"));
    }
}
