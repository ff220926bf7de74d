//! pg_outbox: live notifications for multi-tenant applications, as reliable as a commit.
//!
//! Three rings, with arrows that point inward only (ARCHITECTURE.md has the map):
//! the **core** decides and touches nothing, the **ports** reach the world, the **shell** lives
//! inside Postgres. Without a `pgNN` feature this crate is the core and the HTTP port alone.

#[cfg(feature = "extension")]
mod api;
// Its tests need no Postgres; the room that it lies in does.
#[cfg(all(test, not(feature = "extension")))]
#[path = "capture/buffer.rs"]
mod buffer;
#[cfg(feature = "extension")]
mod capture;
#[cfg(feature = "extension")]
mod catch_up;
#[cfg(feature = "extension")]
mod check;
pub mod config;
pub mod cursor;
#[cfg(feature = "extension")]
mod doorbell;
#[cfg(feature = "extension")]
mod entry;
pub mod envelope;
pub mod error;
pub mod event;
#[cfg(feature = "extension")]
mod gucs;
pub mod home;
pub mod json;
#[cfg(feature = "extension")]
mod pg;
#[cfg(feature = "pg_test")]
#[path = "../pgrx-tests/pg_test/mod.rs"]
pub mod pg_test;
#[cfg(feature = "extension")]
mod probe;
pub mod relay;
pub mod retry;
#[cfg(feature = "extension")]
mod schema;
pub mod sink;
#[cfg(feature = "extension")]
mod status;
#[cfg(feature = "extension")]
mod store;
pub mod token;

#[cfg(feature = "extension")]
::pgrx::pg_module_magic!(name, version);

/// Called when the library is loaded: at the server's start under preload, else when a session
/// first fires a trigger or calls a function of ours. Without preload there are settings and
/// capture, and nothing that needs shared memory or a worker.
#[cfg(feature = "extension")]
#[allow(unsafe_code, non_snake_case, reason = "Postgres calls it by this name")]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    gucs::define();
    if pg::worker::is_preloading() {
        pg::shmem::request();
        // pg_upgrade starts both servers to move data, not to have any of it sent.
        if !pg::worker::is_binary_upgrade() {
            pg::worker::register_launcher();
        }
        pg::hooks::watch(pg::hooks::Watchers {
            extension_dropped: || doorbell::ring_at_commit(doorbell::News::Dropped),
            database_wanted: relay::launcher::make_way,
        });
    }
}
