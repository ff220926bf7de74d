//! What `outbox.check()` does in the name of others, to see whether they may: the statements are
//! fixed, and SQL undoes them (`sql/install/68_probe.sql`).
//!
//! SET ROLE is forbidden in a SECURITY DEFINER function, so the user is switched here. Only to
//! whom the extension's owner may become anyway, and never to a superuser: whoever may name a
//! membership function could else have it run as one.

use crate::catch_up;
use crate::error::{Error, ErrorKind};
use crate::pg::report::raise;
use crate::pg::user;
use crate::relay::setup::Setup;
use pgrx::datum::{DatumWithOid, Uuid};
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

/// In whose name the tokens are that the relay signs itself.
const SIGNED_ROLE: &str = "service_role";

fn in_the_name_of<R>(role: &str, work: impl FnOnce() -> R) -> R {
    let refused = |message: String| -> ! {
        raise(
            Error::new(ErrorKind::NotPermitted, message)
                .hint("Let the extension's owner be a member of it, or check as a superuser."),
        )
    };
    let Some(oid) = user::role(role) else { refused(format!("role {role} does not exist")) };
    if user::is_superuser(oid) {
        refused(format!("role {role} is a superuser, for whom no policy holds"));
    }
    if !user::may_become(user::current(), oid) {
        refused(format!("the owner of pg_outbox may not act as {role}"));
    }
    user::in_the_name_of(oid, work)
}

/// Runs a statement that sees what this transaction has written. True when it gave a row.
fn run(query: &str, arguments: &[DatumWithOid<'_>]) -> bool {
    let result =
        Spi::connect_mut(|client| client.update(query, Some(1), arguments).map(|rows| rows.len()));
    match result {
        Ok(rows) => rows > 0,
        Err(error) => raise(Error::new(ErrorKind::System, error.to_string())),
    }
}

#[pg_extern(sql = false)]
fn sees_message(role: &str, message: Uuid) -> bool {
    let query = "select true from realtime.messages where id = $1";
    in_the_name_of(role, || run(query, &[message.into()]))
}

#[pg_extern(sql = false)]
fn send_message(role: &str, topic: &str) {
    // Without RETURNING, which would ask whether the role may read it, too.
    let query = "insert into realtime.messages (topic, extension) values ($1, 'broadcast')";
    in_the_name_of(role, || run(query, &[topic.into()]));
}

#[pg_extern(sql = false)]
fn is_member(role: &str, org_id: &str) -> bool {
    let functions = catch_up::membership_functions(oid_of(role));
    in_the_name_of(role, || catch_up::says_member(&functions, org_id))
}

fn oid_of(role: &str) -> Oid {
    user::role(role).unwrap_or(Oid::INVALID)
}

#[pg_extern(sql = false)]
fn sink_role(kind: &str, options: &str, secret: Option<&str>) -> Option<String> {
    let setup = Setup::to_look_at(kind, options, secret).ok()?;
    match setup.claims().ok()? {
        Some(claims) => claims.role,
        None => Some(SIGNED_ROLE.to_owned()),
    }
}
