#![forbid(unsafe_code)]
//! Tokens: signing short-lived ones for the relay, and reading what a given one claims.
//!
//! A relay that holds the project's JWT secret signs a token for each request, so that none can
//! expire unnoticed. A token that was given is never verified here, which is the sink's work;
//! it is read so that `outbox.check()` can say that it is about to expire or of the wrong role.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::Value;

use crate::error::{Error, ErrorKind};

/// How long a token lives that the relay signs: longer than any request and than clocks differ,
/// and useless soon after it was seen by somebody.
const LIFETIME_S: u64 = 300;

/// How far our clock may be ahead of the sink's.
const CLOCK_SKEW_S: u64 = 60;

/// Longest token that is read; Realtime takes headers of 4 kB.
const TOKEN_BYTES_MAX: usize = 16_384;

/// Signs `service_role` tokens with HS256. Shows nothing of its secret.
pub struct Signer {
    key: hmac::Key,
}

impl Signer {
    /// # Errors
    /// `UnusableSecret` when the secret is empty.
    pub fn new(jwt_secret: &str) -> Result<Self, Error> {
        if jwt_secret.is_empty() {
            return Err(Error::new(ErrorKind::UnusableSecret, "the JWT secret is empty"));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, jwt_secret.as_bytes());
        Ok(Self { key })
    }

    /// A token that is valid for some minutes from now, which is seconds since the Unix epoch.
    pub fn sign(&self, unix_seconds: u64) -> String {
        let issued = unix_seconds.saturating_sub(CLOCK_SKEW_S);
        let expires = unix_seconds.saturating_add(LIFETIME_S);
        let claims = format!(
            r#"{{"role":"service_role","iss":"pg_outbox","iat":{issued},"exp":{expires}}}"#
        );
        let mut token = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = hmac::sign(&self.key, token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

/// What a token says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub role: Option<String>,
    /// Seconds since the Unix epoch.
    pub expires_at: Option<u64>,
}

impl Claims {
    /// Reads a JWT without verifying it.
    ///
    /// # Errors
    /// `UnusableSecret` when it is not a JWT. The token is not part of the message.
    pub fn read(token: &str) -> Result<Self, Error> {
        let claims = read_payload(token).ok_or_else(|| {
            let parts = token.split('.').count();
            Error::new(ErrorKind::UnusableSecret, "the token is not a JWT")
                .detail(format!("It has {} bytes and {parts} parts.", token.len()))
                .hint("Use the service_role key of the project, which begins with \"eyJ\".")
        })?;
        Ok(Self {
            role: claims.get("role").and_then(Value::as_str).map(Into::into),
            expires_at: claims.get("exp").and_then(whole_seconds),
        })
    }
}

fn read_payload(token: &str) -> Option<Value> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let payload = serde_json::from_slice::<Value>(&payload).ok()?;
    (parts.next().is_none() && payload.is_object()).then_some(payload)
}

/// A time may be written with a fraction, and a negative one is long past.
fn whole_seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().map(|seconds| seconds as u64))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_token_is_read_back() {
        let token = Signer::new("secret").unwrap().sign(1_800_000_000);
        let expected =
            Claims { role: Some("service_role".into()), expires_at: Some(1_800_000_300) };
        assert_eq!(Claims::read(&token).unwrap(), expected);
    }

    /// The signature was made by another implementation (Python's hmac) of the same text.
    #[test]
    fn the_signature_is_hs256_of_what_comes_before_it() {
        let token = Signer::new("a secret of thirty-two characters").unwrap().sign(1_800_000_000);
        assert_eq!(token, include_str!("token_sample.txt").trim_end());
    }

    #[test]
    fn another_secret_makes_another_signature() {
        let sign = |secret| Signer::new(secret).unwrap().sign(7);
        assert_ne!(sign("a"), sign("b"));
        assert_eq!(sign("a"), sign("a"));
        assert!(Signer::new("").is_err());
        assert_eq!(format!("{:?}", Signer::new("hidden").unwrap()), "Signer");
    }

    #[test]
    fn claims_that_are_missing_or_odd_are_none() {
        let read = |claims: &str| {
            let payload = URL_SAFE_NO_PAD.encode(claims);
            Claims::read(&format!("e30.{payload}.sig")).unwrap()
        };
        assert_eq!(read("{}"), Claims { role: None, expires_at: None });
        assert_eq!(read(r#"{"role":7,"exp":"x"}"#), Claims { role: None, expires_at: None });
        assert_eq!(read(r#"{"exp":12.9}"#).expires_at, Some(12));
        assert_eq!(read(r#"{"exp":-5}"#).expires_at, Some(0));
    }

    #[test]
    fn what_is_no_token_is_refused_without_showing_it() {
        let number = format!("e30.{}.s", URL_SAFE_NO_PAD.encode("5"));
        let long = format!("e30.{}.s", "A".repeat(TOKEN_BYTES_MAX));
        for token in ["", "sb_secret_abc", "a.b", "a.b.c", "e30.e30.s.t", &number, &long] {
            let error = Claims::read(token).unwrap_err();
            assert_eq!(error.kind, ErrorKind::UnusableSecret);
            assert!(token.is_empty() || !format!("{error:?}").contains(token));
        }
    }
}
