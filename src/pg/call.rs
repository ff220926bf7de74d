//! Calls of SQL functions whose arguments are handed on rather than read.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, Datum, Oid};

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
