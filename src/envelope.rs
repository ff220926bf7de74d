#![forbid(unsafe_code)]
use std::sync::Arc;

use crate::cursor::Position;
use crate::event::Entry;

/// All that an org had to send, and where its cursor stands once it has it.
#[derive(Debug)]
pub struct Message {
    pub org_id: Arc<str>,
    pub cursor: Position,
    /// In the order in which they happened; at least one.
    pub entries: Vec<Arc<Entry>>,
}

/// What became of the events of a batch when it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub messages: u64,
    /// Events listed one by one.
    pub listed: u64,
    /// Events for which a newer one stands.
    pub collapsed: u64,
    /// Refreshes, each of which stands for many events.
    pub refreshes: u64,
    /// Bytes of the body.
    pub bytes: u64,
}
