//! What must hold when nothing happens any more.

use super::*;

impl Simulation {
    /// Nothing happens any more, so nothing may be left to do.
    pub(super) fn check_quiet(&self) {
        for row in self.database.rows() {
            let id = row.entry.id;
            assert!(self.durable.covers(row.xid, id), "{id:?} is not passed; {:?}", self.relay);
        }
        assert!(self.retries.is_empty(), "something waits for ever: {:?}", self.relay);
    }

    /// What was refused was found by halves: of some messages and some events each.
    pub(super) fn check_searches(&self) {
        let is_searched = matches!(self.sink.naming, Naming::Never | Naming::Always);
        if !is_searched || self.sink.message_events_max.is_some() {
            return;
        }
        let searches = self.tale.refused_new + self.tale.crashes * 9 + 1;
        let most = self.tale.refused + searches * SEARCH_REQUESTS;
        assert!(self.tale.refusals <= most, "{} refusals, {most} at most", self.tale.refusals);
    }

    /// Nothing is left to do, a tick does nothing, and a wake for nothing costs one reading.
    pub(super) fn check_idle(&mut self) {
        for later_ms in [0, 10, 100_000] {
            let mut effects = Vec::new();
            let now = self.now().plus(Duration::from_ms(later_ms));
            assert_eq!(self.relay.next_deadline(now), None, "{:?}", self.relay.status());
            step(&mut self.relay, now, 0, Input::Tick, &mut effects);
            assert!(effects.is_empty(), "an idle relay does {effects:?}");
            step(&mut self.relay, now, 0, Input::Woken, &mut effects);
            let [Effect::Read { from, bytes_max }] = &effects[..] else {
                panic!("a wake did {effects:?}");
            };
            let chunk = self.database.read(from, *bytes_max);
            effects.clear();
            step(&mut self.relay, now, 0, Input::Read(chunk), &mut effects);
            assert!(effects.is_empty(), "reading nothing did {effects:?}");
            self.database.pass_xid();
        }
        let gauges = self.relay.gauges();
        assert_eq!((gauges.held_bytes, gauges.held_events), (0, 0));
        assert_eq!(gauges.requests_in_flight, 0);
        assert_eq!(gauges.orgs, 0, "idle orgs are forgotten");
    }
}
