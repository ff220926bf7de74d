//! The relay's clock and its dice. Real ones: the core is given their readings.

use super::time::Time;
use crate::pg::heap;
use std::time::{Duration, Instant};

pub struct Clock {
    start: Instant,
    random: u64,
}

impl Clock {
    pub fn new() -> Clock {
        // Without the system's random bits the process number still tells two relays apart.
        let pid = crate::pg::worker::pid();
        let random = heap::random_seed().unwrap_or(u64::from(pid.unsigned_abs()));
        Clock { start: Instant::now(), random }
    }

    /// Milliseconds since the relay started.
    pub fn now(&self) -> Time {
        Time::from_ms(self.start.elapsed().as_millis() as u64)
    }

    /// How long until then; zero when it has passed.
    pub fn until(&self, at: Time) -> Duration {
        let at = self.start + Duration::from_millis(at.as_ms());
        at.saturating_duration_since(Instant::now())
    }

    /// New random bits (xorshift64*, Vigna 2016).
    pub fn chance(&mut self) -> u64 {
        self.random |= 1;
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A time of this clock as Postgres' microseconds.
    pub fn to_timestamp(&self, at: Time) -> i64 {
        let now = self.now();
        let ahead = at.since(now).as_ms() as i64 - now.since(at).as_ms() as i64;
        heap::now() + ahead * 1000
    }
}
