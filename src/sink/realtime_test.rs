#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::sync::Arc;

use super::*;
use crate::config::SinkKind;
use crate::cursor::{Position, Snapshot};
use crate::event::{Entry, EntryId, EventId, EventKind, EventType};
use crate::token::Claims;

fn realtime(options: &str, secret: &str) -> Result<Realtime, Error> {
    let json = format!(r#"{{"url":"http://127.0.0.1:4000/realtime/v1/",{options}}}"#);
    Realtime::new(&SinkOptions::parse(SinkKind::Realtime, &json).unwrap(), secret)
}

fn message(org_id: &str) -> Message {
    let kind = EventKind {
        event_type: EventType { name: "job.updated".into(), entity: "job".into() },
        topic: "cataloging".into(),
        key_names: Box::new(["job_id".into()]),
        version: 1,
    };
    let entry = Entry {
        id: EntryId(1),
        event_id: EventId::from_bytes([0; 16]),
        kind: Arc::new(kind),
        org_id: org_id.into(),
        event_count: 1,
        ids: "[7]".into(),
        data: None,
        origin: None,
        at_us: 0,
    };
    Message {
        org_id: org_id.into(),
        cursor: Position::at(Snapshot::empty()),
        entries: vec![Arc::new(entry)],
    }
}

#[test]
fn the_body_is_what_the_batch_route_takes() {
    let era = Era::of(7, 1, 5);
    let sink = realtime(r#""secret":"s""#, "token").unwrap().in_era(era);
    let batch = Batch { messages: vec![message("42"), message("a\"b")] };
    let mut body = Vec::new();
    let tally = sink.write_body(&mut body, &batch);
    let cursor = batch.messages[0].cursor.clone().stamped(era).to_string();
    let message = |org: &str| {
        format!(
            concat!(
                r#"{{"topic":"notifications:org_{org}","event":"events","private":true,"#,
                r#""payload":{{"v":1,"org_id":"{org}","cursor":"{cursor}","events":[{{"#,
                r#""event_id":"00000000-0000-0000-0000-000000000000","#,
                r#""event_type":"job.updated","topic":"cataloging","ids":{{"job_id":7}},"#,
                r#""at":"1970-01-01T00:00:00.000Z"}}]}}}}"#
            ),
            org = org,
            cursor = cursor
        )
    };
    let expected = format!(r#"{{"messages":[{},{}]}}"#, message("42"), message(r#"a\"b"#));
    assert_eq!(String::from_utf8(body).unwrap(), expected);
    assert_eq!((tally.messages, tally.listed, tally.bytes), (2, 2, expected.len() as u64));
}

#[test]
fn public_channels_are_possible() {
    let sink = realtime(r#""secret":"s","private":false"#, "token").unwrap();
    let mut body = Vec::new();
    sink.write_body(&mut body, &Batch { messages: vec![message("1")] });
    assert!(String::from_utf8(body).unwrap().contains(r#""private":false"#));
}

#[test]
fn a_given_token_goes_in_both_headers() {
    let sink = realtime(r#""key_file":"/k""#, " eyJ.a.b\n").unwrap();
    assert_eq!(sink.url(), "http://127.0.0.1:4000/realtime/v1/api/broadcast");
    let expected = [("authorization", "Bearer eyJ.a.b".into()), ("apikey", "eyJ.a.b".into())];
    assert_eq!(sink.headers(5), expected);
}

#[test]
fn a_jwt_secret_signs_a_fresh_token_for_each_request() {
    let sink = realtime(r#""jwt_secret":"j""#, "the secret").unwrap();
    for now in [1_000_000, 2_000_000] {
        let headers = sink.headers(now);
        let claims = Claims::read(&headers[1].1).unwrap();
        assert_eq!(claims.role.as_deref(), Some("service_role"));
        assert!(claims.expires_at.unwrap() > now);
        assert_eq!(headers[0].1, format!("Bearer {}", headers[1].1));
    }
}

#[test]
fn secrets_that_cannot_be_sent_are_refused_and_none_is_shown() {
    for secret in ["", "  \n", "a b", "a\nb", "tök"] {
        let error = realtime(r#""secret":"s""#, secret).unwrap_err();
        assert_eq!(error.kind, ErrorKind::UnusableSecret);
        assert!(secret.trim().is_empty() || !format!("{error:?}").contains(secret));
    }
    assert!(realtime(r#""jwt_secret":"s""#, " ").is_err());
    let shown = format!("{:?}", realtime(r#""secret":"s""#, "hunter2").unwrap());
    assert!(!shown.contains("hunter2") && shown.contains("127.0.0.1"), "{shown}");
}

#[test]
fn the_status_alone_decides() {
    let sink = realtime(r#""secret":"s""#, "token").unwrap();
    for status in [200, 202, 204] {
        assert_eq!(sink.outcome(status, b""), Outcome::Delivered);
    }
    for (status, kind) in [
        (301, FailureKind::WrongAddress),
        (308, FailureKind::WrongAddress),
        (400, FailureKind::Invalid),
        (401, FailureKind::Unauthorized),
        (403, FailureKind::Forbidden),
        (404, FailureKind::WrongAddress),
        (405, FailureKind::WrongAddress),
        (406, FailureKind::UnexpectedStatus),
        (413, FailureKind::TooLarge),
        (418, FailureKind::UnexpectedStatus),
        (422, FailureKind::Invalid),
        (429, FailureKind::RateLimited),
        (100, FailureKind::UnexpectedStatus),
        (999, FailureKind::UnexpectedStatus),
    ] {
        let expected = Outcome::Refused(Failure::with_status(kind, status));
        assert_eq!(sink.outcome(status, b""), expected);
        assert!(!kind.advice().is_empty());
    }
    for status in [500, 502, 503, 504] {
        let failure = Failure::with_status(FailureKind::ServerError, status);
        assert_eq!(sink.outcome(status, b""), Outcome::Unknown(failure));
    }
}

#[test]
fn a_probe_is_answered_well_by_a_refusal_of_nothing() {
    let sink = realtime(r#""secret":"s""#, "token").unwrap();
    assert_eq!(sink.probe_body(), br#"{"messages":[]}"#);
    assert_eq!(sink.probe_outcome(422, b""), Outcome::Delivered);
    assert_eq!(sink.probe_outcome(202, b""), Outcome::Delivered);
    let unauthorized = Failure::with_status(FailureKind::Unauthorized, 401);
    assert_eq!(sink.probe_outcome(401, b""), Outcome::Refused(unauthorized));
    assert!(matches!(sink.probe_outcome(503, b""), Outcome::Unknown(_)));
}

#[test]
fn a_page_of_some_other_server_delivers_nothing() {
    let sink = realtime(r#""secret":"s""#, "token").unwrap();
    let outcome = |body: &[u8]| sink.outcome(200, body);
    let failure = Failure::with_status(FailureKind::UnexpectedStatus, 200);
    assert_eq!(outcome(b"<!doctype html><h1>Log in</h1>"), Outcome::Refused(failure));
    assert_eq!(outcome(b"OK"), Outcome::Refused(failure));
    assert_eq!(outcome(b""), Outcome::Delivered);
    assert_eq!(outcome(b" \n"), Outcome::Delivered);
    assert_eq!(outcome(br#"{"ok":true}"#), Outcome::Delivered);
}

#[test]
fn a_body_that_did_not_arrive_is_no_fault_of_its_messages() {
    let sink = realtime(r#""secret":"s""#, "token").unwrap();
    let failure = Failure::with_status(FailureKind::UnexpectedStatus, 422);
    for body in [
        r#"{"errors":{"messages":["can't be blank"]}}"#,
        r#"{"errors":{"messages":["is invalid"]}}"#,
    ] {
        assert_eq!(sink.outcome(422, body.as_bytes()), Outcome::Refused(failure));
    }
}

#[test]
fn a_refused_batch_names_its_messages() {
    let sink = realtime(r#""secret":"s""#, "token").unwrap();
    let named = |body: &str| sink.named(422, body.as_bytes());
    const NOBODY: [usize; 0] = [];
    let error = r#"{"payload":["Payload size exceeds tenant limit"]}"#;
    assert_eq!(
        named(&format!(r#"{{"errors":{{"messages":[{{}},{error},{{}},{error}]}}}}"#)),
        [1, 3]
    );
    assert_eq!(named(r#"{"errors":{"messages":["is invalid"]}}"#), NOBODY);
    assert_eq!(named(r#"{"errors":{"messages":[{},{}]}}"#), NOBODY);
    for garbage in ["", "{", "[]", r#"{"errors":[]}"#, r#"{"errors":{"messages":7}}"#, "<html>"] {
        assert_eq!(named(garbage), NOBODY, "{garbage}");
    }
    assert_eq!(
        sink.named(413, format!(r#"{{"errors":{{"messages":[{error}]}}}}"#).as_bytes()),
        NOBODY
    );
}
