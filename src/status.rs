//! What a relay says of its sinks, between shared memory and SQL.
//!
//! Not a source of truth: it is gone with the server, and nothing decides by it.

use crate::pg::shmem::{self, NUMBERS, Relay, Report};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use std::sync::atomic::Ordering;

/// State of one sink as operators see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SinkStatus {
    pub sink: String,
    pub shard: i16,
    /// The sink failed and is waited for; else it runs.
    pub is_waiting: bool,
    pub in_flight: i32,
    /// Failed attempts since the last success.
    pub attempts: i32,
    /// What went wrong last, and what to do; empty when nothing has.
    pub last_error: String,
    /// Postgres' microseconds; 0 is never.
    pub last_error_at: i64,
    pub retry_at: i64,
    pub counters: Counters,
    /// Events a second, of late, in thousandths.
    pub event_rate_milli: i64,
}

/// Totals since the relay started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    pub events_delivered: i64,
    pub events_collapsed: i64,
    pub refreshes: i64,
    pub messages: i64,
    pub requests: i64,
    pub failures: i64,
    pub refused: i64,
    pub dead_letters: i64,
    pub bytes_sent: i64,
}

impl SinkStatus {
    /// Whether the log knows already what this one would have it told.
    pub fn says_the_same(&self, other: &SinkStatus) -> bool {
        self.sink == other.sink && self.last_error == other.last_error
    }

    pub fn to_report(&self) -> Report {
        let counters = self.counters;
        let mut numbers = [0; NUMBERS];
        let values = [
            i64::from(self.shard),
            i64::from(self.is_waiting),
            i64::from(self.in_flight),
            i64::from(self.attempts),
            self.last_error_at,
            self.retry_at,
            counters.events_delivered,
            counters.events_collapsed,
            counters.refreshes,
            counters.messages,
            counters.requests,
            counters.failures,
            counters.bytes_sent,
            self.event_rate_milli,
            counters.refused,
            counters.dead_letters,
        ];
        numbers.iter_mut().zip(values).for_each(|(number, value)| *number = value);
        Report { sink: self.sink.clone(), error: self.last_error.clone(), numbers }
    }

    fn from_report(report: Report) -> SinkStatus {
        let [
            shard,
            is_waiting,
            in_flight,
            attempts,
            last_error_at,
            retry_at,
            events_delivered,
            events_collapsed,
            refreshes,
            messages,
            requests,
            failures,
            bytes_sent,
            event_rate_milli,
            refused,
            dead_letters,
        ] = report.numbers;
        SinkStatus {
            sink: report.sink,
            shard: shard as i16,
            is_waiting: is_waiting != 0,
            in_flight: in_flight as i32,
            attempts: attempts as i32,
            last_error: report.error,
            last_error_at,
            retry_at,
            counters: Counters {
                events_delivered,
                events_collapsed,
                refreshes,
                messages,
                requests,
                failures,
                refused,
                dead_letters,
                bytes_sent,
            },
            event_rate_milli,
        }
    }
}

/// Publishes the state of all sinks of a relay.
pub fn publish(relay: &Relay, sinks: &[SinkStatus]) {
    for (index, place) in relay.sinks.iter().enumerate() {
        place.publish(sinks.get(index).map(SinkStatus::to_report).as_ref());
    }
}

/// The sinks of the relay of a database, and when it started; `None` when there is none.
fn sinks_of(database: u32) -> Option<(i64, Vec<SinkStatus>)> {
    let relay = shmem::shared()?.relay(database)?;
    let reports = relay.sinks.iter().filter_map(|place| place.read());
    Some((relay.started_at.load(Ordering::Acquire), reports.map(SinkStatus::from_report).collect()))
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity, reason = "the columns of the SQL function")]
fn relay_status() -> TableIterator<
    'static,
    (
        name!(sink, String),
        name!(shard, i16),
        name!(state, &'static str),
        name!(in_flight, i32),
        name!(attempts, i32),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
        name!(retry_at, Option<TimestampWithTimeZone>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(events_delivered, i64),
        name!(events_collapsed, i64),
        name!(refreshes, i64),
        name!(messages, i64),
        name!(requests, i64),
        name!(failures, i64),
        name!(refused, i64),
        name!(dead_letters, i64),
        name!(bytes_sent, i64),
        name!(event_rate, f64),
    ),
> {
    let (started_at, sinks) = sinks_of(crate::pg::worker::database()).unwrap_or_default();
    TableIterator::new(sinks.into_iter().map(move |sink| {
        let counters = sink.counters;
        (
            sink.sink,
            sink.shard,
            if sink.is_waiting { "waiting" } else { "running" },
            sink.in_flight,
            sink.attempts,
            (!sink.last_error.is_empty()).then_some(sink.last_error),
            moment(sink.last_error_at),
            moment(sink.retry_at),
            moment(started_at),
            counters.events_delivered,
            counters.events_collapsed,
            counters.refreshes,
            counters.messages,
            counters.requests,
            counters.failures,
            counters.refused,
            counters.dead_letters,
            counters.bytes_sent,
            sink.event_rate_milli as f64 / 1000.0,
        )
    }))
}

fn moment(at: i64) -> Option<TimestampWithTimeZone> {
    if at == 0 { None } else { TimestampWithTimeZone::try_from(at).ok() }
}
