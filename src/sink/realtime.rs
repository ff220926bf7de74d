#![forbid(unsafe_code)]
//! Supabase Realtime by its batch route: one POST, many messages, each to the private channel of
//! an org.
//!
//! The route answers for the whole batch by its status: it takes all of it or none. Of bodies only
//! that of a refused batch is read, which names the messages. It says nothing of who was reached: a
//! message to a channel without subscribers is accepted, and so is one to a channel that the token
//! may not write to, which is why the token must be of `service_role`.

use std::fmt;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::config::{Credential, SinkOptions};
use crate::cursor::Era;
use crate::envelope::{self, Limits, Message, Tally};
use crate::error::{Error, ErrorKind};
use crate::json;
use crate::token::Signer;

use super::{Batch, Endpoint, Failure, FailureKind, Outcome};

/// Appended to the base address.
const ROUTE: &str = "/api/broadcast";

/// The event name of every broadcast; what the events are is in the payload.
const BROADCAST_EVENT: &str = "events";

/// Prefix of the channel of an org.
const CHANNEL_PREFIX: &str = "notifications:org_";

enum Token {
    Given(String),
    Signed(Signer),
}

pub struct Realtime {
    url: String,
    token: Token,
    private: bool,
    limits: Limits,
}

impl Realtime {
    /// `secret` is what the credential of the options names: a token, or the JWT secret.
    ///
    /// # Errors
    /// `UnusableSecret` when it is empty or cannot be sent in a header.
    pub fn new(options: &SinkOptions, secret: &str) -> Result<Self, Error> {
        // A file ends with a line break, and people paste with spaces around.
        let secret = secret.trim();
        let token = match options.credential {
            Credential::JwtSecret(_) => Token::Signed(Signer::new(secret)?),
            Credential::Secret(_) | Credential::KeyFile(_) => Token::Given(sendable(secret)?),
        };
        Ok(Self {
            url: format!("{}{ROUTE}", options.url),
            token,
            private: options.private,
            limits: Limits {
                events_max: options.message_events_max,
                bytes_max: options.message_bytes_max,
                era: Era::default(),
            },
        })
    }

    /// The same, with the cursors of its messages stamped with an era.
    pub fn in_era(mut self, era: Era) -> Self {
        self.limits.era = era;
        self
    }

    fn write_message(&self, body: &mut Vec<u8>, message: &Message) -> Tally {
        json::write_bytes(body, b"{\"topic\":");
        json::write_text(body, &format!("{CHANNEL_PREFIX}{}", message.org_id));
        json::write_bytes(body, b",\"event\":");
        json::write_text(body, BROADCAST_EVENT);
        let private: &[u8] = if self.private { b"true" } else { b"false" };
        json::write_bytes(body, b",\"private\":");
        json::write_bytes(body, private);
        json::write_bytes(body, b",\"payload\":");
        let tally = envelope::write_payload(body, message, self.limits);
        body.push(b'}');
        tally
    }
}

impl Endpoint for Realtime {
    fn url(&self) -> &str {
        &self.url
    }

    fn headers(&self, unix_seconds: u64) -> Vec<(&'static str, String)> {
        let token = match &self.token {
            Token::Given(token) => token.clone(),
            Token::Signed(signer) => signer.sign(unix_seconds),
        };
        // The server reads the first, a gateway in front of it the second.
        vec![("authorization", format!("Bearer {token}")), ("apikey", token)]
    }

    fn write_body(&self, body: &mut Vec<u8>, batch: &Batch) -> Tally {
        let start = body.len();
        let mut tally = Tally::default();
        json::write_bytes(body, b"{\"messages\":[");
        for (index, message) in batch.messages.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            tally.add(self.write_message(body, message));
        }
        json::write_bytes(body, b"]}");
        Tally { bytes: (body.len() - start) as u64, ..tally }
    }

    fn outcome(&self, status: u16, body: &[u8]) -> Outcome {
        let kind = match status {
            // Realtime says 202 and nothing more. A page of some other server says that it was not
            // Realtime that answered.
            200..=299 if is_page(body) => FailureKind::UnexpectedStatus,
            200..=299 => return Outcome::Delivered,
            300..=399 | 404 | 405 => FailureKind::WrongAddress,
            // About the body as a whole, which is not any message's fault.
            422 if errors(body).iter().any(Value::is_string) => FailureKind::UnexpectedStatus,
            400 | 422 => FailureKind::Invalid,
            401 => FailureKind::Unauthorized,
            403 => FailureKind::Forbidden,
            413 => FailureKind::TooLarge,
            429 => FailureKind::RateLimited,
            // A gateway answers so too when it has lost the server's answer.
            500..=599 => {
                return Outcome::Unknown(Failure::with_status(FailureKind::ServerError, status));
            }
            _ => FailureKind::UnexpectedStatus,
        };
        Outcome::Refused(Failure::with_status(kind, status))
    }

    /// A 422 has an element for each message, empty for those that are well:
    /// `{"errors":{"messages":[{},{"payload":["…"]}]}}`.
    fn named(&self, status: u16, body: &[u8]) -> Vec<usize> {
        if status != 422 {
            return Vec::new();
        }
        let is_named = |errors: &Value| errors.as_object().is_some_and(|errors| !errors.is_empty());
        let places = errors(body).into_iter().enumerate();
        places.filter(|(_, errors)| is_named(errors)).map(|(place, _)| place).collect()
    }

    /// An empty list is checked after the tenant and the token, and is then refused.
    fn probe_body(&self) -> &'static [u8] {
        b"{\"messages\":[]}"
    }

    fn probe_outcome(&self, status: u16, body: &[u8]) -> Outcome {
        match status {
            422 => Outcome::Delivered,
            _ => self.outcome(status, body),
        }
    }
}

/// Shows the address and nothing of the token.
impl fmt::Debug for Realtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Realtime").field("url", &self.url).finish_non_exhaustive()
    }
}

/// What a refusal says of each message; nothing when it is no refusal of Realtime's.
fn errors(body: &[u8]) -> Vec<Value> {
    let answer = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let messages = answer.pointer("/errors/messages").and_then(Value::as_array);
    messages.cloned().unwrap_or_default()
}

fn is_page(body: &[u8]) -> bool {
    !body.trim_ascii().is_empty() && serde_json::from_slice::<&RawValue>(body).is_err()
}

fn sendable(token: &str) -> Result<String, Error> {
    let unusable = |what: &str| {
        Error::new(ErrorKind::UnusableSecret, format!("the token of the sink {what}")).hint(
            "Set it again with outbox.set_secret, or write it into key_file: the token alone.",
        )
    };
    if token.is_empty() {
        return Err(unusable("is empty"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unusable("has characters that cannot be sent in a header"));
    }
    Ok(token.into())
}

#[cfg(test)]
#[path = "realtime_test.rs"]
mod tests;
