//! The outbox as Postgres shows it: transactions that commit out of order, or never.

use std::collections::BTreeMap;
use std::sync::Arc;

use pg_outbox::cursor::{Position, Snapshot};
use pg_outbox::event::{Entry, EntryId, EventId, EventKind, EventType};
use pg_outbox::relay::plan::Chunk;

use crate::chance::Chance;

/// An entry and the transaction that wrote it.
#[derive(Clone)]
pub struct Row {
    pub xid: u64,
    pub entry: Entry,
    /// The place of its commit among all commits.
    pub committed: usize,
}

pub struct Database {
    next_xid: u64,
    next_id: i64,
    open: BTreeMap<u64, Vec<Entry>>,
    pub rows: Vec<Row>,
    commits: usize,
    kind: Arc<EventKind>,
    org_ids: Vec<Arc<str>>,
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
            rows: Vec::new(),
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
        let unflushed = self.open.iter().filter(|(_, entries)| entries.is_empty());
        let xids: Vec<u64> = unflushed.map(|(&xid, _)| xid).collect();
        if xids.is_empty() {
            return;
        }
        let xid = chance.pick(&xids);
        let count =
            if chance.in_percent(10) { chance.between(5, 40) } else { chance.between(1, 3) };
        let entries = (0..count).map(|_| self.write(chance)).collect();
        self.open.insert(xid, entries);
    }

    /// A random open transaction ends; most commit. Returns whether one did.
    pub fn end(&mut self, chance: &mut Chance, keep_open: usize) -> bool {
        let xids: Vec<u64> = self.open.keys().copied().collect();
        if xids.len() <= keep_open {
            return false;
        }
        let xid = chance.pick(&xids);
        let entries = self.open.remove(&xid).unwrap();
        if chance.in_percent(10) {
            return false;
        }
        self.commits += 1;
        let committed = self.commits;
        self.rows.extend(entries.into_iter().map(|entry| Row { xid, entry, committed }));
        true
    }

    /// A transaction that has nothing to do with us.
    pub fn pass_xid(&mut self) {
        self.next_xid += 1;
    }

    pub fn open_xids(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }

    pub fn snapshot(&self) -> Snapshot {
        let xip: Vec<u64> = self.open_xids().collect();
        let xmin = xip.first().copied().unwrap_or(self.next_xid);
        Snapshot::new(xmin, self.next_xid, xip).unwrap()
    }

    pub fn read(&self, from: &Position, bytes_max: usize) -> Chunk {
        let end = from.window.as_ref().map_or_else(|| self.snapshot(), |w| w.end.clone());
        let in_window = |row: &&Row| end.sees(row.xid) && !from.covers(row.xid, row.entry.id);
        let mut entries: Vec<Entry> =
            self.rows.iter().filter(in_window).map(|row| row.entry.clone()).collect();
        entries.sort_by_key(|entry| entry.id);
        let mut bytes = 0;
        let fitting = entries.iter().take_while(|entry| {
            let fits = bytes < bytes_max;
            bytes += entry.memory_bytes();
            fits
        });
        let count = fitting.count();
        let complete = count == entries.len();
        entries.truncate(count);
        let after = match entries.last() {
            Some(last) if !complete => Position::within(from.base.clone(), end, last.id),
            _ => Position::at(end),
        };
        Chunk { entries, after, complete }
    }

    fn write(&mut self, chance: &mut Chance) -> Entry {
        let id = self.next_id;
        self.next_id += 1;
        let event_count = if chance.in_percent(20) { chance.between(2, 60) as u32 } else { 1 };
        let keys: Vec<String> = (0..event_count).map(|_| chance.below(50).to_string()).collect();
        // Few orgs have most of the events.
        let bound = chance.between(1, self.org_ids.len() as u64);
        let org = chance.below(bound) as usize;
        Entry {
            id: EntryId(id),
            event_id: EventId::from_bytes(((id as u128) << 32).to_be_bytes()),
            kind: self.kind.clone(),
            org_id: self.org_ids[org].clone(),
            event_count,
            ids: format!("[{}]", keys.join(",")).into(),
            data: None,
            origin: None,
            at_us: 0,
        }
    }
}
