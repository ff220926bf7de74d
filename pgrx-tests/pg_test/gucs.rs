//! Settings: their defaults, and the checks that Postgres makes for us.

#[pgrx::pg_schema]
mod tests {
    use crate::gucs;
    use pgrx::prelude::*;
    use std::time::Duration;

    #[pg_test]
    fn without_a_word_they_are_what_the_manual_says() {
        let settings = gucs::snapshot();
        assert!(settings.enabled && gucs::capture_is_on());
        assert_eq!(settings.poll_interval, Duration::from_secs(5));
        assert_eq!(settings.wake_debounce, Duration::from_millis(1));
        assert_eq!(settings.prune_interval, Some(Duration::from_secs(600)));
        assert_eq!(settings.memory_bytes_max, 64 << 20);
        assert_eq!((settings.role, gucs::origin()), (None, None));
        assert_eq!(gucs::retention_seconds(), 72 * 3600);
        assert!(gucs::names_database("anything"));
    }

    #[pg_test]
    fn an_origin_has_64_bytes_at_most() {
        let set = |text: &str| {
            let set = format!("set local pg_outbox.origin = '{text}'");
            PgTryBuilder::new(|| Spi::run(&set).is_ok()).catch_others(|_| false).execute()
        };
        assert!(set(&"x".repeat(64)));
        assert!(set(&"\u{e4}".repeat(32)));
        assert_eq!(gucs::origin().as_deref(), Some("\u{e4}".repeat(32).as_str()));
        assert!(!set(&"\u{e4}".repeat(33)));
        assert!(!set(&"x".repeat(65)));
        assert_eq!(gucs::origin().map(|origin| origin.len()), Some(64), "it stays as it was");
        assert!(set(""));
        assert_eq!(gucs::origin(), None, "an empty one is none");
    }

    #[pg_test]
    fn capture_is_switched_off_for_a_transaction() {
        Spi::run("set local pg_outbox.capture = off").unwrap();
        assert!(!gucs::capture_is_on());
        Spi::run("reset pg_outbox.capture").unwrap();
        assert!(gucs::capture_is_on());
    }
}
