#![forbid(unsafe_code)]
//! HTTP on plain threads: one for each lane, with a connection of its own that is kept alive.
//!
//! The threads see plain data only and never call Postgres. A request has one deadline for all
//! of it, from the look-up of the host to the last byte of the answer. Redirects are not
//! followed, proxies are not taken from the environment, and certificates are verified.
//!
//! Every request is answered exactly once, also when its thread dies. Nobody waits for a thread:
//! dropping [`Couriers`] ends those that are idle and lets go of those that are not.

use std::fs;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::DefaultConnector;

use crate::config::SinkOptions;
use crate::envelope::Tally;
use crate::error::{Error, ErrorKind};
use crate::relay::plan::RequestId;

use super::resolver::Remembering;
use super::{Batch, Endpoint, Failure, FailureKind, Outcome};

/// How much of an answer is read so that the connection can be used again.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Below the minute after which servers commonly close a connection that is idle: we rather close
/// it ourselves than lose a request in the race.
const IDLE_AGE_MAX: Duration = Duration::from_secs(30);

/// A lane keeps its buffer for the next body, up to this.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// What a thread runs.
pub type ThreadBody = Box<dyn FnOnce() + Send>;

/// What the process around us must do for us.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Starts the thread and lets go of it: with signals blocked, if the process handles any.
    pub spawn: fn(thread::Builder, ThreadBody) -> io::Result<()>,
    /// Called on a thread of ours when there is an answer to be fetched.
    pub wake: fn(),
}

/// How connections are made.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    timeout: Duration,
    roots: RootCerts,
}

impl HttpOptions {
    /// Reads `ca_file` if there is one.
    ///
    /// # Errors
    /// `UnusableFile` when it cannot be read or holds no certificate.
    pub fn new(options: &SinkOptions) -> Result<Self, Error> {
        let roots = match &options.ca_file {
            None => RootCerts::WebPki,
            Some(path) => read_roots(path)?,
        };
        Ok(Self { timeout: Duration::from_millis(options.timeout_ms), roots })
    }

    fn agent(&self) -> Agent {
        let tls = TlsConfig::builder().root_certs(self.roots.clone()).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(self.timeout))
            .max_redirects(0)
            .http_status_as_error(false)
            .proxy(None)
            .max_idle_connections(1)
            .max_idle_age(IDLE_AGE_MAX)
            .user_agent(concat!("pg_outbox/", env!("CARGO_PKG_VERSION")))
            .build();
        Agent::with_parts(config, DefaultConnector::default(), Remembering::default())
    }
}

/// What became of one request.
#[derive(Debug)]
pub struct Answer {
    pub request: RequestId,
    pub outcome: Outcome,
    /// Places of the messages that the sink named as the reason of a refusal.
    pub named: Vec<usize>,
    pub tally: Tally,
}

/// The lanes of one sink.
pub struct Couriers {
    endpoint: Arc<dyn Endpoint>,
    options: HttpOptions,
    hooks: Hooks,
    /// The threads that were started, by lane.
    threads: Vec<Option<SyncSender<Work>>>,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
}

impl Couriers {
    /// Starts nothing yet: a lane gets its thread with its first request.
    pub fn new(endpoint: Arc<dyn Endpoint>, options: HttpOptions, hooks: Hooks) -> Self {
        let (sender, answers) = mpsc::channel();
        Self { endpoint, options, hooks, threads: Vec::new(), sender, answers }
    }

    /// Sends a batch on a lane that has no request on the way. Never waits.
    pub fn send(&mut self, lane: usize, request: RequestId, batch: Arc<Batch>) {
        let reply = Reply {
            request,
            outcome: Outcome::Refused(Failure::of(FailureKind::NoThread)),
            named: Vec::new(),
            tally: Tally::default(),
            answers: self.sender.clone(),
            wake: self.hooks.wake,
        };
        let mut work = Work { batch, reply };
        if let Some(Some(thread)) = self.threads.get(lane) {
            match thread.try_send(work) {
                Ok(()) => return,
                // It has died, or it is still busy for a lane of this number that is gone.
                Err(TrySendError::Disconnected(back) | TrySendError::Full(back)) => work = back,
            }
        }
        self.start(lane, work);
    }

    /// The next answer, if there is one.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }

    /// Gives the lane a new thread that begins with this work.
    fn start(&mut self, lane: usize, work: Work) {
        let (thread, inbox) = mpsc::sync_channel(1);
        // The channel is new and has room for one.
        let _ = thread.try_send(work);
        let courier =
            Courier { agent: self.options.agent(), endpoint: self.endpoint.clone(), inbox };
        let builder = thread::Builder::new().name(format!("pg_outbox lane {lane}"));
        // Without a thread the work is dropped, and so answered.
        let is_started = (self.hooks.spawn)(builder, Box::new(move || courier.run())).is_ok();
        if self.threads.len() <= lane {
            self.threads.resize_with(lane + 1, || None);
        }
        if let Some(place) = self.threads.get_mut(lane) {
            *place = is_started.then_some(thread);
        }
    }
}

/// Posts a body that delivers nothing; waits for the answer, at most until the deadline.
pub fn probe(endpoint: &dyn Endpoint, options: &HttpOptions) -> Outcome {
    match post(&options.agent(), endpoint, endpoint.probe_body()) {
        Ok((status, answer)) => endpoint.probe_outcome(status, &answer),
        Err(outcome) => outcome,
    }
}

/// The thread of a lane.
struct Courier {
    agent: Agent,
    endpoint: Arc<dyn Endpoint>,
    inbox: Receiver<Work>,
}

impl Courier {
    fn run(self) {
        let mut body = Vec::new();
        while let Ok(Work { batch, mut reply }) = self.inbox.recv() {
            reply.outcome = Outcome::Unknown(Failure::of(FailureKind::AnswerLost));
            body.clear();
            reply.tally = self.endpoint.write_body(&mut body, &batch);
            // The events are the plan's to free, not kept alive by a slow network.
            drop(batch);
            match post(&self.agent, &*self.endpoint, &body) {
                Ok((status, answer)) => {
                    reply.outcome = self.endpoint.outcome(status, &answer);
                    if reply.outcome != Outcome::Delivered {
                        reply.named = self.endpoint.named(status, &answer);
                    }
                }
                Err(outcome) => reply.outcome = outcome,
            }
            drop(reply);
            body.shrink_to(BUFFER_BYTES_KEPT);
        }
    }
}

/// A batch on its way to a thread.
struct Work {
    batch: Arc<Batch>,
    reply: Reply,
}

/// Answers when it is dropped: done with, on a thread that dies, or in a queue that nobody reads
/// any more.
struct Reply {
    request: RequestId,
    outcome: Outcome,
    named: Vec<usize>,
    tally: Tally,
    answers: Sender<Answer>,
    wake: fn(),
}

impl Drop for Reply {
    fn drop(&mut self) {
        let Self { request, outcome, tally, .. } = *self;
        let named = std::mem::take(&mut self.named);
        // When the lanes are gone, nobody wants to know.
        if self.answers.send(Answer { request, outcome, named, tally }).is_ok() {
            (self.wake)();
        }
    }
}

/// Posts a body and returns the status and the body of the answer, which is read to its end.
fn post(agent: &Agent, endpoint: &dyn Endpoint, body: &[u8]) -> Result<(u16, Vec<u8>), Outcome> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let unix_seconds = now.map_or(0, |since| since.as_secs());
    let mut request = agent
        .post(endpoint.url())
        .header("content-type", "application/json")
        .header("accept", "application/json");
    for (name, value) in endpoint.headers(unix_seconds) {
        request = request.header(name, value);
    }
    let mut response = request.send(body).map_err(|error| outcome_of(&error))?;
    let status = response.status().as_u16();
    let mut answer = Vec::new();
    let mut rest = response.body_mut().as_reader().take(ANSWER_BYTES_MAX);
    match rest.read_to_end(&mut answer) {
        // A sink that says yes and breaks off may not be the sink: what it meant is unknown.
        Err(error) if response.status().is_success() => {
            Err(unless_refused(outcome_of(&ureq::Error::from(error))))
        }
        // Else the status has decided.
        _ => Ok((status, answer)),
    }
}

/// An outcome after the request has been sent.
fn unless_refused(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Refused(failure) => Outcome::Unknown(failure),
        other => other,
    }
}

/// What an error says of the request: refused if it cannot have arrived, else unknown.
fn outcome_of(error: &ureq::Error) -> Outcome {
    use ureq::Error as E;
    let refused = |kind| Outcome::Refused(Failure::of(kind));
    let unknown = |kind| Outcome::Unknown(Failure::of(kind));
    match error {
        E::HostNotFound => refused(FailureKind::HostUnknown),
        E::ConnectionFailed => refused(FailureKind::Unreachable),
        E::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            refused(FailureKind::TimedOut)
        }
        E::Timeout(_) => unknown(FailureKind::TimedOut),
        E::Tls(_) | E::Pem(_) | E::Rustls(_) | E::TlsRequired => refused(FailureKind::Tls),
        E::Http(_) | E::BadUri(_) | E::RequireHttpsOnly(_) => refused(FailureKind::Unsendable),
        E::Io(error) => match error.kind() {
            // rustls reports a certificate that it does not trust as data that is not valid.
            io::ErrorKind::InvalidData => refused(FailureKind::Tls),
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable => refused(FailureKind::Unreachable),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => unknown(FailureKind::TimedOut),
            _ => unknown(FailureKind::AnswerLost),
        },
        _ => unknown(FailureKind::AnswerLost),
    }
}

fn read_roots(path: &str) -> Result<RootCerts, Error> {
    let unusable = |detail: String| {
        Error::new(ErrorKind::UnusableFile, format!("cannot use ca_file \"{path}\""))
            .detail(detail)
            .hint("It must hold certificates in PEM, readable by the server's user.")
    };
    let pem = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let items = parse_pem(&pem).map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Ok(Some(certificate)),
        Ok(_) => Ok(None),
        Err(_) => Err(unusable("It is not PEM.".into())),
    });
    let certificates = items.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err(unusable("It holds no certificate.".into()));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
