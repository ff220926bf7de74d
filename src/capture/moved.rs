//! Rows that move between partitions.
//!
//! To row triggers such an UPDATE is a DELETE on one partition and an INSERT on another, one right
//! after the other. The DELETE says that its row is moving; what it leaves is kept until the
//! INSERT comes, and the two are one update. When a trigger of the destination turns the row away,
//! no INSERT comes, and the row is deleted.

use super::source::Source;
use super::{Capture, Identity, identity};
use crate::pg::row::{Row, image};
use crate::pg::trigger::{self, Change};
use crate::pg::xact;

/// A row that has left its partition and has not arrived.
pub struct Moved {
    source_id: i32,
    deleted_type: Option<i16>,
    /// `None` when it had no organisation.
    pub identity: Option<Identity>,
    /// Of the watched columns, in an order that all partitions share.
    images: Vec<Option<Vec<u8>>>,
    /// Statements inside triggers come in between, deeper down.
    depth: i32,
    level: i32,
}

impl Moved {
    /// Whether a watched column has changed on the way.
    pub fn differs(&self, source: &Source, new: Row<'_>) -> bool {
        let images = source.watch.iter().map(|&watched| image(new, watched));
        !self.images.iter().cloned().eq(images)
    }
}

/// Keeps what a row leaves behind.
pub fn depart(source: &Source, old: Row<'_>) -> Moved {
    Moved {
        source_id: source.id,
        deleted_type: source.deleted_type,
        identity: identity(source, old),
        images: source.watch.iter().map(|&watched| image(old, watched)).collect(),
        depth: trigger::depth(),
        level: xact::level(),
    }
}

/// Called with each change: the moving row if this is its arrival. Any other change at its depth
/// or above means that it will not arrive, and makes it a deleted one.
pub fn settle(state: &mut Capture, source: &Source, change: &Change<'_>) -> Option<Moved> {
    let depth = state.moved.as_ref()?.depth;
    let here = trigger::depth();
    if here > depth {
        return None;
    }
    let moved = state.moved.take()?;
    let arrives =
        here == depth && moved.source_id == source.id && matches!(change, Change::Insert { .. });
    if arrives {
        return Some(moved);
    }
    lost(state, moved);
    None
}

/// Nothing more will come: a row that is still moving was turned away.
pub fn settle_all(state: &mut Capture) {
    if let Some(moved) = state.moved.take() {
        lost(state, moved);
    }
}

/// The level was committed into the one above it, and the departure with it.
pub fn release_level(state: &mut Capture, level: i32) {
    if let Some(moved) = &mut state.moved {
        moved.level = moved.level.min(level - 1);
    }
}

/// The level was rolled back, and the departure with it.
pub fn rollback_level(state: &mut Capture, level: i32) {
    state.moved.take_if(|moved| moved.level >= level);
}

fn lost(state: &mut Capture, moved: Moved) {
    if let (Some(type_id), Some(identity)) = (moved.deleted_type, moved.identity) {
        state.append(moved.source_id, type_id, &identity);
    }
}
