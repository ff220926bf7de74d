//! The call of a trigger, and what its definition says.

use super::row::{Attribute, Row};
use super::value::Encoding;
use pgrx::pg_sys::{self, Oid};
use std::ffi::CStr;

/// What a row trigger was fired for.
pub enum Change<'a> {
    Insert { new: Row<'a> },
    Update { old: Row<'a>, new: Row<'a> },
    Delete { old: Row<'a>, to_other_partition: bool },
}

/// A column of the table that a trigger stands on.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub attribute: Attribute,
    pub encoding: Encoding,
}

/// A call of one of our triggers.
pub struct TriggerCall<'a> {
    data: &'a pg_sys::TriggerData,
}

impl<'a> TriggerCall<'a> {
    /// `None` when the function was called as something else.
    ///
    /// # Safety
    /// `fcinfo` must be that of a running function call, and outlive the result.
    pub unsafe fn new(fcinfo: pg_sys::FunctionCallInfo) -> Option<Self> {
        // SAFETY: the caller's promise; a trigger's context node says what it is.
        unsafe {
            let context = (*fcinfo).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
                return None;
            }
            Some(TriggerCall { data: &*context.cast::<pg_sys::TriggerData>() })
        }
    }

    /// The row and what happens to it; `None` in a statement trigger.
    pub fn change(&self) -> Option<Change<'a>> {
        if self.data.tg_event & pg_sys::TRIGGER_EVENT_ROW == 0 {
            return None;
        }
        // SAFETY: an AFTER ROW trigger has its rows in these slots while it runs.
        let (row, new_row) =
            unsafe { (Row::new(self.data.tg_trigslot)?, Row::new(self.data.tg_newslot)) };
        match self.data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Some(Change::Insert { new: row }),
            pg_sys::TRIGGER_EVENT_UPDATE => Some(Change::Update { old: row, new: new_row? }),
            pg_sys::TRIGGER_EVENT_DELETE => {
                Some(Change::Delete { old: row, to_other_partition: self.moves() })
            }
            _ => None,
        }
    }

    /// An UPDATE that carries a row to another partition deletes it here and marks the old tuple
    /// so (ItemPointerSetMovedPartitions in htup_details.h): block and offset are both the
    /// invalid ones with a reserved meaning.
    fn moves(&self) -> bool {
        /// MovedPartitionsOffsetNumber and InvalidBlockNumber.
        const MOVED_OFFSET: u16 = 0xfffd;
        // SAFETY: an AFTER DELETE trigger is given the tuple as it lies on the page.
        unsafe {
            let Some(tuple) = self.data.tg_trigtuple.as_ref() else { return false };
            let Some(header) = tuple.t_data.as_ref() else { return false };
            let ctid = header.t_ctid;
            ctid.ip_posid == MOVED_OFFSET
                && ctid.ip_blkid.bi_hi == 0xffff
                && ctid.ip_blkid.bi_lo == 0xffff
        }
    }

    pub fn trigger_oid(&self) -> Oid {
        // SAFETY: a trigger call has its trigger.
        unsafe { (*self.data.tg_trigger).tgoid }
    }

    pub fn relation_oid(&self) -> Oid {
        // SAFETY: a trigger call has its relation open.
        unsafe { (*self.data.tg_relation).rd_id }
    }

    /// Name of the table, for messages to people.
    pub fn relation_name(&self) -> String {
        // SAFETY: as above; the name is a NUL-terminated array.
        unsafe {
            let class = &*(*self.data.tg_relation).rd_rel;
            CStr::from_ptr(class.relname.data.as_ptr()).to_string_lossy().into_owned()
        }
    }

    /// The arguments that the trigger was created with.
    pub fn arguments(&self) -> Vec<String> {
        // SAFETY: a trigger call has its trigger.
        unsafe { arguments(&*self.data.tg_trigger) }
    }

    /// The column list of the trigger beside this one that calls `_private.hold_columns` with
    /// `argument` alone; `None` when there is no such trigger.
    pub fn columns_held_for(&self, argument: &str) -> Option<Vec<Column>> {
        // SAFETY: the relation is open, so its descriptors stay.
        unsafe {
            let all = (*self.data.tg_relation).trigdesc.as_ref()?;
            let triggers =
                std::slice::from_raw_parts(all.triggers, usize::try_from(all.numtriggers).ok()?);
            let holder = triggers.iter().find(|trigger| {
                trigger.tgnattr > 0
                    && trigger.tgnargs == 1
                    && arguments(trigger) == [argument]
                    && self.is_sibling(trigger.tgfoid, c"hold_columns")
            })?;
            let numbers =
                std::slice::from_raw_parts(holder.tgattr, usize::try_from(holder.tgnattr).ok()?);
            numbers.iter().map(|&number| self.column(number)).collect()
        }
    }

    /// Whether a function has this name and lies where the function of this trigger does: users
    /// have triggers with column lists and arguments of their own.
    fn is_sibling(&self, function: Oid, name: &CStr) -> bool {
        // SAFETY: catalog look-ups inside a transaction, by oids of the triggers of an open
        // relation; a name that is found is a C string of the current memory context.
        unsafe {
            let own = (*self.data.tg_trigger).tgfoid;
            let found = pg_sys::get_func_name(function);
            !found.is_null()
                && CStr::from_ptr(found) == name
                && pg_sys::get_func_namespace(function) == pg_sys::get_func_namespace(own)
        }
    }

    /// Every column that the table has, in the order of their names: the same order on every
    /// partition, whatever the order of their columns.
    pub fn columns_by_name(&self) -> Vec<Column> {
        // SAFETY: the relation is open.
        let count = unsafe { (*(*self.data.tg_relation).rd_att).natts } as i16;
        let mut columns: Vec<_> = (1..=count).filter_map(|number| self.column(number)).collect();
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        columns
    }

    /// `None` when the column was dropped.
    fn column(&self, number: i16) -> Option<Column> {
        // SAFETY: the relation is open; the wrapper takes a reference of its own.
        let descriptor =
            unsafe { pgrx::PgTupleDesc::from_pg_copy((*self.data.tg_relation).rd_att) };
        let attribute = descriptor.get(usize::try_from(number - 1).ok()?)?;
        if attribute.attisdropped {
            return None;
        }
        Some(Column {
            name: attribute.name().to_owned(),
            attribute: Attribute { number, by_value: attribute.attbyval, len: attribute.attlen },
            encoding: Encoding::of(attribute.atttypid),
        })
    }
}

/// How deep triggers are nested here: 1 in a trigger of the user's own statement.
pub fn depth() -> i32 {
    // SAFETY: takes no arguments and reads a variable.
    unsafe { pgrx::direct_function_call::<i32>(pg_sys::pg_trigger_depth, &[]).unwrap_or(0) }
}

/// # Safety
/// `trigger` must be a trigger of an open relation.
unsafe fn arguments(trigger: &pg_sys::Trigger) -> Vec<String> {
    (0..usize::try_from(trigger.tgnargs).unwrap_or(0))
        // SAFETY: there are as many arguments as it says, each a C string.
        .map(|index| unsafe {
            CStr::from_ptr(*trigger.tgargs.add(index)).to_string_lossy().into_owned()
        })
        .collect()
}
