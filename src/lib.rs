//! pg_outbox: live notifications for multi-tenant applications, as reliable as a commit.
//!
//! Three rings, with arrows that point inward only (ARCHITECTURE.md has the map):
//! the **core** decides and touches nothing, the **ports** reach the world, the **shell** lives
//! inside Postgres. Without a `pgNN` feature this crate is the core and the HTTP port alone.

pub mod config;
pub mod cursor;
pub mod envelope;
pub mod error;
pub mod event;
pub mod relay;
pub mod retry;
pub mod sink;
pub mod token;
