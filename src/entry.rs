//! The symbols that Postgres looks up by name: triggers and workers. They hold no logic; each
//! hands on to the room that does.
#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "Postgres calls these by name and by its own convention"
)]

use crate::error::{Error, ErrorKind};
use crate::pg::call::{SetCall, arguments};
use crate::pg::report::raise;
use crate::pg::trigger::TriggerCall;
use crate::relay::{self, launcher};
use crate::{api, capture, catch_up, doorbell};
use doorbell::News;
use pgrx::pg_sys::{self, Datum};
use pgrx::prelude::*;

/// Exports a function under Postgres' version-1 calling convention.
macro_rules! export {
    ($name:ident, $info:ident, $function:path) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> &'static pg_sys::Pg_finfo_record {
            static INFO: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
            &INFO
        }

        /// # Safety
        /// For Postgres to call.
        #[unsafe(no_mangle)]
        #[pg_guard]
        pub unsafe extern "C-unwind" fn $name(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
            // SAFETY: Postgres calls it with what it needs, and for as long as it runs.
            unsafe { $function(fcinfo) }
        }
    };
}

export!(outbox_capture, pg_finfo_outbox_capture, capture_row);
export!(outbox_truncated, pg_finfo_outbox_truncated, truncated);
export!(outbox_hold_columns, pg_finfo_outbox_hold_columns, hold_columns);
export!(outbox_reconfigured, pg_finfo_outbox_reconfigured, reconfigured);
export!(outbox_attach, pg_finfo_outbox_attach, attach);
export!(outbox_detach, pg_finfo_outbox_detach, detach);
export!(outbox_events_since, pg_finfo_outbox_events_since, events_since);

// SAFETY of all below: they are called by the exported functions alone, with the call they got.

unsafe fn capture_row(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    unsafe { trigger(fcinfo, capture::on_row) }
}

unsafe fn truncated(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    unsafe { trigger(fcinfo, capture::on_truncate) }
}

/// Its trigger is disabled and holds a column list: sql/install/40_capture.sql.
unsafe fn hold_columns(_fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    Datum::from(0usize)
}

unsafe fn reconfigured(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    unsafe { trigger(fcinfo, |_| doorbell::ring_at_commit(News::Configuration)) }
}

unsafe fn attach(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    Datum::from(api::attach(&unsafe { arguments(fcinfo) }))
}

unsafe fn detach(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    api::detach(&unsafe { arguments(fcinfo) });
    Datum::from(0usize)
}

unsafe fn events_since(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    catch_up::events_since(&mut unsafe { SetCall::new(fcinfo) });
    Datum::from(0usize)
}

unsafe fn trigger(fcinfo: pg_sys::FunctionCallInfo, act: impl FnOnce(&TriggerCall<'_>)) -> Datum {
    match unsafe { TriggerCall::new(fcinfo) } {
        Some(call) => act(&call),
        None => raise(
            Error::new(ErrorKind::TriggerProtocol, "this function is called as a trigger only")
                .hint("Use outbox.attach."),
        ),
    }
    Datum::from(0usize)
}

/// The launcher's process.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn outbox_launcher_main(_argument: Datum) {
    launcher::run()
}

/// The process of a relay, whose argument is its database.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn outbox_relay_main(argument: Datum) {
    relay::worker::run(argument.value() as u32)
}
