use std::time::Duration;

use tracing::{Level, dispatcher::with_default};

use super::*;
use crate::{
    clock::{Now, WallTime},
    log::{Format, LogConfig, captured},
};

#[derive(Default)]
struct Hand(Mutex<Duration>);

impl Hand {
    fn forward(&self, seconds: u64) {
        *self.0.lock().unwrap() += Duration::from_secs(seconds);
    }
}

impl Clock for Hand {
    fn now(&self) -> Now {
        Now { boot: Timestamp::from_boot(*self.0.lock().unwrap()), wall: WallTime::from_unix_millis(0) }
    }
}

fn peer(uid: u32) -> Peer {
    Peer { uid, gid: uid, groups: vec![], pid: 7, unit: None }
}

fn unit(uid: u32, unit: &str) -> Peer {
    Peer { unit: Some(UnitName::parse(unit).unwrap()), ..peer(uid) }
}

fn name(text: &str) -> ProfileName {
    ProfileName::parse(text).unwrap()
}

/// The events that `script` makes, each as its JSON line.
fn events(script: impl FnOnce(&Audit, &Hand)) -> Vec<String> {
    let clock = Arc::new(Hand(Mutex::new(Duration::from_secs(1000))));
    let audit = Audit::new(clock.clone());
    let config = LogConfig { level: Level::TRACE, format: Format::Json, ..LogConfig::default() };
    let (dispatch, captured) = captured(config, clock.clone());
    with_default(&dispatch, || script(&audit, &clock));
    captured.text().lines().map(str::to_owned).collect()
}

fn counts(events: &[String]) -> Vec<u64> {
    let parsed = events.iter().map(|event| serde_json::from_str::<serde_json::Value>(event).unwrap());
    parsed.map(|event| event["count"].as_u64().unwrap()).collect()
}

fn grant(audit: &Audit, peer: &Peer, profile: &str, generation: u64) {
    let generation = Generation::from_u64(generation);
    audit.granted(&Told::default(), peer, Verb::Get, &name(profile), generation, "user:a");
}

#[test]
fn the_fields_are_these_and_no_others() {
    let events = events(|audit, _| {
        grant(audit, &unit(1, "a.service"), "bloom", 5);
        audit.denied(&peer(2), Verb::Watch, None);
        audit.denied(&unit(2, "b.service"), Verb::Get, Some(&name("bloom")));
        audit.admin(&peer(0), AdminCall::RefreshToken, Some(&name("bloom")), "root");
        audit.admin(&peer(0), AdminCall::Reload, None, "root");
        audit.reported(&peer(1), &name("bloom"), Generation::from_u64(5), "uid:1");
    });
    let head =
        r#"{"time":"1970-01-01T00:00:00Z","level":"INFO","target":"bloom_agent::audit","message":"audit","#;
    let expected = [
        r#""decision":"granted","verb":"get","profile":"bloom","generation":5,"uid":1,"pid":7,"unit":"a.service","rule":"user:a"}"#,
        r#""decision":"denied","verb":"watch","profile":"unknown","uid":2,"pid":7,"count":1}"#,
        r#""decision":"denied","verb":"get","profile":"bloom","uid":2,"pid":7,"unit":"b.service","count":1}"#,
        r#""decision":"granted","verb":"refresh-token","profile":"bloom","uid":0,"pid":7,"rule":"root"}"#,
        r#""decision":"granted","verb":"reload","uid":0,"pid":7,"rule":"root"}"#,
        r#""decision":"granted","verb":"report-rejected","profile":"bloom","generation":5,"uid":1,"pid":7,"rule":"uid:1","count":1}"#,
    ];
    assert_eq!(events, expected.map(|rest| format!("{head}{rest}")));
}

#[test]
fn a_grant_is_told_once_per_uid_unit_profile_and_generation() {
    let told = events(|audit, _| {
        for _ in 0..3 {
            grant(audit, &peer(1), "bloom", 5);
            grant(audit, &peer(2), "bloom", 5);
            grant(audit, &unit(1, "a.service"), "bloom", 5);
            grant(audit, &unit(1, "b.service"), "bloom", 5);
            grant(audit, &peer(1), "partner", 5);
        }
        for _ in 0..3 {
            grant(audit, &peer(1), "bloom", 6);
        }
    });
    assert_eq!(told.len(), 6, "{told:#?}");
}

#[test]
fn a_connection_that_remembers_asks_nobody() {
    let told = events(|audit, _| {
        let mark = Told::default();
        let grant = |generation| {
            let generation = Generation::from_u64(generation);
            audit.granted(&mark, &peer(1), Verb::Watch, &name("bloom"), generation, "root");
        };
        grant(5);
        audit.books.lock().unwrap().grants.clear();
        grant(5);
        grant(6);
    });
    assert_eq!(told.len(), 2, "{told:#?}");
}

#[test]
fn denials_are_told_at_once_and_then_once_a_minute_with_their_count() {
    let told = events(|audit, clock| {
        let deny = || audit.denied(&peer(1), Verb::Get, Some(&name("bloom")));
        deny();
        for _ in 0..59 {
            clock.forward(1);
            deny();
        }
        clock.forward(1);
        deny();
        clock.forward(59);
        deny();
        // Quiet, then one more: told at once, with the one that waited.
        clock.forward(600);
        deny();
    });
    assert_eq!(counts(&told), [1, 60, 2]);
}

#[test]
fn no_count_is_lost_whatever_happens_later() {
    let told = events(|audit, clock| {
        assert_eq!(audit.next_due(), None);
        for _ in 0..4 {
            audit.denied(&peer(1), Verb::Get, None);
        }
        assert_eq!(audit.next_due(), Some(Timestamp::from_boot(Duration::from_secs(1060))));
        // Somebody else's event brings it out.
        clock.forward(61);
        audit.admin(&peer(0), AdminCall::GetStatus, None, "root");
        assert_eq!(audit.next_due(), None);
        // The end brings it out.
        audit.denied(&peer(1), Verb::Get, None);
        audit.denied(&peer(1), Verb::Get, None);
        audit.flush();
        audit.flush();
    });
    let denials: Vec<_> = told.into_iter().filter(|line| line.contains("denied")).collect();
    assert_eq!(counts(&denials), [1, 3, 2]);
}

#[test]
fn an_appointment_that_is_kept_tells_the_count() {
    let told = events(|audit, clock| {
        audit.denied(&peer(1), Verb::Get, None);
        audit.denied(&peer(1), Verb::Get, None);
        clock.forward(60);
        audit.tell_due();
        clock.forward(60);
        audit.tell_due();
        assert_eq!(audit.next_due(), None);
        assert!(audit.lock().denials.is_empty());
    });
    assert_eq!(counts(&told), [1, 1]);
}

#[test]
fn names_that_callers_make_up_are_one_key() {
    let told = events(|audit, _| {
        for _ in 0..10_000 {
            audit.denied(&peer(1), Verb::Get, None);
        }
        audit.denied(&peer(1), Verb::Watch, None);
        audit.flush();
    });
    assert_eq!(counts(&told), [1, 1, 9_999]);
}

#[test]
fn the_books_do_not_grow_beyond_their_caps_and_lose_no_count() {
    let uids = u32::try_from(MAX_KINDS * 2).unwrap();
    let told = events(|audit, _| {
        for uid in 0..uids {
            audit.denied(&peer(uid), Verb::Get, None);
        }
        assert_eq!(audit.lock().denials.len(), MAX_KINDS + 1);
        audit.flush();
    });
    assert_eq!(counts(&told).iter().sum::<u64>(), u64::from(uids));

    let uids = u32::try_from(MAX_GRANTS).unwrap() + 1;
    let told = events(|audit, _| {
        for uid in 0..uids {
            grant(audit, &peer(uid), "bloom", 5);
        }
        assert_eq!(audit.lock().remembered, 1);
        grant(audit, &peer(0), "bloom", 5);
    });
    assert_eq!(told.len(), MAX_GRANTS + 2);
}

#[test]
fn what_is_remembered_is_counted_right_over_generations() {
    events(|audit, _| {
        for generation in 1..5 {
            for unit_name in ["a.service", "b.service"] {
                grant(audit, &unit(1, unit_name), "bloom", generation);
            }
            let books = audit.lock();
            let units: usize = books.grants.values().map(|granted| granted.units.len()).sum();
            assert_eq!((books.remembered, units), (2, 2));
        }
    });
}

#[test]
fn a_caller_that_reports_without_end_is_told_once_a_minute_with_the_count_and_the_last_generation() {
    let told = events(|audit, clock| {
        let report = |peer: &Peer, profile: &str, generation| {
            audit.reported(peer, &name(profile), Generation::from_u64(generation), "uid:1");
        };
        for generation in 0..5000 {
            report(&peer(1), "bloom", generation);
        }
        assert_eq!(audit.next_due(), Some(Timestamp::from_boot(Duration::from_secs(1060))));
        // Another user, unit or profile is another kind, and is told at once.
        report(&peer(2), "bloom", 1);
        report(&unit(1, "a.service"), "bloom", 1);
        report(&peer(1), "partner", 1);
        clock.forward(60);
        audit.tell_due();
        assert_eq!(audit.next_due(), None);
        report(&peer(1), "bloom", 7);
        report(&peer(1), "bloom", 8);
        audit.flush();
        audit.flush();
    });
    let seen: Vec<_> = told
        .iter()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&event["verb"], &event["rule"]), (&"report-rejected".into(), &"uid:1".into()));
            (event["generation"].as_u64().unwrap(), event["count"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(seen, [(0, 1), (1, 1), (1, 1), (1, 1), (4999, 4999), (8, 2)]);
}

#[test]
fn neither_denials_nor_reports_crowd_out_the_other() {
    let told = events(|audit, _| {
        for uid in 0..=u32::try_from(MAX_KINDS).unwrap() {
            audit.denied(&peer(uid), Verb::Get, None);
        }
        audit.reported(&peer(1), &name("bloom"), Generation::from_u64(5), "uid:1");
        let books = audit.lock();
        assert_eq!((books.denials.len(), books.reports.len()), (MAX_KINDS + 1, 1));
    });
    assert_eq!(told.last().map(|line| line.contains("report-rejected")), Some(true));
}
