//! The cluster as a whole: which numbering of transactions this is, and what of it is on disk.

use crate::cursor::Era;
use pgrx::pg_sys;

/// The era of the positions that this database hands out. It lasts until a failover or a restore.
pub fn era() -> Era {
    // SAFETY: they read shared memory; the insertion timeline exists outside recovery only.
    unsafe {
        let mut timeline = 0;
        if is_standby() {
            pg_sys::GetXLogReplayRecPtr(&mut timeline);
        } else {
            timeline = pg_sys::GetWALInsertionTimeLine();
        }
        Era::of(pg_sys::GetSystemIdentifier(), timeline, pg_sys::MyDatabaseId.to_u32())
    }
}

pub fn is_standby() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Writes to disk whatever transactions that have ended have left to write. A position that is
/// taken before the call and handed out after it stays true: were one of the transactions that it
/// calls finished forgotten in a crash, its number would go to another, whose events the position
/// would pass over. Returns at once when there is nothing to write, as is usual.
pub fn make_finished_transactions_durable() {
    // On a standby everything that was replayed is on disk.
    if !is_standby() {
        // SAFETY: works in any backend.
        unsafe { pg_sys::XLogFlush(end_of_log()) };
    }
}

/// Where the last record ends. Postgres says where the next one will begin, which at the start of
/// a page is behind a header that is not there yet, and a flush up to it would fail.
fn end_of_log() -> u64 {
    // SAFETY: reads shared memory, and a variable that is set when the server starts.
    let (next, segment_bytes) =
        unsafe { (pg_sys::GetXLogInsertRecPtr(), pg_sys::wal_segment_size as u64) };
    let in_page = next % u64::from(pg_sys::XLOG_BLCKSZ);
    let header = if next % segment_bytes < u64::from(pg_sys::XLOG_BLCKSZ) {
        size_of::<pg_sys::XLogLongPageHeaderData>()
    } else {
        size_of::<pg_sys::XLogPageHeaderData>()
    };
    if in_page == header as u64 { next - in_page } else { next }
}
