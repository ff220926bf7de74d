//! Values of columns as text and as JSON, the same whatever the session's settings are.

use crate::event::EventId;
use crate::json;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::{CStr, c_char};

/// Numbers beyond this lose digits in JavaScript, so they travel as strings.
const EXACT_MAX: u64 = 1 << 53;

/// How values of a type are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Bool,
    Int2,
    Int4,
    Int8,
    Uuid,
    /// text, varchar, bpchar: a varlena of text.
    Text,
    /// json: its text is JSON already.
    Json,
    /// Dates and times, in ISO 8601 whatever DateStyle says, and in UTC.
    DateTime(Oid),
    /// numeric, float4, float8: a number where JSON has one.
    Number {
        output: Oid,
    },
    /// jsonb: its output is JSON already.
    JsonOutput {
        output: Oid,
    },
    /// Everything else is the text of its output function.
    Other {
        output: Oid,
    },
}

impl Encoding {
    /// Of a type, or of the type under a domain. Looks into the catalog.
    pub fn of(type_oid: Oid) -> Encoding {
        // SAFETY: catalog look-ups inside a transaction.
        let base = unsafe { pg_sys::getBaseType(type_oid) };
        match base {
            pg_sys::BOOLOID => Encoding::Bool,
            pg_sys::INT2OID => Encoding::Int2,
            pg_sys::INT4OID => Encoding::Int4,
            pg_sys::INT8OID => Encoding::Int8,
            pg_sys::UUIDOID => Encoding::Uuid,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Encoding::Text,
            pg_sys::JSONOID => Encoding::Json,
            pg_sys::DATEOID
            | pg_sys::TIMEOID
            | pg_sys::TIMETZOID
            | pg_sys::TIMESTAMPOID
            | pg_sys::TIMESTAMPTZOID => Encoding::DateTime(base),
            pg_sys::NUMERICOID | pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => {
                Encoding::Number { output: output_function(base) }
            }
            pg_sys::JSONBOID => Encoding::JsonOutput { output: output_function(base) },
            _ => Encoding::Other { output: output_function(base) },
        }
    }

    /// Appends the value as JSON.
    ///
    /// The datum must be of the type that this encoding was made for.
    pub fn write_json(self, datum: Datum, out: &mut Vec<u8>) {
        match self {
            Encoding::Bool => {
                out.extend_from_slice(if datum.value() & 1 == 1 { b"true" } else { b"false" });
            }
            Encoding::Int2 => write_integer(i64::from(datum.value() as i16), out),
            Encoding::Int4 => write_integer(i64::from(datum.value() as i32), out),
            Encoding::Int8 => write_integer(datum.value() as i64, out),
            Encoding::Json => write_text(datum, out),
            Encoding::JsonOutput { output } => write_output(output, datum, out),
            Encoding::Number { output } => write_number(output, datum, out),
            Encoding::Uuid | Encoding::DateTime(_) => {
                out.push(b'"');
                self.write_text(datum, out);
                out.push(b'"');
            }
            Encoding::Text => {
                // SAFETY: a varlena of text, by the encoding.
                unsafe { varlena_bytes(datum, |text| json::write_utf8(out, text)) }
            }
            Encoding::Other { output } => {
                let mut text = Vec::new();
                write_output(output, datum, &mut text);
                json::write_utf8(out, &text);
            }
        }
    }

    /// Appends the value as text.
    ///
    /// The datum must be of the type that this encoding was made for.
    pub fn write_text(self, datum: Datum, out: &mut Vec<u8>) {
        match self {
            Encoding::Bool | Encoding::Int2 | Encoding::Int4 => self.write_json(datum, out),
            Encoding::Int8 => out.extend_from_slice((datum.value() as i64).to_string().as_bytes()),
            Encoding::Uuid => {
                // SAFETY: a uuid is sixteen bytes by reference.
                let bytes = unsafe { &*datum.cast_mut_ptr::<[u8; 16]>() };
                EventId::from_bytes(*bytes)
                    .with_text(|text| out.extend_from_slice(text.as_bytes()));
            }
            Encoding::Text | Encoding::Json => write_text(datum, out),
            Encoding::DateTime(type_oid) => write_date_time(type_oid, datum, out),
            Encoding::Number { output }
            | Encoding::JsonOutput { output }
            | Encoding::Other { output } => write_output(output, datum, out),
        }
    }
}

/// Calls `read` with the bytes of a varlena, detoasted when it has to be.
///
/// # Safety
/// `datum` must point to a valid varlena.
pub(super) unsafe fn varlena_bytes<R>(datum: Datum, read: impl FnOnce(&[u8]) -> R) -> R {
    // SAFETY: the caller's promise; what detoasting allocates goes with the memory context of the
    // trigger call.
    unsafe {
        let detoasted = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        let len = pgrx::varsize_any_exhdr(detoasted);
        read(std::slice::from_raw_parts(pgrx::vardata_any(detoasted).cast::<u8>(), len))
    }
}

fn write_integer(value: i64, out: &mut Vec<u8>) {
    let exact = value.unsigned_abs() <= EXACT_MAX;
    let text = value.to_string();
    if exact {
        out.extend_from_slice(text.as_bytes());
    } else {
        json::write_text(out, &text);
    }
}

fn write_number(output: Oid, datum: Datum, out: &mut Vec<u8>) {
    let mut text = Vec::new();
    write_output(output, datum, &mut text);
    // By its digits: as a double, 2^53 + 1 is 2^53. NaN, Infinity and 1e+300 have no such digits.
    let digits = text.strip_prefix(b"-").unwrap_or(&text);
    let mut parts = digits.split(|&byte| byte == b'.');
    let whole = parts.next().and_then(|whole| std::str::from_utf8(whole).ok()?.parse::<u64>().ok());
    let rest_is_digits = parts.flatten().all(u8::is_ascii_digit);
    if rest_is_digits && whole.is_some_and(|whole| whole <= EXACT_MAX) {
        out.extend_from_slice(&text);
    } else {
        json::write_utf8(out, &text);
    }
}

fn write_text(datum: Datum, out: &mut Vec<u8>) {
    // SAFETY: a varlena of text, by the encoding.
    unsafe { varlena_bytes(datum, |text| out.extend_from_slice(text)) }
}

fn write_date_time(type_oid: Oid, datum: Datum, out: &mut Vec<u8>) {
    /// MAXDATELEN of datetime.h, with room to spare.
    const DATE_LEN_MAX: usize = 128;
    let mut buffer = [0 as c_char; DATE_LEN_MAX + 1];
    let utc: i32 = 0;
    // SAFETY: the buffer is as long as the function may write; the zone is read when the type has
    // one.
    unsafe {
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), datum, type_oid, &utc);
        out.extend_from_slice(CStr::from_ptr(buffer.as_ptr()).to_bytes());
    }
}

fn write_output(output: Oid, datum: Datum, out: &mut Vec<u8>) {
    // SAFETY: the output function of the datum's type; the text goes with the memory context.
    unsafe {
        let text = pg_sys::OidOutputFunctionCall(output, datum);
        out.extend_from_slice(CStr::from_ptr(text).to_bytes());
        pg_sys::pfree(text.cast());
    }
}

fn output_function(type_oid: Oid) -> Oid {
    let mut output = Oid::INVALID;
    let mut is_varlena = false;
    // SAFETY: a catalog look-up inside a transaction.
    unsafe { pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut is_varlena) };
    output
}
