//! Tables for people: `list` and `status`. Pure: the time is an argument. Whatever the agent says is made printable.

use std::time::Duration;

use crate::{client::printable, clock::WallTime, pb};

/// The profiles that a caller may use.
pub(super) fn profiles(tokens: &[pb::TokenStatus], now: WallTime) -> String {
    let head = ["NAME", "STATE", "EXPIRES", "NEXT REFRESH", "LAST FAILURE", "SCOPES"];
    let rows = tokens.iter().map(|token| {
        let [state, expires, next] = state_and_times(token, now);
        [
            printable(&token.name),
            state,
            expires,
            next,
            failure(token.last_failure()).to_owned(),
            or_dash(printable(&token.scopes.join(" "))),
        ]
    });
    aligned(head, rows)
}

/// One profile, as `refresh` tells it.
pub(super) fn profile(token: &pb::TokenStatus, now: WallTime) -> String {
    let [state, expires, _] = state_and_times(token, now);
    format!("{}: {state}, expires {expires}", printable(&token.name))
}

/// The whole agent.
pub(super) fn status(status: &pb::GetStatusResponse, now: WallTime) -> String {
    let mut lines = vec![
        format!("bloom-agent {}, pid {}", printable(&status.version), status.pid),
        format!("started     {}", moment(status.started_at, now)),
        format!("configured  {}", moment(status.configured_at, now)),
        format!("serving     {} connections, {} watches", status.connections, status.watches),
    ];
    // An agent that is older does not say.
    if !status.unit_lookup.is_empty() {
        lines.push(format!("units       {}", printable(&status.unit_lookup)));
    }
    if !status.confinement.is_empty() {
        lines.push(format!("confined    {}", printable(&status.confinement)));
    }
    lines.extend(status.degraded.iter().map(|what| format!("degraded    {}", printable(what))));
    lines.push(String::new());
    let head =
        ["PROFILE", "STATE", "EXPIRES", "NEXT REFRESH", "REQUESTS", "FAILURES", "ENDPOINT", "LAST FAILURE"];
    let rows = status.profiles.iter().map(|profile| {
        let unknown = pb::TokenStatus::default();
        let token = profile.token.as_ref().unwrap_or(&unknown);
        let [state, expires, next] = state_and_times(token, now);
        let expires = if profile.assumed_lifetime { format!("{expires} assumed") } else { expires };
        [
            printable(&token.name),
            state,
            expires,
            next,
            profile.requests.to_string(),
            profile.consecutive_failures.to_string(),
            printable(&profile.token_url),
            last_failure(profile, token, now),
        ]
    });
    lines.push(aligned(head, rows));
    lines.join("\n")
}

/// `in 43m (2026-11-22T14:05:00Z)`, `3h 12m ago (…)`, or `-`.
fn moment(time: Option<prost_types::Timestamp>, now: WallTime) -> String {
    let Some(at) = time.map(wall_time) else { return "-".to_owned() };
    if at.unix_millis() >= now.unix_millis() {
        format!("in {} ({at})", span(at.since(now)))
    } else {
        format!("{} ago ({at})", span(now.since(at)))
    }
}

/// A moment of a message, in milliseconds.
pub(super) fn wall_time(time: prost_types::Timestamp) -> WallTime {
    let millis = time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos / 1_000_000));
    WallTime::from_unix_millis(millis)
}

/// The two largest units: `2d 3h`, `43m 5s`, `9s`.
pub(super) fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let from = parts.iter().position(|(number, _)| *number > 0).unwrap_or(parts.len() - 1);
    let shown = parts.iter().skip(from).take(2).filter(|(number, _)| *number > 0);
    let text = shown.map(|(number, unit)| format!("{number}{unit}")).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn state_and_times(token: &pb::TokenStatus, now: WallTime) -> [String; 3] {
    let state = match token.state() {
        pb::TokenState::Unspecified => "unknown",
        pb::TokenState::Pending => "pending",
        pb::TokenState::Valid => "valid",
        pb::TokenState::Degraded => "degraded",
        pb::TokenState::Unavailable => "unavailable",
    };
    let next = match token.next_refresh_at {
        // Unset means that one is under way; a state that says nothing says nothing of it either.
        None if token.state() != pb::TokenState::Unspecified => "now".to_owned(),
        time => moment(time, now),
    };
    [state.to_owned(), moment(token.expires_at, now), next]
}

/// Why the last attempt failed.
pub(super) fn failure(kind: pb::FailureKind) -> &'static str {
    match kind {
        pb::FailureKind::Unspecified => "-",
        pb::FailureKind::ProviderUnreachable => "provider unreachable",
        pb::FailureKind::ProviderError => "provider error",
        pb::FailureKind::ProviderRefused => "provider refuses",
        pb::FailureKind::SecretUnreadable => "secret unreadable",
    }
}

fn last_failure(profile: &pb::ProfileStatus, token: &pb::TokenStatus, now: WallTime) -> String {
    let what = match profile.last_failure_text.as_str() {
        "" => failure(token.last_failure()).to_owned(),
        text => printable(text),
    };
    match profile.last_failure_at {
        None => what,
        at => format!("{}: {what}", moment(at, now)),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Columns two spaces apart; the last is not padded.
fn aligned<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime::from_unix_millis(1_795_356_300_000);

    fn at(offset: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds: 1_795_356_300 + offset, nanos: 0 })
    }

    #[test]
    fn spans_show_their_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (9, "9s"),
            (60, "1m"),
            (2585, "43m 5s"),
            (3600, "1h"),
            (3605, "1h"),
            (11_520, "3h 12m"),
            (2 * 86_400 + 3 * 3600 + 59, "2d 3h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_list_is_a_table_that_people_read() {
        let tokens = [
            pb::TokenStatus {
                name: "bloom".to_owned(),
                state: pb::TokenState::Valid.into(),
                scopes: vec!["a".to_owned(), "b".to_owned()],
                expires_at: at(3600),
                next_refresh_at: at(2580),
                ..Default::default()
            },
            pb::TokenStatus {
                name: "p\u{1b}".to_owned(),
                state: pb::TokenState::Unavailable.into(),
                last_failure: pb::FailureKind::ProviderRefused.into(),
                ..Default::default()
            },
        ];
        let expected = "\
NAME     STATE        EXPIRES                       NEXT REFRESH                   LAST FAILURE      SCOPES
bloom    valid        in 1h (2026-11-22T15:05:00Z)  in 43m (2026-11-22T14:48:00Z)  -                 a b
p\\u{1b}  unavailable  -                             now                            provider refuses  -";
        assert_eq!(profiles(&tokens, NOW), expected);
    }

    #[test]
    fn a_status_has_the_agent_s_facts_and_each_profile_s_last_failure() {
        let answer = pb::GetStatusResponse {
            version: "0.1.0".to_owned(),
            started_at: at(-11_520),
            configured_at: at(-60),
            profiles: vec![pb::ProfileStatus {
                token: Some(pb::TokenStatus {
                    name: "bloom".to_owned(),
                    state: pb::TokenState::Degraded.into(),
                    expires_at: at(60),
                    next_refresh_at: at(4),
                    ..Default::default()
                }),
                token_url: "https://id.example.com/token".to_owned(),
                last_failure_text: "503 from the provider".to_owned(),
                last_failure_at: at(-2),
                requests: 12,
                consecutive_failures: 2,
                assumed_lifetime: true,
                ..Default::default()
            }],
            connections: 4,
            watches: 2,
            degraded: vec!["memory is not locked".to_owned()],
            pid: 812,
            unit_lookup: "bus-pidfd".to_owned(),
            confinement: "Landlock ABI 7, TCP to 53 443; seccomp".to_owned(),
        };
        let text = status(&answer, NOW);
        for part in [
            "bloom-agent 0.1.0, pid 812",
            "started     3h 12m ago (2026-11-22T10:53:00Z)",
            "serving     4 connections, 2 watches",
            "units       bus-pidfd",
            "confined    Landlock ABI 7, TCP to 53 443; seccomp",
            "degraded    memory is not locked",
            "in 1m (2026-11-22T14:06:00Z) assumed",
            "2s ago (2026-11-22T14:04:58Z): 503 from the provider",
            "https://id.example.com/token",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
