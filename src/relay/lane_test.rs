#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;
use crate::cursor::{Position, Snapshot};
use crate::event::{EntryId, EventId, EventKind, EventType};
use crate::relay::ledger::Ledger;
use crate::relay::time::Duration;

const RATE: Rate = Rate { burst: 2, window: Duration::from_ms(100) };

const ROOM: Room = Room { messages: 1_000, bytes: 1 << 30, message_bytes: 1 << 20 };

fn at(ms: u64) -> Time {
    Time::from_ms(1_000_000 + ms)
}

fn entry(org: &str, id: i64) -> Arc<Entry> {
    Arc::new(Entry {
        id: EntryId(id),
        event_id: EventId::from_bytes([0; 16]),
        kind: Arc::new(EventKind {
            event_type: EventType { name: "job.updated".into(), entity: "job".into() },
            topic: "t".into(),
            key_names: Box::new(["job_id".into()]),
            version: 1,
        }),
        org_id: org.into(),
        event_count: 1,
        ids: "[1]".into(),
        data: None,
        origin: None,
        at_us: 0,
    })
}

fn event(id: u8) -> EventId {
    EventId::from_bytes([id; 16])
}

/// Numbers of chunks, as a ledger gives them.
fn chunks<const N: usize>() -> [ChunkId; N] {
    let position = Position::at(Snapshot::empty());
    let mut ledger = Ledger::new(position.clone());
    std::array::from_fn(|_| ledger.enter(&position, position.clone(), 1))
}

fn ids(parcel: &Parcel) -> Vec<i64> {
    parcel.entries.iter().map(|entry| entry.id.0).collect()
}

fn take(lanes: &mut Lanes, now: Time) -> Vec<Parcel> {
    lanes.tick(now);
    (0..lanes.count()).flat_map(|lane| lanes.take(now, lane, ROOM)).collect()
}

fn take_one(lanes: &mut Lanes, now: Time) -> Option<Parcel> {
    let mut parcels = take(lanes, now);
    assert!(parcels.len() <= 1);
    parcels.pop()
}

#[test]
fn an_org_sends_its_burst_at_once_and_then_by_windows() {
    let (mut lanes, [chunk]) = (Lanes::new(1, RATE), chunks());
    for id in 1..=2 {
        lanes.push(at(0), entry("a", id), chunk);
        let parcel = take_one(&mut lanes, at(0)).unwrap();
        assert_eq!(ids(&parcel), [id]);
        lanes.delivered(at(0), parcel.org);
    }
    for id in 3..=5 {
        lanes.push(at(1), entry("a", id), chunk);
    }
    assert!(take(&mut lanes, at(99)).is_empty());
    assert_eq!(lanes.next_token_at(), Some(at(100)));
    let parcel = take_one(&mut lanes, at(100)).unwrap();
    assert_eq!(ids(&parcel), [3, 4, 5], "what came meanwhile is one message");
    lanes.delivered(at(130), parcel.org);
    lanes.push(at(131), entry("a", 6), chunk);
    assert_eq!(lanes.next_token_at(), Some(at(200)));
}

#[test]
fn an_org_in_flight_waits_for_its_answer() {
    let (mut lanes, [chunk]) = (Lanes::new(1, RATE), chunks());
    lanes.push(at(0), entry("a", 1), chunk);
    let parcel = take_one(&mut lanes, at(0)).unwrap();
    lanes.push(at(0), entry("a", 2), chunk);
    lanes.push(at(0), entry("b", 3), chunk);
    let other = take_one(&mut lanes, at(0)).unwrap();
    assert_eq!(&*other.org_id, "b", "others do not wait for it");
    assert!(take(&mut lanes, at(90_000)).is_empty());
    lanes.delivered(at(90_000), parcel.org);
    assert_eq!(ids(&take_one(&mut lanes, at(90_000)).unwrap()), [2]);
}

#[test]
fn what_failed_goes_before_all_else() {
    let (mut lanes, [first, second]) = (Lanes::new(1, RATE), chunks());
    lanes.push(at(0), entry("a", 1), first);
    lanes.push(at(0), entry("b", 2), first);
    let parcels = lanes.take(at(0), 0, ROOM);
    assert_eq!(parcels.len(), 2);
    lanes.push(at(0), entry("c", 3), second);
    lanes.push(at(0), entry("a", 4), second);
    for parcel in parcels.into_iter().rev() {
        lanes.put_back(parcel, Again::First);
    }
    let again = lanes.take(at(1), 0, ROOM);
    let orgs: Vec<&str> = again.iter().map(|parcel| &*parcel.org_id).collect();
    assert_eq!(orgs, ["a", "b", "c"]);
    assert_eq!(ids(&again[0]), [1, 4]);
    let runs = [Run { chunk: first, entries: 1 }, Run { chunk: second, entries: 1 }];
    assert_eq!(again[0].backing, Backing::Outbox(runs.into()));
}

#[test]
fn runs_count_the_entries_of_each_chunk() {
    let (mut lanes, [first, second]) = (Lanes::new(1, RATE), chunks());
    for (id, chunk) in [(1, first), (2, first), (3, second)] {
        lanes.push(at(0), entry("a", id), chunk);
    }
    let parcel = take_one(&mut lanes, at(0)).unwrap();
    let runs = [Run { chunk: first, entries: 2 }, Run { chunk: second, entries: 1 }];
    assert_eq!(parcel.backing, Backing::Outbox(runs.into()));
}

#[test]
fn a_request_keeps_to_its_room_and_takes_the_oldest() {
    let (mut lanes, [chunk]) = (Lanes::new(1, RATE), chunks());
    for org in 0..10 {
        lanes.push(at(0), entry(&org.to_string(), org), chunk);
    }
    let orgs = |parcels: Vec<Parcel>| -> Vec<i64> { parcels.iter().flat_map(ids).collect() };
    let few = Room { messages: 3, ..ROOM };
    assert_eq!(orgs(lanes.take(at(0), 0, few)), [0, 1, 2]);
    // An estimate of each is below 1,500 bytes.
    let small = Room { bytes: 4_500, ..ROOM };
    assert_eq!(orgs(lanes.take(at(0), 0, small)), [3, 4, 5]);
    let tiny = Room { bytes: 1, ..ROOM };
    assert_eq!(orgs(lanes.take(at(0), 0, tiny)), [6], "one at least");
    let none = Room { messages: 0, ..ROOM };
    assert!(lanes.take(at(0), 0, none).is_empty());
    assert_eq!(orgs(lanes.take(at(0), 0, ROOM)), [7, 8, 9]);
}

#[test]
fn a_huge_backlog_of_an_org_counts_as_the_message_it_is_cut_to() {
    let (mut lanes, [chunk]) = (Lanes::new(1, RATE), chunks());
    for id in 0..1_000 {
        lanes.push(at(0), entry("a", id), chunk);
    }
    lanes.push(at(0), entry("b", 2_000), chunk);
    let room = Room { messages: 9, bytes: 10_000, message_bytes: 4_096 };
    assert_eq!(lanes.take(at(0), 0, room).len(), 2);
}

#[test]
fn idle_orgs_are_forgotten_once_their_bucket_is_full() {
    let (mut lanes, [chunk]) = (Lanes::new(3, RATE), chunks());
    for org in 0..1_000 {
        lanes.push(at(0), entry(&org.to_string(), org), chunk);
    }
    for parcel in take(&mut lanes, at(0)) {
        lanes.delivered(at(10), parcel.org);
    }
    lanes.push(at(50), entry("7", 5_000), chunk);
    lanes.tick(at(99));
    assert_eq!(lanes.org_count(), 1_000);
    lanes.tick(at(100));
    assert_eq!(lanes.org_count(), 1, "org 7 has something to send");
    let parcel = take_one(&mut lanes, at(100)).unwrap();
    assert_eq!((&*parcel.org_id, ids(&parcel)), ("7", vec![5_000]));
    lanes.delivered(at(100), parcel.org);
    lanes.tick(at(1_000));
    assert_eq!(lanes.org_count(), 0);
    // Their places are used again.
    lanes.push(at(1_000), entry("new", 1), chunk);
    assert_eq!(lanes.orgs.len(), 1_000);
}

#[test]
fn an_org_keeps_its_lane_and_lanes_share_the_orgs() {
    for count in [2, 4, 7] {
        let mut sizes = vec![0; count];
        for org in 0..10_000 {
            sizes[lane_of(&org.to_string(), count)] += 1;
        }
        let even = 10_000 / count;
        assert!(sizes.iter().all(|size| size * 10 > even * 9), "{sizes:?}");
    }
    let few: Vec<usize> = (1..=9).map(|org| lane_of(&org.to_string(), 4)).collect();
    assert!((0..4).all(|lane| few.contains(&lane)), "short names that differ little: {few:?}");
}

/// An entry of several events, whose keys are their numbers.
fn run_entry(org: &str, id: i64, keys: std::ops::Range<u32>) -> Arc<Entry> {
    let count = keys.len() as u32;
    let keys: Vec<String> = keys.map(|key| key.to_string()).collect();
    let ids = format!("[{}]", keys.join(",")).into();
    Arc::new(Entry { event_count: count, ids, ..(*entry(org, id)).clone() })
}

fn keys(parcel: &Parcel) -> Vec<u32> {
    let keys = parcel.entries.iter().map(|entry| serde_json::from_str::<Vec<u32>>(&entry.ids));
    keys.flat_map(Result::unwrap).collect()
}

#[test]
fn a_refused_message_comes_again_alone_and_in_parts_that_keep_the_order() {
    let (mut lanes, [first, second]) = (Lanes::new(1, RATE), chunks());
    lanes.push(at(0), run_entry("a", 1, 0..6), first);
    lanes.push(at(0), run_entry("a", 2, 6..8), second);
    let parcel = take_one(&mut lanes, at(0)).unwrap();
    assert_eq!(parcel.event_count(), 8);
    lanes.put_back(parcel, Again::Alone { events_max: 4 });
    lanes.push(at(0), entry("b", 3), second);
    lanes.push(at(0), run_entry("a", 4, 8..9), second);

    let part = take_one(&mut lanes, at(0)).unwrap();
    assert_eq!(keys(&part), [0, 1, 2, 3]);
    let runs = vec![Run { chunk: first, entries: 1 }];
    assert_eq!(part.backing, Backing::Outbox(runs));
    assert!(part.is_cut, "the rest of its entry is still here");
    assert_eq!(part.split.map(|split| split.chunk), Some(first), "one entry is two now");
    lanes.delivered(at(1), part.org);

    let other = take_one(&mut lanes, at(1)).unwrap();
    assert_eq!(&*other.org_id, "b", "nobody shares a request with it");
    let rest = take_one(&mut lanes, at(1)).unwrap();
    assert_eq!(keys(&rest), [4, 5, 6, 7, 8], "it grows again, and needs no token");
    let runs = vec![Run { chunk: first, entries: 1 }, Run { chunk: second, entries: 2 }];
    assert_eq!(rest.backing, Backing::Outbox(runs));
    assert!(!rest.is_cut && rest.split.is_none());
}

#[test]
fn what_cannot_be_divided_is_sent_whole() {
    let (mut lanes, [chunk]) = (Lanes::new(1, RATE), chunks());
    let damaged = Entry { event_count: 5, ids: "[1,2".into(), ..(*entry("a", 1)).clone() };
    lanes.push(at(0), Arc::new(damaged), chunk);
    lanes.push(at(0), entry("a", 2), chunk);
    let parcel = take_one(&mut lanes, at(0)).unwrap();
    assert!(parcel.is_divisible());
    lanes.put_back(parcel, Again::Alone { events_max: 3 });
    let parcel = take_one(&mut lanes, at(0)).unwrap();
    assert_eq!(ids(&parcel), [1]);
    assert!(!parcel.is_divisible());
}

#[test]
fn a_lane_sends_fewer_messages_after_a_refusal_and_more_after_each_delivery() {
    let (mut lanes, [chunk]) = (Lanes::new(1, RATE), chunks());
    for org in 0..40 {
        lanes.push(at(0), entry(&org.to_string(), org), chunk);
    }
    lanes.narrow(0, 8);
    let sizes: Vec<usize> = (0..4)
        .map(|_| {
            let size = lanes.take(at(0), 0, ROOM).len();
            lanes.widen(0, 16);
            size
        })
        .collect();
    assert_eq!(sizes, [4, 8, 28, 0]);
    lanes.narrow(0, 1);
    lanes.push(at(0), entry("x", 1), chunk);
    assert_eq!(lanes.take(at(0), 0, ROOM).len(), 1, "one always");
}

#[test]
fn what_is_sent_again_has_a_turn_now_and_then() {
    let (mut lanes, [chunk]) = (Lanes::new(1, RATE), chunks());
    lanes.push_return(vec![entry("r", 1), entry("r", 2)], 0);
    lanes.push_return(vec![entry("s", 3)], 0);
    lanes.push_return(vec![entry("s", 4)], 0);
    lanes.push_return(vec![entry("t", 5)], 2);
    let few = Room { messages: 1, ..ROOM };
    let mut taken = Vec::new();
    for org in 0..9 {
        lanes.push(at(0), entry(&org.to_string(), 100 + org), chunk);
    }
    while lanes.oldest_due(0).is_some() {
        let parcels = lanes.take(at(0), 0, few);
        taken.push(parcels.iter().map(|parcel| parcel.org_id.to_string()).collect::<Vec<_>>());
    }
    let order: Vec<String> = taken.into_iter().flatten().collect();
    let expected = ["0", "1", "2", "3", "r", "4", "5", "6", "7", "s", "8", "s", "t"];
    assert_eq!(order, expected);

    lanes.push_return(vec![entry("r", 1)], 0);
    lanes.push_return(vec![entry("s", 3)], 0);
    lanes.push_return(vec![entry("s", 4)], 0);
    lanes.push_return(vec![entry("t", 5)], 1);
    let sizes: Vec<usize> = (0..3).map(|_| lanes.take(at(0), 0, ROOM).len()).collect();
    assert_eq!(sizes, [2, 1, 1], "one message of an org in a request, and a refused one alone");
}

#[test]
fn a_refused_parcel_of_returns_is_halved() {
    let mut lanes = Lanes::new(1, RATE);
    lanes.push_return((1..=5).map(|id| entry("r", id)).collect(), 0);
    let parcel = take_one(&mut lanes, at(0)).unwrap();
    let key = parcel.org;
    lanes.put_back(parcel, Again::Alone { events_max: 2 });
    assert_eq!(ids(&take_one(&mut lanes, at(0)).unwrap()), [1, 2]);
    assert_eq!(ids(&take_one(&mut lanes, at(0)).unwrap()), [3, 4, 5]);
    lanes.returned(at(0), key);
    lanes.tick(at(1_000));
    assert_eq!(lanes.org_count(), 1, "a part of it is still on the way");
    lanes.returned(at(1_000), key);
    lanes.tick(at(1_000));
    assert_eq!(lanes.org_count(), 0);
}

#[test]
fn an_org_that_is_held_waits_and_the_others_do_not() {
    let (mut lanes, [chunk]) = (Lanes::new(1, RATE), chunks());
    lanes.push(at(0), entry("a", 1), chunk);
    let parcel = take_one(&mut lanes, at(0)).unwrap();
    lanes.push(at(0), entry("a", 2), chunk);
    lanes.refused(at(0), parcel.org, Some(event(1)));
    lanes.push(at(0), entry("b", 3), chunk);
    assert_eq!(&*take_one(&mut lanes, at(0)).unwrap().org_id, "b");
    lanes.push(at(50), entry("a", 4), chunk);
    assert!(take(&mut lanes, at(9_000)).is_empty());
    lanes.release(at(9_000), parcel.org, event(1));
    assert_eq!(ids(&take_one(&mut lanes, at(9_000)).unwrap()), [2, 4]);

    // Held from the start, before there is anything to send.
    for id in [6, 7, 7] {
        lanes.hold(&"c".into(), event(id));
    }
    lanes.push(at(9_000), entry("c", 5), chunk);
    assert!(take(&mut lanes, at(9_000)).is_empty());
    let key = lanes.key_of(&"c".into());
    for id in [8, 7, 7] {
        lanes.release(at(9_000), key, event(id));
    }
    assert!(take(&mut lanes, at(9_000)).is_empty(), "it waits for one more");
    lanes.release(at(9_000), key, event(6));
    assert_eq!(ids(&take_one(&mut lanes, at(9_000)).unwrap()), [5]);
}
