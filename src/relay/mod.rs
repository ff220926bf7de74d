//! The relay: what moves events from the outbox to the sinks.
//!
//! `plan` decides (core), `pace` keeps the account of what a sink allows (core).

pub mod health;
pub mod lane;
pub mod ledger;
pub mod pace;
pub mod plan;
pub mod time;
