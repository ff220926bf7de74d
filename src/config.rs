#![forbid(unsafe_code)]
//! The options of a sink: what may be said, what it means, and what holds when it is not said.
//!
//! [`OPTIONS`] is the one list: the parser reads by it, the view `outbox.sink_options` shows it.
//! A misspelt name is refused rather than ignored, and every number has bounds.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind};

/// Bounds of the options, inclusive.
mod bounds {
    use std::ops::RangeInclusive;

    pub const WINDOW_MS: RangeInclusive<u64> = 0..=60_000;
    pub const BURST: RangeInclusive<u64> = 1..=1_000;
    pub const MESSAGE_EVENTS_MAX: RangeInclusive<u64> = 1..=10_000;
    /// Below 4 kB a message has no room for what stands in for events; 3 MB is Realtime's limit.
    pub const MESSAGE_BYTES_MAX: RangeInclusive<u64> = 4_096..=2_900_000;
    pub const EVENTS_PER_SECOND: RangeInclusive<u64> = 0..=1_000_000;
    pub const CONNECTIONS: RangeInclusive<u64> = 1..=64;
    pub const TIMEOUT_MS: RangeInclusive<u64> = 100..=60_000;
    pub const RETRIES: RangeInclusive<u64> = 0..=100;
    /// Longest text of any option.
    pub const TEXT_BYTES: usize = 2_048;
}

/// The kinds of sinks that are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkKind {
    Realtime,
}

impl SinkKind {
    /// # Errors
    /// `InvalidParameter` for a kind that does not exist.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "realtime" => Ok(Self::Realtime),
            _ => Err(Error::new(
                ErrorKind::InvalidParameter,
                format!("unknown kind of sink: \"{}\"", excerpt(name)),
            )
            .hint("The kinds are: realtime.")),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
        }
    }
}

/// Where the token for the sink comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The name of a secret that holds a token.
    Secret(String),
    /// A file that holds a token; read by the server's user.
    KeyFile(String),
    /// The name of a secret that holds the JWT secret, with which the relay signs tokens itself.
    JwtSecret(String),
}

/// Where a new sink begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Now,
    Beginning,
}

/// What happens to an org's later events while one is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Relaxed,
    Strict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkOptions {
    /// The base address, without a slash at its end.
    pub url: String,
    pub credential: Credential,
    pub start: Start,
    pub private: bool,
    pub window_ms: u64,
    pub burst: u32,
    pub message_events_max: usize,
    pub message_bytes_max: usize,
    /// 0 is no limit.
    pub events_per_second: u32,
    pub connections: usize,
    pub timeout_ms: u64,
    pub retries: u32,
    pub order: Order,
    pub ca_file: Option<String>,
}

/// One line of the table of options.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    pub name: &'static str,
    /// `text`, `integer` or `boolean`.
    pub value_type: &'static str,
    /// `None`: there is none.
    pub default: Option<&'static str>,
    pub description: &'static str,
}

const fn option(
    name: &'static str,
    value_type: &'static str,
    default: Option<&'static str>,
    description: &'static str,
) -> OptionSpec {
    OptionSpec { name, value_type, default, description }
}

/// Every option, in the order in which people ask for them.
pub const OPTIONS: &[OptionSpec] = &[
    option("url", "text", None, "base address; /api/broadcast is appended; required"),
    option("secret", "text", None, "name of a secret that holds a service_role token"),
    option("key_file", "text", None, "file that holds a token, readable by the server's user"),
    option("vault_secret", "text", None, "name of a token in Supabase Vault; not available yet"),
    option(
        "jwt_secret",
        "text",
        None,
        "name of a secret that holds the project's JWT secret; tokens are signed with it",
    ),
    option("start", "text", Some("now"), "where a new sink begins: now or beginning"),
    option("private", "boolean", Some("true"), "private channels"),
    option("window_ms", "integer", Some("250"), "time in which an org gets one message back"),
    option("burst", "integer", Some("4"), "messages an org may send at once"),
    option("message_events_max", "integer", Some("500"), "most events in a message"),
    option("message_bytes_max", "integer", Some("262144"), "most bytes in a message"),
    option("events_per_second", "integer", Some("100"), "the tenant's limit; 0 is none"),
    option("connections", "integer", Some("4"), "lanes: requests at a time"),
    option("timeout_ms", "integer", Some("5000"), "deadline of one request"),
    option("retries", "integer", Some("3"), "retries of an event before it is a dead letter"),
    option("order", "text", Some("relaxed"), "of an org while an event is retried, or strict"),
    option("ca_file", "text", None, "certificate authorities to trust instead of the public ones"),
];

impl SinkOptions {
    /// Reads the options of a sink of this kind from a JSON object.
    ///
    /// # Errors
    /// `InvalidParameter` for whatever is not an option or cannot be its value; `NotSupported`
    /// for `vault_secret`.
    pub fn parse(kind: SinkKind, json: &str) -> Result<Self, Error> {
        let value: Value =
            serde_json::from_str(json).map_err(|_| invalid("sink options are not JSON".into()))?;
        let Value::Object(options) = value else {
            return Err(invalid("sink options are not a JSON object".into())
                .hint("Write '{\"url\": \"https://…\", \"secret\": \"…\"}'."));
        };
        for name in options.keys() {
            check_name(name)?;
        }
        let options = Given(options);
        Ok(Self {
            url: parse_url(options.text("url")?)?,
            credential: parse_credential(kind, &options)?,
            start: options
                .choice("start", &[("now", Start::Now), ("beginning", Start::Beginning)])?,
            private: options.boolean("private")?,
            window_ms: options.integer("window_ms", bounds::WINDOW_MS)?,
            burst: options.integer("burst", bounds::BURST)? as u32,
            message_events_max: options.integer("message_events_max", bounds::MESSAGE_EVENTS_MAX)?
                as usize,
            message_bytes_max: options.integer("message_bytes_max", bounds::MESSAGE_BYTES_MAX)?
                as usize,
            events_per_second: options.integer("events_per_second", bounds::EVENTS_PER_SECOND)?
                as u32,
            connections: options.integer("connections", bounds::CONNECTIONS)? as usize,
            timeout_ms: options.integer("timeout_ms", bounds::TIMEOUT_MS)?,
            retries: options.integer("retries", bounds::RETRIES)? as u32,
            order: options
                .choice("order", &[("relaxed", Order::Relaxed), ("strict", Order::Strict)])?,
            ca_file: options.text("ca_file")?.map(parse_path).transpose()?,
        })
    }
}

fn parse_credential(kind: SinkKind, options: &Given) -> Result<Credential, Error> {
    if options.text("vault_secret")?.is_some() {
        return Err(Error::new(ErrorKind::NotSupported, "vault_secret is not available yet")
            .hint("Use secret (with outbox.set_secret), key_file or jwt_secret."));
    }
    let given = [
        options.text("secret")?.map(|name| Credential::Secret(name.into())),
        options.text("key_file")?.map(parse_path).transpose()?.map(Credential::KeyFile),
        options.text("jwt_secret")?.map(|name| Credential::JwtSecret(name.into())),
    ];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(credential), None) => Ok(credential),
        (Some(_), Some(_)) => Err(invalid("more than one credential for the sink".into())
            .hint("Give one of secret, key_file and jwt_secret.")),
        (None, _) => Err(invalid(format!("a sink of kind {} needs a credential", kind.name()))
            .hint("Give secret (a name set with outbox.set_secret), key_file or jwt_secret.")),
    }
}

fn parse_path(path: &str) -> Result<String, Error> {
    if !path.starts_with('/') {
        return Err(invalid(format!("not an absolute path: \"{}\"", excerpt(path)))
            .hint("The server has a working directory of its own; name files from the root."));
    }
    Ok(path.into())
}

/// Checks that an address is one that can be posted to, and nothing that smuggles a credential
/// into logs.
fn parse_url(url: Option<&str>) -> Result<String, Error> {
    let url = url.ok_or_else(|| {
        invalid("sink option \"url\" is required".into())
            .hint("It is the base address, such as https://PROJECT.supabase.co/realtime/v1.")
    })?;
    // The address itself is not quoted: what is wrong with it may be a password in it.
    let refused = |why: &str| {
        invalid(format!("invalid url: {why}"))
            .hint("Write http:// or https://, a host, and a port and path if there are any.")
    };
    let rest = match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => rest,
        Some(_) => return Err(refused("only http and https are possible")),
        None => return Err(refused("it has no scheme")),
    };
    if url.bytes().any(|byte| byte.is_ascii_control() || byte == b' ' || !byte.is_ascii()) {
        return Err(refused("it has spaces, control or non-ASCII characters"));
    }
    if url.contains(['?', '#', '\\']) {
        return Err(refused("a base address has no query, fragment or backslash"));
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err(refused("it has a user name or password; use secret or key_file"));
    }
    check_authority(authority).map_err(refused)?;
    Ok(url.trim_end_matches('/').into())
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn check_authority(authority: &str) -> Result<(), &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("a bracket is missing")?;
            if host.parse::<core::net::Ipv6Addr>().is_err() {
                return Err("what is in brackets is not an IPv6 address");
            }
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err("there is something between the address and the port"),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let is_host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if host.is_empty() {
        return Err("it has no host");
    }
    if !host.bytes().all(is_host_byte) {
        return Err("the host has characters that no host name has");
    }
    let is_port = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    match port {
        Some(port) if !is_port(port) => Err("the port is not a number from 1 to 65535"),
        _ => Ok(()),
    }
}

/// The options as they were given, read by name.
struct Given(Map<String, Value>);

impl Given {
    /// `None`: not given, or null.
    fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&str>, Error> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Err(unfit(name, "is empty".into())),
            Some(Value::String(text)) if text.len() > bounds::TEXT_BYTES => {
                Err(unfit(name, "is too long".into())
                    .detail(format!("It has {} bytes.", text.len())))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(unfit(name, "must be a text".into())),
        }
    }

    fn boolean(&self, name: &str) -> Result<bool, Error> {
        match self.value(name) {
            None => Ok(default_of(name) == "true"),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(unfit(name, "must be true or false".into())),
        }
    }

    fn integer(&self, name: &str, bounds: std::ops::RangeInclusive<u64>) -> Result<u64, Error> {
        let number = match self.value(name) {
            None => default_of(name).parse().ok(),
            Some(Value::Number(number)) => number.as_u64(),
            Some(_) => None,
        };
        number.filter(|number| bounds.contains(number)).ok_or_else(|| {
            let (low, high) = (bounds.start(), bounds.end());
            unfit(name, format!("must be a whole number from {low} to {high}"))
        })
    }

    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, Error> {
        let word = self.text(name)?.unwrap_or(default_of(name));
        let chosen = choices.iter().find(|(choice, _)| *choice == word);
        chosen.map(|&(_, value)| value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            unfit(name, format!("must be {}", words.join(" or ")))
        })
    }
}

/// An option has a value that it cannot have.
fn unfit(name: &str, why: String) -> Error {
    invalid(format!("sink option \"{name}\" {why}"))
        .hint("select * from outbox.sink_options describes each option.")
}

fn default_of(name: &str) -> &'static str {
    let spec = OPTIONS.iter().find(|spec| spec.name == name);
    spec.and_then(|spec| spec.default).unwrap_or_default()
}

fn check_name(name: &str) -> Result<(), Error> {
    if OPTIONS.iter().any(|spec| spec.name == name) {
        return Ok(());
    }
    let nearest = OPTIONS.iter().map(|spec| (distance(name, spec.name), spec.name)).min();
    let names: Vec<&str> = OPTIONS.iter().map(|spec| spec.name).collect();
    let hint = match nearest {
        // A third of the letters may be wrong; beyond that the guess is no help.
        Some((distance, nearest)) if distance * 3 <= nearest.len() => {
            format!("Perhaps you mean \"{nearest}\".")
        }
        _ => format!("The options are: {}.", names.join(", ")),
    };
    Err(invalid(format!("unknown sink option \"{}\"", excerpt(name))).hint(hint))
}

/// Levenshtein's distance, in one row.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().take(64).enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        for (above, &other) in row.iter_mut().skip(1).zip(&to) {
            let changed = diagonal + usize::from(letter != other);
            diagonal = *above;
            left = changed.min(diagonal + 1).min(left + 1);
            *above = left;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Enough of a name to recognise it by.
fn excerpt(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(63).collect()
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidParameter, message)
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
