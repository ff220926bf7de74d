#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;

fn position(xmax: u64) -> Position {
    Position::at(Snapshot::new(xmax, xmax, Vec::new()).unwrap())
}

fn within(base: u64, end: u64, id: i64) -> Position {
    Position::within(position(base).base, position(end).base, EntryId(id))
}

fn now() -> Time {
    Time::from_ms(1_000)
}

#[test]
fn the_cursor_waits_for_the_oldest_entry_without_outcome() {
    let mut ledger = Ledger::new(position(10));
    let first = ledger.enter(&position(10), position(20), 2);
    let second = ledger.enter(&position(20), position(30), 1);
    ledger.settle(second, 1);
    ledger.settle(first, 1);
    assert_eq!(ledger.next_record(now(), false), None);
    ledger.settle(first, 1);
    assert_eq!(ledger.next_record(now(), false), Some(position(30)));
    ledger.record_succeeded();
    assert_eq!(ledger.recorded(), &position(30));
    assert_eq!(ledger.next_record(now(), false), None);
}

#[test]
fn one_record_at_a_time_takes_all_progress_with_it() {
    let mut ledger = Ledger::new(position(10));
    let chunks: Vec<ChunkId> =
        (1..=3).map(|n| ledger.enter(&position(n * 10), position(n * 10 + 10), 1)).collect();
    let mut chunks = chunks.into_iter();
    ledger.settle(chunks.next().unwrap(), 1);
    assert_eq!(ledger.next_record(now(), false), Some(position(20)));
    chunks.for_each(|chunk| ledger.settle(chunk, 1));
    assert_eq!(ledger.next_record(now(), false), None);
    ledger.record_succeeded();
    assert_eq!(ledger.next_record(now(), false), Some(position(40)));
}

#[test]
fn a_failed_record_is_tried_again_later_and_with_what_came_since() {
    let mut ledger = Ledger::new(position(10));
    let first = ledger.enter(&position(10), position(20), 1);
    ledger.settle(first, 1);
    ledger.next_record(now(), false).unwrap();
    ledger.record_failed(now(), 99);
    assert_eq!(ledger.deadline(), Some(Time::from_ms(1_100)));
    assert_eq!(ledger.next_record(now(), false), None);
    let second = ledger.enter(&position(20), position(30), 1);
    ledger.settle(second, 1);
    assert_eq!(ledger.next_record(Time::from_ms(1_099), false), None);
    assert_eq!(ledger.next_record(Time::from_ms(1_100), false), Some(position(30)));
    assert_eq!(ledger.deadline(), None);
    assert_eq!(ledger.recorded(), &position(10));
}

#[test]
fn an_advance_past_nothing_is_recorded_with_the_next_entry_or_when_it_is_long() {
    let mut ledger = Ledger::new(position(10));
    ledger.enter(&position(10), position(11), 0);
    assert_eq!(ledger.next_record(now(), false), None);
    let chunk = ledger.enter(&position(11), position(12), 1);
    ledger.enter(&position(12), position(13), 0);
    ledger.settle(chunk, 1);
    assert_eq!(ledger.next_record(now(), false), Some(position(13)));
    ledger.record_succeeded();

    let almost = position(13 + EMPTY_ADVANCE_XIDS - 1);
    ledger.enter(&position(13), almost.clone(), 0);
    assert_eq!(ledger.next_record(now(), false), None);
    let far = position(13 + EMPTY_ADVANCE_XIDS);
    ledger.enter(&almost, far.clone(), 0);
    assert_eq!(ledger.next_record(now(), false), Some(far));
}

#[test]
fn a_reading_that_brought_nothing_and_did_not_move_leaves_no_trace() {
    let mut ledger = Ledger::new(position(10));
    for _ in 0..100 {
        ledger.enter(&position(10), position(10), 0);
    }
    assert!(ledger.chunks.is_empty() && ledger.done.is_none());
    let chunk = ledger.enter(&position(10), position(20), 1);
    for xmax in 20..120 {
        ledger.enter(&position(xmax), position(xmax + 1), 0);
    }
    assert_eq!(ledger.chunks.len(), 1, "empty readings take no memory while one is waited for");
    ledger.settle(chunk, 1);
    assert_eq!(ledger.next_record(now(), false), Some(position(120)));
}

#[test]
fn a_message_cursor_stands_in_the_window_of_its_reading() {
    let mut ledger = Ledger::new(position(10));
    let part = ledger.enter(&position(10), within(10, 20, 5), 3);
    let last = ledger.enter(&within(10, 20, 5), position(20), 3);
    ledger.enter(&position(20), position(40), 0);
    let cursor = |chunk, id| ledger.cursor(chunk, EntryId(id)).unwrap();
    assert_eq!(cursor(part, 4), within(10, 20, 4));
    assert_eq!(cursor(last, 9), within(10, 20, 9), "not past what was read after it");
}

#[test]
fn a_chunk_is_found_after_others_are_gone() {
    let mut ledger = Ledger::new(position(10));
    let mut open = VecDeque::new();
    for xmax in 10..200 {
        open.push_back((xmax, ledger.enter(&position(xmax), position(xmax + 1), 1)));
        if open.len() > 3 {
            let (xmax, chunk) = open.pop_front().unwrap();
            assert_eq!(ledger.cursor(chunk, EntryId(1)), Some(within(xmax, xmax + 1, 1)));
            ledger.settle(chunk, 1);
            assert_eq!(ledger.next_record(now(), false), Some(position(xmax + 1)));
            ledger.record_succeeded();
        }
    }
}

#[test]
fn outcomes_are_recorded_where_the_cursor_stands() {
    let mut ledger = Ledger::new(position(10));
    assert_eq!(ledger.next_record(now(), true), Some(position(10)));
    ledger.record_succeeded();
    let id = ledger.enter(&position(10), position(20), 1);
    assert_eq!(ledger.next_record(now(), true), Some(position(10)));
    ledger.settle(id, 1);
    assert_eq!(ledger.next_record(now(), true), None, "one record at a time");
    ledger.record_failed(now(), 0);
    assert_eq!(ledger.next_record(Time::from_ms(9_999), false), Some(position(20)));
}

#[test]
fn an_entry_in_two_parts_needs_two_outcomes() {
    let mut ledger = Ledger::new(position(10));
    let id = ledger.enter(&position(10), position(20), 1);
    ledger.split(id);
    ledger.settle(id, 1);
    assert_eq!(ledger.next_record(now(), false), None);
    ledger.settle(id, 1);
    assert_eq!(ledger.next_record(now(), false), Some(position(20)));
}
