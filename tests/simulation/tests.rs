//! A share of the simulation for every test run.

use bloom_agent::{
    clock::{Now, Timestamp, WallTime},
    refresh::{Action, Novelty, Policy, Refresh},
    token::{Life, LifeSource},
};

use super::{DAY, HOUR, REPLAY, all, machine, rotator_seed, tally::Tally, weather};

fn met(seeds: u64, flag: &str, run: impl Fn(u64) -> Result<Tally, String> + Sync) -> Tally {
    match all(0, seeds, run) {
        Ok(tally) => tally,
        Err((seed, what)) => panic!("seed {seed}: {what}\nreplay it: {REPLAY} --seed {seed} --years 1{flag}"),
    }
}

/// A simulation that never gets there proves nothing.
fn assert_met(tally: &Tally, least: u64, names: &[&str]) {
    for name in names {
        let count = tally.of(name);
        assert!(count >= least, "{name}: only {count}\n{}", tally.text());
    }
}

#[test]
fn fifty_years_of_bad_weather_break_no_rule_of_the_machine() {
    let met = met(50, " --machine", |seed| machine::a_seed(seed, 365 * DAY));
    assert_met(&met, 100_000, &["steps"]);
    assert_met(
        &met,
        500,
        &[
            "fetches",
            "rotations",
            "prolonged",
            "expired",
            "transient",
            "limited",
            "refused",
            "retry_after",
            "demands",
            "asked",
            "exhausted",
            "forced",
            "stepped",
            "suspends",
            "adopted",
            "restarts",
            "restored",
            "restored_failing",
            "identities",
            "policies",
            "mended",
        ],
    );
    assert_met(&met, 25, &["joined_retry", "cut"]);
}

#[test]
fn lives_shorter_than_a_minute_and_than_the_floor_break_no_rule_of_the_machine() {
    let met = met(40, " --machine", |seed| machine::a_short_seed(seed, 6 * HOUR));
    assert_met(&met, 100, &["late"]);
    assert_met(&met, 10_000, &["rotations"]);
}

#[test]
fn four_years_of_bad_weather_break_no_rule_of_the_rotator() {
    let met = met(4, "", |seed| rotator_seed(seed, 365 * DAY));
    assert_met(&met, 300, &["rotations", "failed attempts", "calls of GetToken", "demands"]);
    assert_met(&met, 4, &["one request a minute, refused ones counted", "tokens healed by a time sync"]);
    assert_met(
        &met,
        8,
        &[
            "outage",
            "outage past the expiry",
            "brown-out of 23 h 59 min",
            "half of the answers are 503",
            "flapping each 7 s",
            "one token a minute",
            "slow answers",
            "burst of connection resets",
            "time-out of 10 s",
            "429",
            "Retry-After in seconds",
            "Retry-After as a date",
            "two Retry-After",
            "secret revoked",
            "rotation with two secrets",
            "the other secret is taken",
            "a new secret that works only after 30 s",
            "lives of seconds, for a while",
            "same token again",
            "token revoked early",
            "suspend",
            "SIGSTOP",
            "timers up to 30 s late",
            "VM paused or restored from a snapshot",
            "wall clock +1 h",
            "wall clock -1 h",
            "wall clock +10 years",
            "wall clock to 1970",
            "wall clock +20 h again and again",
            "leap second smeared",
            "restart",
            "SIGKILL",
            "reboot",
            "reload",
            "reload to another identity",
            "records taken over",
            "attempts for callers",
            "attempts for the operator",
            "attempts for steps of the wall clock",
            "reports beyond the budget",
        ],
    );
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 11] {
        let [first, second] = [0, 1].map(|_| {
            let run = weather::a_seed(seed, 30 * DAY, false);
            (run.digest, run.tally, machine::a_seed(seed, 30 * DAY).unwrap())
        });
        assert!(first == second);
    }
}

/// The fleet's herd: agents that start together and whose provider gives all the same life.
#[test]
fn a_thousand_agents_started_together_spread_over_the_jitter_window() {
    let start = Now { boot: Timestamp::from_boot(HOUR), wall: WallTime::from_unix_millis(1_700_000_000_000) };
    let life = Life { requested: start, length: DAY, source: LifeSource::Provider };
    let mut buckets = [0_f64; 20];
    for seed in 0..1_000 {
        let mut machine = Refresh::new(Policy::default(), start.boot, seed);
        assert_eq!(
            machine.poll_action(start.boot),
            Some(Action::Fetch),
            "the first is at once, without jitter"
        );
        machine.handle_granted(start, &life, Novelty::New);
        let share = machine.next_attempt().unwrap().since(start.boot).as_secs_f64() / DAY.as_secs_f64();
        assert!((0.75..=0.85).contains(&share), "{share}");
        buckets[(((share - 0.75) / 0.1 * 20.0) as usize).min(19)] += 1.0;
    }
    // Pearson's test against the uniform: 19 degrees of freedom, 43.8 is the 99.9th percentile.
    let chi_square: f64 = buckets.iter().map(|count| (count - 50.0).powi(2) / 50.0).sum();
    assert!(chi_square < 43.8, "{chi_square}: {buckets:?}");
}
