//! Settings that belong to others.

use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// Value of a setting that may not exist; `None` when it does not, or is empty.
pub fn custom(name: &CStr) -> Option<String> {
    // SAFETY: returns a text of the settings' own memory, copied here.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if value.is_null() {
            return None;
        }
        let text = CStr::from_ptr(value).to_str().ok()?;
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// Where names are looked up that are not qualified: where nobody but a superuser can put any.
const PATH: &CStr = c"pg_catalog, pg_temp";

/// Pins the search path until `unpin_path` is called with what this returns, or until the
/// (sub)transaction is rolled back.
pub(super) fn pin_path() -> i32 {
    // SAFETY: what a function with a SET clause does before it runs (fmgr_security_definer).
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            PATH.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        level
    }
}

pub(super) fn unpin_path(level: i32) {
    // SAFETY: puts back what was set since `pin_path`.
    unsafe { pg_sys::AtEOXact_GUC(true, level) };
}

/// Takes on a role for the rest of this worker's life; the extension's owner when none is named.
/// Inside a transaction.
pub fn take_role(name: Option<&str>) {
    let named = name.and_then(|name| CString::new(name).ok());
    // SAFETY: the role's name is copied by the setting.
    unsafe {
        let name = match (&named, super::user::extension_owner()) {
            (Some(name), _) => name.as_ptr(),
            (None, Some(owner)) => pg_sys::GetUserNameFromId(owner, false),
            (None, None) => return,
        };
        set(c"role", name);
    }
}

/// Settings of a database or a role that would stop a relay, or run code of the database's owner
/// in it, do not concern it. Its plans walk indexes, whatever the statistics of an empty or a full
/// outbox say.
pub fn work_undisturbed() {
    // A plan that may not scan is given a forbidding cost, for which JIT would compile it: 100 ms
    // where running it takes one.
    let off = [c"enable_seqscan", c"enable_bitmapscan", c"jit", c"max_parallel_workers_per_gather"];
    for name in off {
        // SAFETY: as above; 0 is off, too.
        unsafe { set(name, c"0".as_ptr()) };
    }
    let others = [
        (c"search_path", PATH),
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        (c"transaction_timeout", c"0"),
        (c"plan_cache_mode", c"force_generic_plan"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        (c"lock_timeout", c"0"),
        (c"session_replication_role", c"origin"),
    ];
    for (name, value) in others {
        // SAFETY: as above.
        unsafe { set(name, value.as_ptr()) };
    }
}

/// # Safety
/// `value` must be a C string that the setting takes.
unsafe fn set(name: &CStr, value: *const std::ffi::c_char) {
    // SAFETY: the caller's promise; outside any function, so it lasts for the session.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value,
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}
