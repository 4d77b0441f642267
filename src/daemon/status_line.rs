//! How the agent does, in one line: what `systemctl status` shows (STATUS=, sd_notify(3)). Pure.
//!
//! Every local user can read it. So it says what the agent found and decided, in its own words: a provider's are for the
//! log and for admins.

use std::fmt::Write as _;

use crate::{
    clock::{Now, Timestamp, WallTime},
    failure::{Failure, FailureKind},
    refresh::Health,
    token::ProfileName,
};

/// The failures that are told; of the others only how many.
const MOST_TOLD: usize = 2;
/// What is shown of a secret's fault.
const MAX_REASON: usize = 300;

/// How one profile does.
pub(super) struct Standing {
    pub(super) name: ProfileName,
    pub(super) health: Health,
    pub(super) failure: Option<Failure>,
    /// When the next attempt starts; none while one is in flight.
    pub(super) next: Option<Timestamp>,
}

/// What the line says besides the profiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Besides {
    /// Faults of a config that a reload has refused.
    pub(super) refused_reload: Option<usize>,
}

/// `3 of 4 tokens valid; bloom refused: invalid_client, next try 14:05 UTC`.
pub(super) fn status_line(profiles: &[Standing], besides: Besides, now: Now) -> String {
    let valid = |standing: &&Standing| matches!(standing.health, Health::Valid | Health::Degraded);
    let count = profiles.iter().filter(valid).count();
    let mut line = match profiles.len() {
        0 => "no profile is configured".to_owned(),
        all => format!("{count} of {all} tokens valid"),
    };
    // What somebody has to mend comes before what passes, and what is served least.
    let mut failing: Vec<_> =
        profiles.iter().filter_map(|one| one.failure.as_ref().map(|failure| (one, failure))).collect();
    failing.sort_by_key(|(one, failure)| (passes(failure.kind), valid(one)));
    for (standing, failure) in failing.iter().take(MOST_TOLD) {
        let _infallible = write!(line, "; {} {}", standing.name, reason(failure));
        match standing.next {
            Some(next) => {
                let _infallible = write!(line, ", next try {}", time_of_day(now.wall + next.since(now.boot)));
            }
            None => line.push_str(", trying now"),
        }
    }
    if failing.len() > MOST_TOLD {
        let _infallible = write!(line, "; {} more fail", failing.len() - MOST_TOLD);
    }
    let fetched: Vec<_> =
        profiles.iter().filter(|one| one.health == Health::Pending).map(|one| one.name.as_str()).collect();
    match fetched.as_slice() {
        [] => {}
        [one] => {
            let _infallible = write!(line, "; {one} is being fetched");
        }
        several => {
            let _infallible = write!(line, "; {} are being fetched", several.len());
        }
    }
    if let Some(faults) = besides.refused_reload {
        let plural = if faults == 1 { "" } else { "s" };
        let _infallible =
            write!(line, "; the last reload was refused: {faults} fault{plural}, see bloom-agent check");
    }
    line
}

fn passes(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Unreachable | FailureKind::ProviderError)
}

fn reason(failure: &Failure) -> String {
    let code = |otherwise: &'static str| failure.code.unwrap_or(otherwise);
    match failure.kind {
        FailureKind::Unreachable => "unreachable: the network, name look-up or TLS".to_owned(),
        FailureKind::ProviderError => format!("failed: {}", code("the provider has a fault")),
        FailureKind::Refused => format!("refused: {}", code("by the provider, see the log")),
        // Our own words, with the command that mends it.
        FailureKind::SecretUnreadable => {
            let text: String = failure.text.chars().take(MAX_REASON).collect();
            format!("has no secret: {text}")
        }
    }
}

/// `14:05 UTC`: the agent's sandbox has no time zone of its own, and its log is in UTC too.
fn time_of_day(moment: WallTime) -> String {
    let minutes = moment.unix_millis().div_euclid(60_000).rem_euclid(24 * 60);
    format!("{:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::failure::Schedule;

    const NOW: Now = Now {
        boot: Timestamp::from_boot(Duration::from_secs(1000)),
        // 14:00:00 UTC.
        wall: WallTime::from_unix_millis(1_795_356_000_000),
    };

    fn standing(
        name: &str,
        health: Health,
        failure: Option<(FailureKind, Option<&'static str>)>,
    ) -> Standing {
        let failure = failure.map(|(kind, code)| Failure {
            kind,
            schedule: Schedule::Refusal,
            retry_after: None,
            code,
            text: "words of https://id.example / why / chmod 0600 /s".into(),
        });
        let name = ProfileName::parse(name).unwrap();
        Standing { name, health, failure, next: Some(NOW.boot + Duration::from_secs(330)) }
    }

    #[test]
    fn the_line_is_honest_and_short() {
        use FailureKind::{ProviderError, Refused, SecretUnreadable, Unreachable};
        use Health::{Degraded, Pending, Unavailable, Valid};
        let ok = |name| standing(name, Valid, None);
        let invalid = Some((Refused, Some("invalid_client")));
        let table: Vec<(Vec<Standing>, &str)> = vec![
            (vec![], "no profile is configured"),
            (vec![ok("a")], "1 of 1 tokens valid"),
            (vec![ok("a"), standing("b", Pending, None)], "1 of 2 tokens valid; b is being fetched"),
            (
                vec![standing("a", Pending, None), standing("b", Pending, None)],
                "0 of 2 tokens valid; 2 are being fetched",
            ),
            (
                vec![ok("a"), ok("b"), ok("c"), standing("bloom", Unavailable, invalid)],
                "3 of 4 tokens valid; bloom refused: invalid_client, next try 14:05 UTC",
            ),
            (
                vec![standing("a", Degraded, Some((Unreachable, None)))],
                "1 of 1 tokens valid; a unreachable: the network, name look-up or TLS, next try 14:05 UTC",
            ),
            (
                vec![standing("a", Unavailable, Some((SecretUnreadable, None)))],
                "0 of 1 tokens valid; a has no secret: words of https://id.example / why / chmod 0600 /s, \
                 next try 14:05 UTC",
            ),
            (
                vec![
                    standing("a", Degraded, Some((ProviderError, None))),
                    standing("b", Unavailable, Some((Unreachable, None))),
                    standing("c", Degraded, Some((Refused, None))),
                    standing("d", Unavailable, invalid),
                ],
                "2 of 4 tokens valid; d refused: invalid_client, next try 14:05 UTC; \
                 c refused: by the provider, see the log, next try 14:05 UTC; 2 more fail",
            ),
        ];
        for (profiles, line) in table {
            assert_eq!(status_line(&profiles, Besides::default(), NOW), line);
        }
    }

    #[test]
    fn an_attempt_in_flight_and_a_refused_reload_are_told() {
        let mut one = standing("a", Health::Unavailable, Some((FailureKind::Refused, Some("invalid_scope"))));
        one.next = None;
        assert_eq!(
            status_line(&[one], Besides { refused_reload: Some(2) }, NOW),
            "0 of 1 tokens valid; a refused: invalid_scope, trying now; the last reload was refused: 2 faults, see \
             bloom-agent check"
        );
    }

    #[test]
    fn a_providers_own_words_are_not_in_it() {
        for kind in [FailureKind::Unreachable, FailureKind::ProviderError, FailureKind::Refused] {
            let line = status_line(
                &[standing("a", Health::Unavailable, Some((kind, None)))],
                Besides::default(),
                NOW,
            );
            assert!(!line.contains("words"), "{line}");
        }
    }

    #[test]
    fn the_time_of_day_wraps() {
        assert_eq!(time_of_day(WallTime::from_unix_millis(0)), "00:00 UTC");
        assert_eq!(time_of_day(WallTime::from_unix_millis(-60_000)), "23:59 UTC");
    }
}
