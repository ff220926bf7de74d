//! Settings with a check of their own, and reading one without a copy.

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicUsize, Ordering};

static SHORT_TEXT_BYTES_MAX: AtomicUsize = AtomicUsize::new(0);

/// Defines a setting that any role may set, to a text of so many bytes at most.
pub fn define_short_text(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
    bytes_max: usize,
) {
    SHORT_TEXT_BYTES_MAX.store(bytes_max, Ordering::Relaxed);
    // SAFETY: the hook is guarded and only looks at the new value.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            name,
            short,
            long,
            setting,
            GucContext::Userset,
            GucFlags::default(),
            Some(is_short),
            None,
            None,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn is_short(
    value: *mut *mut std::ffi::c_char,
    _extra: *mut *mut std::ffi::c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: a C string or null.
    unsafe {
        (*value).is_null()
            || CStr::from_ptr(*value).to_bytes().len()
                <= SHORT_TEXT_BYTES_MAX.load(Ordering::Relaxed)
    }
}

/// Reads a text setting where it lies; `None` when it is not set.
pub fn borrowed<R>(
    setting: &GucSetting<Option<CString>>,
    read: impl FnOnce(&str) -> R,
) -> Option<R> {
    // SAFETY: the setting's own text, which does not change while `read` runs.
    unsafe {
        let text = *setting.as_ptr();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_str().ok().map(read)).flatten()
    }
}

/// Refuses settings under our prefix that do not exist, so that a misspelt one is noticed.
pub fn reserve_prefix(prefix: &CStr) {
    // SAFETY: copies the text.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) };
}
