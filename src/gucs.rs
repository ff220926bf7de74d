//! The settings `pg_outbox.*`.
//!
//! The relay takes one `snapshot()` at the start of each cycle and looks at nothing else; what
//! runs inside the user's transaction reads the few that concern it through the functions below.

use crate::capture::origin::ORIGIN_BYTES_MAX;
use crate::pg::guc_check;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::CString;
use std::time::Duration;

static DATABASES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"*"));
static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static POLL_INTERVAL_MS: GucSetting<i32> = GucSetting::<i32>::new(5000);
static WAKE_DEBOUNCE_MS: GucSetting<i32> = GucSetting::<i32>::new(1);
static RETENTION_S: GucSetting<i32> = GucSetting::<i32>::new(72 * 3600);
static PRUNE_INTERVAL_S: GucSetting<i32> = GucSetting::<i32>::new(600);
static MEMORY_LIMIT_KB: GucSetting<i32> = GucSetting::<i32>::new(64 << 10);
static CAPTURE: GucSetting<bool> = GucSetting::<bool>::new(true);
static ORIGIN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static ROLE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// What the relay and the launcher go by, as it was at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub enabled: bool,
    pub poll_interval: Duration,
    pub wake_debounce: Duration,
    /// `None` leaves pruning to others.
    pub prune_interval: Option<Duration>,
    pub memory_bytes_max: usize,
    /// `None` is the extension's owner.
    pub role: Option<String>,
}

/// Takes all settings of the relay at once.
pub fn snapshot() -> Settings {
    let ms = |setting: &GucSetting<i32>| Duration::from_millis(setting.get().max(0) as u64);
    Settings {
        enabled: ENABLED.get(),
        poll_interval: ms(&POLL_INTERVAL_MS),
        wake_debounce: ms(&WAKE_DEBOUNCE_MS),
        prune_interval: (PRUNE_INTERVAL_S.get() > 0)
            .then(|| Duration::from_secs(PRUNE_INTERVAL_S.get() as u64)),
        memory_bytes_max: MEMORY_LIMIT_KB.get() as usize * 1024,
        role: text(&ROLE),
    }
}

/// Whether relays run in a database of this name.
pub fn names_database(name: &str) -> bool {
    let list = text(&DATABASES).unwrap_or_default();
    list.split(',')
        .map(|entry| entry.trim().trim_matches('"'))
        .any(|entry| entry == "*" || entry == name)
}

/// Whether changes are captured in this session.
pub fn capture_is_on() -> bool {
    CAPTURE.get()
}

/// How long entries are kept, in seconds.
pub fn retention_seconds() -> i64 {
    i64::from(RETENTION_S.get())
}

/// What the session says of its origin; `None` when it says nothing.
pub fn origin() -> Option<Box<str>> {
    guc_check::borrowed(&ORIGIN, |origin| (!origin.is_empty()).then(|| origin.into())).flatten()
}

fn text(setting: &GucSetting<Option<CString>>) -> Option<String> {
    let text = setting.get()?.into_string().ok()?;
    (!text.is_empty()).then_some(text)
}

/// Defines the settings. Call from `_PG_init`.
pub fn define() {
    define_for_relays();
    define_for_storage();
    define_for_writers();
    guc_check::reserve_prefix(c"pg_outbox");
}

fn define_for_relays() {
    let plain = GucFlags::default();
    GucRegistry::define_string_guc(
        c"pg_outbox.databases",
        c"Databases in which a relay runs.",
        c"A list of names, or * for every database that has the extension.",
        &DATABASES,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_bool_guc(
        c"pg_outbox.enabled",
        c"Sends events. Off: capture goes on, nothing is sent.",
        c"",
        &ENABLED,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_int_guc(
        c"pg_outbox.poll_interval",
        c"How often a relay looks for events without being woken.",
        c"A commit wakes it; this covers prepared transactions and rows that were restored.",
        &POLL_INTERVAL_MS,
        10,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pg_outbox.wake_debounce",
        c"How long a woken relay waits for more.",
        c"",
        &WAKE_DEBOUNCE_MS,
        0,
        1000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pg_outbox.memory_limit",
        c"What each relay may have read and not yet delivered.",
        c"",
        &MEMORY_LIMIT_KB,
        1024,
        16 << 20,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_string_guc(
        c"pg_outbox.role",
        c"Role in whose name relays work. Default: the extension's owner.",
        c"Read when a relay starts.",
        &ROLE,
        GucContext::Sighup,
        plain,
    );
}

fn define_for_storage() {
    GucRegistry::define_int_guc(
        c"pg_outbox.retention",
        c"How long events are kept for replay and catch-up.",
        c"",
        &RETENTION_S,
        60,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"pg_outbox.prune_interval",
        c"How often the relay prunes. 0 leaves it to you.",
        c"",
        &PRUNE_INTERVAL_S,
        0,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
}

fn define_for_writers() {
    GucRegistry::define_bool_guc(
        c"pg_outbox.capture",
        c"Captures changes. Off: this session makes no events, for backfills.",
        c"",
        &CAPTURE,
        GucContext::Suset,
        GucFlags::default(),
    );
    guc_check::define_short_text(
        c"pg_outbox.origin",
        c"Who causes the changes of this session or transaction.",
        c"Travels with their events, so that a client knows its own. At most 64 bytes.",
        &ORIGIN,
        ORIGIN_BYTES_MAX,
    );
}
