//! The property of configs: refused with words of our own, or understood whole.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property panics where it does not hold"
)]

use super::{Config, Kind, Problem, SecretSpec, SourceFile, read};
use crate::{access::Selector, limits, token::MAX_LIFE};

/// What stands in for a secret that somebody pasted. No run of eight of its characters may be told.
const CANARY: &str = "C4N4RY+7Q/X9=ZW3";

/// A main file; and after a line of `====` a file of config.d.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (main, drop_in) =
        text.split_once("\n====\n").map_or((text, None), |(main, other)| (main, Some(other)));
    let read_with = |end: &str| {
        let mut sources =
            vec![SourceFile { name: "main.toml".into(), text: format!("{main}{end}"), kind: Kind::Main }];
        let drop_in = drop_in.map(str::to_owned);
        sources.extend(drop_in.map(|text| SourceFile { name: "a.toml".into(), text, kind: Kind::DropIn }));
        read(&sources)
    };
    match read_with("") {
        Ok(config) => {
            config.warnings.iter().for_each(|problem| judge_problem(problem, text));
            judge_config(&config);
            for unknown in
                ["[tokens.fuzzing-unknown]\nunheard-of = 1", "[unheard-of]", "[tokens.fuzzing-unknown]"]
            {
                assert!(read_with(&format!("\n{unknown}\n")).is_err(), "{unknown} is ignored");
            }
            assert_eq!(
                format!("{:?}", read_with("").unwrap()),
                format!("{config:?}"),
                "read twice, understood alike"
            );
        }
        Err(problems) => {
            assert!(!problems.as_slice().is_empty());
            problems.as_slice().iter().for_each(|problem| judge_problem(problem, text));
        }
    }
}

fn judge_problem(problem: &Problem, text: &str) {
    let line = problem.to_string();
    assert!(!line.contains(char::is_control), "{line:?}");
    assert!(line.len() <= 2_000, "a line that nobody reads: {line}");
    assert!(!problem.wrong.is_empty() && !problem.right.is_empty());
    let lines = u32::try_from(text.lines().count()).unwrap() + 1;
    assert!(problem.place.line.is_none_or(|line| (1..=lines).contains(&line)), "{line}");
    for part in CANARY.as_bytes().windows(8) {
        let part = std::str::from_utf8(part).unwrap();
        assert!(!line.contains(part), "a value is told: {line}");
    }
}

fn judge_config(config: &Config) {
    let agent = &config.agent;
    assert!(agent.socket.is_absolute() && agent.socket.as_os_str().len() <= 107);
    assert!(!agent.socket.as_os_str().as_encoded_bytes().contains(&0), "no abstract socket");
    assert_eq!(agent.socket_mode & !0o666, 0);
    assert!(!agent.unit_slices.is_empty() && agent.unit_slices.iter().all(|slice| !slice.is_of_users()));
    let limits = config.limits;
    for number in [
        limits.connections_total,
        limits.connections,
        limits.streams_per_connection,
        limits.calls,
        limits.watches,
        limits.connects_per_second,
    ] {
        assert!(limits::RANGE.contains(&number));
    }
    let mut lines: Vec<&Selector> = agent.admin.iter().collect();
    for (name, profile) in &config.tokens {
        lines.extend(profile.rules.selectors());
        let client = &profile.client;
        assert!(client.endpoint.as_str().starts_with("https://"), "{name}");
        assert!(
            !client.client_id.is_empty() && client.client_id.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        );
        assert!(!profile.assumed_lifetime.is_zero() && profile.assumed_lifetime <= MAX_LIFE);
        assert!(profile.next_secret.as_ref() != Some(&profile.secret));
        for secret in std::iter::once(&profile.secret).chain(&profile.next_secret) {
            if let SecretSpec::File(path) = secret {
                assert!(path.is_absolute());
            }
        }
        assert!(profile.ca_file.as_ref().is_none_or(|path| path.is_absolute()));
        assert_eq!(config.place(&format!("tokens.{name}.client_id")).column, None);
    }
    for line in lines {
        assert!(!line.terms().is_empty(), "no rule admits everybody");
        assert_eq!(Selector::parse(line.as_written()).as_ref(), Ok(line));
    }
}
