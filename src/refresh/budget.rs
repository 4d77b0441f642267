//! The refreshes that callers may ask for (ReportRejected, `min_validity`): the first at once, then at least a minute
//! apart, doubling to an hour. One for a profile, whoever asks.

use std::time::Duration;

use crate::clock::Timestamp;

/// Between the first and the second.
pub const FIRST_GAP: Duration = Duration::from_secs(60);
/// The longest gap.
pub const LONGEST_GAP: Duration = Duration::from_secs(3_600);

/// What is left of the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    spent: Option<Spent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spent {
    last: Timestamp,
    gap: Duration,
}

impl Budget {
    /// One whose last refresh started then, with the next one so much later.
    pub fn restored(spent: Option<(Timestamp, Duration)>) -> Self {
        Self { spent: spent.map(|(last, gap)| Spent { last, gap }) }
    }

    /// When the last one started, and the time to the next; none if the next may start at any time.
    pub fn spent(&self) -> Option<(Timestamp, Duration)> {
        self.spent.map(|Spent { last, gap }| (last, gap))
    }

    /// From when on the next one may start; none if at any time.
    pub fn next(&self) -> Option<Timestamp> {
        self.spent.map(|spent| spent.last + spent.gap)
    }

    /// Spends one that starts at `start`.
    pub fn spend(&mut self, start: Timestamp) {
        let gap = self.spent.map_or(FIRST_GAP, |spent| (spent.gap * 2).min(LONGEST_GAP));
        self.spent = Some(Spent { last: start, gap });
    }

    /// A token has lived half its life unreported: the next one may start at once.
    pub const fn restore(&mut self) {
        self.spent = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_at_once_and_then_the_gaps_double_from_a_minute_to_an_hour() {
        let mut budget = Budget::default();
        let mut now = Timestamp::from_boot(Duration::from_secs(5));
        assert_eq!(budget.next(), None);
        let mut gaps = Vec::new();
        for _ in 0..9 {
            budget.spend(now);
            let next = budget.next().unwrap();
            gaps.push(next.since(now).as_secs() / 60);
            now = next;
        }
        assert_eq!(gaps, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(budget.spent(), Some((now - LONGEST_GAP, LONGEST_GAP)));
        assert_eq!(Budget::restored(budget.spent()), budget);
        budget.restore();
        assert_eq!(budget.next(), None);
        budget.spend(now);
        assert_eq!(budget.next(), Some(now + FIRST_GAP));
    }
}
