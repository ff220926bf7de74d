//! What is around the relay: the store that carries out its effects, the sink, and writers.

use super::*;

impl Simulation {
    pub(super) fn read(&mut self, from: &Position, bytes_max: usize) {
        let input = if self.fails() {
            Input::ReadFailed
        } else {
            let chunk = self.database.read(from, bytes_max);
            self.tale.incomplete_reads += usize::from(!chunk.complete);
            Input::Read(chunk)
        };
        self.answer_soon(input);
    }

    pub(super) fn look(&mut self, events_max: usize, bytes_max: usize, with_held: bool) {
        let input = if self.fails() {
            Input::ReturnsFailed
        } else {
            // A page may be shorter than it is allowed to be.
            let events_max = events_max.min(self.chance.pick(&[1, 3, 20, 2_000]));
            let page = self.retries.look(self.now_ms, events_max, bytes_max, with_held);
            self.tale.returns += page.returns.len();
            self.tale.held += page.held.len();
            Input::Returns(page)
        };
        self.answer_soon(input);
    }

    pub(super) fn record(&mut self, record: &Record) {
        // A commit may fail, or succeed with its answer lost to a crash.
        let is_made = !self.fails() && !self.is_full;
        if is_made {
            self.make_durable(record);
        }
        self.answer_soon(if is_made { Input::Recorded } else { Input::RecordFailed });
    }

    pub(super) fn make_durable(&mut self, record: &Record) {
        let position = &record.position;
        self.retries.record(self.now_ms, &record.fates);
        self.witness.recorded(record);
        for row in self.database.unpassed().filter(|r| position.covers(r.xid, r.entry.id)) {
            self.audit.check_passed(&row.entry, &row.units(), &self.retries);
            assert!(self.witness.tells_of(&row.entry), "no line tells of {:?}", row.entry.id);
        }
        for row in self.database.passed().rev().take(100) {
            let id = row.entry.id;
            assert!(position.covers(row.xid, id), "the cursor went back before {id:?}");
        }
        for xid in self.database.open_xids() {
            assert!(!position.covers(xid, EntryId(i64::MIN)), "the cursor passed open {xid}");
        }
        self.durable = position.clone();
        self.database.pass(position);
        // The relay's own commit is a transaction like any other.
        self.database.pass_xid();
    }

    pub(super) fn arrive(
        &mut self,
        is_current: bool,
        request: RequestId,
        batch: &Batch,
        order: Order,
    ) {
        self.check_trouble();
        let Answer { mut outcome, named, mut is_received, is_over_budget } =
            self.sink.answer(&mut self.chance, self.now_ms, batch);
        self.tale.over_budget += usize::from(is_over_budget);
        let is_exact = |since: u64| since == 0 || self.now_ms >= since + ACCOUNT_MS;
        let is_known = self.exact_since_ms.is_some_and(is_exact);
        assert!(!is_over_budget || !is_known, "the tenant's budget was overrun");
        if self.fails() && outcome == Outcome::Delivered {
            let failure = Failure::of(FailureKind::AnswerLost);
            (is_received, outcome) = match self.chance.below(4) {
                0 | 1 => (true, Outcome::Unknown(failure)),
                2 => (false, Outcome::Unknown(failure)),
                _ => (false, Outcome::Refused(failure)),
            };
        }
        self.tale.requests += 1;
        self.tale.failures += usize::from(outcome != Outcome::Delivered);
        let is_refusal = matches!(outcome, Outcome::Refused(failure)
            if matches!(failure.kind, FailureKind::Invalid | FailureKind::TooLarge));
        self.tale.refusals += usize::from(is_refusal);
        if is_received {
            self.audit.received(batch, order, &self.database);
        }
        if is_current {
            let tally = Tally::default();
            let times = 1 + u64::from(self.fails());
            for _ in 0..times {
                let delay = self.chance.below(10);
                let named = named.clone();
                let answer = Input::Answered { request, outcome, named, tally };
                self.after(delay, Happening::Answer(answer));
            }
        }
    }

    /// A sink that fails is not asked over and over.
    pub(super) fn check_trouble(&mut self) {
        if self.sink.trouble.is_some() {
            self.requests_in_trouble += 1;
            let most = self.requests_allowed;
            assert!(self.requests_in_trouble <= most, "{most} requests in one outage");
        }
    }

    /// What is on the way already, and tries with growing waits.
    pub(super) fn allow_tries(&mut self) {
        self.requests_allowed += self.settings.lanes + 60;
    }

    pub(super) fn write(&mut self) {
        match self.chance.below(8) {
            0 | 1 => self.database.begin(),
            2..=4 => self.database.flush(&mut self.chance),
            5 => self.database.pass_xid(),
            _ => self.end_transaction(0),
        }
        self.writes_left -= 1;
        if self.writes_left > 0 {
            let pause = if self.chance.in_percent(10) { 2_000 } else { 40 };
            let delay = self.chance.below(pause);
            self.after(delay, Happening::Write);
            return;
        }
        // One transaction may stay open for ever, and holds up nobody.
        let keep_open = self.chance.below(2) as usize;
        while self.database.open_xids().count() > keep_open {
            self.end_transaction(keep_open);
        }
        self.after(0, Happening::Tell(Input::Woken));
    }

    pub(super) fn end_transaction(&mut self, keep_open: usize) {
        let shown = self.database.end(&mut self.chance, keep_open);
        self.audit.committed(&self.database, &shown);
        if !shown.is_empty() {
            let delay = self.chance.below(3);
            self.after(delay, Happening::Tell(Input::Woken));
        }
    }

    /// The relay's account begins again, or is wrong from now on.
    pub(super) fn account_anew(&mut self, is_first: bool) {
        let (per_second, limit) = (self.settings.events_per_second, self.sink.limit());
        let is_right = limit.is_some_and(|limit| (1..=limit).contains(&per_second));
        let since = if is_first { 0 } else { self.now_ms.max(1) };
        self.exact_since_ms = is_right.then_some(since);
    }
}
