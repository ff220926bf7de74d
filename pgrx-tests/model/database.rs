//! The outbox as Postgres shows it: transactions that commit out of order, or never, and entries
//! that are pruned once the cursor has passed them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pg_outbox::cursor::{Position, Snapshot};
use pg_outbox::event::{Entry, EntryId, EventId, EventKind, EventType};
use pg_outbox::relay::plan::Chunk;

use crate::chance::Chance;

/// An entry, its events' keys and the transaction that wrote it.
pub struct Row {
    pub xid: u64,
    pub entry: Entry,
    /// The place of its commit among all commits.
    pub committed: usize,
    keys: Vec<String>,
    /// The text of its keys does not hold as many as it counts: it can only be whole.
    pub is_damaged: bool,
}

struct Draft {
    entry: Entry,
    keys: Vec<String>,
    is_damaged: bool,
}

pub struct Database {
    next_xid: u64,
    next_id: i64,
    open: BTreeMap<u64, Vec<Draft>>,
    /// All that was ever committed, pruned or not.
    rows: BTreeMap<EntryId, Row>,
    by_org: HashMap<Arc<str>, Vec<EntryId>>,
    /// What the durable cursor has not passed.
    unpassed: Vec<EntryId>,
    /// What it has passed and no pruning has taken.
    passed: Vec<EntryId>,
    commits: usize,
    kind: Arc<EventKind>,
    org_ids: Vec<Arc<str>>,
}

/// Every event has the number of its entry in its identity.
pub fn entry_id(event_id: EventId) -> EntryId {
    EntryId((u128::from_be_bytes(event_id.to_bytes()) >> 32) as i64)
}

fn offset(event_id: EventId) -> usize {
    u128::from_be_bytes(event_id.to_bytes()) as u32 as usize
}

impl Row {
    /// The events as they can be sent one by one.
    pub fn units(&self) -> Vec<Entry> {
        if self.is_damaged || self.entry.event_count == 1 {
            return vec![self.entry.clone()];
        }
        let units = self.keys.iter().enumerate().map(|(place, key)| Entry {
            event_id: self.entry.event_id.plus(place as u32),
            event_count: 1,
            ids: format!("[{key}]").into(),
            ..self.entry.clone()
        });
        units.collect()
    }

    /// Whether a part of it is what was written.
    pub fn has(&self, part: &Entry) -> bool {
        let keys = self.keys.iter().skip(offset(part.event_id)).take(part.event_count as usize);
        let keys: Vec<&str> = keys.map(String::as_str).collect();
        let is_whole = part.ids == self.entry.ids && part.event_id == self.entry.event_id;
        let is_part = !self.is_damaged
            && keys.len() == part.event_count as usize
            && *part.ids == format!("[{}]", keys.join(","));
        part.org_id == self.entry.org_id && part.id == self.entry.id && (is_whole || is_part)
    }
}

impl Database {
    pub fn new(orgs: u64) -> Self {
        let kind = EventKind {
            event_type: EventType { name: "job.updated".into(), entity: "job".into() },
            topic: "cataloging".into(),
            key_names: ["job_id".into()].into(),
            version: 1,
        };
        Self {
            next_xid: 1_000,
            next_id: 1,
            open: BTreeMap::new(),
            rows: BTreeMap::new(),
            by_org: HashMap::new(),
            unpassed: Vec::new(),
            passed: Vec::new(),
            commits: 0,
            kind: Arc::new(kind),
            org_ids: (0..orgs).map(|org| org.to_string().into()).collect(),
        }
    }

    pub fn begin(&mut self) {
        self.open.insert(self.next_xid, Vec::new());
        self.next_xid += 1;
    }

    /// A random open transaction writes its entries: ids are taken now, the commit comes later.
    pub fn flush(&mut self, chance: &mut Chance) {
        let unflushed = self.open.iter().filter(|(_, drafts)| drafts.is_empty());
        let xids: Vec<u64> = unflushed.map(|(&xid, _)| xid).collect();
        if xids.is_empty() {
            return;
        }
        let xid = chance.pick(&xids);
        let count =
            if chance.in_percent(10) { chance.between(5, 40) } else { chance.between(1, 3) };
        let drafts = (0..count).map(|_| self.write(chance)).collect();
        self.open.insert(xid, drafts);
    }

    /// A random open transaction ends; most commit. Returns the entries that this showed.
    pub fn end(&mut self, chance: &mut Chance, keep_open: usize) -> Vec<EntryId> {
        let xids: Vec<u64> = self.open.keys().copied().collect();
        if xids.len() <= keep_open {
            return Vec::new();
        }
        let xid = chance.pick(&xids);
        let drafts = self.open.remove(&xid).unwrap();
        if chance.in_percent(10) {
            return Vec::new();
        }
        self.commits += 1;
        let mut shown = Vec::new();
        for Draft { entry, keys, is_damaged } in drafts {
            shown.push(entry.id);
            self.by_org.entry(entry.org_id.clone()).or_default().push(entry.id);
            let committed = self.commits;
            self.rows.insert(entry.id, Row { xid, entry, committed, keys, is_damaged });
        }
        self.unpassed.extend(&shown);
        self.unpassed.sort_unstable();
        shown
    }

    /// A transaction that has nothing to do with us.
    pub fn pass_xid(&mut self) {
        self.next_xid += 1;
    }

    pub fn open_xids(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    pub fn rows_of(&self, org_id: &str) -> impl Iterator<Item = &Row> {
        self.by_org.get(org_id).into_iter().flatten().map(|id| &self.rows[id])
    }

    pub fn row(&self, id: EntryId) -> Option<&Row> {
        self.rows.get(&id)
    }

    pub fn unpassed(&self) -> impl DoubleEndedIterator<Item = &Row> {
        self.unpassed.iter().map(|id| &self.rows[id])
    }

    pub fn passed(&self) -> impl DoubleEndedIterator<Item = &Row> {
        self.passed.iter().map(|id| &self.rows[id])
    }

    /// The durable cursor has moved.
    pub fn pass(&mut self, position: &Position) {
        let (rows, passed) = (&self.rows, &mut self.passed);
        self.unpassed.retain(|id| {
            let is_passed = position.covers(rows[id].xid, *id);
            passed.extend(is_passed.then_some(*id));
            !is_passed
        });
    }

    /// Removes what every cursor has passed, the oldest part of it.
    pub fn prune(&mut self, chance: &mut Chance) {
        let count = chance.below(self.passed.len() as u64 + 1) as usize;
        self.passed.drain(..count);
    }

    pub fn snapshot(&self) -> Snapshot {
        let xip: Vec<u64> = self.open_xids().collect();
        let xmin = xip.first().copied().unwrap_or(self.next_xid);
        Snapshot::new(xmin, self.next_xid, xip).unwrap()
    }

    pub fn read(&self, from: &Position, bytes_max: usize) -> Chunk {
        let end = from.window.as_ref().map_or_else(|| self.snapshot(), |w| w.end.clone());
        let in_window = |row: &&Row| end.sees(row.xid) && !from.covers(row.xid, row.entry.id);
        let found: Vec<&Row> = self.unpassed().filter(in_window).collect();
        let mut bytes = 0;
        let fitting = found.iter().take_while(|row| {
            let fits = bytes < bytes_max;
            bytes += row.entry.memory_bytes();
            fits
        });
        let count = fitting.count();
        let complete = count == found.len();
        let entries: Vec<Entry> = found[..count].iter().map(|row| row.entry.clone()).collect();
        let after = match entries.last() {
            Some(last) if !complete => Position::within(from.base.clone(), end, last.id),
            _ => Position::at(end),
        };
        Chunk { entries, after, complete }
    }

    fn write(&mut self, chance: &mut Chance) -> Draft {
        let id = self.next_id;
        self.next_id += 1;
        let event_count = if chance.in_percent(20) { chance.between(2, 60) as u32 } else { 1 };
        let length = if chance.in_percent(1) { 2_000 } else { 1 };
        let key = |chance: &mut Chance| match length {
            1 => chance.below(50).to_string(),
            _ => format!("\"{}\"", "k".repeat(length / event_count as usize)),
        };
        let keys: Vec<String> = (0..event_count).map(|_| key(chance)).collect();
        let is_damaged = event_count > 1 && chance.in_percent(2);
        let text = keys[usize::from(is_damaged)..].join(",");
        // Few orgs have most of the events.
        let bound = chance.between(1, self.org_ids.len() as u64);
        let org = chance.below(bound) as usize;
        let entry = Entry {
            id: EntryId(id),
            event_id: EventId::from_bytes(((id as u128) << 32).to_be_bytes()),
            kind: self.kind.clone(),
            org_id: self.org_ids[org].clone(),
            event_count,
            ids: format!("[{text}]").into(),
            data: None,
            origin: None,
            at_us: 0,
        };
        Draft { entry, keys, is_damaged }
    }
}

/// The most that one entry, and so what a reading takes beyond its bound, costs in memory.
pub const ENTRY_BYTES_MAX: usize = 256 + 2_500;
