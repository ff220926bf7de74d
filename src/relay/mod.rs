//! The relay: what moves events from the outbox to the sinks.
//!
//! `plan` decides, and is the one door to what it is made of: `ledger` (how far the cursor may
//! move), `lane` (whose turn it is), `pace` (how much may be sent), `health` (whether the sink
//! works), `returns` (what is sent again) and `journal` (what was sent). All of that is core. The
//! shell around it: `launcher` starts a `worker` in each database, which gives each sink a `run`,
//! made by `setup`, that carries out what its plan decides.

#[cfg(feature = "extension")]
mod clock;
pub mod health;
pub mod journal;
pub mod lane;
#[cfg(feature = "extension")]
pub mod launcher;
pub mod ledger;
pub mod pace;
pub mod plan;
pub mod returns;
#[cfg(feature = "extension")]
mod run;
#[cfg(feature = "extension")]
pub mod setup;
pub mod time;
#[cfg(feature = "extension")]
pub mod worker;
