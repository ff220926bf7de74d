//! Postgres, made safe: the only room for `unsafe`.
//!
//! Each file wraps one part of the server's C interface into functions that the shell can call
//! without reading Postgres' source. They hold no policy: what to capture, when to send and what
//! to do about an error is decided elsewhere.
#![allow(unsafe_code, reason = "this is the room for it")]

pub mod call;
pub mod cluster;
pub mod guc_check;
pub mod heap;
pub mod hooks;
pub mod invalidation;
pub mod latch;
pub mod query;
pub mod report;
pub mod row;
pub mod setting;
pub mod shmem;
pub mod trigger;
pub mod tx;
pub mod user;
pub mod value;
pub mod worker;
pub mod xact;
