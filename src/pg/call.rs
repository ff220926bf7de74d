//! Calls of SQL functions: of ours whose arguments are handed on rather than read or whose answer
//! is the rows of a statement, and of a function that somebody else has named.

use super::query;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

/// An argument as Postgres passed it.
pub struct Argument {
    value: Option<Datum>,
    type_oid: Oid,
}

impl Argument {
    /// The same value as a parameter of a query.
    pub fn to_query(&self) -> DatumWithOid<'_> {
        match self.value {
            // SAFETY: the value is of this type and lives as long as the call.
            Some(value) => unsafe { DatumWithOid::new(value, self.type_oid) },
            None => DatumWithOid::null_oid(self.type_oid),
        }
    }
}

/// The arguments of a call, with the types that the function is declared with.
///
/// # Safety
/// `fcinfo` must be that of a running function call.
pub unsafe fn arguments(fcinfo: pg_sys::FunctionCallInfo) -> Vec<Argument> {
    // SAFETY: the caller's promise; the call has as many arguments as it says.
    unsafe {
        let call = &*fcinfo;
        let values = call.args.as_slice(usize::try_from(call.nargs).unwrap_or(0));
        values
            .iter()
            .enumerate()
            .map(|(place, argument)| Argument {
                value: (!argument.isnull).then_some(argument.value),
                type_oid: pg_sys::get_fn_expr_argtype(call.flinfo, place as i32),
            })
            .collect()
    }
}

/// A running call of a function that returns a set.
pub struct SetCall {
    fcinfo: pg_sys::FunctionCallInfo,
}

impl SetCall {
    /// # Safety
    /// `fcinfo` must be that of a running call of a function that returns a set, for as long as
    /// this lives.
    pub unsafe fn new(fcinfo: pg_sys::FunctionCallInfo) -> SetCall {
        // SAFETY: the caller's promise. It raises an error where no set is expected.
        unsafe { pg_sys::InitMaterializedSRF(fcinfo, 0) };
        SetCall { fcinfo }
    }

    fn argument(&self, place: usize) -> Option<Datum> {
        // SAFETY: the call has as many arguments as it says.
        unsafe {
            let call = &*self.fcinfo;
            let arguments = call.args.as_slice(usize::try_from(call.nargs).unwrap_or(0));
            arguments.get(place).filter(|argument| !argument.isnull).map(|found| found.value)
        }
    }

    /// An argument that is declared as text.
    pub fn text(&self, place: usize) -> Option<String> {
        // SAFETY: a varlena of text, as it is declared.
        self.argument(place).map(|datum| unsafe {
            super::value::varlena_bytes(datum, |text| String::from_utf8_lossy(text).into_owned())
        })
    }

    /// An argument that is declared as integer.
    pub fn i32(&self, place: usize) -> Option<i32> {
        self.argument(place).map(|datum| datum.value() as i32)
    }

    /// Answers with the rows of a statement that only reads and sees what the caller sees. Its
    /// columns must be of the types that the function is declared with, and its parameters are
    /// texts, which it casts itself.
    pub fn answer(&mut self, statement: &CStr, parameters: &[Option<&str>]) {
        query::session(|| {
            query::select_once(statement, parameters);
            // SAFETY: the rows of the statement that was just run; each is copied.
            unsafe {
                let Some(table) = pg_sys::SPI_tuptable.as_ref() else { return };
                let set = (*(*self.fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>()).setResult;
                let count = usize::try_from(pg_sys::SPI_processed).unwrap_or(0);
                for &row in std::slice::from_raw_parts(table.vals, count) {
                    pg_sys::tuplestore_puttuple(set, row);
                }
            }
        });
    }
}

/// The argument of a function that somebody has named.
pub enum Key<'a> {
    Text(&'a str),
    Uuid([u8; 16]),
    Bigint(i64),
}

impl Key<'_> {
    fn type_oid(&self) -> Oid {
        match self {
            Key::Text(_) => pg_sys::TEXTOID,
            Key::Uuid(_) => pg_sys::UUIDOID,
            Key::Bigint(_) => pg_sys::INT8OID,
        }
    }
}

/// The type of a function's argument; `None` when it is not one that takes one argument and
/// returns one boolean.
pub fn argument_of_predicate(function: Oid) -> Option<Oid> {
    // SAFETY: look-ups in the catalog of a function that exists, inside a transaction; the array
    // is as long as the count.
    unsafe {
        let mut types = std::ptr::null_mut();
        let mut count = 0;
        let result = pg_sys::get_func_signature(function, &mut types, &mut count);
        let is_predicate =
            result == pg_sys::BOOLOID && count == 1 && !pg_sys::get_func_retset(function);
        is_predicate.then(|| *types)
    }
}

/// Asks a function by its id, with the rights of the current user. `None`: it says null, or does
/// not take this key. Whether the user may execute it has been asked before.
pub fn ask(function: Oid, key: &Key<'_>) -> Option<bool> {
    argument_of_predicate(function).filter(|&argument| argument == key.type_oid())?;
    // SAFETY: a call as fmgr.h describes it, of a function with this signature, in memory with
    // room for one argument.
    unsafe {
        let value = match key {
            Key::Text(text) => query::text_datum(text),
            Key::Uuid(bytes) => Datum::from(bytes.as_ptr()),
            Key::Bigint(number) => Datum::from(*number),
        };
        let mut function_info = pg_sys::FmgrInfo::default();
        pg_sys::fmgr_info(function, &mut function_info);
        let size =
            size_of::<pg_sys::FunctionCallInfoBaseData>() + size_of::<pg_sys::NullableDatum>();
        let call = pg_sys::palloc0(size).cast::<pg_sys::FunctionCallInfoBaseData>();
        (*call).flinfo = &mut function_info;
        (*call).fncollation = pg_sys::DEFAULT_COLLATION_OID;
        (*call).nargs = 1;
        if let Some(argument) = (*call).args.as_mut_slice(1).first_mut() {
            *argument = pg_sys::NullableDatum { value, isnull: false };
        }
        let run = function_info.fn_addr?;
        let answer = pg_sys::ffi::pg_guard_ffi_boundary(|| run(call));
        (!(*call).isnull).then_some(answer.value() & 1 == 1)
    }
}
