#![forbid(unsafe_code)]
//! Whether the sink works: a circuit that opens at a failure and closes through one probe.
//!
//! Any failure stops all lanes: what is wrong with a sink is seldom wrong with one request, and
//! a sink that is down gains nothing from being asked by each lane. When the wait is over one
//! request goes out alone; its success opens all lanes, its failure doubles the wait.

use crate::relay::time::Time;
use crate::retry;
use crate::sink::Failure;

use super::plan::RequestId;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Circuit {
    #[default]
    Closed,
    Open {
        retry_at: Time,
    },
    HalfOpen {
        probe: Option<RequestId>,
    },
}

#[derive(Debug, Default)]
pub struct Health {
    circuit: Circuit,
    /// Failures in a row.
    attempts: u32,
    failure: Option<Failure>,
}

/// How many requests may go out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    All,
    /// One request, alone: tell [`Health::probing`] which.
    Probe,
    None,
}

impl Health {
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    pub const fn failure(&self) -> Option<Failure> {
        self.failure
    }

    pub const fn is_closed(&self) -> bool {
        matches!(self.circuit, Circuit::Closed)
    }

    /// When the next try is due; none while the sink works or a try is under way.
    pub const fn retry_at(&self) -> Option<Time> {
        match self.circuit {
            Circuit::Open { retry_at } => Some(retry_at),
            _ => None,
        }
    }

    pub fn permit(&self) -> Permit {
        match self.circuit {
            Circuit::Closed => Permit::All,
            Circuit::HalfOpen { probe: None } => Permit::Probe,
            Circuit::HalfOpen { probe: Some(_) } | Circuit::Open { .. } => Permit::None,
        }
    }

    pub fn probing(&mut self, request: RequestId) {
        if let Circuit::HalfOpen { probe } = &mut self.circuit {
            *probe = Some(request);
        }
    }

    /// Ends the wait when its time has come.
    pub fn tick(&mut self, now: Time) {
        if self.retry_at().is_some_and(|at| at <= now) {
            self.try_now();
        }
    }

    /// Ends the wait: somebody has changed something or wants to know.
    pub fn try_now(&mut self) {
        if let Circuit::Open { .. } = self.circuit {
            self.circuit = Circuit::HalfOpen { probe: None };
        }
    }

    /// Whether this request is the one by which the sink is tried.
    pub fn is_probe(&self, request: RequestId) -> bool {
        self.circuit == Circuit::HalfOpen { probe: Some(request) }
    }

    /// The sink took a request, or refused what was in it. One that was sent before the failure
    /// says nothing of now.
    pub fn worked(&mut self, request: RequestId) {
        if self.speaks_for_now(request) {
            *self = Self::default();
        }
    }

    /// A request failed. One that was sent before the failure that is known is the same failure.
    pub fn failed(&mut self, now: Time, chance: u64, request: RequestId, failure: Failure) {
        if self.speaks_for_now(request) {
            self.attempts = self.attempts.saturating_add(1);
            self.failure = Some(failure);
            let retry_at = retry::retry_at(now, self.attempts, chance);
            self.circuit = Circuit::Open { retry_at };
        }
    }

    fn speaks_for_now(&self, request: RequestId) -> bool {
        match self.circuit {
            Circuit::Closed => true,
            Circuit::HalfOpen { probe } => probe == Some(request),
            Circuit::Open { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::FailureKind;

    const DOWN: Failure = Failure::of(FailureKind::Unreachable);

    fn at(ms: u64) -> Time {
        Time::from_ms(ms)
    }

    #[test]
    fn a_failure_opens_and_one_probe_closes() {
        let mut health = Health::default();
        assert_eq!(health.permit(), Permit::All);
        health.failed(at(0), 99, RequestId(1), DOWN);
        assert_eq!(health.permit(), Permit::None);
        assert_eq!((health.retry_at(), health.attempts()), (Some(at(100)), 1));
        health.tick(at(99));
        assert_eq!(health.permit(), Permit::None);
        health.tick(at(100));
        assert_eq!((health.permit(), health.retry_at()), (Permit::Probe, None));
        health.probing(RequestId(5));
        assert_eq!(health.permit(), Permit::None);
        health.worked(RequestId(5));
        assert_eq!((health.permit(), health.attempts()), (Permit::All, 0));
        assert_eq!(health.failure(), None);
    }

    #[test]
    fn a_failed_probe_waits_longer() {
        let mut health = Health::default();
        health.failed(at(0), 249, RequestId(1), DOWN);
        health.tick(at(250));
        health.probing(RequestId(2));
        health.failed(at(250), 499, RequestId(2), DOWN);
        assert_eq!((health.retry_at(), health.attempts()), (Some(at(750)), 2));
    }

    #[test]
    fn answers_from_before_the_failure_change_nothing() {
        let mut health = Health::default();
        health.failed(at(0), 99, RequestId(1), DOWN);
        health.failed(at(1), 99, RequestId(2), DOWN);
        assert_eq!((health.retry_at(), health.attempts()), (Some(at(100)), 1));
        health.worked(RequestId(3));
        assert_eq!(health.permit(), Permit::None);
        health.tick(at(100));
        health.probing(RequestId(9));
        health.failed(at(101), 0, RequestId(4), DOWN);
        health.worked(RequestId(5));
        assert_eq!((health.permit(), health.attempts()), (Permit::None, 1));
    }

    #[test]
    fn trying_now_ends_the_wait_and_nothing_else() {
        let mut health = Health::default();
        health.try_now();
        assert_eq!(health.permit(), Permit::All);
        health.failed(at(0), 99, RequestId(1), DOWN);
        health.try_now();
        assert_eq!((health.permit(), health.attempts()), (Permit::Probe, 1));
        health.probing(RequestId(2));
        health.try_now();
        assert_eq!(health.permit(), Permit::None);
    }
}
