#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use serde_json::{Value, json};

use super::*;
use crate::cursor::Snapshot;
use crate::event::{EntryId, EventType};

const LIMITS: Limits = Limits { events_max: 500, bytes_max: 262_144, era: Era::of(7, 1, 5) };

/// 2026-11-24T17:00:00.123Z.
const AT_US: i64 = 1_795_539_600_123_456;

fn kind(name: &str, key_names: &[&str]) -> Arc<EventKind> {
    Arc::new(EventKind {
        event_type: EventType { name: name.into(), entity: name.split('.').next().unwrap().into() },
        topic: "cataloging".into(),
        key_names: key_names.iter().map(|&name| name.into()).collect(),
        version: 1,
    })
}

fn entry(kind: &Arc<EventKind>, number: u32, ids: &str) -> Entry {
    let count = serde_json::from_str::<Vec<&RawValue>>(ids).map_or(1, |ids| ids.len());
    Entry {
        id: EntryId(i64::from(number)),
        event_id: event_id(number),
        kind: kind.clone(),
        org_id: "42".into(),
        event_count: count as u32,
        ids: ids.into(),
        data: None,
        origin: None,
        at_us: AT_US,
    }
}

fn event_id(number: u32) -> EventId {
    EventId::from_bytes(u128::from(number).to_be_bytes())
}

fn id_text(number: u32) -> String {
    event_id(number).to_string()
}

fn message(entries: Vec<Entry>) -> Message {
    Message {
        org_id: "42".into(),
        cursor: Position::at(Snapshot::parse("10:20:12").unwrap()),
        entries: entries.into_iter().map(Arc::new).collect(),
    }
}

fn write(entries: Vec<Entry>, limits: Limits) -> (Value, Tally) {
    let mut out = b"before".to_vec();
    let tally = write_payload(&mut out, &message(entries), limits);
    let text = &out["before".len()..];
    assert_eq!(tally.bytes, text.len() as u64);
    (serde_json::from_slice(text).unwrap(), tally)
}

fn events(entries: Vec<Entry>, limits: Limits) -> Vec<Value> {
    write(entries, limits).0["events"].as_array().unwrap().clone()
}

#[test]
fn a_message_is_exactly_what_the_design_says() {
    let mut out = Vec::new();
    let job = kind("job.status_changed", &["job_id"]);
    let message = message(vec![entry(&job, 1, r#"["7f3a"]"#)]);
    write_payload(&mut out, &message, LIMITS);
    let expected = format!(
        concat!(
            r#"{{"v":1,"org_id":"42","cursor":"{}","events":[{{"event_id":"{}","#,
            r#""event_type":"job.status_changed","topic":"cataloging","ids":{{"job_id":"7f3a"}},"#,
            r#""at":"2026-11-24T17:00:00.123Z"}}]}}"#
        ),
        message.cursor.clone().stamped(LIMITS.era),
        id_text(1)
    );
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn a_run_is_its_events_one_by_one() {
    let job = kind("job.updated", &["job_id"]);
    let events = events(vec![entry(&job, 7, r#"[1, "two" ,3]"#)], LIMITS);
    let ids: Vec<&Value> = events.iter().map(|event| &event["ids"]["job_id"]).collect();
    assert_eq!(ids, [&json!(1), &json!("two"), &json!(3)]);
    let event_ids: Vec<&Value> = events.iter().map(|event| &event["event_id"]).collect();
    assert_eq!(event_ids, [&json!(id_text(7)), &json!(id_text(8)), &json!(id_text(9))]);
}

#[test]
fn keys_are_copied_to_the_last_digit() {
    let job = kind("job.updated", &["job_id"]);
    let mut out = Vec::new();
    let ids = r#"[9007199254740993.10,"\u00e9\"",null,1e400]"#;
    write_payload(&mut out, &message(vec![entry(&job, 1, ids)]), LIMITS);
    let text = String::from_utf8(out).unwrap();
    for key in ["9007199254740993.10", r#""\u00e9\"""#, "null", "1e400"] {
        assert!(text.contains(&format!(r#"{{"job_id":{key}}}"#)), "{key} in {text}");
    }
}

#[test]
fn composite_keys_and_whole_objects_are_objects() {
    let pair = kind("seat.created", &["room", "num\"ber"]);
    let emitted = kind("import.done", &[]);
    let entries = vec![
        entry(&pair, 1, r#"[["a",1],["b",[2,3]]]"#),
        entry(&emitted, 9, r#"[{"file":"x","rows":10}]"#),
    ];
    let events = events(entries, LIMITS);
    let ids: Vec<&Value> = events.iter().map(|event| &event["ids"]).collect();
    assert_eq!(ids[0], &json!({"room": "a", "num\"ber": 1}));
    assert_eq!(ids[1], &json!({"room": "b", "num\"ber": [2, 3]}));
    assert_eq!(ids[2], &json!({"file": "x", "rows": 10}));
}

#[test]
fn origin_data_and_version_travel_when_they_are_there() {
    let mut newer = (*kind("job.updated", &["job_id"])).clone();
    newer.version = 2;
    let mut full = entry(&Arc::new(newer), 1, "[1,2]");
    full.origin = Some("tab \"7\"".into());
    full.data = Some(r#"[{"status":"done"},{"n":1.50}]"#.into());
    let (payload, tally) = write(vec![full], LIMITS);
    let events = &payload["events"];
    assert_eq!(events[0]["data"], json!({"status": "done"}));
    assert_eq!(events[1]["data"], json!({"n": 1.50}));
    assert_eq!(events[0]["origin"], json!("tab \"7\""));
    assert_eq!(events[0]["version"], json!(2));
    assert_eq!((tally.messages, tally.listed, tally.refreshes), (1, 2, 0));

    let (payload, _) = write(vec![entry(&kind("job.updated", &["job_id"]), 1, "[1]")], LIMITS);
    let members: Vec<&String> = payload["events"][0].as_object().unwrap().keys().collect();
    assert_eq!(members, ["at", "event_id", "event_type", "ids", "topic"]);
}

#[test]
fn names_with_quotes_do_not_break_out() {
    let evil = "a\",\"x\":\"\\\n\u{1}";
    let mut kind = (*kind("job.updated", &["job_id"])).clone();
    kind.topic = evil.into();
    let mut message = message(vec![entry(&Arc::new(kind), 1, "[1]")]);
    message.org_id = evil.into();
    let mut out = Vec::new();
    write_payload(&mut out, &message, LIMITS);
    let payload: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(payload["org_id"], json!(evil));
    assert_eq!(payload["events"][0]["topic"], json!(evil));
    assert_eq!(payload.as_object().unwrap().len(), 4);
}

#[test]
fn what_repeats_is_collapsed_to_the_newest() {
    let (updated, deleted) = (kind("job.updated", &["job_id"]), kind("job.deleted", &["job_id"]));
    let mut echo = entry(&updated, 5, "[1]");
    echo.origin = Some("tab".into());
    let entries = vec![
        entry(&updated, 1, "[1,2]"),
        entry(&updated, 3, "[1]"),
        entry(&deleted, 4, "[1]"),
        echo,
        entry(&updated, 6, "[2,1]"),
    ];
    let (payload, tally) = write(entries, LIMITS);
    let events = payload["events"].as_array().unwrap();
    let left: Vec<&Value> = events.iter().map(|event| &event["event_id"]).collect();
    // Other types and other origins are other events.
    assert_eq!(left, [&id_text(4), &id_text(5), &id_text(6), &id_text(7)]);
    assert_eq!((tally.listed, tally.collapsed, tally.refreshes), (4, 3, 0));
}

#[test]
fn beyond_the_number_of_events_one_refresh_stands_for_each_entity() {
    let (job, flag) = (kind("job.updated", &["job_id"]), kind("flag.created", &["flag_id"]));
    let entries = vec![
        entry(&job, 1, "[1,2]"),
        entry(&flag, 3, "[1]"),
        entry(&job, 4, "[3,4]"),
        entry(&flag, 6, "[2,3]"),
    ];
    let limits = Limits { events_max: 3, ..LIMITS };
    let (payload, tally) = write(entries, limits);
    let events = payload["events"].as_array().unwrap();
    assert_eq!(events.len(), 5);
    assert_eq!(events[2]["event_id"], json!(id_text(3)));
    let refresh = |entity, count, first, last| {
        json!({"event_type": "refresh", "topic": "cataloging", "entity": entity, "count": count,
            "first_event_id": id_text(first), "last_event_id": id_text(last)})
    };
    assert_eq!(events[3], refresh("job", 2, 4, 5));
    assert_eq!(events[4], refresh("flag", 2, 6, 7));
    assert_eq!((tally.listed, tally.refreshes), (3, 2));
}

#[test]
fn a_refresh_has_the_origin_that_all_of_its_events_share() {
    let job = kind("job.updated", &["job_id"]);
    let from = |origin: Option<&str>, number| Entry {
        origin: origin.map(Into::into),
        ..entry(&job, number, "[1]")
    };
    let limits = Limits { events_max: 0, ..LIMITS };
    let origin = |entries| events(entries, limits)[0]["origin"].clone();
    assert_eq!(origin(vec![from(Some("tab"), 1), from(Some("tab"), 2)]), json!("tab"));
    assert_eq!(origin(vec![from(Some("tab"), 1), from(Some("other"), 2)]), Value::Null);
    assert_eq!(origin(vec![from(Some("tab"), 1), from(None, 2)]), Value::Null);
    assert_eq!(origin(vec![from(None, 1), from(Some("tab"), 2)]), Value::Null);
}

#[test]
fn repeats_leave_room_for_others() {
    let job = kind("job.updated", &["job_id"]);
    let repeated = (0..100).map(|n| entry(&job, n, "[7]"));
    let entries = repeated.chain([entry(&job, 100, "[8]")]).collect();
    let (_, tally) = write(entries, Limits { events_max: 2, ..LIMITS });
    assert_eq!((tally.listed, tally.collapsed, tally.refreshes), (2, 99, 0));
}

#[test]
fn a_backlog_is_counted_and_not_taken_apart() {
    let job = kind("job.updated", &["job_id"]);
    let run = |n: u32| {
        let ids: Vec<String> = (0..50).map(|k| (n * 50 + k).to_string()).collect();
        entry(&job, n * 50, &format!("[{}]", ids.join(",")))
    };
    let (payload, tally) = write((0..4_000).map(run).collect(), LIMITS);
    assert_eq!((tally.listed, tally.collapsed, tally.refreshes), (500, 0, 1));
    let refresh = &payload["events"][500];
    assert_eq!(refresh["count"], json!(199_500));
    assert_eq!(refresh["first_event_id"], json!(id_text(500)));
    assert_eq!(refresh["last_event_id"], json!(id_text(199_999)));
}

#[test]
fn a_message_keeps_its_size() {
    let (job, flag) = (kind("job.updated", &["job_id"]), kind("flag.created", &["flag_id"]));
    for bytes_max in [1_000, 2_000, 4_096, 20_000] {
        let entries = (0..200).map(|n| {
            let kind = if n % 2 == 0 { &job } else { &flag };
            entry(kind, n, &format!("[\"{}\"]", "k".repeat(n as usize)))
        });
        let limits = Limits { bytes_max, ..LIMITS };
        let (payload, tally) = write(entries.collect(), limits);
        assert!(tally.bytes <= bytes_max as u64, "{} of {bytes_max}", tally.bytes);
        assert!(tally.listed > 0 && tally.refreshes == 2, "{tally:?}");
        // What is listed is the oldest part, and nothing is missing.
        let events = payload["events"].as_array().unwrap();
        let (listed, refreshes) = events.split_at(tally.listed as usize);
        for (place, event) in listed.iter().enumerate() {
            assert_eq!(event["event_id"], json!(id_text(place as u32)));
        }
        let counted: u64 = refreshes.iter().map(|event| event["count"].as_u64().unwrap()).sum();
        assert_eq!(counted + tally.listed, 200);
    }
}

#[test]
fn an_event_too_large_for_any_message_is_a_refresh_and_the_others_are_listed() {
    let job = kind("job.updated", &["job_id"]);
    let large = entry(&job, 2, &format!("[\"{}\"]", "x".repeat(1_000_000)));
    let events = events(vec![entry(&job, 1, "[1]"), large, entry(&job, 3, "[3]")], LIMITS);
    assert_eq!(events.len(), 3);
    assert_eq!(events[1]["ids"], json!({"job_id": 3}));
    assert_eq!(events[2]["event_type"], json!("refresh"));
    assert_eq!(
        (&events[2]["count"], &events[2]["first_event_id"]),
        (&json!(1), &json!(id_text(2)))
    );
}

#[test]
fn damaged_text_is_a_refresh_and_never_a_broken_message() {
    let (one, two) = (kind("job.updated", &["job_id"]), kind("job.updated", &["a", "b"]));
    let object = kind("job.updated", &[]);
    let mut too_few = entry(&one, 10, "[1]");
    too_few.event_count = 3;
    let mut bad_data = entry(&one, 20, "[1,2]");
    bad_data.data = Some("[{}]".into());
    let mut broken_data = entry(&one, 30, "[1]");
    broken_data.data = Some("[{]".into());
    let damaged = [
        (entry(&one, 1, "[1"), 1),
        (entry(&one, 1, ""), 1),
        (entry(&one, 1, "{\"a\":1}"), 1),
        (entry(&two, 1, "[[1]]"), 1),
        (entry(&two, 1, "[[1,2,3]]"), 1),
        (entry(&two, 1, "[5]"), 1),
        (entry(&object, 1, "[5]"), 1),
        (too_few, 3),
        (bad_data, 2),
        (broken_data, 1),
    ];
    for (entry, count) in damaged {
        let ids = entry.ids.clone();
        let (payload, tally) = write(vec![entry], LIMITS);
        assert_eq!(payload["events"][0]["event_type"], json!("refresh"), "{ids}");
        assert_eq!(payload["events"][0]["count"], json!(count), "{ids}");
        assert_eq!((tally.listed, tally.refreshes), (0, 1));
    }
}
