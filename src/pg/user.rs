//! Whose rights a piece of work has.

use pgrx::pg_sys::{self, Oid};

/// The role in whose name the current statement runs.
pub fn current() -> Oid {
    // SAFETY: reads a variable of this backend.
    unsafe { pg_sys::GetUserId() }
}

/// Whether one role has the rights of another: as a member that inherits them, or as a superuser.
pub fn has_rights_of(role: Oid, of: Oid) -> bool {
    // SAFETY: a look-up in the catalog, inside a transaction.
    unsafe { pg_sys::has_privs_of_role(role, of) }
}

/// A role by its name; `None` when there is none.
pub fn role(name: &str) -> Option<Oid> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a look-up in the catalog, inside a transaction.
    let oid = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (oid != Oid::INVALID).then_some(oid)
}

pub fn is_superuser(role: Oid) -> bool {
    // SAFETY: a look-up in the catalog, inside a transaction.
    unsafe { pg_sys::superuser_arg(role) }
}

/// Whether no policy holds for the role.
pub fn bypasses_policies(role: Oid) -> bool {
    // SAFETY: a look-up in the catalog, inside a transaction.
    unsafe { pg_sys::has_bypassrls_privilege(role) }
}

/// Whether one role could SET ROLE to another.
pub fn may_become(role: Oid, other: Oid) -> bool {
    // SAFETY: a look-up in the catalog, inside a transaction.
    unsafe { pg_sys::is_member_of_role(role, other) }
}

/// Runs `work` with the rights of another role, and nothing else changed.
pub fn in_the_name_of<R>(role: Oid, work: impl FnOnce() -> R) -> R {
    let mut previous = Oid::INVALID;
    let mut context = 0;
    // SAFETY: switched back below; after an error the (sub)transaction's abort does it.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut previous, &mut context);
        let local = context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(role, local);
        let result = work();
        pg_sys::SetUserIdAndSecContext(previous, context);
        result
    }
}

/// Runs `work` with the rights of another role and a search path of its own, as a SECURITY DEFINER
/// function that pins its path would: an operator in a schema of the caller's would run as `role`.
pub fn acting_as<R>(role: Oid, work: impl FnOnce() -> R) -> R {
    in_the_name_of(role, || {
        let level = super::setting::pin_path();
        let result = work();
        super::setting::unpin_path(level);
        result
    })
}

/// Keeps DROP EXTENSION away until the transaction ends, and waits for one that is under way. It
/// locks the extension before it locks what belongs to it, so whoever does this first shares no
/// deadlock with it.
pub fn hold_extension() {
    // SAFETY: look-ups and a lock inside a transaction.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"pg_outbox".as_ptr(), true);
        if extension != Oid::INVALID {
            let mode = pg_sys::AccessShareLock as i32;
            pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, extension, 0, mode);
        }
    }
}

/// Owner of this extension; `None` when it does not exist in this database.
pub fn extension_owner() -> Option<Oid> {
    // SAFETY: scans pg_extension by its index on the name, inside a transaction; closed again.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"pg_outbox".as_ptr(), true);
        if extension == Oid::INVALID {
            return None;
        }
        let relation =
            pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as i32);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_extension_oid as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::F_OIDEQ.into(),
            extension.into(),
        );
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::ExtensionOidIndexId.into(),
            true,
            std::ptr::null_mut(),
            1,
            &mut key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let owner = (!tuple.is_null()).then(|| {
            (*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_extension>(tuple)).extowner
        });
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        owner
    }
}
