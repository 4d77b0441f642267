//! What happened, over all seeds, and what is said of it.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

/// Sums and maxima, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Faults that were injected.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// What came of it.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// The most of something in one world.
    pub(crate) most: BTreeMap<&'static str, u64>,
    /// The longest times.
    pub(crate) longest: BTreeMap<&'static str, Duration>,
}

impl Tally {
    pub(crate) fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    pub(crate) fn count(&mut self, name: &'static str, by: u64) {
        *self.counts.entry(name).or_default() += by;
    }

    pub(crate) fn at_most(&mut self, name: &'static str, count: u64) {
        let most = self.most.entry(name).or_default();
        *most = count.max(*most);
    }

    pub(crate) fn lasted(&mut self, name: &'static str, time: Duration) {
        let longest = self.longest.entry(name).or_default();
        *longest = time.max(*longest);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (name, by) in &other.faults {
            *self.faults.entry(name).or_default() += by;
        }
        for (name, by) in &other.counts {
            self.count(name, *by);
        }
        for (name, count) in &other.most {
            self.at_most(name, *count);
        }
        for (name, time) in &other.longest {
            self.lasted(name, *time);
        }
    }

    /// How often something happened.
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.counts.get(name).or_else(|| self.faults.get(name)).copied().unwrap_or(0)
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let total: u64 = self.faults.values().sum();
        if total > 0 {
            let _ = writeln!(out, "  faults injected: {total}, of {} kinds", self.faults.len());
        }
        for (name, count) in &self.faults {
            let _ = writeln!(out, "    {count:>13}  {name}");
        }
        for (name, count) in &self.counts {
            let _ = writeln!(out, "  {count:>15}  {name}");
        }
        for (name, count) in &self.most {
            let _ = writeln!(out, "  {count:>15}  {name}");
        }
        for (name, time) in &self.longest {
            let _ = writeln!(out, "  {:>13.3} s  {name}", time.as_secs_f64());
        }
        out
    }
}
