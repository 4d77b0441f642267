//! How loudly an attempt's outcome is told: the first failure and each new one at once, the same again once an hour. Pure.

use std::time::Duration;

use crate::{
    clock::Timestamp,
    failure::{Failure, FailureKind},
};

/// The same failure is told again after this time.
const SAME: Duration = Duration::from_secs(3_600);
/// Another text of the same kind: many providers put a request's id into it.
const SAME_KIND: Duration = Duration::from_secs(60);

/// Whether something is told, or kept for those who look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loudness {
    /// To everybody.
    Loud,
    /// At debug level only.
    Quiet,
}

/// What has been told.
#[derive(Debug, Default)]
pub(super) struct Journal {
    failures: u32,
    told: Option<Told>,
    short_life_told: bool,
}

#[derive(Debug)]
struct Told {
    at: Timestamp,
    kind: FailureKind,
    text: Box<str>,
}

impl Journal {
    /// An attempt failed.
    pub(super) fn failed(&mut self, now: Timestamp, failure: &Failure) -> Loudness {
        self.failures = self.failures.saturating_add(1);
        let quiet = self.told.as_ref().is_some_and(|told| {
            let rest = if told.text == failure.text { SAME } else { SAME_KIND };
            told.kind == failure.kind && now.since(told.at) < rest
        });
        if quiet {
            return Loudness::Quiet;
        }
        self.told = Some(Told { at: now, kind: failure.kind, text: failure.text.clone() });
        Loudness::Loud
    }

    /// An attempt succeeded: after how many failures, if after any.
    pub(super) fn recovered(&mut self) -> Option<u32> {
        self.told = None;
        Some(std::mem::take(&mut self.failures)).filter(|failures| *failures > 0)
    }

    /// Whether a life is under a minute (six floors), for the first time.
    pub(super) fn is_first_short_life(&mut self, length: Duration, floor: Duration) -> bool {
        length < floor * 6 && !std::mem::replace(&mut self.short_life_told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Schedule;

    #[test]
    fn a_failure_is_told_when_it_is_new_and_then_once_an_hour() {
        use FailureKind::{ProviderError, Refused};
        use Loudness::{Loud, Quiet};
        let mut journal = Journal::default();
        for (second, kind, text, expected) in [
            (0, ProviderError, "503", Loud),
            (1, ProviderError, "503", Quiet),
            (3_599, ProviderError, "503", Quiet),
            (3_600, ProviderError, "503", Loud),
            (3_601, ProviderError, "502", Quiet),
            (3_660, ProviderError, "502", Loud),
            (3_661, Refused, "invalid_client", Loud),
            (3_662, ProviderError, "502", Loud),
        ] {
            let failure = Failure {
                kind,
                schedule: Schedule::Transient,
                retry_after: None,
                code: None,
                text: text.into(),
            };
            let now = Timestamp::from_boot(Duration::from_secs(second));
            assert_eq!(journal.failed(now, &failure), expected, "{second}: {text}");
        }
        assert_eq!((journal.recovered(), journal.recovered()), (Some(8), None));
    }

    #[test]
    fn a_short_life_is_told_once() {
        let (mut journal, floor) = (Journal::default(), Duration::from_secs(10));
        let lives =
            [3_600, 60, 59, 1].map(|life| journal.is_first_short_life(Duration::from_secs(life), floor));
        assert_eq!(lives, [false, false, true, false]);
    }
}
