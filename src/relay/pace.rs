#![forbid(unsafe_code)]
//! How much may be sent: a token bucket for each org, and the account of the tenant's budget.
//!
//! The bucket is what batching is made of. An org's first events leave at once; an org that has
//! used its burst waits for the next token, and what comes meanwhile becomes one message.
//!
//! The budget keeps us below the counter of Supabase Realtime, which refuses a batch when its
//! messages and the average of the past add up to more than the tenant's limit a second. The
//! average is that of the last 1 to 12 whole buckets of 5 s (a young counter has fewer), taken at
//! a tick that we cannot see. Two rules follow. A token bucket keeps every such average so far
//! below the limit that there is always room for a small batch, and spreads what it lets through.
//! And a batch is no larger than what the worst average leaves: the largest over any number of
//! buckets, at any tick of the last 5 s. What is sent counts at once, delivered or not.
//!
//! Not counted, because we cannot see it: deliveries to subscribers, what other servers send,
//! and what a relay sent before it was restarted. `events_per_second` is to be set to what the
//! tenant's limit leaves beside these; the sink's 429 is the net below. It teaches: the limit in
//! force is halved, and grows back by a tenth every few seconds without another 429. Multiplicative
//! both ways, since limits differ by orders of magnitude (Chiu and Jain, 1989, argue for additive
//! growth to be fair among many senders: here is one).

use crate::relay::time::{Duration, Time};

/// A token bucket as one number: the time at which it would be full again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_at: Time,
}

/// The size of every org's bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens of a full bucket; at least 1.
    pub burst: u32,
    /// The time in which one token comes back.
    pub window: Duration,
}

impl Bucket {
    /// When the bucket has a token: in the past or now if it has one.
    pub fn token_at(self, rate: Rate) -> Time {
        let spare = rate.window.times(u64::from(rate.burst.saturating_sub(1)));
        Time::from_ms(self.full_at.as_ms().saturating_sub(spare.as_ms()))
    }

    /// Takes a token. One that is not there yet is borrowed; an org that had to send a message in
    /// many parts, or again and again, owes no more than one, and so waits for one window at most.
    pub fn spend(&mut self, now: Time, rate: Rate) {
        let most = now.plus(rate.window.times(u64::from(rate.burst.max(1))));
        self.full_at = self.full_at.max(now).plus(rate.window).min(most);
    }

    /// When the bucket is as good as one that was never used.
    pub fn full_at(self) -> Time {
        self.full_at
    }
}

/// Realtime's counter: 12 buckets of 5 s.
const BUCKET_MS: u64 = 5_000;
const BUCKETS: usize = 12;

/// The resolution of the account.
const SLICE_MS: u64 = 250;
const SLICES_A_BUCKET: usize = (BUCKET_MS / SLICE_MS) as usize;

/// Slices that a sum takes beside its buckets: the one that an edge may cut, and one for what the
/// network delays.
const SLICES_SPARE: usize = 2;

/// As far as Realtime may look back: all buckets, a tick up to one bucket ago, and the spare.
const SLICES: usize = SLICES_A_BUCKET * (BUCKETS + 1) + SLICES_SPARE;

/// The share of the limit that is sent in the long run, in percent.
const RATE_PERCENT: u64 = 75;

/// The share of one second's limit that may be sent at once, in percent, less the messages below.
const BURST_PERCENT: u64 = 60;

/// So many fewer that a batch of one message always fits beside an average of 5 s.
const BURST_LESS: u64 = BUCKET_MS / 1_000;

/// The share of the limit that a batch and the average before it may add up to.
const BATCH_PERCENT: u64 = 95;

/// A message in the units of the token bucket, chosen so that a millisecond at a limit of one
/// message a second brings [`RATE_PERCENT`] units.
const MESSAGE_UNITS: u64 = 100_000;

/// Refusals within this time are one lesson: the counter that refused remembers the flood, and so
/// refuses what is sent to try it.
const LESSON: Duration = Duration::from_ms(3 * BUCKET_MS);

/// What a tenant without a configured limit is taken to have at the first lesson, unless more was
/// sent of late.
const UNKNOWN_LIMIT: u32 = 200;

/// A limit that was learned grows by a tenth in this time: a wrong lesson is forgotten in minutes.
const GROWTH: Duration = Duration::from_ms(5_000);

/// Beyond this a tenant without a configured limit has none again.
const LEARNED_MAX: u32 = 10_000;

/// How long to wait when the budget is short: some messages come together meanwhile.
const SHORTAGE_MS: u64 = 50;

const _: () = assert!(BUCKET_MS.is_multiple_of(SLICE_MS));
/// The most in the time that a sum covers, a burst and the rate, leaves a batch its room.
const _: () = assert!(
    BURST_PERCENT * 1_000 + RATE_PERCENT * (BUCKET_MS + SLICES_SPARE as u64 * SLICE_MS)
        <= BATCH_PERCENT * BUCKET_MS
);

/// The account of what was sent to one tenant.
#[derive(Debug)]
pub struct Budget {
    /// Messages a second, as configured; 0 is no limit.
    configured: u32,
    /// What refusals have taught, and when it grew last.
    learned: Option<(u32, Time)>,
    /// When the limit was halved last.
    halved_at: Option<Time>,
    /// The smaller of the two.
    limit: u32,
    /// What the token bucket lacks.
    lacking: u64,
    lacking_since: Time,
    /// Messages in each slice, as a ring.
    slices: [u32; SLICES],
    /// The number of the newest slice since the clock's zero.
    newest: u64,
}

impl Budget {
    pub const fn new(limit: u32) -> Self {
        Self {
            configured: limit,
            learned: None,
            halved_at: None,
            limit,
            lacking: 0,
            lacking_since: Time::from_ms(0),
            slices: [0; SLICES],
            newest: 0,
        }
    }

    /// Changes the limit, forgets what refusals have taught, and keeps the account.
    pub const fn set_limit(&mut self, limit: u32) {
        self.configured = limit;
        self.learned = None;
        self.halved_at = None;
        self.limit = limit;
    }

    /// The sink refused a request for its rate.
    pub fn throttled(&mut self, now: Time) {
        if self.halved_at.is_some_and(|at| now.since(at) < LESSON) {
            return;
        }
        self.halved_at = Some(now);
        self.turn(now);
        // Not what was sent: an org that has little to send would teach that little is allowed.
        let in_force = match self.limit {
            0 => {
                let of_late = self.sums().get(SLICES_A_BUCKET).copied().unwrap_or_default();
                let rate = u32::try_from(of_late * 1_000 / BUCKET_MS).unwrap_or(u32::MAX);
                rate.clamp(UNKNOWN_LIMIT, LEARNED_MAX)
            }
            limit => limit,
        };
        self.learned = Some(((in_force / 2).max(1), now));
        self.apply();
        // The account was kept for another limit. From here on it begins with nothing to spend.
        self.slices = [0; SLICES];
        self.lacking = self.capacity();
    }

    /// The limit in force; 0 is none.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    fn apply(&mut self) {
        let most = if self.configured == 0 { LEARNED_MAX } else { self.configured };
        self.learned = self.learned.filter(|&(rate, _)| rate < most);
        self.limit = self.learned.map_or(self.configured, |(rate, _)| rate);
    }

    fn grow(&mut self, now: Time) {
        while let Some((rate, since)) = self.learned {
            if now.since(since) < GROWTH {
                return;
            }
            self.learned = Some((rate + rate.div_ceil(10), since.plus(GROWTH)));
            self.apply();
        }
    }

    /// How many messages one request may carry now; `None` is no limit.
    pub fn allowance(&mut self, now: Time) -> Option<u32> {
        self.grow(now);
        if self.limit == 0 {
            return None;
        }
        self.turn(now);
        let allowance = self.tokens().min(self.largest_batch());
        Some(u32::try_from(allowance).unwrap_or(u32::MAX))
    }

    /// Enters messages that are being sent.
    pub fn spend(&mut self, now: Time, messages: u32) {
        self.turn(now);
        self.lacking += u64::from(messages) * MESSAGE_UNITS;
        let place = (self.newest % SLICES as u64) as usize;
        if let Some(slice) = self.slices.get_mut(place) {
            *slice = slice.saturating_add(messages);
        }
    }

    /// When to ask again after an allowance that was too small: always later than `now`.
    pub fn next_change(&self, now: Time) -> Time {
        now.plus(Duration::from_ms(SHORTAGE_MS))
    }

    /// Messages that the token bucket has.
    fn tokens(&self) -> u64 {
        self.capacity().saturating_sub(self.lacking) / MESSAGE_UNITS
    }

    /// The size of the token bucket in its units, one message at least: a limit of one a second
    /// can be used too.
    fn capacity(&self) -> u64 {
        let burst = (u64::from(self.limit) * BURST_PERCENT).saturating_sub(BURST_LESS * 100);
        (burst * MESSAGE_UNITS / 100).max(MESSAGE_UNITS)
    }

    /// Messages that the worst average leaves.
    fn largest_batch(&self) -> u64 {
        let sums = self.sums();
        let sum = |from: usize, to: usize| {
            let at = |place: usize| sums.get(place).copied().unwrap_or_default();
            at(to) - at(from)
        };
        let ceiling_percent = (u64::from(self.limit) * BATCH_PERCENT).max(100);
        let mut largest = ceiling_percent / 100;
        for ago in 0..SLICES_A_BUCKET {
            for buckets in 1..=BUCKETS {
                let seconds = buckets as u64 * BUCKET_MS / 1_000;
                let sent = sum(ago, ago + buckets * SLICES_A_BUCKET + SLICES_SPARE);
                let room = (ceiling_percent * seconds / 100).saturating_sub(sent);
                largest = largest.min(room / seconds);
            }
        }
        largest
    }

    /// Fills the token bucket and forgets what has grown too old.
    fn turn(&mut self, now: Time) {
        let passed_ms = now.since(self.lacking_since).as_ms();
        let regained = passed_ms.saturating_mul(u64::from(self.limit) * RATE_PERCENT);
        self.lacking = self.lacking.saturating_sub(regained);
        self.lacking_since = self.lacking_since.max(now);

        let newest = now.as_ms() / SLICE_MS;
        let passed = newest.saturating_sub(self.newest).min(SLICES as u64);
        for slice in newest.saturating_sub(passed)..newest {
            let place = ((slice + 1) % SLICES as u64) as usize;
            if let Some(count) = self.slices.get_mut(place) {
                *count = 0;
            }
        }
        self.newest = self.newest.max(newest);
    }

    /// Element n is the number of messages in the newest n slices.
    fn sums(&self) -> [u64; SLICES + 1] {
        let mut sums = [0; SLICES + 1];
        let place = (self.newest % SLICES as u64) as usize;
        let (newer, older) = self.slices.split_at((place + 1).min(SLICES));
        let newest_first = newer.iter().rev().chain(older.iter().rev());
        let mut total = 0;
        for (sum, &count) in sums.iter_mut().skip(1).zip(newest_first) {
            total += u64::from(count);
            *sum = total;
        }
        sums
    }
}

#[cfg(test)]
#[path = "pace_test.rs"]
mod tests;
