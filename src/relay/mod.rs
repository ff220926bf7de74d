//! The relay: what moves events from the outbox to the sinks.
//!
//! `plan` decides (core), `pace` keeps the account of what a sink allows (core).

#[cfg(feature = "extension")]
mod clock;
pub mod health;
pub mod lane;
#[cfg(feature = "extension")]
pub mod launcher;
pub mod ledger;
pub mod pace;
pub mod plan;
#[cfg(feature = "extension")]
mod run;
#[cfg(feature = "extension")]
pub mod setup;
pub mod time;
#[cfg(feature = "extension")]
pub mod worker;
