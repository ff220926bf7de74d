#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;

fn snapshot(text: &str) -> Snapshot {
    Snapshot::parse(text).unwrap()
}

/// Splitmix64: random enough, and the same numbers in each run.
fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |bound| {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn random_snapshot(below: &mut impl FnMut(u64) -> u64, span: u64) -> Snapshot {
    let xmin = 3 + below(span);
    let xmax = xmin + below(span);
    let xip = (xmin..xmax).filter(|_| below(3) == 0).collect();
    Snapshot::new(xmin, xmax, xip).unwrap()
}

fn random_position(below: &mut impl FnMut(u64) -> u64, span: u64) -> Position {
    let base = random_snapshot(below, span);
    match below(2) {
        0 => Position::at(base),
        _ => {
            let last_id = EntryId(below(1 << 40) as i64 - (1 << 39));
            Position::within(base, random_snapshot(below, span), last_id)
        }
    }
}

fn random_cursor(below: &mut impl FnMut(u64) -> u64, span: u64) -> Cursor {
    let era = Era(below(1 << 32) as u32);
    random_position(below, span).stamped(era)
}

#[test]
fn a_snapshot_has_the_text_of_postgres() {
    for text in ["3:3:", "10:20:10,14,19", "1:18446744073709551615:"] {
        assert_eq!(snapshot(text).to_string(), text);
    }
    for text in ["", "1", "1:2", "a:2:", "1:2:x", "2:1:", "1:3:3", "1:9:5,4", "1:9:5,5", "1:9:,"] {
        let error = Snapshot::parse(text).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidText, "{text:?}");
    }
    assert_eq!(Snapshot::empty().to_string(), "3:3:");
}

#[test]
fn a_snapshot_sees_what_is_finished() {
    let snapshot = snapshot("10:20:10,14");
    let seen: Vec<u64> = (5..25).filter(|&xid| snapshot.sees(xid)).collect();
    assert_eq!(seen, [5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
    assert!((0..100).all(|xid| xid < 3 || !Snapshot::empty().sees(xid)));
}

#[test]
fn covering_is_what_its_definition_says() {
    let mut below = numbers(1);
    let mut covered = 0;
    for _ in 0..200_000 {
        let (a, b) = (random_snapshot(&mut below, 6), random_snapshot(&mut below, 6));
        let expected = (0..30).all(|xid| !b.sees(xid) || a.sees(xid));
        assert_eq!(a.covers(&b), expected, "{a} covers {b}");
        covered += u32::from(expected);
    }
    assert!(covered > 10_000, "the samples must have both: {covered}");
}

#[test]
fn a_position_covers_its_base_and_the_done_part_of_its_window() {
    let position = Position::within(snapshot("10:10:"), snapshot("15:20:15"), EntryId(100));
    assert!(position.covers(9, EntryId(500)), "base");
    assert!(position.covers(12, EntryId(100)), "in the window, done");
    assert!(!position.covers(12, EntryId(101)), "in the window, not reached");
    assert!(!position.covers(15, EntryId(1)), "in progress at the end of the window");
    assert!(!position.covers(20, EntryId(1)), "after the window");
    assert!(!Position::at(snapshot("10:10:")).covers(10, EntryId(1)));
}

#[test]
fn an_era_is_of_one_cluster_one_timeline_and_one_database() {
    let mut eras: Vec<Era> = Vec::new();
    for identifier in 7_387_654_321_098_765_432..7_387_654_321_098_765_532 {
        eras.extend((1..=5).map(|timeline| Era::of(identifier, timeline, 5)));
        eras.extend((6..=9).map(|database| Era::of(identifier, 1, database)));
    }
    let distinct: std::collections::HashSet<Era> = eras.iter().copied().collect();
    assert_eq!(distinct.len(), eras.len());
    assert_eq!(Era::of(7, 1, 5), Era::of(7, 1, 5));
}

#[test]
fn a_cursor_survives_its_text() {
    let mut below = numbers(2);
    for round in 0..20_000 {
        let span = if round % 2 == 0 { 40 } else { 2_000 };
        let cursor = random_cursor(&mut below, span);
        let text = cursor.to_string();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        assert_eq!(Cursor::parse(&text).unwrap(), cursor);
    }
    let far = Snapshot::new(u64::MAX - 9, u64::MAX, vec![u64::MAX - 1]).unwrap();
    for last_id in [i64::MIN, -1, 0, i64::MAX] {
        let position = Position::within(far.clone(), Snapshot::empty(), EntryId(last_id));
        let cursor = position.stamped(Era(u32::MAX));
        assert_eq!(Cursor::parse(&cursor.to_string()).unwrap(), cursor);
    }
}

#[test]
fn the_text_of_an_ordinary_position_is_short() {
    let base = snapshot("812345678:812345680:812345678");
    let end = snapshot("812345700:812345702:812345700,812345701");
    let position = Position::within(base, end, EntryId(5_000_000_000));
    let text = position.stamped(Era::of(7_387_654_321_098_765_432, 1, 5)).to_string();
    assert!(text.len() <= 38, "{} characters", text.len());
}

#[test]
fn what_was_changed_is_refused_or_another_cursor_and_never_a_panic() {
    let mut below = numbers(3);
    for _ in 0..2_000 {
        let cursor = random_cursor(&mut below, 30);
        let text = cursor.to_string();
        for length in 0..text.len() {
            assert!(Cursor::parse(&text[..length]).is_err(), "{text} cut to {length}");
        }
        assert!(Cursor::parse(&format!("{text}A")).is_err());
        let mut bytes = text.clone().into_bytes();
        let place = below(bytes.len() as u64) as usize;
        bytes[place] = b"AZaz09-_=+/ \n\""[below(14) as usize];
        if let Ok(other) = Cursor::parse(&String::from_utf8(bytes).unwrap()) {
            assert_eq!(Cursor::parse(&other.to_string()).unwrap(), other);
        }
    }
    for _ in 0..20_000 {
        let length = below(40);
        let mut bytes: Vec<u8> = (0..length).map(|_| below(256) as u8).collect();
        bytes.insert(0, TEXT_VERSION);
        if let Ok(cursor) = Cursor::parse(&URL_SAFE_NO_PAD.encode(&bytes)) {
            assert_eq!(Cursor::parse(&cursor.to_string()).unwrap(), cursor);
        }
    }
}

#[test]
fn a_hostile_cursor_is_refused_with_a_reason() {
    let reason = |text: &str| {
        let error = Cursor::parse(text).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::InvalidText, "invalid cursor")
        );
        assert!(error.hint.is_some());
        error.detail.unwrap()
    };
    assert_eq!(reason(""), "The text is empty.");
    assert_eq!(reason(&"A".repeat(TEXT_BYTES_MAX + 1)), "The text is too long.");
    assert_eq!(reason("'; drop table x"), "The text is not of a cursor's alphabet.");
    assert_eq!(reason("é"), "The text is not of a cursor's alphabet.");
    assert_eq!(
        reason(&URL_SAFE_NO_PAD.encode([9, 1, 1])),
        "The version of the cursor is not known."
    );
    // A count of transactions that would need exabytes.
    let mut bytes = vec![TEXT_VERSION, 0, 0, 0, 0, 3, 9];
    bytes.extend([0xff; 9]);
    bytes.push(0x01);
    assert_eq!(reason(&URL_SAFE_NO_PAD.encode(bytes)), "The text was cut or changed.");
}
