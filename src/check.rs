//! The parts of `outbox.check()` that SQL cannot see: shared memory, tokens, and the sink itself.

use crate::config::SinkKind;
use crate::error::{Error, ErrorKind};
use crate::pg::{latch, shmem, user, worker};
use crate::relay::setup::Setup;
use crate::sink::Outcome;
use crate::token::Claims;
use pgrx::prelude::*;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A token that ends sooner is worth a word.
const EXPIRY_NOTICE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often a waiting check looks whether it was cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// One line of the doctor's findings.
struct Finding {
    name: &'static str,
    ok: bool,
    detail: String,
    hint: Option<String>,
}

impl Finding {
    fn good(name: &'static str, detail: impl Into<String>) -> Finding {
        Finding { name, ok: true, detail: detail.into(), hint: None }
    }

    fn bad(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding { name, ok: false, detail: detail.into(), hint: Some(hint.into()) }
    }

    fn error(name: &'static str, error: Error) -> Finding {
        Finding { name, ok: false, detail: error.message, hint: error.hint }
    }
}

#[pg_extern(sql = false)]
fn is_preloaded() -> bool {
    shmem::shared().is_some()
}

/// Process number of the relay of this database; `None` when there is none.
#[pg_extern(sql = false)]
fn relay_pid() -> Option<i32> {
    let relay = shmem::shared()?.relay(worker::database())?;
    Some(relay.pid.load(Ordering::Acquire)).filter(|&pid| pid != 0)
}

/// Looks at one sink from outside: its token, and whether it answers. `secret` is what its
/// options name, if they name one and it is there.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity, reason = "the columns of the SQL function")]
fn check_sink(
    kind: &str,
    options: &str,
    secret: Option<&str>,
) -> TableIterator<
    'static,
    (
        name!(name, &'static str),
        name!(ok, bool),
        name!(detail, String),
        name!(hint, Option<String>),
    ),
> {
    let findings = look_at(kind, options, secret);
    TableIterator::new(findings.into_iter().map(|f| (f.name, f.ok, f.detail, f.hint)))
}

fn look_at(kind: &str, options: &str, secret: Option<&str>) -> Vec<Finding> {
    if let Err(error) = SinkKind::parse(kind) {
        return vec![Finding::error("options", error)];
    }
    let setup = match Setup::to_look_at(kind, options, secret) {
        Ok(setup) => setup,
        Err(error) => return vec![Finding::error("secret", error)],
    };
    vec![look_at_token(&setup), look_at_answer(&setup)]
}

fn look_at_token(setup: &Setup) -> Finding {
    let claims = match setup.claims() {
        Ok(Some(claims)) => claims,
        Ok(None) => return Finding::good("token", "the relay signs its own"),
        Err(error) => return Finding::error("token", error),
    };
    let Claims { role, expires_at } = claims;
    let is_free = |role: &str| user::role(role).is_some_and(user::bypasses_policies);
    if !role.as_deref().is_some_and(|role| role == "service_role" || is_free(role)) {
        return Finding::bad(
            "token",
            format!("its role is {}", role.as_deref().unwrap_or("missing")),
            "Use the service_role key: Realtime silently drops private messages of others.",
        );
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match expires_at.map(Duration::from_secs) {
        None => Finding::bad("token", "it has no exp", "Realtime wants one: make a new token."),
        Some(at) if at <= now => Finding::bad(
            "token",
            format!("it expired {} ago", in_words(now - at)),
            "Set a new one with outbox.set_secret, or use jwt_secret and let the relay sign.",
        ),
        Some(at) if at - now < EXPIRY_NOTICE => Finding::bad(
            "token",
            format!("it expires in {}", in_words(at - now)),
            "Set a new one with outbox.set_secret, or use jwt_secret and let the relay sign.",
        ),
        Some(at) => Finding::good("token", format!("it expires in {}", in_words(at - now))),
    }
}

fn look_at_answer(setup: &Setup) -> Finding {
    match probe_elsewhere(setup.clone()) {
        Ok(Outcome::Delivered) => Finding::good("reachable", "the sink takes what we send"),
        Ok(Outcome::Refused(failure) | Outcome::Unknown(failure)) => {
            Finding::bad("reachable", failure.to_string(), failure.kind.advice())
        }
        Err(error) => Finding::error("reachable", error),
    }
}

/// Probes on a thread, so that this backend can be cancelled while it waits. The probe itself has
/// a deadline.
fn probe_elsewhere(setup: Setup) -> Result<Outcome, Error> {
    let no_thread = || Error::new(ErrorKind::System, "no thread to be had");
    let (sender, answer) = mpsc::channel();
    let work = Box::new(move || {
        // Nobody listens any more when the check was cancelled.
        let _ = sender.send(setup.probe());
    });
    latch::spawn_silent(std::thread::Builder::new(), work).map_err(|_| no_thread())?;
    loop {
        match answer.recv_timeout(CANCEL_INTERVAL) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Timeout) => {
                pgrx::check_for_interrupts!();
            }
            Err(RecvTimeoutError::Disconnected) => return Err(no_thread()),
        }
    }
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=119 => format!("{seconds} seconds"),
        seconds @ 120..=7199 => format!("{} minutes", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} hours", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
