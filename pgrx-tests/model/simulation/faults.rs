//! What goes wrong, and what an operator does: crashes, troubles, pauses, redrives and replays.

use super::*;

impl Simulation {
    pub(super) fn plan_faults(&mut self, end: u64) {
        let is_calm = self.chance.in_percent(10);
        for _ in 0..if is_calm { 0 } else { self.chance.below(6) } {
            let at = self.chance.below(end);
            self.after(at, Happening::Crash);
            let at = self.chance.below(end);
            self.after(at, Happening::Disturb);
        }
        for _ in 0..self.chance.below(8) {
            let at = self.chance.below(2 * end);
            self.after(at, Happening::Operate);
        }
        for _ in 0..if is_calm { 0 } else { self.chance.below(3) } {
            let (at, length) = (self.chance.below(end), self.chance.below(20_000));
            let trouble = self.chance.pick(&TROUBLES);
            self.after(at, Happening::Trouble(Some(trouble)));
            self.after(at + length, Happening::Trouble(None));
        }
        if !is_calm && self.chance.in_percent(30) {
            let (at, length) = (self.chance.below(end), self.chance.below(20_000));
            self.after(at, Happening::DiskFull(true));
            self.after(at + length, Happening::DiskFull(false));
        }
    }

    pub(super) fn trouble(&mut self, trouble: Option<Trouble>) {
        self.sink.trouble = trouble.filter(|_| self.has_faults);
        self.requests_in_trouble = 0;
        self.requests_allowed = 0;
        self.allow_tries();
        self.tale.troubles += usize::from(trouble.is_some());
    }

    pub(super) fn crash(&mut self) {
        self.tale.crashes += 1;
        // A commit that was under way is made, or is not.
        let life = self.life;
        let is_its =
            |each: &(u64, Happening)| each.0 == life && matches!(each.1, Happening::Record(_));
        let record = self.queue.extract_if(.., |_, each| is_its(each)).next();
        if let Some((_, (_, Happening::Record(record)))) = record
            && !self.is_full
            && self.chance.in_percent(50)
        {
            self.make_durable(&record);
        }
        self.life += 1;
        if self.chance.in_percent(50) {
            self.settings = setting::random(&mut self.chance);
        }
        self.epoch_ms = self.chance.pick(&[0, 1 << 20, 1 << 40]);
        self.relay = State::new(self.settings.clone(), self.durable.clone());
        self.witness = Life::new(self.durable.clone());
        self.deadline_ms = None;
        self.is_paused = false;
        self.allow_tries();
        self.account_anew(false);
        let delay = self.chance.below(1_000);
        self.after(delay, Happening::Tell(Input::Tick));
    }

    pub(super) fn disturb(&mut self) {
        self.allow_tries();
        match self.chance.below(4) {
            0 => {
                self.is_paused = true;
                self.input(Input::Pause);
            }
            1 => {
                self.is_paused = false;
                self.input(Input::Resume);
            }
            2 => {
                self.is_paused = true;
                self.input(Input::Stop);
                let delay = self.chance.below(5_000);
                self.after(delay, Happening::Crash);
            }
            _ => {
                let Settings { lanes, order, memory_limit_bytes, .. } = self.settings;
                let settings = setting::random(&mut self.chance);
                // What is held already is held; a smaller limit would be kept only later.
                self.settings = Settings { lanes, order, memory_limit_bytes, ..settings };
                self.account_anew(false);
                self.input(Input::Configure(self.settings.clone()));
            }
        }
    }

    pub(super) fn operate(&mut self) {
        match self.chance.below(4) {
            0 => {
                let percent = self.chance.pick(&[10, 50, 100]);
                self.redrive(percent);
            }
            1 | 2 => {
                let percent = self.chance.pick(&[1, 10, 100]);
                let units: Vec<_> = self.database.passed().flat_map(|row| row.units()).collect();
                for unit in units {
                    if self.chance.in_percent(percent) {
                        self.retries.replay(self.now_ms, unit);
                        self.tale.replayed += 1;
                    }
                }
                self.expect_returns();
            }
            _ => self.database.prune(&mut self.chance),
        }
    }

    pub(super) fn redrive(&mut self, percent: u64) {
        let chance = &mut self.chance;
        let redriven = self.retries.redrive(self.now_ms, || chance.in_percent(percent));
        self.tale.redriven += redriven.len();
        self.expect_returns();
    }

    pub(super) fn expect_returns(&mut self) {
        let delay = self.chance.below(3);
        self.after(delay, Happening::Tell(Input::ReturnsExpected));
    }

    pub(super) fn fails(&mut self) -> bool {
        self.has_faults && self.chance.in_percent(self.fault_percent)
    }
}
