//! What is known of a source while its triggers run.
//!
//! Everything comes from the trigger's arguments and from the column list beside it, which the
//! relation's descriptors hold in memory already: no query, no rights, and no state that could be
//! older than the statement that fires. Descriptions are kept until the relation changes.

use crate::json;
use crate::pg::row::Attribute;
use crate::pg::trigger::{Column, TriggerCall};
use crate::pg::value::Encoding;
use pgrx::pg_sys::Oid;
use std::cell::RefCell;
use std::rc::Rc;

/// A source as its trigger on one table sees it.
pub struct Source {
    pub id: i32,
    /// `None` where that kind of change is no event.
    pub created_type: Option<i16>,
    pub updated_type: Option<i16>,
    pub deleted_type: Option<i16>,
    pub keys: Vec<Value>,
    pub org: Value,
    pub watch: Vec<Attribute>,
    /// With their names as JSON strings.
    pub include: Vec<(Vec<u8>, Value)>,
}

/// A column whose values are written down.
#[derive(Clone, Copy)]
pub struct Value {
    pub attribute: Attribute,
    pub encoding: Encoding,
}

impl From<&Column> for Value {
    fn from(column: &Column) -> Value {
        Value { attribute: column.attribute, encoding: column.encoding }
    }
}

struct Known {
    trigger: Oid,
    relation: Oid,
    /// `None` when the trigger has lost its columns: DROP COLUMN … CASCADE detaches.
    source: Option<Rc<Source>>,
}

thread_local! {
    static KNOWN: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}

/// The source of a trigger; `None` when it no longer captures.
pub fn of(call: &TriggerCall<'_>) -> Option<Rc<Source>> {
    let trigger = call.trigger_oid();
    let known = KNOWN.with_borrow(|known| {
        let found = known.iter().find(|known| known.trigger == trigger);
        found.map(|known| known.source.clone())
    });
    known.unwrap_or_else(|| {
        let source = describe(call).map(Rc::new);
        let relation = call.relation_oid();
        KNOWN.with_borrow_mut(|known| {
            known.push(Known { trigger, relation, source: source.clone() });
        });
        source
    })
}

/// The relation has changed, or any may have (an invalid oid).
pub fn forget(relation: Oid) {
    // A callback may come while the list is being read; the next one will find it free.
    KNOWN.with(|known| {
        if let Ok(mut known) = known.try_borrow_mut() {
            known.retain(|known| relation != Oid::INVALID && known.relation != relation);
        }
    });
}

/// Reads the arguments that `_private.create_triggers` wrote: source, three event types, the
/// places of keys, organisation, watched and included columns in the column list, and the names
/// of the included ones.
fn describe(call: &TriggerCall<'_>) -> Option<Source> {
    let arguments = call.arguments();
    let [id, created, updated, deleted, keys, org, watch, include, names @ ..] = &arguments[..]
    else {
        return None;
    };
    let columns = call.columns_held_for(id)?;
    let event_type = |argument: &str| argument.parse::<i16>().ok().filter(|&type_id| type_id != 0);
    let values = |argument: &str| -> Option<Vec<Value>> {
        places(argument)?.into_iter().map(|place| columns.get(place).map(Value::from)).collect()
    };
    let watch = if watch == "*" {
        call.columns_by_name().iter().map(|column| column.attribute).collect()
    } else {
        values(watch)?.into_iter().map(|value| value.attribute).collect()
    };
    let names = names.iter().map(|name| {
        let mut name_json = Vec::new();
        json::write_text(&mut name_json, name);
        name_json
    });
    Some(Source {
        id: id.parse().ok()?,
        created_type: event_type(created),
        updated_type: event_type(updated),
        deleted_type: event_type(deleted),
        keys: values(keys)?,
        org: values(org)?.first().copied()?,
        watch,
        include: names.zip(values(include)?).collect(),
    })
}

fn places(argument: &str) -> Option<Vec<usize>> {
    argument.split(',').filter(|place| !place.is_empty()).map(|place| place.parse().ok()).collect()
}
