//! Tests that need a backend around them: where Rust meets Postgres, and nothing that a session
//! over the network could see as well (`e2e/` has that).
//!
//! Each `#[pg_test]` is a function of the schema `tests`, run in a transaction that is rolled
//! back. What must commit, or must own its transactions, runs in a background worker: `worker`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test should panic"
)]

mod capture;
mod cursor;
mod gucs;
mod prune;
mod query;
mod report;
mod secrets;
mod tx;
mod value;
mod worker;

/// pgrx calls it before each test.
pub fn setup(_options: Vec<&str>) {}

/// Settings of the throwaway server.
pub fn postgresql_conf_options() -> Vec<&'static str> {
    vec!["shared_preload_libraries = 'pg_outbox'", "timezone = 'Asia/Tokyo'"]
}
