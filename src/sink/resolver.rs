#![forbid(unsafe_code)]
//! Host names to addresses, remembered for a while.
//!
//! The HTTP client looks its host up for every request, also when its connection is open, and
//! starts a thread each time to keep the deadline. A lane speaks to one host, so the answer is
//! remembered, and an address that is written out needs no look-up at all.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// As long as an answer is believed: what a service that moves by DNS commonly asks for.
const MEMORY: Duration = Duration::from_secs(30);

/// The resolver of one lane.
#[derive(Default)]
pub struct Remembering {
    system: DefaultResolver,
    last: Mutex<Option<Answer>>,
}

struct Answer {
    authority: String,
    addresses: Vec<SocketAddr>,
    at: Instant,
}

impl Resolver for Remembering {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known =
            |answer: &&Answer| answer.authority == authority && answer.at.elapsed() < MEMORY;
        let addresses = match (written_out(uri), last.as_ref().filter(is_known)) {
            (Some(address), _) => vec![address],
            (None, Some(answer)) => answer.addresses.clone(),
            (None, None) => {
                let addresses = self.ask(uri, config, timeout)?;
                let at = Instant::now();
                *last =
                    Some(Answer { authority: authority.into(), addresses: addresses.clone(), at });
                addresses
            }
        };
        let mut resolved = self.empty();
        addresses.into_iter().for_each(|address| resolved.push(address));
        Ok(resolved)
    }
}

impl Remembering {
    fn ask(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<Vec<SocketAddr>, Error> {
        let resolved = self.system.resolve(uri, config, timeout).map_err(|error| match error {
            // Whatever the system says: there is no address.
            Error::Io(_) => Error::HostNotFound,
            other => other,
        })?;
        Ok(resolved.iter().copied().collect())
    }
}

impl fmt::Debug for Remembering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembering")
    }
}

/// The address of a host that is one.
fn written_out(uri: &Uri) -> Option<SocketAddr> {
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let ip: IpAddr = host.parse().ok()?;
    Some(SocketAddr::new(ip, uri.port_u16().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_names_are_not() {
        for (uri, expected) in [
            ("http://127.0.0.1:4000/x", Some("127.0.0.1:4000")),
            ("http://127.0.0.1", Some("127.0.0.1:80")),
            ("https://[::1]/x", Some("[::1]:443")),
            ("http://[::1]:4000", Some("[::1]:4000")),
            ("http://localhost:4000", None),
            ("http://1.2.3.4.example", None),
        ] {
            let uri: Uri = uri.parse().unwrap_or_default();
            assert_eq!(written_out(&uri).map(|address| address.to_string()).as_deref(), expected);
        }
    }
}
