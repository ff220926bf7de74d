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
    lanes.put_back(parcels.into_iter());
    let again = lanes.take(at(1), 0, ROOM);
    let orgs: Vec<&str> = again.iter().map(|parcel| &*parcel.org_id).collect();
    assert_eq!(orgs, ["a", "b", "c"]);
    assert_eq!(ids(&again[0]), [1, 4]);
    let runs = [Run { chunk: first, entries: 1 }, Run { chunk: second, entries: 1 }];
    assert_eq!(again[0].runs, runs);
}

#[test]
fn runs_count_the_entries_of_each_chunk() {
    let (mut lanes, [first, second]) = (Lanes::new(1, RATE), chunks());
    for (id, chunk) in [(1, first), (2, first), (3, second)] {
        lanes.push(at(0), entry("a", id), chunk);
    }
    let parcel = take_one(&mut lanes, at(0)).unwrap();
    let runs = [Run { chunk: first, entries: 2 }, Run { chunk: second, entries: 1 }];
    assert_eq!(parcel.runs, runs);
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

#[test]
fn another_number_of_lanes_loses_nobody() {
    let (mut lanes, [chunk]) = (Lanes::new(4, RATE), chunks());
    for org in 0..100 {
        lanes.push(at(0), entry(&org.to_string(), org), chunk);
    }
    for count in [1, 9, 2] {
        lanes.configure(count, RATE);
        let due: usize = (0..count).map(|lane| lanes.due[lane].len()).sum();
        assert_eq!(due, 100);
        for (lane, queue) in lanes.due.iter().enumerate() {
            assert!(queue.iter().is_sorted(), "oldest first");
            let org = |key: OrgKey| lanes.orgs[key.0 as usize].as_ref().unwrap();
            assert!(queue.iter().all(|&(_, key)| lane_of(&org(key).id, count) == lane));
        }
    }
}
