//! Statements that concern relays although nothing tells them: DROP EXTENSION, and everything
//! that needs a database without connections.

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;
use std::ffi::CStr;
use std::sync::OnceLock;

/// What the shell wants to know.
pub struct Watchers {
    /// The extension is being dropped from this database.
    pub extension_dropped: fn(),
    /// A statement is about to need the database without connections. Called before it runs.
    pub database_wanted: fn(u32),
}

static WATCHERS: OnceLock<Watchers> = OnceLock::new();
static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;

/// Installs the hooks. Call once, from `_PG_init` under preload.
pub fn watch(watchers: Watchers) {
    if WATCHERS.set(watchers).is_err() {
        return;
    }
    // SAFETY: hooks are chained as their authors ask.
    unsafe {
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(on_access);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(on_utility);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_access(
    access: pg_sys::ObjectAccessType::Type,
    class: Oid,
    object: Oid,
    sub_id: i32,
    argument: *mut std::ffi::c_void,
) {
    // SAFETY: passes on what it was given; the catalog look-up is inside the DROP's transaction.
    unsafe {
        if let Some(previous) = PREVIOUS_ACCESS {
            previous(access, class, object, sub_id, argument);
        }
        if access == pg_sys::ObjectAccessType::OAT_DROP
            && class == pg_sys::ExtensionRelationId
            && object == pg_sys::get_extension_oid(c"pg_outbox".as_ptr(), true)
            && let Some(watchers) = WATCHERS.get()
        {
            (watchers.extension_dropped)();
        }
    }
}

#[pg_guard]
#[expect(clippy::too_many_arguments, reason = "the hook is declared with these")]
unsafe extern "C-unwind" fn on_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: looks at the statement and passes on what it was given.
    unsafe {
        if let Some(name) = database_wanted_by((*statement).utilityStmt)
            && let Some(watchers) = WATCHERS.get()
        {
            let database = pg_sys::get_database_oid(name, true);
            if database != Oid::INVALID && owns(database) {
                (watchers.database_wanted)(database.to_u32());
            }
        }
        macro_rules! pass_to {
            ($next:expr) => {
                $next(
                    statement,
                    query,
                    read_only_tree,
                    context,
                    parameters,
                    environment,
                    receiver,
                    completion,
                )
            };
        }
        match PREVIOUS_UTILITY {
            Some(next) => pass_to!(next),
            None => pass_to!(pg_sys::standard_ProcessUtility),
        }
    }
}

/// Whether the current role may do this to the database at all: a statement that will be refused
/// must not disturb a relay.
///
/// # Safety
/// Inside a transaction.
unsafe fn owns(database: Oid) -> bool {
    // SAFETY: a catalog look-up.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_database_ownercheck(database, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(
            pg_sys::DatabaseRelationId,
            database,
            pg_sys::GetUserId(),
        );
    }
}

/// Name of the database that a statement needs for itself.
///
/// # Safety
/// `statement` must be a utility statement or null.
unsafe fn database_wanted_by(statement: *mut pg_sys::Node) -> Option<*const std::ffi::c_char> {
    // SAFETY: a node says what it is by its tag.
    unsafe {
        match statement.as_ref()?.type_ {
            pg_sys::NodeTag::T_DropdbStmt => {
                Some((*statement.cast::<pg_sys::DropdbStmt>()).dbname.cast_const())
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = &*statement.cast::<pg_sys::RenameStmt>();
                (rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE)
                    .then_some(rename.subname.cast_const())
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                option((*statement.cast::<pg_sys::CreatedbStmt>()).options, c"template")
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let alter = &*statement.cast::<pg_sys::AlterDatabaseStmt>();
                option(alter.options, c"tablespace").map(|_| alter.dbname.cast_const())
            }
            _ => None,
        }
    }
}

/// Value of a string option in a list of them.
///
/// # Safety
/// `options` must be a list of `DefElem` or null.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*const std::ffi::c_char> {
    // SAFETY: the list's cells are what the grammar made them.
    unsafe {
        let list = options.as_ref()?;
        let cells = std::slice::from_raw_parts(list.elements, usize::try_from(list.length).ok()?);
        cells.iter().find_map(|cell| {
            let element = &*cell.ptr_value.cast::<pg_sys::DefElem>();
            let is_wanted = CStr::from_ptr(element.defname) == name && !element.arg.is_null();
            is_wanted.then(|| pg_sys::defGetString(cell.ptr_value.cast()).cast_const())
        })
    }
}
