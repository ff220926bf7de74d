#![forbid(unsafe_code)]
//! Destinations: what a sink is given, and what became of it.
//!
//! The relay's plan hands a sink a batch of messages and hears one outcome for it. A sink knows
//! nothing of the outbox; what it must know of HTTP is in [`Endpoint`], which builds and reads
//! plain data, so that a sink is tested without a socket. `http` moves the bytes.

pub mod http;
pub mod realtime;
mod resolver;

use std::fmt;

use crate::envelope::{Message, Tally};

/// What one request carries: messages of different orgs, in the order in which they became due.
#[derive(Debug)]
pub struct Batch {
    pub messages: Vec<Message>,
}

/// A destination that is spoken to by POST. Called on the threads of [`http::Couriers`].
pub trait Endpoint: Send + Sync + 'static {
    /// The address to which every batch goes.
    fn url(&self) -> &str;

    /// Headers beside the content type, with a credential that is valid at this time (seconds
    /// since the Unix epoch).
    fn headers(&self, unix_seconds: u64) -> Vec<(&'static str, String)>;

    /// Appends the body of the request.
    fn write_body(&self, body: &mut Vec<u8>, batch: &Batch) -> Tally;

    /// What an answer with this status and body means.
    fn outcome(&self, status: u16, body: &[u8]) -> Outcome;

    /// Which messages of a refused batch, by their places, the answer names as the reason. None
    /// when it does not say: then they are found by sending parts.
    fn named(&self, status: u16, body: &[u8]) -> Vec<usize>;

    /// A body that delivers nothing and shows whether the sink would take what we send.
    fn probe_body(&self) -> &'static [u8];

    /// What the answer to a probe means.
    fn probe_outcome(&self, status: u16, body: &[u8]) -> Outcome;
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The sink has taken all of it.
    Delivered,
    /// The sink has taken none of it.
    Refused(Failure),
    /// The answer was lost or says nothing. Sent again; a client drops what it has seen.
    Unknown(Failure),
}

/// Why a request was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// The status of the answer, when there was one.
    pub status: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection: wrong address, nobody listening, no network.
    Unreachable,
    /// The name of the host has no address.
    HostUnknown,
    /// The certificate is not trusted, or the other side does not speak TLS.
    Tls,
    /// No whole answer before the deadline.
    TimedOut,
    /// The connection ended before the answer, or the thread did.
    AnswerLost,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404, 405 and every redirect: this is not the address of the service.
    WrongAddress,
    /// 413.
    TooLarge,
    /// 400 and 422: the sink does not accept a message.
    Invalid,
    /// 429.
    RateLimited,
    /// 5xx.
    ServerError,
    /// A status that the sink's protocol does not have.
    UnexpectedStatus,
    /// The request could not be built: an address or a header with characters that cannot be sent.
    Unsendable,
    /// The machine did not give us a thread.
    NoThread,
}

/// Whose fault a failure is, and so what is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The sink, its address or the way to it: everything waits and no attempt is counted.
    Sink,
    /// We send faster than the sink allows: everything waits, and then goes slower.
    Pace,
    /// The credential: everything waits, and the secret is looked up again.
    Credential,
    /// A message. It is found and alone is refused; the others are delivered.
    Message,
}

impl FailureKind {
    /// Everything that is not known to be a message's own fault is the sink's: a doubt must never
    /// make a dead letter.
    pub const fn blame(self) -> Blame {
        match self {
            Self::Invalid | Self::TooLarge => Blame::Message,
            Self::RateLimited => Blame::Pace,
            Self::Unauthorized => Blame::Credential,
            Self::Unreachable
            | Self::HostUnknown
            | Self::Tls
            | Self::TimedOut
            | Self::AnswerLost
            | Self::Forbidden
            | Self::WrongAddress
            | Self::ServerError
            | Self::UnexpectedStatus
            | Self::Unsendable
            | Self::NoThread => Blame::Sink,
        }
    }

    /// The word that stands for it in views and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::HostUnknown => "host_unknown",
            Self::Tls => "tls",
            Self::TimedOut => "timed_out",
            Self::AnswerLost => "answer_lost",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::WrongAddress => "wrong_address",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::UnexpectedStatus => "unexpected_status",
            Self::Unsendable => "unsendable",
            Self::NoThread => "no_thread",
        }
    }

    /// What the operator should do.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Unreachable => "Check that the sink is running and that its url is right.",
            Self::HostUnknown => "Check the host name in the sink's url and the server's DNS.",
            Self::Tls => {
                "Check the sink's certificate; for one of your own, name its authority in ca_file."
            }
            Self::TimedOut => {
                "Check the load of the sink and the network; timeout_ms is the deadline."
            }
            Self::AnswerLost => {
                "Nothing if it is rare: the request is sent again. Else check gateways in between."
            }
            Self::Unauthorized => {
                "Check the secret: not expired, a JWT of this project, and a url of this tenant."
            }
            Self::Forbidden => "Check whether the tenant is suspended or the token lacks the role.",
            Self::WrongAddress => {
                "Check the url: hosted projects need the path /realtime/v1, a server itself none."
            }
            Self::TooLarge => "Lower message_bytes_max, or raise the limit of the gateway.",
            Self::Invalid => "Check the sink's log for the field it refuses, and its size limit.",
            Self::RateLimited => {
                "Set events_per_second to the tenant's limit, less what else sends and subscribes."
            }
            Self::ServerError => "Check the log of the sink or of the gateway in front of it.",
            Self::UnexpectedStatus => "Check that the url is that of the service and not a proxy.",
            Self::Unsendable => "Check the url and the secret for spaces and line breaks.",
            Self::NoThread => "Raise the limit on threads of the server's user.",
        }
    }
}

impl Failure {
    pub const fn of(kind: FailureKind) -> Self {
        Self { kind, status: None }
    }

    pub const fn with_status(kind: FailureKind, status: u16) -> Self {
        Self { kind, status: Some(status) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{} (HTTP {status})", self.kind.name()),
            None => f.write_str(self.kind.name()),
        }
    }
}
