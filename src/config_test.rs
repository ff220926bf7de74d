#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;

fn parse(json: &str) -> Result<SinkOptions, Error> {
    SinkOptions::parse(SinkKind::Realtime, json)
}

fn with(option: &str) -> Result<SinkOptions, Error> {
    parse(&format!(r#"{{"url":"http://h","secret":"s",{option}}}"#))
}

fn url(url: &str) -> Result<String, Error> {
    let json = serde_json::json!({"url": url, "secret": "s"}).to_string();
    parse(&json).map(|options| options.url)
}

fn refused(result: Result<impl std::fmt::Debug, Error>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidParameter, "{error:?}");
    error.message
}

#[test]
fn what_is_not_said_is_the_default_of_the_table() {
    let options = parse(r#"{"url":"https://x.supabase.co/realtime/v1/","secret":"key"}"#).unwrap();
    let expected = SinkOptions {
        url: "https://x.supabase.co/realtime/v1".into(),
        credential: Credential::Secret("key".into()),
        start: Start::Now,
        private: true,
        window_ms: 250,
        burst: 4,
        message_events_max: 500,
        message_bytes_max: 262_144,
        events_per_second: 100,
        connections: 4,
        timeout_ms: 5_000,
        retries: 3,
        order: Order::Relaxed,
        ca_file: None,
    };
    assert_eq!(options, expected);
}

#[test]
fn every_option_can_be_said() {
    let json = r#"{"url":"http://127.0.0.1:4000","jwt_secret":"j","start":"beginning",
        "private":false,"window_ms":0,"burst":1,"message_events_max":1,"message_bytes_max":4096,
        "events_per_second":0,"connections":64,"timeout_ms":100,"retries":0,"order":"strict",
        "ca_file":"/etc/ca.pem","key_file":null}"#;
    let options = parse(json).unwrap();
    let expected = SinkOptions {
        url: "http://127.0.0.1:4000".into(),
        credential: Credential::JwtSecret("j".into()),
        start: Start::Beginning,
        private: false,
        window_ms: 0,
        burst: 1,
        message_events_max: 1,
        message_bytes_max: 4_096,
        events_per_second: 0,
        connections: 64,
        timeout_ms: 100,
        retries: 0,
        order: Order::Strict,
        ca_file: Some("/etc/ca.pem".into()),
    };
    assert_eq!(options, expected);
}

#[test]
fn the_table_of_options_and_the_parser_agree() {
    for spec in OPTIONS {
        let Some(default) = spec.default else {
            continue;
        };
        let value = match spec.value_type {
            "text" => format!("\"{default}\""),
            _ => default.to_string(),
        };
        let said = with(&format!("\"{}\":{value}", spec.name)).unwrap();
        assert_eq!(said, with("\"ca_file\":null").unwrap(), "{}", spec.name);
        assert!(!spec.description.is_empty());
    }
}

#[test]
fn an_unknown_name_is_refused_with_the_nearest_or_all() {
    let hint = |option: &str| {
        let error = with(option).unwrap_err();
        assert!(error.message.starts_with("unknown sink option"), "{error:?}");
        error.hint.unwrap()
    };
    assert_eq!(hint(r#""windw_ms":1"#), "Perhaps you mean \"window_ms\".");
    assert_eq!(hint(r#""URL":"http://x""#), hint(r#""qqqqqqqq":1"#));
    assert_eq!(hint(r#""secrets":"a""#), "Perhaps you mean \"secret\".");
    assert!(hint(r#""colour":"red""#).starts_with("The options are: url, secret, key_file, "));
    assert!(hint(r#""":1"#).starts_with("The options are: "));
    let long = with(&format!("\"{}\":1", "x\\n".repeat(9_000))).unwrap_err();
    assert!(long.message.len() < 120, "{}", long.message);
}

#[test]
fn numbers_have_bounds_and_are_whole() {
    for (name, low, high) in [
        ("window_ms", 0, 60_000),
        ("burst", 1, 1_000),
        ("message_events_max", 1, 10_000),
        ("message_bytes_max", 4_096, 2_900_000),
        ("events_per_second", 0, 1_000_000),
        ("connections", 1, 64),
        ("timeout_ms", 100, 60_000),
        ("retries", 0, 100),
    ] {
        for value in [low, high] {
            assert!(with(&format!("\"{name}\":{value}")).is_ok(), "{name} {value}");
        }
        for value in [low - 1, high + 1] {
            let message = refused(with(&format!("\"{name}\":{value}")));
            assert!(message.contains(&format!("from {low} to {high}")), "{message}");
        }
        for value in ["1.5", "\"1\"", "true", "[1]", "1e30"] {
            refused(with(&format!("\"{name}\":{value}")));
        }
        assert!(with(&format!("\"{name}\":null")).is_ok(), "null is not said");
    }
}

#[test]
fn words_and_truths_are_of_their_kind() {
    assert_eq!(
        refused(with(r#""start":"yesterday""#)),
        "sink option \"start\" must be now or beginning"
    );
    refused(with(r#""order":1"#));
    refused(with(r#""private":"true""#));
    refused(with(r#""ca_file":"relative.pem""#));
    refused(with(r#""ca_file":"""#));
    refused(parse(r#"{"url":7,"secret":"s"}"#));
    refused(with(&format!("\"ca_file\":\"/{}\"", "x".repeat(3_000))));
}

#[test]
fn exactly_one_credential_is_needed() {
    let credential = |json: &str| parse(&format!(r#"{{"url":"http://h"{json}}}"#));
    assert!(refused(credential("")).contains("needs a credential"));
    assert!(refused(credential(r#","secret":"a","key_file":"/b""#)).contains("more than one"));
    refused(credential(r#","secret":"a","jwt_secret":"b","key_file":"/b""#));
    refused(credential(r#","key_file":"b""#));
    let file = credential(r#","key_file":"/run/key""#).unwrap().credential;
    assert_eq!(file, Credential::KeyFile("/run/key".into()));
    let vault = credential(r#","vault_secret":"v""#).unwrap_err();
    assert_eq!((vault.kind, vault.kind.sqlstate()), (ErrorKind::NotSupported, "0A000"));
}

#[test]
fn addresses_that_can_be_posted_to_are_taken() {
    for good in [
        "http://127.0.0.1:4000",
        "https://x.supabase.co/realtime/v1",
        "HTTPS://Host",
        "http://[::1]:80/a",
        "http://[::1]",
        "http://realtime-dev.supabase-realtime:4000",
        "http://h:65535",
    ] {
        assert_eq!(url(good).unwrap(), good);
    }
    assert_eq!(url("http://h/a//").unwrap(), "http://h/a");
}

#[test]
fn addresses_that_cannot_are_refused_and_not_repeated() {
    for bad in [
        "ftp://host",
        "host",
        "http:/host",
        "http://",
        "http:///path",
        "https://user:hunter2@host",
        "https://hunter2@host/x",
        "http://h?hunter2",
        "http://h#hunter2",
        "http://h\\hunter2",
        "http://h hunter2",
        "http://h\nhunter2",
        "http://hünter2",
        "http://h:0",
        "http://h:",
        "http://h:65536",
        "http://h:+80",
        "http://h:80:90",
        "http://[::1",
        "http://[zz]",
        "http://[::1]x",
        "http://[::1]:",
        "http://a,b",
        "javascript://x",
    ] {
        let error = url(bad).unwrap_err();
        assert_eq!(error.kind.sqlstate(), "22023", "{bad}");
        assert!(error.message.starts_with("invalid url: "), "{bad}: {error:?}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    assert!(refused(parse(r#"{"secret":"s"}"#)).contains("required"));
}

#[test]
fn what_is_no_object_is_refused() {
    for text in ["", "{", "[]", "null", "\"x\"", "7"] {
        refused(parse(text));
    }
    refused(SinkKind::parse("carrier pigeon"));
    assert_eq!(SinkKind::parse("realtime").unwrap().name(), "realtime");
}

#[test]
fn the_distance_is_that_of_levenshtein() {
    for (from, to, expected) in
        [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
    {
        assert_eq!(distance(from, to), expected, "{from} {to}");
    }
}
