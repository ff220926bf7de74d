#![forbid(unsafe_code)]
//! Positions in the outbox: which entries are done, exactly, whatever order they committed in.
//!
//! A number cannot say it: a transaction that took its id early may commit after one that took a
//! later id. A snapshot can: it knows which transactions are visible. A position is therefore a
//! snapshot, and, while a window of entries is being worked through, how far in it by id. The text
//! that clients hold is a [`Cursor`]: it names the era, too, whose transactions it speaks of.
//!
//! Not here: how to find the entries. The store asks the database with the texts of the two
//! snapshots; this module only has the arithmetic and the text that travels.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, ErrorKind};
use crate::event::EntryId;

/// Longest text taken for a cursor. A snapshot lists the transactions in progress, some two bytes
/// each: this is room for ten thousand connections, and nothing an attacker can make expensive.
pub const TEXT_BYTES_MAX: usize = 65_536;

/// Version of the text form, its first byte.
const TEXT_VERSION: u8 = 1;

/// Postgres' first transaction that is not its own; it takes no snapshot below as text.
const FIRST_XID: u64 = 3;

/// Which transactions are visible, as `pg_snapshot` has it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// All transactions below are finished.
    xmin: u64,
    /// This one and all above have not begun.
    xmax: u64,
    /// In progress, ascending, all in `xmin..xmax`.
    xip: Arc<[u64]>,
}

impl Snapshot {
    /// The snapshot that sees nothing: everything in the outbox is new to it.
    pub fn empty() -> Self {
        Self { xmin: FIRST_XID, xmax: FIRST_XID, xip: Arc::default() }
    }

    /// The snapshot that sees everything there can ever be: none of a real database is as far.
    pub fn beyond_all() -> Self {
        Self { xmin: u64::MAX, xmax: u64::MAX, xip: Arc::default() }
    }

    /// # Errors
    /// `InvalidText` when the bounds or the transactions in progress are out of order.
    pub fn new(xmin: u64, xmax: u64, xip: Vec<u64>) -> Result<Self, Error> {
        let inside = xip.iter().all(|xid| (xmin..xmax).contains(xid));
        if xmin > xmax || !inside || !xip.is_sorted_by(|a, b| a < b) {
            return Err(Error::new(ErrorKind::InvalidText, "snapshot is out of order"));
        }
        Ok(Self { xmin, xmax, xip: xip.into() })
    }

    /// Reads the text of a `pg_snapshot`: `xmin:xmax:xip,xip,…`.
    ///
    /// # Errors
    /// `InvalidText`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let malformed = || Error::new(ErrorKind::InvalidText, "malformed snapshot");
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| malformed());
        let mut parts = text.splitn(3, ':');
        let (Some(xmin), Some(xmax), Some(list)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let xip = match list {
            "" => Vec::new(),
            _ => list.split(',').map(number).collect::<Result<_, _>>()?,
        };
        Self::new(number(xmin)?, number(xmax)?, xip)
    }

    pub const fn xmin(&self) -> u64 {
        self.xmin
    }

    pub const fn xmax(&self) -> u64 {
        self.xmax
    }

    pub fn xip(&self) -> &[u64] {
        &self.xip
    }

    /// Whether what the transaction wrote is visible, provided that it committed.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }

    /// Whether everything that `other` sees is visible here too.
    pub fn covers(&self, other: &Self) -> bool {
        let ours_in_progress_hidden = self.xip.iter().all(|&xid| !other.sees(xid));
        // Whatever lies beyond our end must be in progress for `other`. Its list has no
        // duplicates, so counting is enough.
        let beyond = other.xmax.saturating_sub(self.xmax);
        let beyond_in_progress = other.xip.len() - other.xip.partition_point(|&x| x < self.xmax);
        ours_in_progress_hidden && beyond_in_progress as u64 == beyond
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.xip.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{xid}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a window has been worked through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// The window holds what this snapshot sees and the base of its position does not.
    pub end: Snapshot,
    /// The entries of the window up to and including this one are done.
    pub last_id: EntryId,
}

/// A place from which to go on: what is done, and therefore what is not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Everything it sees is done.
    pub base: Snapshot,
    /// `None`: the next window has not been opened; the reader takes the snapshot of its moment.
    pub window: Option<Window>,
}

impl Position {
    /// Everything that `base` sees is done, and nothing else.
    pub fn at(base: Snapshot) -> Self {
        Self { base, window: None }
    }

    /// Within the window from `base` to `end`, everything up to `last_id` is done.
    pub fn within(base: Snapshot, end: Snapshot, last_id: EntryId) -> Self {
        Self { base, window: Some(Window { end, last_id }) }
    }

    /// Whether an entry is done.
    pub fn covers(&self, xid: u64, id: EntryId) -> bool {
        let in_window = |window: &Window| id <= window.last_id && window.end.sees(xid);
        self.base.sees(xid) || self.window.as_ref().is_some_and(in_window)
    }

    /// The snapshot up to which the reading that left this position has looked.
    pub fn horizon(&self) -> &Snapshot {
        self.window.as_ref().map_or(&self.base, |window| &window.end)
    }

    /// The position as clients hold it.
    pub fn stamped(self, era: Era) -> Cursor {
        Cursor { era, position: self }
    }
}

/// Which numbering of transactions a position speaks of, and of which database. Another cluster
/// has another, and so has the same cluster after a failover or a restore to a point in time:
/// transactions that were lost have given their numbers to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Era(u32);

impl Era {
    /// Made of a cluster's identifier, the timeline that it is on, and a database. Thirty-two bits
    /// tell the few eras apart that a client can have met; they are no secret and no proof.
    pub const fn of(system_identifier: u64, timeline: u32, database: u32) -> Self {
        let place = (timeline as u64) << 32 | database as u64;
        // The finalizer of splitmix64: every bit of the input reaches every bit of the output.
        let mut mixed = system_identifier ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((mixed ^ (mixed >> 31)) as u32)
    }

    pub const fn number(self) -> u32 {
        self.0
    }
}

/// A position with the era that it is of: what messages carry and clients give back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub era: Era,
    pub position: Position,
}

impl Cursor {
    /// Reads the text made by `Display`. Made for hostile input: bounded, and never a panic.
    ///
    /// # Errors
    /// `InvalidText` when it is not a whole cursor of a version that is known.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refused = |detail: &str| {
            Error::new(ErrorKind::InvalidText, "invalid cursor")
                .detail(detail)
                .hint("Pass a cursor exactly as it came in a message or from outbox.cursor().")
        };
        if text.len() > TEXT_BYTES_MAX {
            return Err(refused("The text is too long."));
        }
        let bytes = URL_SAFE_NO_PAD.decode(text);
        let bytes = bytes.map_err(|_| refused("The text is not of a cursor's alphabet."))?;
        let mut rest = Bytes(&bytes);
        match rest.byte() {
            Some(TEXT_VERSION) => {}
            Some(_) => return Err(refused("The version of the cursor is not known.")),
            None => return Err(refused("The text is empty.")),
        }
        read_cursor(&mut rest)
            .filter(|_| rest.0.is_empty())
            .ok_or_else(|| refused("The text was cut or changed."))
    }
}

/// The opaque, URL-safe text, for clients and for `outbox.cursor()`.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { base, window } = &self.position;
        let mut bytes = vec![TEXT_VERSION];
        bytes.extend(self.era.0.to_le_bytes());
        write_snapshot(&mut bytes, base, 0);
        match window {
            None => bytes.push(0),
            Some(window) => {
                bytes.push(1);
                write_snapshot(&mut bytes, &window.end, base.xmin);
                write_number(&mut bytes, zigzag(window.last_id.0));
            }
        }
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// A snapshot as differences of neighbours, seven bits a byte: about ten bytes when few
/// transactions are in progress. `floor` is a number it is unlikely to lie below.
fn write_snapshot(bytes: &mut Vec<u8>, snapshot: &Snapshot, floor: u64) {
    write_number(bytes, snapshot.xmin.wrapping_sub(floor));
    write_number(bytes, snapshot.xmax - snapshot.xmin);
    write_number(bytes, snapshot.xip.len() as u64);
    let mut previous = snapshot.xmin;
    for &xid in snapshot.xip.iter() {
        write_number(bytes, xid - previous);
        previous = xid;
    }
}

fn read_cursor(bytes: &mut Bytes) -> Option<Cursor> {
    let era = [bytes.byte()?, bytes.byte()?, bytes.byte()?, bytes.byte()?];
    read_position(bytes).map(|position| position.stamped(Era(u32::from_le_bytes(era))))
}

fn read_position(bytes: &mut Bytes) -> Option<Position> {
    let base = read_snapshot(bytes, 0)?;
    match bytes.byte()? {
        0 => Some(Position::at(base)),
        1 => {
            let end = read_snapshot(bytes, base.xmin)?;
            let last_id = EntryId(unzigzag(bytes.number()?));
            Some(Position::within(base, end, last_id))
        }
        _ => None,
    }
}

fn read_snapshot(bytes: &mut Bytes, floor: u64) -> Option<Snapshot> {
    // No transaction has the number 0, and Postgres takes no snapshot that says so.
    let xmin = Some(bytes.number()?.wrapping_add(floor)).filter(|&xmin| xmin > 0)?;
    let xmax = xmin.checked_add(bytes.number()?)?;
    let count = usize::try_from(bytes.number()?).ok()?;
    // Each takes a byte at least, so a count beyond what is left is a lie, not an allocation.
    if count > bytes.0.len() {
        return None;
    }
    let mut xip = Vec::with_capacity(count);
    let mut previous = xmin;
    for _ in 0..count {
        previous = previous.checked_add(bytes.number()?)?;
        xip.push(previous);
    }
    Snapshot::new(xmin, xmax, xip).ok()
}

/// Little-endian groups of seven bits, the high bit set on all but the last.
fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Interleaves negative and positive numbers so that small ones of either sign are short.
const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// What is left to read of a cursor's bytes.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// `None` for a number that is cut, overflows, or has a longer form than it needs: one
    /// position has one text.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return (bits != 0 || shift == 0).then_some(number);
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "cursor_test.rs"]
mod tests;
