//! Settings that belong to others.

use pgrx::pg_sys;
use std::ffi::CStr;

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
