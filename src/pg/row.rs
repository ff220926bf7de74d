//! Rows as a row trigger sees them.

use pgrx::pg_sys::{self, Datum};

unsafe extern "C-unwind" {
    /// utils/datum.h; not among pgrx's bindings.
    fn datum_image_eq(value1: Datum, value2: Datum, typ_by_val: bool, typ_len: i32) -> bool;
}

/// How the values of a column are passed and stored.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    pub number: i16,
    pub by_value: bool,
    pub len: i16,
}

/// One version of a row, for as long as the trigger runs.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    slot: &'a pg_sys::TupleTableSlot,
}

impl<'a> Row<'a> {
    /// # Safety
    /// `slot` must be a slot that holds a tuple and stays unchanged for `'a`.
    pub(super) unsafe fn new(slot: *mut pg_sys::TupleTableSlot) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { slot.as_ref() }.map(|slot| Row { slot })
    }

    /// The value of a column; `None` is null. The datum may be toasted.
    pub fn value(&self, number: i16) -> Option<Datum> {
        if self.slot.tts_nvalid < number {
            let slot = std::ptr::from_ref(self.slot).cast_mut();
            // SAFETY: deforms the tuple that the slot holds. The slot's arrays are as long as its
            // descriptor, and `number` is an attribute of that descriptor.
            unsafe { pg_sys::slot_getsomeattrs_int(slot, i32::from(number)) };
        }
        let index = usize::try_from(number - 1).ok()?;
        // SAFETY: deformed up to `number` now.
        unsafe {
            if *self.slot.tts_isnull.add(index) {
                None
            } else {
                Some(*self.slot.tts_values.add(index))
            }
        }
    }
}

/// Whether two rows hold the same bytes in a column. Equal values with different bytes differ:
/// that errs on the side of an event, and works for types without an equality.
pub fn same_image(old: Row<'_>, new: Row<'_>, attribute: Attribute) -> bool {
    match (old.value(attribute.number), new.value(attribute.number)) {
        (None, None) => true,
        (Some(old), Some(new)) if attribute.by_value => old.value() == new.value(),
        // SAFETY: both datums are of the attribute's type; it compares sizes before it detoasts.
        (Some(old), Some(new)) => unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                datum_image_eq(old, new, attribute.by_value, i32::from(attribute.len))
            })
        },
        _ => false,
    }
}

/// The bytes of a column, detoasted, to be compared after the row has gone. `None` is null.
pub fn image(row: Row<'_>, attribute: Attribute) -> Option<Vec<u8>> {
    let datum = row.value(attribute.number)?;
    if attribute.by_value {
        return Some(datum.value().to_ne_bytes().to_vec());
    }
    // SAFETY: a datum by reference points to a value of the attribute's length: a varlena for -1,
    // a C string for -2.
    unsafe {
        Some(match attribute.len {
            -1 => super::value::varlena_bytes(datum, <[u8]>::to_vec),
            -2 => std::ffi::CStr::from_ptr(datum.cast_mut_ptr()).to_bytes().to_vec(),
            len => std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), len as usize).to_vec(),
        })
    }
}
