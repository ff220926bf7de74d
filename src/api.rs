//! Functions of the SQL interface that need Rust. They are declared in `sql/install/`, where
//! their comments and rights are.

use crate::capture::buffer::Kind;
use crate::capture::{self, Identity};
use crate::config::{self, SinkKind, SinkOptions};
use crate::doorbell::{self, News};
use crate::error::{Error, ErrorKind};
use crate::event::EventId;
use crate::home::Home;
use crate::pg::call::Argument;
use crate::pg::report::raise;
use crate::pg::value::Encoding;
use crate::pg::{shmem, user, worker};
use pgrx::datum::{AnyElement, DatumWithOid, Uuid};
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

/// Bytes that the ids of an emitted event may have.
const EMIT_IDS_BYTES_MAX: usize = 8 << 10;
/// Bytes that the organisation of an emitted event may have.
const EMIT_ORG_BYTES_MAX: usize = 1 << 10;

/// Runs `work` with the rights of the extension's owner.
pub fn acting_as_owner<R>(work: impl FnOnce() -> R) -> R {
    user::acting_as(owner(), work)
}

pub fn owner() -> Oid {
    user::extension_owner().unwrap_or_else(|| {
        raise(
            Error::new(
                ErrorKind::UndefinedObject,
                "extension pg_outbox does not exist in this database",
            )
            .hint("Run create extension pg_outbox."),
        )
    })
}

/// Runs a query with the rights of the extension's owner and returns its only value.
fn as_owner<T: FromDatum + IntoDatum>(query: &str, arguments: &[DatumWithOid<'_>]) -> Option<T> {
    let result = acting_as_owner(|| {
        Spi::connect_mut(|client| {
            let rows = client.update(query, Some(1), arguments)?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_one::<T>() }
        })
    });
    match result {
        Ok(value) => value,
        Err(error) => raise(Error::new(ErrorKind::System, error.to_string())),
    }
}

/// `outbox.attach`: hands its arguments on as they are, with the caller's role before them.
pub fn attach(arguments: &[Argument]) -> i32 {
    let query = "select _private.attach($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    as_owner(query, &with_caller(arguments)).unwrap_or(0)
}

/// `outbox.detach`.
pub fn detach(arguments: &[Argument]) {
    let query = "select 0 from _private.detach($1, $2)";
    as_owner::<i32>(query, &with_caller(arguments));
}

fn with_caller(arguments: &[Argument]) -> Vec<DatumWithOid<'_>> {
    let caller = DatumWithOid::from(user::current());
    [caller].into_iter().chain(arguments.iter().map(Argument::to_query)).collect()
}

#[pg_extern(sql = false)]
fn emit(
    event_type: Option<String>,
    org_id: Option<String>,
    ids: Option<AnyElement>,
    topic: Option<String>,
    version: Option<i32>,
) -> Uuid {
    let (Some(event_type), Some(org_id), Some(ids)) = (event_type, org_id, ids) else {
        raise(
            Error::new(ErrorKind::NullNotAllowed, "event_type, org_id and ids must not be null")
                .hint("As in outbox.emit('export.finished', '42', '{\"export_id\": 7}')."),
        );
    };
    if org_id.is_empty() || org_id.len() > EMIT_ORG_BYTES_MAX {
        raise(
            Error::new(ErrorKind::InvalidParameter, "org_id must have 1 to 1024 bytes")
                .detail(format!("It has {}.", org_id.len()))
                .hint("Pass the organisation's key, as it stands in the org column of a source."),
        );
    }
    // As Postgres writes it: no number loses a digit on the way.
    let mut key = Vec::new();
    Encoding::of(pg_sys::JSONBOID).write_json(ids.datum(), &mut key);
    if !key.starts_with(b"{") || key.len() > EMIT_IDS_BYTES_MAX {
        raise(
            Error::new(
                ErrorKind::InvalidParameter,
                "ids must be a JSON object of at most 8192 bytes",
            )
            .hint("Send identifiers, such as {\"export_id\": 7}; clients fetch the rest."),
        );
    }
    let topic = topic.unwrap_or_else(|| "app".to_owned());
    if !is_topic(&topic) {
        raise(Error::new(ErrorKind::InvalidParameter, "invalid topic").hint(
            "Use lower-case letters, digits, dots, dashes and underscores, such as cataloging.",
        ));
    }
    let Some(version) = i16::try_from(version.unwrap_or(1)).ok().filter(|&version| version > 0)
    else {
        raise(
            Error::new(ErrorKind::InvalidParameter, "version must be between 1 and 32767")
                .hint("Leave it out until the meaning of the event's ids changes."),
        );
    };
    let Some(type_id) = as_owner::<i16>(
        "select type_id from _private.event_types where event_type = $1",
        &[event_type.as_str().into()],
    ) else {
        raise(
            Error::new(ErrorKind::UndefinedObject, "event type is not registered")
                .detail(format!("There is no event type \"{event_type}\"."))
                .hint("Register it with outbox.create_event_type; outbox.event_types lists them."),
        );
    };
    let event_id = capture::new_event_id();
    let kind = Kind {
        type_id,
        topic: Some(topic.into()),
        version: (version != 1).then_some(version),
        ..Kind::default()
    };
    let identity = Identity { org_id: org_id.into_bytes(), key, data: None };
    capture::emit(kind, &identity, event_id);
    Uuid::from_bytes(event_id)
}

#[pg_extern(sql = false)]
fn wake() {
    // A relay that looks at its configuration tries a sink that waits at once.
    doorbell::ring_at_commit(News::Configuration);
    doorbell::ring_at_commit(News::Wanted);
}

#[pg_extern(sql = false)]
fn current_segment() -> i32 {
    capture::current_segment_now()
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity, reason = "the columns of the SQL function")]
fn current_home() -> TableIterator<
    'static,
    (name!(system_identifier, i64), name!(database, pg_sys::Oid), name!(outbox, pg_sys::Oid)),
> {
    TableIterator::new(capture::home().into_iter().map(|home| {
        // An identifier is 64 bits without a sign, which SQL has no type for.
        (home.system_identifier as i64, home.database.into(), home.outbox.into())
    }))
}

#[pg_extern(sql = false)]
fn home_mark() -> Option<i16> {
    capture::home().map(Home::mark)
}

#[pg_extern(sql = false)]
fn home_mark_of(system_identifier: i64, database: pg_sys::Oid, outbox: pg_sys::Oid) -> i16 {
    home_of(system_identifier, database, outbox).mark()
}

#[pg_extern(sql = false)]
fn is_home(system_identifier: i64, database: pg_sys::Oid, outbox: pg_sys::Oid) -> bool {
    capture::home() == Some(home_of(system_identifier, database, outbox))
}

fn home_of(system_identifier: i64, database: pg_sys::Oid, outbox: pg_sys::Oid) -> Home {
    Home {
        system_identifier: system_identifier as u64,
        database: database.to_u32(),
        outbox: outbox.to_u32(),
    }
}

#[pg_extern(sql = false)]
fn nth_event_id(event_id: Uuid, n: i32) -> Uuid {
    let first = EventId::from_bytes(*event_id.as_bytes());
    Uuid::from_bytes(first.plus(n.unsigned_abs()).to_bytes())
}

#[pg_extern(sql = false)]
fn source_counts()
-> TableIterator<'static, (name!(source_id, i32), name!(null_orgs, i64), name!(truncates, i64))> {
    let counts = shmem::shared().map(|shared| shared.counts(worker::database()));
    TableIterator::new(counts.unwrap_or_default())
}

/// The same rule as for the topic of a source: `_private.checked_source`.
fn is_topic(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-'))
}

#[pg_extern(sql = false)]
fn check_sink_options(kind: &str, options: &str) {
    let checked = SinkKind::parse(kind).and_then(|kind| SinkOptions::parse(kind, options));
    if let Err(error) = checked {
        raise(error);
    }
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity, reason = "the columns of the SQL function")]
fn sink_options() -> TableIterator<
    'static,
    (
        name!(option, &'static str),
        name!(value_type, &'static str),
        name!(default_value, Option<&'static str>),
        name!(description, &'static str),
    ),
> {
    TableIterator::new(
        config::OPTIONS
            .iter()
            .map(|spec| (spec.name, spec.value_type, spec.default, spec.description)),
    )
}
