#![forbid(unsafe_code)]
//! What a transaction has captured and not yet written.
//!
//! Events are appended as records while statements run and are packed into entries (runs) when
//! the transaction is about to commit. Savepoints need no work of their own: the first record of
//! a deeper level leaves a mark, and a rolled-back level cuts back to it.
//!
//! Guarantees: the entries of one organisation are handed to the writer in the order of their
//! events; no entry mixes levels, kinds or organisations; appending is constant time.
//! Deliberately not here: the clock, ids and the heap. `capture::flush` has them.

use std::collections::HashMap;

/// Ids of a run are packed up to here, so that an entry never needs TOAST (2 kB on 8 kB pages).
const RUN_BYTES_MAX: usize = 1800;

/// Beyond this the records of a transaction are written before its commit. What a level has to
/// keep for the ones above it is bounded by the same, for each level.
pub const SPILL_BYTES: usize = 8 << 20;

/// What the events of a run have in common, beside their organisation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Kind {
    /// `None` for events that are no table changes.
    pub source_id: Option<i32>,
    pub type_id: i16,
    /// Of an emitted event; a captured one has its source's.
    pub topic: Option<Box<str>>,
    pub version: Option<i16>,
    pub origin: Option<Box<str>>,
}

/// One event as it is appended.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub org_id: &'a [u8],
    /// The key as a JSON value.
    pub key: &'a [u8],
    /// The included columns as a JSON object.
    pub data: Option<&'a [u8]>,
    /// Given when the caller has been told the id already; such a record is an entry of its own.
    pub event_id: Option<[u8; 16]>,
}

/// An entry to be written: consecutive events of one organisation and kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub kind: u32,
    pub org_id: Box<[u8]>,
    pub event_count: i32,
    /// A JSON array with one key for each event.
    pub ids: Vec<u8>,
    /// A JSON array parallel to `ids`.
    pub data: Option<Vec<u8>>,
    pub event_id: Option<[u8; 16]>,
}

#[derive(Clone, Copy)]
struct Head {
    kind: u32,
    start: usize,
    org_len: u32,
    key_len: u32,
    data_len: Option<u32>,
    event_id: Option<[u8; 16]>,
}

/// Where the records of a transaction level begin.
#[derive(Clone, Copy)]
struct Mark {
    level: i32,
    heads: usize,
    bytes: usize,
}

/// A run of an outer level whose id is drawn while an inner level was being written: it goes to
/// the heap with its own level, so that it lives and dies with it.
struct Parked {
    level: i32,
    id: i64,
    run: Run,
}

#[derive(Default)]
pub struct Buffer {
    kinds: Vec<Kind>,
    kind_ids: HashMap<Kind, u32>,
    bytes: Vec<u8>,
    heads: Vec<Head>,
    marks: Vec<Mark>,
    parked: Vec<Parked>,
    parked_bytes: usize,
}

impl Buffer {
    /// Adds one event of the transaction level `level` (1 is the top).
    pub fn append(&mut self, level: i32, kind: u32, record: Record<'_>) {
        if self.marks.last().is_none_or(|mark| mark.level < level) {
            self.marks.push(Mark { level, heads: self.heads.len(), bytes: self.bytes.len() });
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record.org_id);
        self.bytes.extend_from_slice(record.key);
        if let Some(data) = record.data {
            self.bytes.extend_from_slice(data);
        }
        self.heads.push(Head {
            kind,
            start,
            org_len: record.org_id.len() as u32,
            key_len: record.key.len() as u32,
            data_len: record.data.map(|data| data.len() as u32),
            event_id: record.event_id,
        });
    }

    /// A small number for a kind, the same for equal kinds until the buffer is cleared.
    pub fn intern(&mut self, kind: Kind) -> u32 {
        if let Some(&id) = self.kind_ids.get(&kind) {
            return id;
        }
        let id = self.kinds.len() as u32;
        self.kinds.push(kind.clone());
        self.kind_ids.insert(kind, id);
        id
    }

    /// Whether `level`, the current one, should write what it may.
    pub fn wants_spill(&self, level: i32) -> bool {
        let may_write_parked = self.parked.last().is_some_and(|parked| parked.level >= level);
        self.bytes.len() > SPILL_BYTES || (may_write_parked && self.parked_bytes > SPILL_BYTES)
    }

    /// Whether a level should write its records before it is released: once they are the outer
    /// level's, nothing deeper down can write them, and a loop of subtransactions would pile up.
    pub fn wants_spill_before_release(&self) -> bool {
        self.bytes.len() + self.parked_bytes > SPILL_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.heads.is_empty() && self.parked.is_empty()
    }

    /// A subtransaction of this level was rolled back.
    pub fn rollback_level(&mut self, level: i32) {
        while let Some(mark) = self.marks.pop_if(|mark| mark.level >= level) {
            self.heads.truncate(mark.heads);
            self.bytes.truncate(mark.bytes);
        }
        self.unpark(level);
    }

    /// Drops the parked runs of this level and deeper ones.
    fn unpark(&mut self, level: i32) {
        self.parked.retain(|parked| parked.level < level);
        self.parked_bytes = self.parked.iter().map(Parked::bytes).sum();
    }

    /// A subtransaction of this level was committed into the one above it.
    pub fn release_level(&mut self, level: i32) {
        if let Some(mark) = self.marks.pop_if(|mark| mark.level >= level) {
            let outer = level - 1;
            if self.marks.last().is_none_or(|below| below.level < outer) {
                self.marks.push(Mark { level: outer, ..mark });
            }
        }
        // Parked runs stand in the order of their levels: the deepest are last.
        for parked in self.parked.iter_mut().rev().take_while(|parked| parked.level >= level) {
            parked.level = level - 1;
        }
    }

    /// Empties the buffer down to what must wait for an outer level.
    ///
    /// `draw` gives the next id and is called in the order of events, `write` puts an entry of
    /// `level` into the heap. What belongs to an outer level gets its id now, ahead of what the
    /// inner level writes, and stays parked until its own level is flushed: written any earlier
    /// it would vanish with the inner level.
    ///
    /// # Errors
    /// Those of `draw` and `write`. The buffer is as it was then, also when they unwind: what was
    /// written goes with `level`, which such an error rolls back.
    pub fn flush<E>(
        &mut self,
        level: i32,
        mut draw: impl FnMut() -> Result<i64, E>,
        mut write: impl FnMut(i64, &Run, &Kind) -> Result<(), E>,
    ) -> Result<(), E> {
        let kinds = &self.kinds;
        for Parked { id, run, .. } in self.parked.iter().filter(|parked| parked.level >= level) {
            if let Some(kind) = kinds.get(run.kind as usize) {
                write(*id, run, kind)?;
            }
        }
        let mut waiting = Vec::new();
        let ends = self.marks.iter().skip(1).map(|mark| mark.heads).chain([self.heads.len()]);
        for (mark, end) in self.marks.iter().zip(ends) {
            let heads = self.heads.get(mark.heads..end).unwrap_or_default();
            pack(heads, &self.bytes, |mut run| {
                let id = draw()?;
                if mark.level < level {
                    run.ids.shrink_to_fit();
                    waiting.push(Parked { level: mark.level, id, run });
                    return Ok(());
                }
                match kinds.get(run.kind as usize) {
                    Some(kind) => write(id, &run, kind),
                    None => Ok(()),
                }
            })?;
        }
        self.unpark(level);
        self.parked_bytes += waiting.iter().map(Parked::bytes).sum::<usize>();
        self.parked.append(&mut waiting);
        self.marks.clear();
        self.heads.clear();
        self.bytes.clear();
        Ok(())
    }

    /// The transaction is over. Memory of a large one is given back.
    pub fn clear(&mut self) {
        const KEEP_BYTES: usize = 64 << 10;
        self.kinds.clear();
        self.kind_ids.clear();
        self.heads.clear();
        self.heads.shrink_to(KEEP_BYTES / size_of::<Head>());
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        self.marks.clear();
        self.parked = Vec::new();
        self.parked_bytes = 0;
    }
}

impl Parked {
    /// What it takes in memory.
    fn bytes(&self) -> usize {
        let data = self.run.data.as_ref().map_or(0, Vec::capacity);
        size_of::<Parked>() + self.run.org_id.len() + self.run.ids.capacity() + data
    }
}

/// Packs records into runs and hands each over when it closes: an organisation has one open run
/// at most, so its runs close in the order of its events.
fn pack<E>(
    heads: &[Head],
    bytes: &[u8],
    mut close: impl FnMut(Run) -> Result<(), E>,
) -> Result<(), E> {
    let mut open: Vec<Option<Run>> = Vec::new();
    let mut places: HashMap<&[u8], usize> = HashMap::new();
    let mut last: Option<(&[u8], usize)> = None;
    for head in heads {
        let (org_id, key, data) = parts(head, bytes);
        let place = match last {
            Some((last_org, place)) if last_org == org_id => place,
            _ => *places.entry(org_id).or_insert_with(|| {
                open.push(None);
                open.len() - 1
            }),
        };
        last = Some((org_id, place));
        let Some(slot) = open.get_mut(place) else { continue };
        if let Some(run) = slot.take_if(|run| !fits(run, head, key.len(), data)) {
            close(finish(run))?;
        }
        match slot {
            Some(run) => extend(run, key, data),
            None => *slot = Some(start(head, org_id, key, data)),
        }
    }
    open.into_iter().flatten().try_for_each(|run| close(finish(run)))
}

fn parts<'a>(head: &Head, bytes: &'a [u8]) -> (&'a [u8], &'a [u8], Option<&'a [u8]>) {
    let rest = bytes.get(head.start..).unwrap_or_default();
    let (org_id, rest) = rest.split_at_checked(head.org_len as usize).unwrap_or_default();
    let (key, rest) = rest.split_at_checked(head.key_len as usize).unwrap_or_default();
    (org_id, key, head.data_len.and_then(|len| rest.get(..len as usize)))
}

fn fits(run: &Run, head: &Head, key_len: usize, data: Option<&[u8]>) -> bool {
    let data_len = run.data.as_ref().map_or(0, Vec::len) + data.map_or(0, <[u8]>::len);
    run.kind == head.kind
        && run.event_id.is_none()
        && head.event_id.is_none()
        && run.data.is_some() == data.is_some()
        && run.ids.len() + key_len + data_len + 2 <= RUN_BYTES_MAX
}

fn start(head: &Head, org_id: &[u8], key: &[u8], data: Option<&[u8]>) -> Run {
    Run {
        kind: head.kind,
        org_id: org_id.into(),
        event_count: 1,
        ids: [b"[", key].concat(),
        data: data.map(|data| [b"[", data].concat()),
        event_id: head.event_id,
    }
}

fn extend(run: &mut Run, key: &[u8], data: Option<&[u8]>) {
    run.event_count += 1;
    run.ids.push(b',');
    run.ids.extend_from_slice(key);
    if let (Some(all), Some(data)) = (&mut run.data, data) {
        all.push(b',');
        all.extend_from_slice(data);
    }
}

fn finish(mut run: Run) -> Run {
    run.ids.push(b']');
    if let Some(data) = &mut run.data {
        data.push(b']');
    }
    run
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test should panic")]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// Appends events named by numbers; `org` is one letter.
    fn append(buffer: &mut Buffer, level: i32, kind: &str, org: &str, key: u32) {
        let kind = buffer.intern(Kind { origin: Some(kind.into()), ..Kind::default() });
        let key = key.to_string();
        let record =
            Record { org_id: org.as_bytes(), key: key.as_bytes(), data: None, event_id: None };
        buffer.append(level, kind, record);
    }

    /// Flushes and returns (id, kind, org, ids), sorted by id as the reader would.
    fn flush(buffer: &mut Buffer, level: i32, next: &mut i64) -> Vec<(i64, String)> {
        let mut written = Vec::new();
        let draw = || {
            *next += 1;
            Ok::<_, Infallible>(*next)
        };
        let write = |id: i64, run: &Run, kind: &Kind| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let kind = kind.origin.clone().unwrap();
            written.push((id, format!("{kind} {} {}", text(&run.org_id), text(&run.ids))));
            Ok(())
        };
        buffer.flush(level, draw, write).unwrap();
        written
    }

    fn texts(written: Vec<(i64, String)>) -> Vec<String> {
        written.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn consecutive_events_of_an_org_and_kind_are_one_run() {
        let mut buffer = Buffer::default();
        for key in 1..=3 {
            append(&mut buffer, 1, "created", "a", key);
            append(&mut buffer, 1, "created", "b", key + 10);
        }
        assert_eq!(
            texts(flush(&mut buffer, 1, &mut 0)),
            ["created a [1,2,3]", "created b [11,12,13]"]
        );
        assert!(buffer.is_empty());
    }

    #[test]
    fn another_kind_closes_the_run_of_its_org_alone() {
        let mut buffer = Buffer::default();
        append(&mut buffer, 1, "created", "a", 1);
        append(&mut buffer, 1, "created", "b", 2);
        append(&mut buffer, 1, "updated", "a", 1);
        append(&mut buffer, 1, "created", "a", 3);
        append(&mut buffer, 1, "created", "b", 4);
        let written = flush(&mut buffer, 1, &mut 0);
        assert_eq!(
            texts(written),
            ["created a [1]", "updated a [1]", "created a [3]", "created b [2,4]"]
        );
    }

    #[test]
    fn a_run_stays_below_its_size() {
        let mut buffer = Buffer::default();
        for key in 1_000_000..1_001_000 {
            append(&mut buffer, 1, "created", "a", key);
        }
        let written = flush(&mut buffer, 1, &mut 0);
        assert!(written.iter().all(|(_, text)| text.len() <= RUN_BYTES_MAX + 20));
        assert_eq!(written.len(), 5);
    }

    #[test]
    fn an_event_with_an_id_of_its_own_is_an_entry_of_its_own() {
        let mut buffer = Buffer::default();
        let kind = buffer.intern(Kind::default());
        for id in [Some([1; 16]), Some([2; 16]), None, None] {
            let record = Record { org_id: b"a", key: b"1", data: None, event_id: id };
            buffer.append(1, kind, record);
        }
        let mut ids = Vec::new();
        buffer
            .flush(
                1,
                || Ok::<_, Infallible>(0),
                |_, run, _| {
                    ids.push((run.event_id, run.event_count));
                    Ok(())
                },
            )
            .unwrap();
        assert_eq!(ids, [(Some([1; 16]), 1), (Some([2; 16]), 1), (None, 2)]);
    }

    #[test]
    fn a_rolled_back_level_leaves_nothing() {
        let mut buffer = Buffer::default();
        append(&mut buffer, 1, "k", "a", 1);
        append(&mut buffer, 2, "k", "a", 2);
        append(&mut buffer, 3, "k", "a", 3);
        buffer.release_level(3);
        append(&mut buffer, 2, "k", "a", 4);
        buffer.rollback_level(2);
        append(&mut buffer, 1, "k", "a", 5);
        assert_eq!(texts(flush(&mut buffer, 1, &mut 0)), ["k a [1,5]"]);
    }

    #[test]
    fn a_released_level_belongs_to_the_one_above() {
        let mut buffer = Buffer::default();
        append(&mut buffer, 3, "k", "a", 1);
        buffer.release_level(3);
        append(&mut buffer, 2, "k", "a", 2);
        buffer.rollback_level(3);
        assert_eq!(texts(flush(&mut buffer, 2, &mut 0)), ["k a [1,2]"]);
        append(&mut buffer, 3, "k", "a", 1);
        buffer.release_level(3);
        buffer.rollback_level(2);
        assert!(buffer.is_empty());
    }

    #[test]
    fn an_early_flush_keeps_what_belongs_to_an_outer_level() {
        let mut buffer = Buffer::default();
        let mut next = 0;
        append(&mut buffer, 1, "k", "a", 1);
        append(&mut buffer, 2, "k", "a", 2);
        let inner = flush(&mut buffer, 2, &mut next);
        assert_eq!(inner, [(2, "k a [2]".to_owned())]);
        append(&mut buffer, 2, "k", "a", 3);
        buffer.rollback_level(2);
        append(&mut buffer, 1, "k", "a", 4);
        let outer = flush(&mut buffer, 1, &mut next);
        assert_eq!(outer, [(1, "k a [1]".to_owned()), (3, "k a [4]".to_owned())]);
    }

    #[test]
    fn a_parked_run_vanishes_with_its_level() {
        let mut buffer = Buffer::default();
        let mut next = 0;
        append(&mut buffer, 1, "k", "a", 1);
        append(&mut buffer, 2, "k", "a", 2);
        append(&mut buffer, 3, "k", "a", 3);
        assert_eq!(texts(flush(&mut buffer, 3, &mut next)), ["k a [3]"]);
        buffer.rollback_level(3);
        buffer.rollback_level(2);
        assert_eq!(texts(flush(&mut buffer, 1, &mut next)), ["k a [1]"]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_flush_that_fails_changes_nothing() {
        for failing in 1..=4 {
            let mut buffer = Buffer::default();
            append(&mut buffer, 1, "k", "a", 1);
            append(&mut buffer, 1, "l", "a", 2);
            append(&mut buffer, 2, "k", "a", 3);
            append(&mut buffer, 2, "l", "a", 4);
            let mut next = 0;
            let draw = || {
                next += 1;
                if next == failing { Err("no more ids") } else { Ok(next) }
            };
            assert_eq!(buffer.flush(2, draw, |_, _, _| Ok(())), Err("no more ids"));
            buffer.rollback_level(2);
            append(&mut buffer, 1, "k", "a", 5);
            let written = texts(flush(&mut buffer, 1, &mut 10));
            assert_eq!(written, ["k a [1]", "l a [2]", "k a [5]"], "draw {failing} fails");
        }
    }

    #[test]
    fn a_write_that_fails_loses_no_parked_run() {
        let mut buffer = Buffer::default();
        append(&mut buffer, 1, "k", "a", 1);
        append(&mut buffer, 3, "k", "a", 3);
        let mut next = 0;
        flush(&mut buffer, 3, &mut next);
        append(&mut buffer, 2, "k", "a", 2);
        let failed = buffer.flush(2, || Ok(9), |_, _, _| Err("the disk is full"));
        assert_eq!(failed, Err("the disk is full"));
        buffer.rollback_level(2);
        assert_eq!(flush(&mut buffer, 1, &mut next), [(1, "k a [1]".to_owned())]);
    }

    #[test]
    fn subtransactions_in_a_row_do_not_pile_up() {
        let mut buffer = Buffer::default();
        let mut next = 0;
        let held = |buffer: &Buffer| buffer.bytes.len() + buffer.parked_bytes;
        let mut held_max = 0;
        let org = "o".repeat(1000);
        for turn in 0..40 {
            for key in 0..1000 {
                append(&mut buffer, 2, "k", &org, turn * 1000 + key);
                if buffer.wants_spill(2) {
                    flush(&mut buffer, 2, &mut next);
                }
            }
            if buffer.wants_spill_before_release() {
                flush(&mut buffer, 2, &mut next);
            }
            buffer.release_level(2);
            held_max = held_max.max(held(&buffer));
        }
        assert!(held_max < 2 * SPILL_BYTES, "{held_max} bytes");
        append(&mut buffer, 1, "k", &org, 0);
        flush(&mut buffer, 1, &mut next);
        assert_eq!(held(&buffer), 0);
    }

    #[test]
    fn what_outer_levels_wait_for_is_written_once_they_can() {
        let mut buffer = Buffer::default();
        let mut next = 0;
        let org = "o".repeat(1000);
        for turn in 0..8 {
            // An outer level keeps what it has while inner ones spill.
            for key in 0..5000 {
                append(&mut buffer, 1, "k", &format!("{org}{key}"), turn);
            }
            assert_eq!(buffer.wants_spill(1), turn >= 2, "turn {turn}");
            if buffer.wants_spill(1) {
                flush(&mut buffer, 1, &mut next);
                assert!(buffer.is_empty() && buffer.parked_bytes == 0);
                break;
            }
            append(&mut buffer, 2, "k", "a", turn);
            flush(&mut buffer, 2, &mut next);
            buffer.rollback_level(2);
        }
    }

    #[test]
    fn a_parked_run_moves_up_when_its_level_is_released() {
        let mut buffer = Buffer::default();
        let mut next = 0;
        append(&mut buffer, 2, "k", "a", 2);
        append(&mut buffer, 3, "k", "a", 3);
        flush(&mut buffer, 3, &mut next);
        buffer.release_level(3);
        buffer.release_level(2);
        buffer.rollback_level(2);
        assert_eq!(texts(flush(&mut buffer, 1, &mut next)), ["k a [2]"]);
    }

    #[test]
    fn clearing_forgets_kinds_too() {
        let mut buffer = Buffer::default();
        append(&mut buffer, 1, "k", "a", 1);
        buffer.clear();
        assert!(buffer.is_empty());
        assert!(buffer.kinds.is_empty());
    }
}
