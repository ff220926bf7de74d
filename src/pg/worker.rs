//! Background workers: starting them, being one, and leaving.

use pgrx::bgworkers::{
    BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime, DynamicBackgroundWorker,
};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Oid};
use std::ffi::{CStr, CString};
use std::sync::OnceLock;
use std::time::Duration;

unsafe extern "C-unwind" {
    /// commands/async.h; not among pgrx's bindings.
    fn Async_Listen(channel: *const std::ffi::c_char);
    fn ProcessNotifyInterrupt(flush: bool);
    static mut notifyInterruptPending: i32;
    /// tcop/tcopprot.h and postmaster/interrupt.h: pgrx wraps both, and a signal handler must be
    /// the function itself.
    fn die(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
}

/// Whether the library is being loaded by the postmaster at its start, which is the only time to
/// ask for shared memory and for workers.
pub fn is_preloading() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether pg_upgrade started this server, for itself alone.
pub fn is_binary_upgrade() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Registers the launcher, which the postmaster starts and starts again. Under preload only.
pub fn register_launcher() {
    BackgroundWorkerBuilder::new("pg_outbox launcher")
        .set_type("pg_outbox launcher")
        .set_library("pg_outbox")
        .set_function("outbox_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// A relay that this process has started.
pub struct Started {
    worker: DynamicBackgroundWorker,
}

impl Started {
    /// Starts a relay for a database; `None` when the server has no worker to spare
    /// (`max_worker_processes`).
    pub fn relay(database: u32, name: &str) -> Option<Started> {
        BackgroundWorkerBuilder::new(&format!("pg_outbox relay {name}"))
            .set_type("pg_outbox relay")
            .set_library("pg_outbox")
            .set_function("outbox_relay_main")
            .enable_spi_access()
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            // The launcher starts it again, because it knows whether the database is still there.
            .set_restart_time(None)
            .set_argument(Some(Oid::from(database).into()))
            // SAFETY: reads a variable of this process.
            .set_notify_pid(unsafe { pg_sys::MyProcPid })
            .load_dynamic()
            .ok()
            .map(|worker| Started { worker })
    }

    /// Whether it has ended, for whatever reason.
    pub fn has_ended(&self) -> bool {
        matches!(
            self.worker.pid(),
            Err(BackgroundWorkerStatus::Stopped | BackgroundWorkerStatus::PostmasterDied)
        )
    }
}

/// Signals of a worker: a termination interrupts even a statement that waits, a reload raises a
/// flag that `reload_if_asked` answers.
pub fn install_signal_handlers() {
    // SAFETY: Postgres' own handlers, installed before signals are let in.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        use pg_sys::pqsignal;
        #[cfg(feature = "pg18")]
        use pg_sys::pqsignal_be as pqsignal;
        pqsignal(libc::SIGTERM, Some(die));
        pqsignal(libc::SIGHUP, Some(SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Reads the configuration again when the server was told to. True when it did.
pub fn reload_if_asked() -> bool {
    // SAFETY: a flag of this process, and Postgres' way to answer it between transactions.
    unsafe {
        let asked = std::ptr::addr_of!(pg_sys::ConfigReloadPending).read_volatile() != 0;
        if asked {
            std::ptr::addr_of_mut!(pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
        asked
    }
}

/// Connects to a database by its number, or to none (shared catalogs only), as the bootstrap
/// superuser. Ends the process when the database does not exist.
pub fn connect(database: Option<u32>) {
    let database = database.map_or(Oid::INVALID, Oid::from);
    // SAFETY: called once, at the start of a worker.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(database, Oid::INVALID, 0) };
}

/// Listens on a channel as a doorbell: a NOTIFY sets the latch. Inside a transaction.
pub fn listen(channel: &CStr) {
    // SAFETY: registers with the queue at commit, as LISTEN does; SQL's LISTEN is refused in
    // background workers only because nobody would read their notifications.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| Async_Listen(channel.as_ptr())) };
}

/// Takes notifications off the queue, whose tail would not move otherwise. Between transactions.
/// True when there were any.
pub fn take_notifications() -> bool {
    // SAFETY: a flag of this process; with `false` nothing is sent to a client that is not there.
    unsafe {
        let pending = std::ptr::addr_of!(notifyInterruptPending).read_volatile() != 0;
        if pending {
            pg_sys::ffi::pg_guard_ffi_boundary(|| ProcessNotifyInterrupt(false));
        }
        pending
    }
}

/// Says in `pg_stat_activity` what this worker is doing; `None` is idle.
pub fn report_activity(doing: Option<&str>) {
    let state = match doing {
        Some(_) => pg_sys::BackendState::STATE_RUNNING,
        None => pg_sys::BackendState::STATE_IDLE,
    };
    let text = doing.and_then(|doing| CString::new(doing).ok());
    // SAFETY: copies the text.
    unsafe {
        pg_sys::pgstat_report_activity(
            state,
            text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr()),
        );
    }
}

/// Name under which this worker appears.
pub fn report_application_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: copies the text.
        unsafe { pg_sys::pgstat_report_appname(name.as_ptr()) };
    }
}

/// Runs `leave` when this process ends, however it ends short of a crash. Call once.
pub fn at_exit(leave: fn()) {
    static LEAVE: OnceLock<fn()> = OnceLock::new();

    #[pg_guard]
    unsafe extern "C-unwind" fn on_exit(_code: i32, _argument: pg_sys::Datum) {
        if let Some(leave) = LEAVE.get() {
            leave();
        }
    }

    if LEAVE.set(leave).is_ok() {
        // SAFETY: the callback is registered once and touches shared memory alone.
        unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0usize)) };
    }
}

/// Ends this worker. With 0 nobody starts it again; with 1 whoever watches it does.
pub fn exit(code: i32) -> ! {
    // SAFETY: the way for a backend to end.
    unsafe { pg_sys::proc_exit(code) };
    #[allow(unreachable_code, reason = "the binding does not say that it never returns")]
    {
        unreachable!()
    }
}

/// Number of the database that this backend is connected to; 0 for none.
pub fn database() -> u32 {
    // SAFETY: reads a variable of this backend.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

pub fn pid() -> i32 {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::MyProcPid }
}

/// Terminates another backend of this server, as pg_terminate_backend does. Does nothing for 0: it
/// has not said yet who it is, or has gone, and a signal to 0 is one to ourselves.
pub fn terminate(pid: i32) {
    if pid <= 0 {
        return;
    }
    // SAFETY: a signal; the pid comes from shared memory, where it is erased at exit.
    unsafe { libc::kill(pid, libc::SIGTERM) };
}

/// A database as the launcher sees it.
pub struct Database {
    pub number: u32,
    pub name: String,
}

/// The databases that may have a relay: those that can be connected to and are no templates.
/// Inside a transaction; needs no connection to a database.
pub fn databases() -> Vec<Database> {
    let mut found = Vec::new();
    // SAFETY: scans pg_database as the autovacuum launcher does; closed again.
    unsafe {
        let relation =
            pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            relation,
            Oid::INVALID,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_database>(tuple);
            // A limit of -2 marks a database whose DROP was interrupted.
            if form.datallowconn && !form.datistemplate && form.datconnlimit != -2 {
                let name = CStr::from_ptr(form.datname.data.as_ptr());
                found.push(Database {
                    number: form.oid.to_u32(),
                    name: name.to_string_lossy().into_owned(),
                });
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}
