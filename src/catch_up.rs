//! `outbox.events_since`: who may ask, and what a cursor means. What was missed is found in SQL:
//! `sql/install/65_catch_up.sql`.
//!
//! The caller is asked for with the caller's own rights and settings, as a policy would: the
//! function that decides sees their JWT claims, and may read only what they may. Reading then
//! happens with the rights of the extension's owner. All who are not members get the same error,
//! whether the organisation exists or not.

use crate::api;
use crate::cursor::{Cursor, Position, Snapshot, Window};
use crate::error::{Error, ErrorKind};
use crate::event::EntryId;
use crate::pg::call::{self, Key, SetCall};
use crate::pg::report::raise;
use crate::pg::{cluster, query, user};
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

/// Events that a page may be asked to have.
const PAGE_EVENTS: std::ops::RangeInclusive<i32> = 1..=10_000;

/// Answers a call of `outbox.events_since(cursor, org_id, max_events)`.
pub fn events_since(call: &mut SetCall) {
    let (Some(cursor), Some(org_id), Some(page_events)) = (call.text(0), call.text(1), call.i32(2))
    else {
        raise(
            Error::new(ErrorKind::NullNotAllowed, "cursor, org_id and max_events must not be null")
                .detail("What was missed is counted from a position.")
                .hint("A client that has no cursor yet reads the state, and outbox.cursor()."),
        );
    };
    if !PAGE_EVENTS.contains(&page_events) {
        let (low, high) = (PAGE_EVENTS.start(), PAGE_EVENTS.end());
        raise(
            Error::new(
                ErrorKind::InvalidParameter,
                format!("max_events must be between {low} and {high}"),
            )
            .detail(format!("It is {page_events}."))
            .hint("Take a page, and go on from the cursor of its last row."),
        );
    }
    let cursor = decode(&cursor);
    require_member(&org_id);
    let is_of_this_era = cursor.era == cluster::era();
    // Of another era nothing can be said, and a position from beyond the end of time says so.
    let nowhere = || Position::at(Snapshot::beyond_all());
    let Position { base, window } = if is_of_this_era { cursor.position } else { nowhere() };
    let base = base.to_string();
    let end = window.as_ref().map(|window| window.end.to_string());
    let last_id = window.as_ref().map(|window| window.last_id.0.to_string());
    let page_events = page_events.to_string();
    api::acting_as_owner(|| {
        call.answer(
            c"select * from _private.missed_events($1::pg_catalog.pg_snapshot,
                 $2::pg_catalog.pg_snapshot, $3::pg_catalog.int8, $4, $5::pg_catalog.int4)",
            &[Some(&base), end.as_deref(), last_id.as_deref(), Some(&org_id), Some(&page_events)],
        );
    });
}

/// Raises an error when the caller does not belong to the organisation, as far as anybody knows.
fn require_member(org_id: &str) {
    let caller = user::current();
    let functions = membership_functions(caller);
    if functions.is_empty() {
        if user::has_rights_of(caller, api::owner()) {
            return;
        }
        raise(
            Error::new(ErrorKind::NotPermitted, "nobody can say who is a member")
                .detail("Without a membership function, only the extension's owner may ask.")
                .hint("Name one: select outbox.setup_realtime('…', membership => '…')."),
        );
    }
    if !says_member(&functions, org_id) {
        raise(
            Error::new(ErrorKind::NotPermitted, "not a member of this organisation")
                .detail("The membership function of outbox.setup_realtime did not say yes.")
                .hint("Sign in as a member of it, and pass its id as it stands in the channel."),
        );
    }
}

/// Whether one of the functions says so, in the name of the current user.
pub fn says_member(functions: &[Option<Oid>], org_id: &str) -> bool {
    let is_member = |&function: &Oid| {
        let key = key(org_id, call::argument_of_predicate(function)?)?;
        call::ask(function, &key)
    };
    functions.iter().flatten().any(|function| is_member(function) == Some(true))
}

/// The functions that decide on membership. `None` stands for one that is gone, has another
/// signature, or that `caller` may not execute.
pub fn membership_functions(caller: Oid) -> Vec<Option<Oid>> {
    let mut functions = Vec::new();
    api::acting_as_owner(|| {
        query::session(|| {
            query::select_once(
                c"select p.oid
                  from _private.realtime_setups s
                  left join pg_catalog.pg_proc p
                    on p.oid = _private.membership_function(s.membership)
                   and pg_catalog.has_function_privilege($1::pg_catalog.oid, p.oid, 'execute')
                  where s.membership is not null",
                &[Some(&caller.to_u32().to_string())],
            );
            query::each_row(&mut |row| functions.push(row.oid(1)));
        });
    });
    functions
}

/// The organisation as a function of this argument takes it. `None`: it has no such form, or
/// another than the one that the type would give it: 042 and 42 are two organisations where the
/// column is a text, and must not be taken for one here.
fn key(org_id: &str, argument: Oid) -> Option<Key<'_>> {
    match argument {
        pg_sys::TEXTOID => Some(Key::Text(org_id)),
        pg_sys::INT8OID => {
            let number = org_id.parse::<i64>().ok()?;
            (number.to_string() == org_id).then_some(Key::Bigint(number))
        }
        pg_sys::UUIDOID => uuid(org_id).map(Key::Uuid),
        _ => None,
    }
}

/// Reads a uuid as Postgres writes it, and in no other form.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        });
    let digits: String = text.chars().filter(|&digit| digit != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    is_uuid.then(|| number.to_be_bytes())
}

fn decode(text: &str) -> Cursor {
    match Cursor::parse(text) {
        Ok(cursor) => cursor,
        Err(error) => raise(error),
    }
}

fn snapshot(text: &str) -> Snapshot {
    match Snapshot::parse(text) {
        Ok(snapshot) => snapshot,
        Err(error) => raise(error),
    }
}

#[pg_extern(sql = false)]
fn era() -> i64 {
    cluster::era().number().into()
}

/// A position as text: within a window when its end and an id are given.
#[pg_extern(sql = false)]
fn encode_position(base: &str, window_end: Option<&str>, last_id: Option<i64>) -> String {
    let base = snapshot(base);
    let window = window_end.zip(last_id);
    let window =
        window.map(|(end, last_id)| Window { end: snapshot(end), last_id: EntryId(last_id) });
    Position { base, window }.stamped(cluster::era()).to_string()
}

/// The position of a snapshot of this transaction, once it can no longer be forgotten.
#[pg_extern(sql = false)]
fn durable_cursor(seen: &str) -> String {
    if cluster::is_standby() {
        raise(
            Error::new(ErrorKind::NotSupported, "a standby has no positions")
                .detail("Its snapshots do not say which transactions are running.")
                .hint("Ask the primary."),
        );
    }
    cluster::make_finished_transactions_durable();
    encode_position(seen, None, None)
}
