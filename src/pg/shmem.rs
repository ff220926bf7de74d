//! What all processes share: who waits to be woken, and what relays say of themselves.
//!
//! One fixed block made of atomics, so that a committing writer takes no lock to ring a bell. It
//! exists only when the library is preloaded; everywhere else `shared()` is `None` and capture
//! goes on without it.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

/// Databases of one cluster that can have a relay.
pub const RELAYS: usize = 64;
/// Sinks of one database: `outbox.set_sink` refuses more.
pub const SINKS: usize = 16;
/// Sources whose skipped changes are counted, in the whole cluster.
const COUNTS: usize = 1024;
/// Databases that are kept free of relays at one time.
const HOLDS: usize = 16;

pub struct Shared {
    pub launcher: Launcher,
    pub relays: [Relay; RELAYS],
    counts: [Count; COUNTS],
}

/// The launcher's bell and its letter boxes.
pub struct Launcher {
    pub bell: Bell,
    /// Databases that want a relay.
    pub wanted: LetterBox,
    /// Databases whose relay has found that they have no extension.
    pub without_extension: LetterBox,
    holds: [Hold; HOLDS],
}

/// Databases that somebody names and the launcher takes out. 0 is a free place.
pub struct LetterBox {
    databases: [AtomicU32; RELAYS],
}

/// A database that somebody is about to drop, copy or rename: no relay until then.
struct Hold {
    database: AtomicU32,
    until: AtomicI64,
}

/// A process that waits on its latch.
pub struct Bell {
    /// Address of a latch in shared memory: the same in every process. 0 when nobody waits.
    latch: AtomicUsize,
    rung: AtomicBool,
}

pub struct Relay {
    /// 0 is a free place.
    pub database: AtomicU32,
    pub pid: AtomicI32,
    pub bell: Bell,
    /// Counts changes of sinks and secrets.
    pub configuration: AtomicU32,
    /// Postgres' microseconds.
    pub started_at: AtomicI64,
    pub sinks: [SinkReport; SINKS],
}

/// What a relay says of one sink. The relay alone writes; readers look at `version` before and
/// after, and look again when it moved or is odd (a sequence lock).
pub struct SinkReport {
    version: AtomicU32,
    words: [AtomicU64; REPORT_WORDS],
}

const NAME_WORDS: usize = 8;
const ERROR_WORDS: usize = 64;
pub const NUMBERS: usize = 16;
const REPORT_WORDS: usize = 1 + NAME_WORDS + ERROR_WORDS + NUMBERS;

/// One sink's report, as plain values. What the numbers mean is decided by `status`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub sink: String,
    pub error: String,
    pub numbers: [i64; NUMBERS],
}

struct Count {
    /// Database and source; 0 is a free place.
    key: AtomicU64,
    null_orgs: AtomicI64,
    truncates: AtomicI64,
}

/// What capture counts and makes no event of.
#[derive(Clone, Copy)]
pub enum Skipped {
    NullOrg,
    Truncate,
}

static BLOCK: AtomicUsize = AtomicUsize::new(0);

/// The shared block; `None` when the library is not preloaded.
pub fn shared() -> Option<&'static Shared> {
    // SAFETY: set once by `start`, to a block that lives as long as the server. Every field is an
    // atomic, for which all-zero bytes are a valid value.
    unsafe { (BLOCK.load(Ordering::Relaxed) as *const Shared).as_ref() }
}

/// Asks for the block. Call from `_PG_init` under preload only.
pub fn request() {
    static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
    static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

    #[pg_guard]
    unsafe extern "C-unwind" fn on_request() {
        // SAFETY: the hook is called once, in the postmaster.
        unsafe {
            if let Some(previous) = PREVIOUS_REQUEST {
                previous();
            }
            pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
        }
    }

    #[pg_guard]
    unsafe extern "C-unwind" fn on_startup() {
        // SAFETY: the block is as large as requested, and zeroed by whoever makes it first.
        unsafe {
            if let Some(previous) = PREVIOUS_STARTUP {
                previous();
            }
            let mut found = false;
            let block =
                pg_sys::ShmemInitStruct(c"pg_outbox".as_ptr(), size_of::<Shared>(), &mut found);
            if !found {
                std::ptr::write_bytes(block.cast::<u8>(), 0, size_of::<Shared>());
            }
            BLOCK.store(block as usize, Ordering::Relaxed);
        }
    }

    // SAFETY: hooks are chained as their authors ask; runs once in the postmaster.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(on_request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(on_startup);
    }
}

impl Bell {
    /// Wakes the process, once until it answers.
    pub fn ring(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let latch = self.latch.load(Ordering::Acquire) as *mut pg_sys::Latch;
        if !latch.is_null() {
            // SAFETY: a latch of a PGPROC, which is never freed. If its process has gone since,
            // the one that has the PGPROC now wakes up for nothing.
            unsafe { pg_sys::SetLatch(latch) };
        }
    }

    /// Whether somebody has rung and was not answered.
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Whether somebody has rung since the last call.
    pub fn answer(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }

    /// From now on this process is the one that wakes up.
    pub fn take(&self) {
        // SAFETY: reads a variable of this process.
        let latch = unsafe { pg_sys::MyLatch } as usize;
        self.latch.store(latch, Ordering::Release);
        self.rung.store(true, Ordering::Release);
    }

    pub fn leave(&self) {
        self.latch.store(0, Ordering::Release);
    }
}

impl LetterBox {
    /// Names a database. With every place taken the launcher finds it at its next look round.
    pub fn put(&self, database: u32) {
        let _ = self.databases.iter().find(|place| {
            let had = place.compare_exchange(0, database, Ordering::AcqRel, Ordering::Acquire);
            had.is_ok() || had == Err(database)
        });
    }

    /// The databases that were named since the last call.
    pub fn take(&self) -> Vec<u32> {
        let named = self.databases.iter().map(|place| place.swap(0, Ordering::AcqRel));
        named.filter(|&database| database != 0).collect()
    }
}

impl Launcher {
    /// Keeps relays out of a database until the given time (Postgres' microseconds).
    pub fn hold(&self, database: u32, now: i64, until: i64) {
        let place = self.holds.iter().find(|hold| {
            hold.until.load(Ordering::Acquire) <= now
                || hold.database.load(Ordering::Acquire) == database
        });
        if let Some(hold) = place {
            hold.database.store(database, Ordering::Release);
            hold.until.store(until, Ordering::Release);
        }
        // Whoever holds looks for the relay next, which looks for the hold: one sees the other.
        fence(Ordering::SeqCst);
    }

    /// Until when relays are kept out of a database; `None` when they are not.
    pub fn held_until(&self, database: u32, now: i64) -> Option<i64> {
        let held = self.holds.iter().find(|hold| {
            hold.database.load(Ordering::Acquire) == database
                && hold.until.load(Ordering::Acquire) > now
        });
        held.map(|hold| hold.until.load(Ordering::Acquire))
    }
}

impl Relay {
    /// Takes this place for a database. False when somebody has it.
    fn claim(&self, database: u32) -> bool {
        self.database.compare_exchange(0, database, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Gives the place back.
    pub fn release(&self) {
        self.bell.leave();
        self.pid.store(0, Ordering::Release);
        self.sinks.iter().for_each(|place| place.publish(None));
        self.database.store(0, Ordering::Release);
    }
}

impl Shared {
    /// The relay of a database, if one runs.
    pub fn relay(&self, database: u32) -> Option<&Relay> {
        self.relays.iter().find(|relay| relay.database.load(Ordering::Acquire) == database)
    }

    /// Takes a place for the relay of a database; `None` when there is none left, or when another
    /// process serves this database: two would send everything twice.
    pub fn claim_relay(&self, database: u32, pid: i32) -> Option<&Relay> {
        let place = self.relays.iter().find(|place| place.claim(database))?;
        place.pid.store(pid, Ordering::Release);
        // Of two that claim at once each must see the other, so the claim is seen before the look.
        fence(Ordering::SeqCst);
        let is_of_database = |place: &&Relay| place.database.load(Ordering::Acquire) == database;
        if self.relays.iter().filter(is_of_database).count() > 1 {
            place.release();
            return None;
        }
        Some(place)
    }

    pub fn count(&self, database: u32, source: i32, what: Skipped) {
        let key = count_key(database, source);
        let first = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize;
        let place =
            (0..COUNTS).filter_map(|turn| self.counts.get((first + turn) % COUNTS)).find(|count| {
                let had = count.key.compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire);
                had.is_ok() || had == Err(key)
            });
        if let Some(count) = place {
            match what {
                Skipped::NullOrg => count.null_orgs.fetch_add(1, Ordering::Relaxed),
                Skipped::Truncate => count.truncates.fetch_add(1, Ordering::Relaxed),
            };
        }
    }

    /// (source, changes without an organisation, truncates) of a database.
    pub fn counts(&self, database: u32) -> Vec<(i32, i64, i64)> {
        let of_database = |count: &&Count| {
            let key = count.key.load(Ordering::Acquire);
            key != 0 && (key >> 32) as u32 == database
        };
        let counts = self.counts.iter().filter(of_database);
        counts
            .map(|count| {
                let source = count.key.load(Ordering::Acquire) as u32 as i32;
                let null_orgs = count.null_orgs.load(Ordering::Relaxed);
                (source, null_orgs, count.truncates.load(Ordering::Relaxed))
            })
            .collect()
    }
}

fn count_key(database: u32, source: i32) -> u64 {
    (u64::from(database) << 32) | u64::from(source as u32)
}

impl SinkReport {
    /// Publishes a report; `None` clears the place. Only the relay that owns it may call.
    pub fn publish(&self, report: Option<&Report>) {
        let mut words = [0u64; REPORT_WORDS];
        if let Some(report) = report {
            let (used, rest) = words.split_at_mut(1);
            let (name, rest) = rest.split_at_mut(NAME_WORDS);
            let (error, numbers) = rest.split_at_mut(ERROR_WORDS);
            used.fill(1);
            put_text(&report.sink, name);
            put_text(&report.error, error);
            numbers.iter_mut().zip(report.numbers).for_each(|(word, number)| *word = number as u64);
        }
        self.version.fetch_add(1, Ordering::AcqRel);
        for (place, word) in self.words.iter().zip(words) {
            place.store(word, Ordering::Release);
        }
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// The report as it was at one moment; `None` when there is none.
    pub fn read(&self) -> Option<Report> {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let words: Vec<u64> =
                self.words.iter().map(|place| place.load(Ordering::Acquire)).collect();
            if before.is_multiple_of(2) && before == self.version.load(Ordering::Acquire) {
                return parse_report(&words);
            }
            std::hint::spin_loop();
        }
    }
}

fn parse_report(words: &[u64]) -> Option<Report> {
    let (used, rest) = words.split_at_checked(1)?;
    if used != [1] {
        return None;
    }
    let (name, rest) = rest.split_at_checked(NAME_WORDS)?;
    let (error, rest) = rest.split_at_checked(ERROR_WORDS)?;
    let mut numbers = [0; NUMBERS];
    numbers.iter_mut().zip(rest).for_each(|(number, &word)| *number = word as i64);
    Some(Report { sink: get_text(name), error: get_text(error), numbers })
}

/// Cut to the room there is, at a character's end, padded with zeros.
fn put_text(text: &str, words: &mut [u64]) {
    let end = text.floor_char_boundary(words.len() * 8);
    let bytes = text.as_bytes().get(..end).unwrap_or_default();
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut padded = [0; 8];
        padded.iter_mut().zip(chunk).for_each(|(to, &from)| *to = from);
        *word = u64::from_ne_bytes(padded);
    }
}

fn get_text(words: &[u64]) -> String {
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
