//! When a token is refreshed, how long it is served, and what callers, operators and the provider can do about it.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, time::Duration};

use bloom_agent::{
    clock::{Clock as _, Now, Timestamp, WallTime},
    dev_issuer::Fault,
    pb::{FailureKind, TokenState},
    refresh::{Novelty, Policy, Refresh},
    token::{Life, LifeSource},
};
use http::StatusCode;
use tonic::Code;

use super::{
    bench::{Bench, DAY, HOUR, LEAST, MINUTE, PASSING, REFUSED, SECOND, answer, http_date, with_header},
    rows,
};
use crate::support::{BLOOM, Next as _, SECRET, Setting, profile, refusal, retry_delay, write_secret};

rows! {
    a_refresh_point_for_each => "The refresh point is drawn once per token, uniformly between 0.75 and 0.85 of its life: a thousand agents do not come together", "policy";
    served_to_the_end => "A failed refresh leaves the old token in service to its expiry less the skew; after that callers get `UNAVAILABLE` and when to ask again, never an expired token", "policy";
    more_than_is_left => "A `min_validity` that is not met makes at most one shared refresh within the budget; one that no new token would meet makes none", "policy";
    a_rejected_token => "A token that an API rejected is refetched once for all who report it, by its generation; the old one is served meanwhile", "policy";
    the_same_token_again => "The same token again is no rotation: its life is the new one, and there is no tight loop", "policy";
    a_token_that_ends_sooner => "A success takes the held token's place, even if the new one ends sooner", "policy";
    a_secret_file_that_changes => "A secret file is read anew for each request, and refused while it is empty, unsafe or not there; the token stays, and a mended file is tried at once", "policy";
    another_clock => "A provider's clock that is wrong changes no life; it is counted and said", "policy";
}

const BOOT: Timestamp = Timestamp::from_boot(Duration::from_secs(1_000));

/// Where in its life the first token of an agent with this seed is refreshed.
fn share(seed: u64) -> f64 {
    let now = Now { boot: BOOT, wall: WallTime::from_unix_millis(1_700_000_000_000) };
    let mut machine = Refresh::new(Policy::default(), now.boot, seed);
    while machine.poll_action(now.boot).is_some() {}
    let life = Life { requested: now, length: DAY, source: LifeSource::Provider };
    machine.handle_granted(now, &life, Novelty::New);
    let point = machine.next_attempt().expect("a refresh is planned");
    // Drawn once: neither a look nor another policy draws again.
    for second in 0..10 {
        let now = Now { boot: now.boot + second * SECOND, wall: now.wall + second * SECOND };
        machine.handle_timeout(now.boot);
        assert!(machine.poll_action(now.boot).is_none());
        machine.handle_policy(now, Policy::default());
        assert_eq!(machine.next_attempt(), Some(point));
    }
    point.since(BOOT).as_secs_f64() / DAY.as_secs_f64()
}

async fn a_refresh_point_for_each() {
    const AGENTS: usize = 1_000;
    let mut shares: Vec<f64> = (0..AGENTS as u64).map(share).collect();
    assert!(shares.iter().all(|share| (0.75..=0.85).contains(share)), "outside of the window");

    // Pearson's test against the uniform distribution: 20 cells, 19 degrees of freedom, 43.82 at p = 0.001. The seeds are
    // fixed, so that it is the same each time.
    let mut cells = [0.0_f64; 20];
    for share in &shares {
        cells[(((share - 0.75) / 0.1 * 20.0) as usize).min(19)] += 1.0;
    }
    let expected = AGENTS as f64 / cells.len() as f64;
    let chi_square: f64 = cells.iter().map(|count| (count - expected).powi(2) / expected).sum();
    assert!(chi_square < 43.82, "{chi_square}: {cells:?}");

    // No herd in any second, nor a hole: of 1,000 points the widest gap is some 7 of the mean ones.
    shares.sort_by(f64::total_cmp);
    let widest = shares.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    assert!(widest < 14.0 * 0.1 / AGENTS as f64, "{widest}");
    let most = shares.windows(9).filter(|nine| (nine[8] - nine[0]) * DAY.as_secs_f64() < 1.0).count();
    assert_eq!(most, 0, "nine in one second");

    // The same in a running agent, whose seeds are the kernel's: each profile has a point of its own.
    let names: Vec<_> = (0..40).map(|number| format!("p{number}")).collect();
    let tokens = profile(BLOOM, "") + &names.iter().map(|name| profile(name, "")).collect::<String>();
    let bench = Bench::start(Setting { tokens, ..Setting::default() }).await;
    let now = bench.agent.time.now().boot;
    let mut points = Vec::new();
    for name in &names {
        bench.client.get(name).await.unwrap();
        points.push(bench.agent.next_attempt(name).await.since(now));
    }
    assert!(points.iter().all(|point| (HOUR * 3 / 4..=HOUR * 17 / 20).contains(point)), "{points:?}");
    points.sort_unstable();
    points.dedup();
    assert_eq!(points.len(), names.len(), "no two are the same");
    bench.end().await;
}

async fn served_to_the_end() {
    for (seconds, skew) in [(60, 3 * SECOND), (99, 4950 * SECOND / 1000), (3600, 5 * SECOND)] {
        let mut setting = Setting::default();
        setting.issuer.lifetime = seconds * SECOND;
        let bench = Bench::start(setting).await;
        let token = bench.token().await;
        let end = bench.agent.time.now().boot + seconds * SECOND - skew;
        assert_eq!(bench.agent.served_until(BLOOM), end);
        bench.agent.issuer.set_rule(Some(Fault::status(StatusCode::BAD_GATEWAY)));
        while bench.agent.next_attempt(BLOOM).await < end {
            bench.agent.pass_an_attempt(BLOOM).await;
            assert_eq!(bench.token().await, token);
        }
        bench.agent.time.advance_to(end - Duration::from_nanos(1));
        assert_eq!(bench.token().await, token, "to the last nanosecond");
        bench.agent.time.advance_to(end);
        let call = bench.client.begin_get(BLOOM).await;
        bench.agent.pass_an_attempt(BLOOM).await;
        let status = call.await.unwrap().expect_err("it has expired");
        assert_eq!(refusal(&status), (Code::Unavailable, "PROVIDER_ERROR".to_owned(), true));
        assert!(retry_delay(&status) <= 30 * SECOND);
        assert_eq!(bench.client.list().await[0].state(), TokenState::Unavailable);
        bench.hide(&token.access_token);
        bench.end().await;
    }
}

async fn more_than_is_left() {
    let bench = Bench::new().await;
    bench.agent.time.advance(20 * MINUTE);
    let old = bench.token().await;
    bench.agent.issuer.push_fault(Fault::none().held());
    let mut calls = Vec::new();
    for _ in 0..10 {
        let caller = bench.client.clone();
        calls.push(
            bench.client.begin(async move { caller.get_valid_for(BLOOM, Some(50 * MINUTE)).await }).await,
        );
    }
    bench.agent.issuer.wait_for_request(2).await;
    assert_eq!(bench.token().await, old, "who is content with it does not wait");
    bench.agent.issuer.release();
    let mut generations = Vec::new();
    for call in calls {
        generations.push(call.await.unwrap().unwrap().generation);
    }
    generations.dedup();
    assert!(generations.len() == 1 && generations[0] > old.generation, "one refresh for all");
    assert_eq!(bench.agent.issuer.request_count(), 2);

    // More than nine tenths of an hour: no new token would have it.
    bench.agent.time.advance(MINUTE);
    for wanted in [55 * MINUTE, HOUR, 1000 * DAY] {
        let token = bench.client.get_valid_for(BLOOM, Some(wanted)).await.expect("the token that is there");
        assert_eq!(token.generation, generations[0]);
    }
    // And in a loop, beyond the budget: the token, and no request.
    let count = bench.agent.issuer.request_count();
    for _ in 0..100 {
        bench.client.get_valid_for(BLOOM, Some(HOUR)).await.expect("never an error while one is valid");
    }
    assert_eq!((bench.agent.issuer.request_count(), count), (2, 2));
    bench.end().await;
}

async fn a_rejected_token() {
    let bench = Bench::new().await;
    bench.agent.time.advance(MINUTE);
    let old = bench.token().await;
    bench.agent.issuer.push_fault(Fault::none().held());
    let mut reports = Vec::new();
    for _ in 0..10 {
        let caller = bench.client.clone();
        let generation = old.generation;
        reports.push(bench.client.begin(async move { caller.report(BLOOM, generation).await }).await);
    }
    bench.agent.issuer.wait_for_request(2).await;
    assert_eq!(bench.token().await, old, "served meanwhile");
    bench.agent.issuer.release();
    for report in reports {
        let answer = report.await.unwrap().unwrap();
        assert!(answer.is_new && answer.generation > old.generation);
    }
    // By its generation: who is late has the new one already.
    assert!(bench.client.report(BLOOM, old.generation).await.unwrap().is_new);
    assert_eq!(bench.agent.issuer.request_count(), 2);
    // Beyond the budget there is no request, and the token is still served.
    let new = bench.token().await;
    bench.agent.time.advance(LEAST);
    let status = bench.client.report(BLOOM, new.generation).await.expect_err("beyond the budget");
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "LIMIT".to_owned(), true));
    assert_eq!(bench.agent.issuer.request_count(), 2);
    assert_eq!(bench.token().await, new);
    bench.end().await;
}

async fn the_same_token_again() {
    let bench = Bench::new().await;
    let first = bench.token().await;
    let mut watch = bench.client.watch(BLOOM).await.unwrap();
    assert_eq!(watch.next_message().await.unwrap().unwrap().token, Some(first.clone()));
    let begin = bench.agent.time.now().boot;
    for round in 1..=5 {
        bench.agent.issuer.push_fault(Fault::same_token());
        bench.recovers("the same").await;
        let token = bench.token().await;
        assert_eq!(
            (&token.access_token, token.generation),
            (&first.access_token, first.generation),
            "{round}"
        );
        assert!(token.expires_at.unwrap().seconds > first.expires_at.unwrap().seconds, "with its new life");
    }
    let took = bench.agent.time.now().boot.since(begin);
    assert!(took >= 5 * HOUR * 3 / 4, "{took:?} for five refreshes");
    // A server that gives it with what is left of its life.
    bench.agent.issuer.push_fault(Fault::reply(answer(&[
        ("access_token", &format!("\"{}\"", first.access_token)),
        ("expires_in", "600"),
    ])));
    bench.recovers("the rest of it").await;
    let rest = bench.agent.next_attempt(BLOOM).await.since(bench.agent.time.now().boot);
    assert!((450 * SECOND..=510 * SECOND).contains(&rest), "{rest:?} of 600 s");
    // Nobody heard of a rotation until there was one.
    bench.recovers("another").await;
    let next = watch.next_message().await.unwrap().unwrap().token.unwrap();
    assert_eq!(next, bench.token().await);
    assert!(next.generation > first.generation);
    assert_eq!(bench.agent.log().matches("the provider gave the same token again").count(), 6);
    bench.end().await;
}

async fn a_token_that_ends_sooner() {
    let mut setting = Setting::default();
    setting.issuer.lifetime = DAY;
    let bench = Bench::start(setting).await;
    let old = bench.token().await;
    bench.agent.time.advance(MINUTE);
    bench.agent.issuer.push_fault(Fault::lifetime(10 * MINUTE));
    bench.client.refresh(BLOOM).await.unwrap();
    let new = bench.token().await;
    assert!(
        new.generation > old.generation && new.expires_at.unwrap().seconds < old.expires_at.unwrap().seconds
    );
    // Its own life counts from here on.
    let next = bench.agent.next_attempt(BLOOM).await.since(bench.agent.time.now().boot);
    assert!((450 * SECOND..=510 * SECOND).contains(&next), "{next:?}");
    bench.end().await;
}

async fn a_secret_file_that_changes() {
    const NEW: &str = "c4n4ry-secret";
    let bench = Bench::new().await;
    bench.hide(NEW);
    let file = bench.agent.secret_file();
    let sent = || {
        let request = bench.last_request();
        super::bench::form(&request).into_iter().find(|(name, _)| name == "client_secret").unwrap().1
    };
    let in_place = |text: &str| fs::write(&file, text).unwrap();
    // By rename, and in place: what is there when the request is made is what is sent.
    bench.agent.issuer.set_secrets([SECRET, NEW]);
    write_secret(&file, NEW);
    bench.recovers("renamed").await;
    assert_eq!(sent(), NEW);
    in_place(&format!("{SECRET}\n"));
    bench.recovers("written in place, with a newline").await;
    assert_eq!(sent(), SECRET);

    // Half of it: the provider refuses that, and the other half is noticed without any time going by.
    let (half, _rest) = NEW.split_at(6);
    in_place(half);
    let text = bench.fails("half-written", REFUSED, async {}).await;
    assert!(text.contains("401"), "{text}");
    let settled = bench.agent.attempts(BLOOM).settled;
    in_place(NEW);
    bench.agent.attempts_until(BLOOM, |a| a.settled > settled && a.consecutive_failures == 0).await;
    assert_eq!(sent(), NEW);

    // What cannot be safe or cannot be a secret is not sent at all; the token stays, and the operator is told.
    let others = || {
        fs::remove_file(&file).unwrap();
        let options = &mut fs::OpenOptions::new();
        let mut open = options.write(true).create_new(true).mode(0o600).open(&file).unwrap();
        open.write_all(NEW.as_bytes()).unwrap();
        chmod(&file, 0o640);
    };
    let link = || {
        let target = file.with_file_name("target");
        write_secret(&target, NEW);
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(target, &file).unwrap();
    };
    let bad: [(&str, &dyn Fn()); 6] = [
        ("empty", &|| in_place("")),
        ("two lines", &|| in_place("a\nb\n")),
        ("no text", &|| fs::write(&file, b"\xff\xfe").unwrap()),
        ("readable by others", &others),
        ("a link", &link),
        ("not there", &|| fs::remove_file(&file).unwrap()),
    ];
    for (what, spoil) in bad {
        let (token, count) = (bench.token().await, bench.agent.issuer.request_count());
        spoil();
        let attempts = bench.agent.pass_an_attempt(BLOOM).await;
        assert_eq!(bench.agent.issuer.request_count(), count, "{what}: nothing is sent");
        assert_eq!(bench.client.list().await[0].last_failure(), FailureKind::SecretUnreadable, "{what}");
        assert_eq!(bench.token().await, token, "{what}");
        let text = super::bench::failure_text(&attempts).unwrap();
        let log = bench.agent.log();
        assert!(log.lines().any(|line| line.contains(" WARN ") && line.contains(&text)), "{what}: {text}");
        let settled = attempts.settled;
        // Mended, it is tried at once: the time stands still.
        write_secret(&file, NEW);
        bench.agent.attempts_until(BLOOM, |a| a.settled > settled && a.consecutive_failures == 0).await;
        assert!(bench.token().await.generation > token.generation, "{what}");
    }
    bench.end().await;
}

#[allow(clippy::disallowed_methods, reason = "a file of the test's own")]
fn chmod(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

async fn another_clock() {
    let bench = Bench::new().await;
    let mut skewed = 0;
    for (offset, is_skewed) in [
        (0, false),
        (299, false),
        (-299, false),
        (600, true),
        (-600, true),
        (315_360_000, true),
        (-600_000_000, true),
    ] {
        let next = bench.agent.next_attempt(BLOOM).await;
        let ours =
            (bench.agent.time.now().wall + next.since(bench.agent.time.now().boot)).unix_millis() / 1000;
        let reply =
            with_header(answer(&[("expires_in", "86400")]), "date", http_date(ours + offset).as_bytes());
        let token = bench.accepts(&offset.to_string(), reply).await;
        assert_eq!(bench.agent.served_until(BLOOM), next + DAY - 5 * SECOND, "{offset}");
        assert_eq!(token.obtained_at.unwrap().seconds, ours, "{offset}: by our own clock");
        skewed += u64::from(is_skewed);
        // The issuer's own answer, the first one, had the date of this machine.
        assert_eq!(bench.deviations("clock_skew").await, skewed + 1, "{offset}");
    }
    let log = bench.agent.log();
    let told = log.lines().filter(|line| line.contains("clock and this host's are more than 5 min apart"));
    assert_eq!(told.count(), 1, "{log}");
    for garbage in ["", "yesterday", "0", "Thu, 99 Foo 2026 99:99:99 GMT"] {
        bench.accepts(garbage, with_header(answer(&[]), "date", garbage.as_bytes())).await;
        assert_eq!(bench.deviations("clock_skew").await, skewed + 1, "{garbage}");
    }
    let failed = with_header(answer(&[("expires_in", "0")]), "date", b"Thu, 01 Jan 1970 00:00:00 GMT");
    bench.rejects_reply("a wrong clock with an answer that is refused", failed, PASSING).await;
    bench.end().await;
}
