#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::collections::VecDeque;

use super::*;

fn at(ms: u64) -> Time {
    Time::from_ms(ms)
}

const RATE: Rate = Rate { burst: 4, window: Duration::from_ms(250) };

#[test]
fn a_bucket_gives_its_burst_and_then_one_each_window() {
    let (mut bucket, mut taken) = (Bucket::default(), Vec::new());
    let begin = 10_000;
    for ms in begin..begin + 1_001 {
        while bucket.token_at(RATE) <= at(ms) {
            bucket.spend(at(ms), RATE);
            taken.push(ms - begin);
        }
    }
    assert_eq!(taken, [0, 0, 0, 0, 250, 500, 750, 1_000]);
}

#[test]
fn a_bucket_fills_up_and_not_over() {
    let mut bucket = Bucket::default();
    (0..4).for_each(|_| bucket.spend(at(10_000), RATE));
    assert_eq!(bucket.token_at(RATE), at(10_250));
    assert_eq!(bucket.full_at(), at(11_000));
    // Long after, it is a burst again and no more.
    (0..4).for_each(|_| bucket.spend(at(99_000), RATE));
    assert_eq!(bucket.token_at(RATE), at(99_250));
}

#[test]
fn a_message_in_a_hundred_parts_owes_one_token() {
    let mut bucket = Bucket::default();
    (0..100).for_each(|_| bucket.spend(at(10_000), RATE));
    assert_eq!(bucket.token_at(RATE), at(10_250));
    (0..100).for_each(|_| bucket.spend(at(10_249), RATE));
    assert_eq!(bucket.token_at(RATE), at(10_499));
}

#[test]
fn a_window_of_nothing_limits_nothing() {
    let rate = Rate { burst: 1, window: Duration::from_ms(0) };
    let mut bucket = Bucket::default();
    (0..1_000).for_each(|_| bucket.spend(at(5), rate));
    assert!(bucket.token_at(rate) <= at(5));
}

/// Realtime's counter as it is described: messages in buckets of 5 s, at most 12 of them kept,
/// the average taken anew at each tick only.
struct Counter {
    limit: f64,
    tick_at_ms: u64,
    current: u32,
    buckets: VecDeque<u32>,
    average: f64,
}

impl Counter {
    /// A counter begins with the first request that it sees.
    fn new(limit: u32, begin_ms: u64) -> Self {
        Self {
            limit: f64::from(limit),
            tick_at_ms: begin_ms + BUCKET_MS,
            current: 0,
            buckets: VecDeque::new(),
            average: 0.0,
        }
    }

    /// Whether the batch is accepted.
    fn take(&mut self, now_ms: u64, messages: u32) -> bool {
        while self.tick_at_ms <= now_ms {
            self.buckets.push_front(std::mem::take(&mut self.current));
            self.buckets.truncate(BUCKETS);
            let sum: u32 = self.buckets.iter().sum();
            self.average = f64::from(sum) / self.buckets.len() as f64 / 5.0;
            self.tick_at_ms += BUCKET_MS;
        }
        let is_accepted = f64::from(messages) + self.average <= self.limit;
        self.current += if is_accepted { messages } else { 0 };
        is_accepted
    }
}

/// Splitmix64.
fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |bound| {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[test]
fn within_the_allowance_nothing_is_refused_however_old_the_counter_is() {
    for seed in 0..25 {
        let mut below = numbers(seed);
        let limit = [1, 2, 10, 100, 1_000][below(5) as usize];
        let mut budget = Budget::new(limit);
        let begin = below(1 << 30);
        // Counters that began at other times: ticks at other moments, other numbers of buckets.
        let mut counters: Vec<Counter> =
            (0..8).map(|n| Counter::new(limit, begin + n * 617 + n / 4 * 20_000)).collect();
        let (mut now, mut sent) = (begin, 0u64);
        while now < begin + 200_000 {
            let allowance = budget.allowance(at(now)).unwrap();
            let wanted = if below(3) == 0 { allowance } else { allowance.min(1 + below(9) as u32) };
            if wanted > 0 {
                budget.spend(at(now), wanted);
                sent += u64::from(wanted);
                let started = counters.iter_mut().filter(|c| c.tick_at_ms <= now + BUCKET_MS);
                for counter in started {
                    let arrival = now + below(40);
                    assert!(counter.take(arrival, wanted), "seed {seed}, {} ms", now - begin);
                }
            }
            now += match below(20) {
                0 => below(12_000),
                1..=9 => below(300),
                _ => 1 + below(10),
            };
        }
        assert!(sent > 0);
    }
}

#[test]
fn the_budget_is_used_and_spread() {
    for limit in [10, 100, 1_000] {
        let mut budget = Budget::new(limit);
        let mut sent = Vec::new();
        for now in 0..120_000 {
            if budget.allowance(at(now)).unwrap() > 0 {
                budget.spend(at(now), 1);
                sent.push(now);
            }
        }
        let share = sent.len() as f64 / 120.0 / f64::from(limit);
        assert!((0.70..=0.80).contains(&share), "{share} of {limit}");
        let longest = sent.windows(2).map(|two| two[1] - two[0]).max().unwrap();
        assert!(longest <= 2_000 / u64::from(limit), "{longest} ms of nothing at {limit}");
    }
}

#[test]
fn a_fresh_budget_allows_a_burst_and_one_message_at_least() {
    for (limit, expected) in [(1_000, 595), (100, 55), (10, 1), (2, 1), (1, 1)] {
        assert_eq!(Budget::new(limit).allowance(at(77)), Some(expected));
    }
    assert_eq!(Budget::new(0).allowance(at(77)), None);
}

#[test]
fn a_batch_is_no_larger_than_the_worst_average_leaves() {
    let mut budget = Budget::new(100);
    let begin = 1_000_000;
    budget.spend(at(begin), 400);
    // 400 in 5 s are 80 a second, of which Realtime may hear up to 5 s later.
    budget.lacking = 0;
    assert_eq!(budget.allowance(at(begin)), Some(15));
    assert_eq!(budget.allowance(at(begin + 10_000)), Some(15));
    // They have left the newest bucket, and are 40 a second in two.
    assert_eq!(budget.allowance(at(begin + 10_500)), Some(55));
    assert_eq!(budget.allowance(at(begin + 64_000)), Some(55), "limited by the burst again");
    assert_eq!(budget.sums()[SLICES], 400);
    budget.allowance(at(begin + 66_000));
    assert_eq!(budget.sums()[SLICES], 0);
    // A clock that jumps by years costs nothing.
    assert_eq!(budget.allowance(at(1 << 60)), Some(55));
}

#[test]
fn the_next_change_is_later_and_soon() {
    let budget = Budget::new(1);
    for now in [0, 1, 249, 1_000_001] {
        assert!((1..=250).contains(&budget.next_change(at(now)).since(at(now)).as_ms()));
    }
}

#[test]
fn a_refusal_for_the_rate_teaches_a_limit_that_grows_back() {
    for (configured, learned) in [(0, 100), (100, 50)] {
        let mut budget = Budget::new(configured);
        let at = |second: u64| Time::from_ms(second * 1_000);
        for second in 0..66 {
            budget.spend(at(second), 2);
        }
        budget.throttled(at(66));
        assert_eq!(budget.limit(), learned, "half of what is allowed, not of what was sent");
        assert_eq!(budget.allowance(at(66)), Some(0));
        assert!(budget.allowance(at(67)).unwrap() >= 1, "one may go out soon, to try");
        budget.throttled(at(70));
        assert_eq!(budget.limit(), learned, "the same lesson");
        budget.throttled(at(82));
        assert_eq!(budget.limit(), learned / 2, "another");
        budget.allowance(at(100));
        assert!(budget.limit() > learned / 2);
        budget.allowance(at(10_000));
        assert_eq!(budget.limit(), configured);
        for minute in 0..30 {
            budget.throttled(at(20_000 + minute * 20));
        }
        assert_eq!(budget.limit(), 1, "never none");
        budget.set_limit(50);
        assert_eq!(budget.limit(), 50);
    }
}

#[test]
fn a_flood_without_a_limit_teaches_half_of_itself() {
    let mut budget = Budget::new(0);
    for second in 0..10 {
        budget.spend(Time::from_ms(second * 1_000), 3_000);
    }
    budget.throttled(Time::from_ms(10_000));
    assert!((1_000..=1_500).contains(&budget.limit()), "{}", budget.limit());
}
