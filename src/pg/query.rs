//! Statements of the relay: planned once, run often, read without a copy in between.
//!
//! All of it happens inside `tx::run`. Reading statements share the snapshot of the transaction.

use pgrx::pg_sys::{self, Datum};
use std::cell::Cell;
use std::ffi::{CStr, CString};

/// A statement whose plan is kept for the life of the process. Its parameters are texts, which
/// it casts itself.
pub struct Statement {
    text: &'static CStr,
    parameters: usize,
    plan: Cell<pg_sys::SPIPlanPtr>,
}

// A statement is a static of the relay's one thread that talks to Postgres.
// SAFETY: every use goes through `session`, which only the main thread may open.
unsafe impl Sync for Statement {}

/// One row of an answer. Columns are counted from 1.
pub struct Row {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

/// Runs `work` with a session of the server programming interface.
pub fn session<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: connected and finished in pairs; an abort finishes what an error left.
    unsafe {
        pg_sys::SPI_connect();
        let result = work();
        pg_sys::SPI_finish();
        result
    }
}

impl Statement {
    pub const fn new(text: &'static CStr, parameters: usize) -> Statement {
        Statement { text, parameters, plan: Cell::new(std::ptr::null_mut()) }
    }

    fn plan(&self) -> pg_sys::SPIPlanPtr {
        if self.plan.get().is_null() {
            let mut types = vec![pg_sys::TEXTOID; self.parameters];
            // A cursor that outlives its transaction carries that wish in its plan.
            let options = (pg_sys::CURSOR_OPT_HOLD | pg_sys::CURSOR_OPT_NO_SCROLL) as i32;
            // SAFETY: inside a session; a plan that is kept belongs to the process.
            let plan = unsafe {
                let plan = pg_sys::SPI_prepare_cursor(
                    self.text.as_ptr(),
                    self.parameters as i32,
                    types.as_mut_ptr(),
                    options,
                );
                assert!(!plan.is_null(), "a statement of the relay does not parse");
                pg_sys::SPI_keepplan(plan);
                plan
            };
            self.plan.set(plan);
        }
        self.plan.get()
    }

    /// Runs the statement and calls `each` with its rows. Returns how many rows it touched.
    pub fn run(&self, arguments: &[Option<&str>], mut each: impl FnMut(&Row)) -> u64 {
        self.execute(arguments, false, &mut each)
    }

    /// As `run`, for a statement that only reads: it sees what the transaction's snapshot sees.
    pub fn read(&self, arguments: &[Option<&str>], mut each: impl FnMut(&Row)) -> u64 {
        self.execute(arguments, true, &mut each)
    }

    fn execute(
        &self,
        arguments: &[Option<&str>],
        read_only: bool,
        each: &mut dyn FnMut(&Row),
    ) -> u64 {
        let (mut values, nulls) = bind(arguments);
        // SAFETY: as many values as the plan has parameters, all of them texts.
        unsafe {
            assert_eq!(arguments.len(), self.parameters, "a parameter is missing");
            let status = pg_sys::SPI_execute_plan(
                self.plan(),
                values.as_mut_ptr(),
                nulls.as_ptr(),
                read_only,
                0,
            );
            assert!(status >= 0, "a statement of the relay failed");
            each_row(each);
            pg_sys::SPI_processed
        }
    }

    /// Opens a cursor over the rows that the transaction's snapshot sees. It outlives the
    /// transaction if that commits.
    pub fn open(&self, name: &CStr, arguments: &[Option<&str>]) {
        let (mut values, nulls) = bind(arguments);
        // SAFETY: as for `execute`.
        unsafe {
            assert_eq!(arguments.len(), self.parameters, "a parameter is missing");
            pg_sys::SPI_cursor_open(
                name.as_ptr(),
                self.plan(),
                values.as_mut_ptr(),
                nulls.as_ptr(),
                true,
            );
        }
    }
}

/// Runs a statement that only reads, without keeping its plan. Its parameters are texts.
pub fn select_once(text: &CStr, arguments: &[Option<&str>]) {
    let (mut values, nulls) = bind(arguments);
    let mut types = vec![pg_sys::TEXTOID; arguments.len()];
    // SAFETY: inside a session; as many values as types, all of them texts.
    unsafe {
        let status = pg_sys::SPI_execute_with_args(
            text.as_ptr(),
            arguments.len() as i32,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            true,
            0,
        );
        assert!(status >= 0, "a statement failed");
    }
}

/// Calls `each` with the next rows of an open cursor, `count` at most, and returns how many there
/// were; `None` when there is no cursor of this name.
pub fn fetch(name: &CStr, count: i64, mut each: impl FnMut(&Row)) -> Option<u64> {
    // SAFETY: inside a session.
    unsafe {
        let portal = pg_sys::SPI_cursor_find(name.as_ptr());
        if portal.is_null() {
            return None;
        }
        pg_sys::SPI_cursor_fetch(portal, true, count);
        each_row(&mut each);
        pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
        Some(pg_sys::SPI_processed)
    }
}

/// Closes a cursor, if it is there.
pub fn close(name: &CStr) {
    // SAFETY: inside a session.
    unsafe {
        let portal = pg_sys::SPI_cursor_find(name.as_ptr());
        if !portal.is_null() {
            pg_sys::SPI_cursor_close(portal);
        }
    }
}

/// Calls `each` with the rows of the statement that was run last.
pub fn each_row(each: &mut dyn FnMut(&Row)) {
    // SAFETY: the answer of the statement that was run last, which lives until it is freed.
    unsafe {
        let Some(table) = pg_sys::SPI_tuptable.as_ref() else { return };
        let count = usize::try_from(pg_sys::SPI_processed).unwrap_or(0);
        for &tuple in std::slice::from_raw_parts(table.vals, count) {
            each(&Row { tuple, descriptor: table.tupdesc });
        }
    }
}

/// Texts as datums, and the string of blanks and n's that says which of them are null.
fn bind(arguments: &[Option<&str>]) -> (Vec<Datum>, CString) {
    let values =
        arguments.iter().map(|argument| argument.map_or(Datum::from(0usize), text_datum)).collect();
    let nulls = arguments.iter().map(|argument| if argument.is_none() { b'n' } else { b' ' });
    (values, CString::new(nulls.collect::<Vec<u8>>()).unwrap_or_default())
}

pub fn text_datum(text: &str) -> Datum {
    // SAFETY: copies the text into the session's memory.
    unsafe {
        Datum::from(pg_sys::cstring_to_text_with_len(text.as_ptr().cast(), text.len() as i32))
    }
}

impl Row {
    fn datum(&self, column: i32) -> Option<Datum> {
        let mut is_null = false;
        // SAFETY: a row of the current answer.
        let datum =
            unsafe { pg_sys::SPI_getbinval(self.tuple, self.descriptor, column, &mut is_null) };
        (!is_null).then_some(datum)
    }

    /// A bigint, or a timestamptz in Postgres' microseconds.
    pub fn i64(&self, column: i32) -> Option<i64> {
        self.datum(column).map(|datum| datum.value() as i64)
    }

    pub fn i32(&self, column: i32) -> Option<i32> {
        self.datum(column).map(|datum| datum.value() as i32)
    }

    pub fn i16(&self, column: i32) -> Option<i16> {
        self.datum(column).map(|datum| datum.value() as i16)
    }

    pub fn oid(&self, column: i32) -> Option<pg_sys::Oid> {
        self.datum(column).map(|datum| pg_sys::Oid::from(datum.value() as u32))
    }

    pub fn bool(&self, column: i32) -> Option<bool> {
        self.datum(column).map(|datum| datum.value() & 1 == 1)
    }

    pub fn uuid(&self, column: i32) -> Option<[u8; 16]> {
        // SAFETY: a uuid is sixteen bytes by reference.
        self.datum(column).map(|datum| unsafe { *datum.cast_mut_ptr::<[u8; 16]>() })
    }

    /// A text, or a json as its text.
    pub fn text(&self, column: i32) -> Option<String> {
        // SAFETY: a varlena of text; the database is in UTF-8.
        self.datum(column).map(|datum| unsafe {
            super::value::varlena_bytes(datum, |text| String::from_utf8_lossy(text).into_owned())
        })
    }
}
