#![forbid(unsafe_code)]
//! Where an entry or a cursor is at home: the database whose transactions it counts.
//!
//! A transaction's number means something in its own cluster alone, and a database that is copied
//! keeps the numbers of the one that it was copied from. So an entry bears the mark of its home,
//! and a cursor the home itself. A database that finds a cursor of another home is a copy: it
//! sends nothing until its owner says that it should.
//!
//! A streaming standby and a base backup have the identifiers of what they replace, and go on.

/// The database that an outbox lies in, as far as transactions are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Drawn by initdb: another one after a dump is restored elsewhere, and after pg_upgrade.
    pub system_identifier: u64,
    /// Oid of the database: another one for a copy by CREATE DATABASE … TEMPLATE.
    pub database: u32,
    /// Oid of `_private.outbox`: another one when a dump is restored over the same database.
    pub outbox: u32,
}

impl Home {
    /// What entries bear: two bytes that tell one home from another, but for one pair of homes in
    /// 65,536. Cursors hold the whole home, so that a copy is never taken for the original, and
    /// `outbox.resume()` knows when two marks are equal by chance.
    ///
    /// The finaliser of MurmurHash3 over each part in turn. It is stored: never change it.
    pub const fn mark(self) -> i16 {
        let both = (self.database as u64) << 32 | self.outbox as u64;
        (mixed(mixed(self.system_identifier) ^ both) >> 48) as i16
    }
}

const fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const HOME: Home =
        Home { system_identifier: 7_600_000_000_000_000_001, database: 5, outbox: 16_400 };

    #[test]
    fn the_mark_of_a_home_is_what_is_stored() {
        assert_eq!(HOME.mark(), -20029);
    }

    #[test]
    fn each_part_changes_the_mark() {
        let mark = HOME.mark();
        assert_ne!(Home { system_identifier: HOME.system_identifier + 1, ..HOME }.mark(), mark);
        assert_ne!(Home { database: HOME.database + 1, ..HOME }.mark(), mark);
        assert_ne!(Home { outbox: HOME.outbox + 1, ..HOME }.mark(), mark);
    }

    #[test]
    fn neighbours_hardly_ever_share_a_mark() {
        let databases = 16_000..18_000;
        let marks: HashSet<i16> =
            databases.clone().map(|database| Home { database, ..HOME }.mark()).collect();
        // Two thousand draws out of 65,536 meet about thirty times.
        assert!(marks.len() > databases.len() - 80, "{} marks", marks.len());
    }
}
