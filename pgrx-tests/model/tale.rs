//! What a run counted, to show that the faults it plays did happen.

#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Tale {
    /// Inputs that the relay was given.
    pub steps: u64,
    pub entries: usize,
    /// Events that the sink took, and those of them that it had already.
    pub deliveries: usize,
    pub duplicates: usize,
    pub requests: usize,
    /// Requests that were not delivered, those of them that were a message's fault, and those
    /// that the tenant's counter refused.
    pub failures: usize,
    pub refusals: usize,
    pub over_budget: usize,
    /// Events that were refused alone, and those of them that came from the outbox.
    pub refused: usize,
    pub refused_new: usize,
    pub dead: usize,
    pub redriven: usize,
    pub replayed: usize,
    /// Events that were taken out of the table of retries.
    pub returns: usize,
    /// Orgs that a relay had to hold from its start.
    pub held: usize,
    pub crashes: usize,
    pub troubles: usize,
    pub incomplete_reads: usize,
    /// Steps in which memory was full.
    pub full_memory: usize,
}

impl Tale {
    pub fn add(&mut self, other: Self) {
        let Self { steps, entries, deliveries, duplicates, requests, .. } = other;
        self.steps += steps;
        self.entries += entries;
        self.deliveries += deliveries;
        self.duplicates += duplicates;
        self.requests += requests;
        self.failures += other.failures;
        self.refusals += other.refusals;
        self.over_budget += other.over_budget;
        self.refused += other.refused;
        self.refused_new += other.refused_new;
        self.dead += other.dead;
        self.redriven += other.redriven;
        self.replayed += other.replayed;
        self.returns += other.returns;
        self.held += other.held;
        self.crashes += other.crashes;
        self.troubles += other.troubles;
        self.incomplete_reads += other.incomplete_reads;
        self.full_memory += other.full_memory;
    }

    /// Asserts that every kind of thing that is played has happened.
    pub fn check_all_happened(&self) {
        let happened = [
            self.duplicates,
            self.failures,
            self.refusals,
            self.over_budget,
            self.refused_new,
            self.dead,
            self.redriven,
            self.replayed,
            self.returns,
            self.held,
            self.crashes,
            self.troubles,
            self.incomplete_reads,
            self.full_memory,
        ];
        assert!(happened.iter().all(|&count| count > 0), "{self:?}");
    }
}
