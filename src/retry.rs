#![forbid(unsafe_code)]
//! When to try again: exponential back-off with full jitter.
//!
//! A sink that fails is tried again after a random time between zero and a bound that doubles
//! with each failure. Random over the whole range rather than around the bound, because many
//! relays that lost one sink together must not come back together; this spreads them best for
//! the same total of calls ("Exponential Backoff and Jitter", AWS Architecture Blog, 2015).

use crate::relay::time::{Duration, Time};

/// Bound of the first wait.
pub const BASE: Duration = Duration::from_ms(250);

/// Bound of every later wait: an operator who mends a sink waits no longer than this.
pub const CAP: Duration = Duration::from_ms(60_000);

/// The time of the next try after `attempts` failures in a row. `chance` is random bits.
/// Always later than `now`, so that who waits for it makes progress.
pub fn retry_at(now: Time, attempts: u32, chance: u64) -> Time {
    let bound_ms = bound(attempts).as_ms();
    now.plus(Duration::from_ms(1 + chance % bound_ms))
}

/// The longest wait after `attempts` failures in a row.
pub fn bound(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(u64::BITS - BASE.as_ms().ilog2() - 2);
    Duration::from_ms((BASE.as_ms() << doublings).min(CAP.as_ms()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let bounds: Vec<u64> = (0..=11).map(|attempts| bound(attempts).as_ms()).collect();
        let doubled = [250, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000];
        assert!(bounds.starts_with(&doubled));
        assert!(bounds.iter().skip(doubled.len()).all(|&ms| ms == 60_000));
        assert_eq!(bound(u32::MAX), CAP);
    }

    #[test]
    fn the_wait_is_spread_over_the_whole_range() {
        let now = Time::from_ms(1_000);
        for attempts in [1, 3, 9, 60, u32::MAX] {
            let longest = bound(attempts).as_ms();
            let wait = |chance| retry_at(now, attempts, chance).since(now).as_ms();
            assert_eq!(wait(0), 1);
            assert_eq!(wait(longest - 1), longest);
            assert_eq!(wait(longest), 1);
            assert!(
                (0..1_000).all(|n| wait(u64::wrapping_mul(n, 0x9e37_79b9_7f4a_7c15)) <= longest)
            );
        }
    }
}
