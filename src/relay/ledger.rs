#![forbid(unsafe_code)]
//! How far the durable cursor may move: never past an entry that has no outcome.
//!
//! What one reading brought is a chunk. Chunks stand in reading order, each with the number of
//! its entries that have no outcome yet; the cursor moves to where a chunk ends once that chunk
//! and all before it have none left. A record of the cursor is a commit, so there is one at a
//! time, and all progress made meanwhile goes into the next.

use std::collections::VecDeque;

use crate::cursor::{Position, Snapshot};
use crate::event::EntryId;
use crate::relay::time::Time;
use crate::retry;

/// Transactions by which the cursor may fall behind while there is nothing to deliver. Recording
/// is itself a transaction: if each advance past nothing were recorded, an idle relay would keep
/// itself awake with its own commits.
const EMPTY_ADVANCE_XIDS: u64 = 10_000;

/// The number of a chunk, counted from the start of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkId(u64);

#[derive(Debug)]
struct Chunk {
    /// Where the reading began, and the snapshot up to which it looked: the cursors of its
    /// messages lie in between.
    before: Position,
    end: Snapshot,
    after: Position,
    outstanding: usize,
}

#[derive(Debug)]
struct Done {
    position: Position,
    /// Whether an entry got its outcome on the way, rather than the cursor passing nothing.
    entries: bool,
}

#[derive(Debug)]
pub struct Ledger {
    chunks: VecDeque<Chunk>,
    first: u64,
    /// Where the cursor may go, beyond what is recorded or being recorded.
    done: Option<Done>,
    recording: Option<Done>,
    recorded: Position,
    failures: u32,
    retry_at: Option<Time>,
}

impl Ledger {
    pub fn new(recorded: Position) -> Self {
        Self {
            chunks: VecDeque::new(),
            first: 0,
            done: None,
            recording: None,
            recorded,
            failures: 0,
            retry_at: None,
        }
    }

    /// The position of the last record.
    pub fn recorded(&self) -> &Position {
        &self.recorded
    }

    /// Enters what a reading from `before` to `after` brought.
    pub fn enter(&mut self, before: &Position, after: Position, entries: usize) -> ChunkId {
        let id = ChunkId(self.first + self.chunks.len() as u64);
        match self.chunks.back_mut() {
            _ if entries > 0 => self.chunks.push_back(Chunk {
                before: before.clone(),
                end: after.horizon().clone(),
                after,
                outstanding: entries,
            }),
            // A reading that brought nothing needs no line of its own: it moves the end of the
            // chunk before.
            Some(last) => last.after = after,
            None if after != *before => self.finish(after, false),
            None => {}
        }
        id
    }

    /// Where the cursor of an org stands when its entries up to `last_id` of the chunk are done.
    pub fn cursor(&self, chunk: ChunkId, last_id: EntryId) -> Option<Position> {
        let chunk = self.chunks.get(self.index(chunk))?;
        Some(Position::within(chunk.before.base.clone(), chunk.end.clone(), last_id))
    }

    /// An entry of the chunk is two from now on.
    pub fn split(&mut self, chunk: ChunkId) {
        let index = self.index(chunk);
        if let Some(chunk) = self.chunks.get_mut(index) {
            chunk.outstanding += 1;
        }
    }

    /// `count` entries of the chunk have their outcome.
    pub fn settle(&mut self, chunk: ChunkId, count: usize) {
        let index = self.index(chunk);
        if let Some(chunk) = self.chunks.get_mut(index) {
            debug_assert!(chunk.outstanding >= count, "an outcome was counted twice");
            chunk.outstanding = chunk.outstanding.saturating_sub(count);
        }
        while self.chunks.front().is_some_and(|c| c.outstanding == 0) {
            if let Some(chunk) = self.chunks.pop_front() {
                self.first += 1;
                self.finish(chunk.after, true);
            }
        }
    }

    /// The position to record now, if there is one to record and none being recorded.
    /// `has_outcomes`: something else is to be recorded with it, if need be where it is already.
    pub fn next_record(&mut self, now: Time, has_outcomes: bool) -> Option<Position> {
        self.retry_at = self.retry_at.filter(|&at| at > now);
        if self.retry_at.is_some() || self.recording.is_some() {
            return None;
        }
        let behind = |done: &Done| {
            let xmax = done.position.horizon().xmax();
            xmax.saturating_sub(self.recorded.horizon().xmax())
        };
        let is_due =
            |done: &mut Done| has_outcomes || done.entries || behind(done) >= EMPTY_ADVANCE_XIDS;
        let stays = || Done { position: self.recorded.clone(), entries: false };
        let done = self.done.take_if(is_due).or_else(|| has_outcomes.then(stays))?;
        let position = done.position.clone();
        self.recording = Some(done);
        Some(position)
    }

    pub fn record_succeeded(&mut self) {
        if let Some(done) = self.recording.take() {
            self.recorded = done.position;
        }
        self.failures = 0;
    }

    pub fn record_failed(&mut self, now: Time, chance: u64) {
        let Some(lost) = self.recording.take() else {
            return;
        };
        match &mut self.done {
            Some(done) => done.entries |= lost.entries,
            None => self.done = Some(lost),
        }
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(retry::retry_at(now, self.failures, chance));
    }

    /// When a failed record is tried again.
    pub fn deadline(&self) -> Option<Time> {
        self.retry_at
    }

    fn finish(&mut self, position: Position, entries: bool) {
        let entries = entries || self.done.as_ref().is_some_and(|done| done.entries);
        self.done = Some(Done { position, entries });
    }

    fn index(&self, chunk: ChunkId) -> usize {
        usize::try_from(chunk.0.wrapping_sub(self.first)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
#[path = "ledger_test.rs"]
mod tests;
