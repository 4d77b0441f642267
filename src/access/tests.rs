use super::*;

const OWN: u32 = 990;
const BILLING: u32 = 1001;
const CREDIT: u32 = 500;

fn directory() -> Directory {
    let mut directory = Directory::default();
    for (name, id) in [
        (Name::User("root".into()), 0),
        (Name::User("billing".into()), BILLING),
        (Name::User("nobody".into()), OVERFLOW_UID),
        (Name::Group("credit".into()), CREDIT),
        (Name::Group("root".into()), 0),
    ] {
        directory.insert(name, id).unwrap();
    }
    directory
}

fn policy(root: RootAccess, own_uid: u32, admin: &[&str]) -> Policy {
    let unit_slices = vec![SliceName::parse("system.slice").unwrap()];
    Policy { root, own_uid, admin: lines(admin), directory: Arc::new(directory()), unit_slices }
}

fn lines(texts: &[&str]) -> Vec<Selector> {
    texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
}

fn allow(texts: &[&str]) -> Rules {
    Rules::Allow(lines(texts))
}

fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
    Peer { uid, gid, groups: groups.to_vec(), pid: 7, unit: None }
}

fn in_unit(peer: Peer, unit: &str) -> Peer {
    Peer { unit: Some(UnitName::parse(unit).unwrap()), ..peer }
}

fn by(rule: Rule) -> Decision {
    Decision::Allow(rule)
}

fn line(text: &str) -> Decision {
    Decision::Allow(Rule::Line(text.into()))
}

#[test]
fn who_may_use_a_profile() {
    use RootAccess::{Always, ByRule};
    let nobody = peer(OVERFLOW_UID, CREDIT, &[CREDIT]);
    let cases: Vec<(&str, RootAccess, Rules, Peer, Decision)> = vec![
        ("without allow, root is admitted", Always, Rules::OwnerOnly, peer(0, 0, &[]), by(Rule::Root)),
        (
            "without allow, the agent's own user is admitted",
            Always,
            Rules::OwnerOnly,
            peer(OWN, 990, &[]),
            by(Rule::Owner),
        ),
        (
            "without allow, nobody else is",
            Always,
            Rules::OwnerOnly,
            peer(BILLING, 0, &[0, 990]),
            Decision::Deny,
        ),
        (
            "with allow, the agent's own user needs a line too",
            Always,
            allow(&["user:billing"]),
            peer(OWN, 990, &[]),
            Decision::Deny,
        ),
        ("an empty allow admits root", Always, allow(&[]), peer(0, 0, &[]), by(Rule::Root)),
        ("an empty allow does not admit the owner", Always, allow(&[]), peer(OWN, 990, &[]), Decision::Deny),
        ("root needs no line", Always, allow(&["user:billing"]), peer(0, 0, &[]), by(Rule::Root)),
        ("by-rule, root needs a line", ByRule, allow(&["user:billing"]), peer(0, 0, &[]), Decision::Deny),
        ("by-rule, a line may name root", ByRule, allow(&["user:root"]), peer(0, 5, &[]), line("user:root")),
        ("by-rule, a line may name root's group", ByRule, allow(&["gid:0"]), peer(0, 0, &[]), line("gid:0")),
        (
            "by-rule, root is not admitted without allow",
            ByRule,
            Rules::OwnerOnly,
            peer(0, 0, &[]),
            Decision::Deny,
        ),
        (
            "by-rule, the owner stays admitted without allow",
            ByRule,
            Rules::OwnerOnly,
            peer(OWN, 0, &[]),
            by(Rule::Owner),
        ),
        ("a user is its uid", Always, allow(&["user:billing"]), peer(BILLING, 9, &[]), line("user:billing")),
        (
            "another uid is not",
            Always,
            allow(&["user:billing"]),
            peer(1002, BILLING, &[BILLING]),
            Decision::Deny,
        ),
        (
            "a group is the effective gid",
            Always,
            allow(&["group:credit"]),
            peer(1002, CREDIT, &[]),
            line("group:credit"),
        ),
        (
            "a group is a supplementary group",
            Always,
            allow(&["group:credit"]),
            peer(1002, 9, &[1, CREDIT]),
            line("group:credit"),
        ),
        ("a group is not a uid", Always, allow(&["gid:500"]), peer(CREDIT, 9, &[]), Decision::Deny),
        (
            "a uid is not a group",
            Always,
            allow(&["uid:1001"]),
            peer(1002, BILLING, &[BILLING]),
            Decision::Deny,
        ),
        (
            "any line admits, and the first that does is told",
            Always,
            allow(&["uid:5", "gid:500", "uid:1001"]),
            peer(BILLING, CREDIT, &[]),
            line("gid:500"),
        ),
        (
            "`&` means both",
            Always,
            allow(&["user:billing & group:credit"]),
            peer(BILLING, CREDIT, &[]),
            line("user:billing & group:credit"),
        ),
        (
            "`&` is not satisfied by one",
            Always,
            allow(&["user:billing & group:credit"]),
            peer(BILLING, 9, &[]),
            Decision::Deny,
        ),
        (
            "an unknown user matches nobody",
            Always,
            allow(&["user:ghost"]),
            peer(BILLING, CREDIT, &[]),
            Decision::Deny,
        ),
        (
            "an unknown group matches nobody",
            Always,
            allow(&["group:billing"]),
            peer(BILLING, BILLING, &[0]),
            Decision::Deny,
        ),
        (
            "an unknown name beside a known one matches nobody",
            Always,
            allow(&["user:billing & group:ghost"]),
            peer(BILLING, 9, &[]),
            Decision::Deny,
        ),
        (
            "uid 65534 is not admitted by its uid",
            Always,
            allow(&["uid:65534", "user:nobody"]),
            nobody.clone(),
            Decision::Deny,
        ),
        (
            "uid 65534 is not admitted by its groups",
            Always,
            allow(&["gid:500"]),
            nobody.clone(),
            Decision::Deny,
        ),
        (
            "a unit is the peer's unit",
            Always,
            allow(&["unit:loans.service"]),
            in_unit(peer(5, 5, &[]), "loans.service"),
            line("unit:loans.service"),
        ),
        (
            "another unit is not",
            Always,
            allow(&["unit:loans.service"]),
            in_unit(peer(5, 5, &[]), "loans@a.service"),
            Decision::Deny,
        ),
        (
            "without a known unit no unit matches",
            Always,
            allow(&["unit:loans.service"]),
            peer(5, 5, &[]),
            Decision::Deny,
        ),
        (
            "a unit does not replace the other term",
            Always,
            allow(&["user:billing & unit:loans.service"]),
            in_unit(peer(5, 5, &[]), "loans.service"),
            Decision::Deny,
        ),
    ];
    for (sentence, root, rules, peer, expected) in cases {
        let policy = policy(root, OWN, &[]);
        for verb in [Verb::Get, Verb::Watch, Verb::List, Verb::Report, Verb::Health] {
            assert_eq!(decide(&policy, &rules, &peer, verb), expected, "{sentence} ({verb:?})");
        }
    }
}

#[test]
fn being_the_owner_helps_neither_65534_nor_a_root_that_goes_by_rule() {
    let as_nobody = policy(RootAccess::Always, OVERFLOW_UID, &[]);
    assert_eq!(decide(&as_nobody, &Rules::OwnerOnly, &peer(OVERFLOW_UID, 1, &[]), Verb::Get), Decision::Deny);
    let as_root = policy(RootAccess::ByRule, ROOT_UID, &[]);
    assert_eq!(decide(&as_root, &Rules::OwnerOnly, &peer(0, 0, &[]), Verb::Get), Decision::Deny);
}

#[test]
fn a_credential_goes_by_rules_of_units_whoever_root_is() {
    let rules = allow(&["uid:0", "unit:loans.service"]);
    for root in [RootAccess::Always, RootAccess::ByRule] {
        let policy = policy(root, ROOT_UID, &["uid:0"]);
        let decided = |rules: &Rules, peer: Peer| decide(&policy, rules, &peer, Verb::Credential);
        assert_eq!(decided(&rules, in_unit(peer(0, 0, &[]), "loans.service")), line("unit:loans.service"));
        assert_eq!(decided(&rules, peer(0, 0, &[])), Decision::Deny);
        assert_eq!(decided(&rules, in_unit(peer(5, 5, &[]), "loans.service")), Decision::Deny);
        assert_eq!(decided(&rules, in_unit(peer(OVERFLOW_UID, 0, &[]), "loans.service")), Decision::Deny);
        assert_eq!(decided(&Rules::OwnerOnly, in_unit(peer(0, 0, &[]), "loans.service")), Decision::Deny);
    }
}

#[test]
fn who_is_an_admin() {
    let cases: &[(&str, RootAccess, &[&str], Peer, Decision)] = &[
        ("root is", RootAccess::Always, &[], peer(0, 0, &[]), by(Rule::Root)),
        ("root is also by-rule", RootAccess::ByRule, &[], peer(0, 0, &[]), by(Rule::Root)),
        ("the agent's own user is not", RootAccess::Always, &[], peer(OWN, 0, &[0]), Decision::Deny),
        (
            "who is listed is",
            RootAccess::Always,
            &["group:credit"],
            peer(5, 5, &[CREDIT]),
            line("group:credit"),
        ),
        (
            "who is not listed is not",
            RootAccess::Always,
            &["group:credit"],
            peer(BILLING, 5, &[]),
            Decision::Deny,
        ),
        (
            "65534 is not, whatever is listed",
            RootAccess::Always,
            &["uid:65534", "gid:500"],
            peer(OVERFLOW_UID, CREDIT, &[]),
            Decision::Deny,
        ),
    ];
    for (sentence, root, admin, peer, expected) in cases {
        let rules = AccessRules::new(policy(*root, OWN, admin), BTreeMap::new());
        assert_eq!(&rules.admin(peer), expected, "{sentence}");
        // No profile's rules make an admin.
        let decision =
            decide(&policy(*root, OWN, admin), &allow(&["uid:5", "uid:990", "uid:1001"]), peer, Verb::Admin);
        assert_eq!(&decision, expected, "{sentence}, whatever a profile says");
    }
}

fn whole(profiles: &[(&str, Rules)]) -> AccessRules {
    let profiles =
        profiles.iter().map(|(name, rules)| (ProfileName::parse(name).unwrap(), rules.clone())).collect();
    AccessRules::new(policy(RootAccess::Always, OWN, &["user:operator"]), profiles)
}

fn usable<'a>(rules: &'a AccessRules, peer: &'a Peer) -> Vec<&'a str> {
    rules.usable(peer).map(ProfileName::as_str).collect()
}

#[test]
fn a_peer_is_told_of_the_profiles_that_it_may_use() {
    let rules = whole(&[
        ("a", Rules::OwnerOnly),
        ("b", allow(&["user:billing"])),
        ("c", allow(&["group:credit", "user:billing"])),
    ]);
    let billing = peer(BILLING, 1, &[]);
    assert_eq!(usable(&rules, &peer(0, 0, &[])), ["a", "b", "c"]);
    assert_eq!(usable(&rules, &peer(OWN, 1, &[])), ["a"]);
    assert_eq!(usable(&rules, &billing), ["b", "c"]);
    assert_eq!(usable(&rules, &peer(7, CREDIT, &[])), ["c"]);
    assert!(usable(&rules, &peer(7, 7, &[])).is_empty());
    assert!(usable(&rules, &peer(OVERFLOW_UID, CREDIT, &[])).is_empty());

    assert!(rules.may_use_every(&peer(0, 0, &[])));
    assert!(!rules.may_use_every(&billing));
    assert_eq!(rules.decide("b", &billing, Verb::Get), line("user:billing"));
    assert_eq!(rules.decide("a", &billing, Verb::Get), Decision::Deny);
    assert_eq!(rules.decide("invented", &billing, Verb::Get), Decision::Deny);
    assert_eq!(rules.decide("", &peer(0, 0, &[]), Verb::Get), Decision::Deny);
}

#[test]
fn an_agent_without_profiles_tells_only_root_and_the_owner_that_a_name_is_unknown() {
    let rules = whole(&[]);
    assert!(rules.may_use_every(&peer(0, 0, &[])));
    assert!(rules.may_use_every(&peer(OWN, 1, &[])));
    assert!(!rules.may_use_every(&peer(BILLING, 1, &[])));
    assert!(!rules.may_use_every(&peer(OVERFLOW_UID, 1, &[])));
}

#[test]
fn a_name_that_appears_later_admits_once_it_is_looked_up_again() {
    let rules = whole(&[("a", allow(&["user:late & group:credit"]))]);
    let expected = [Name::User("late".into()), Name::User("operator".into()), Name::Group("credit".into())];
    assert_eq!(rules.names(), expected.into());
    let late = peer(1500, CREDIT, &[]);
    assert_eq!(rules.decide("a", &late, Verb::Get), Decision::Deny);
    let mut found = directory();
    found.insert(Name::User("late".into()), 1500).unwrap();
    let again = rules.with_directory(found);
    assert_eq!(again.decide("a", &late, Verb::Get), line("user:late & group:credit"));
    assert_eq!(rules.decide("a", &late, Verb::Get), Decision::Deny);
}

/// The contract read off once more, as plainly as possible, from the texts of the rules.
fn oracle(root: RootAccess, own_uid: u32, allow: Option<&[&str]>, peer: &Peer) -> bool {
    let term = |text: &str| match text {
        "uid:0" | "user:root" => peer.uid == 0,
        "uid:1001" | "user:billing" => peer.uid == 1001,
        "gid:500" | "group:credit" => peer.gid == 500 || peer.groups.contains(&500),
        "uid:65534" | "user:nobody" => false,
        "unit:x.service" => matches!(&peer.unit, Some(unit) if unit.as_str() == "x.service"),
        "unit:x@.service" => matches!(&peer.unit, Some(unit) if unit.as_str() == "x@1.service"),
        "user:ghost" | "group:ghost" => false,
        other => panic!("the oracle does not know {other}"),
    };
    if peer.uid == 65_534 {
        return false;
    }
    if peer.uid == 0 && root == RootAccess::Always {
        return true;
    }
    match allow {
        None => peer.uid == own_uid && peer.uid != 0,
        Some(lines) => lines.iter().any(|line| line.split(" & ").all(term)),
    }
}

#[test]
fn every_small_case_agrees_with_the_contract_read_naively() {
    let terms = [
        "uid:0",
        "uid:1001",
        "uid:65534",
        "user:root",
        "user:billing",
        "user:nobody",
        "user:ghost",
        "gid:500",
        "group:credit",
        "group:ghost",
        "unit:x.service",
        "unit:x@.service",
    ];
    let mut texts: Vec<String> = terms.iter().map(ToString::to_string).collect();
    for a in terms {
        texts.extend(terms.iter().map(|b| format!("{a} & {b}")));
    }
    let mut rules: Vec<Option<Vec<&str>>> = vec![None, Some(vec![])];
    rules.extend(texts.iter().map(|text| Some(vec![text.as_str()])));
    rules.extend(terms.iter().flat_map(|a| terms.iter().map(move |b| Some(vec![*a, *b]))));

    let mut peers = Vec::new();
    for uid in [0, OWN, BILLING, 1002, OVERFLOW_UID] {
        for gid in [0, CREDIT, BILLING, OVERFLOW_UID] {
            for groups in [&[][..], &[CREDIT], &[9, CREDIT], &[0], &[BILLING]] {
                for unit in [None, Some("x.service"), Some("x@1.service"), Some("y.service")] {
                    let unit = unit.map(|unit| UnitName::parse(unit).unwrap());
                    peers.push(Peer { uid, gid, groups: groups.to_vec(), pid: 1, unit });
                }
            }
        }
    }
    let mut admitted = 0_u32;
    for root in [RootAccess::Always, RootAccess::ByRule] {
        for own_uid in [0, OWN, BILLING, OVERFLOW_UID] {
            let policy = policy(root, own_uid, &[]);
            for written in &rules {
                let parsed = written.as_deref().map_or(Rules::OwnerOnly, allow);
                for peer in &peers {
                    let expected = oracle(root, own_uid, written.as_deref(), peer);
                    let decision = decide(&policy, &parsed, peer, Verb::Get);
                    assert_eq!(decision.is_allow(), expected, "{root:?} own {own_uid} {written:?} {peer:?}");
                    admitted += u32::from(expected);
                }
            }
        }
    }
    assert!(admitted > 10_000, "the table has too few who are admitted: {admitted}");
}

#[test]
fn a_group_is_matched_exactly_however_many_the_peer_has() {
    for count in [0_u32, 1, 16, 1023, 1024, 1025] {
        let groups: Vec<u32> = (2000..2000 + count).collect();
        let decided = |gid: u32| {
            let rules = Rules::Allow(vec![Selector::parse(&format!("gid:{gid}")).unwrap()]);
            decide(&policy(RootAccess::ByRule, OWN, &[]), &rules, &peer(5, 5, &groups), Verb::Get).is_allow()
        };
        assert!(!decided(0) && !decided(1999) && !decided(2000 + count), "{count} groups");
        assert!(count == 0 || (decided(2000) && decided(2000 + count - 1)), "{count} groups");
    }
}

#[test]
fn a_unit_is_asked_for_only_where_it_could_admit() {
    use RootAccess::{Always, ByRule};
    let billing = || peer(BILLING, 9, &[]);
    let cases: Vec<(&str, RootAccess, Rules, Peer, bool)> = vec![
        ("a rule by unit alone", Always, allow(&["unit:a.service"]), billing(), true),
        ("with a user who it is", Always, allow(&["user:billing & unit:a.service"]), billing(), true),
        ("with a user who it is not", Always, allow(&["uid:7 & unit:a.service"]), billing(), false),
        (
            "with a group that it is not in",
            Always,
            allow(&["unit:a.service & group:credit"]),
            billing(),
            false,
        ),
        ("another line admits", Always, allow(&["unit:a.service", "user:billing"]), billing(), false),
        ("no rule names a unit", Always, allow(&["uid:7"]), billing(), false),
        ("root is admitted anyway", Always, allow(&["unit:a.service"]), peer(0, 0, &[]), false),
        ("root by rule is asked", ByRule, allow(&["unit:a.service"]), peer(0, 0, &[]), true),
        ("nobody is never admitted", Always, allow(&["unit:a.service"]), peer(OVERFLOW_UID, 9, &[]), false),
        ("without allow", Always, Rules::OwnerOnly, billing(), false),
    ];
    for (what, root, rules, peer, expected) in cases {
        let profiles = [(ProfileName::parse("a").unwrap(), rules)].into();
        let access = AccessRules::new(policy(root, OWN, &[]), profiles);
        assert_eq!(access.hinges_on_unit("a", &peer, Verb::Get), expected, "{what}");
        assert_eq!(access.hinges_on_unit("", &peer, Verb::Get), expected, "{what}, no name");
    }
    let admins = AccessRules::new(policy(Always, OWN, &["unit:ops.service"]), BTreeMap::new());
    assert!(admins.names_units() && admins.hinges_on_unit("", &billing(), Verb::Admin));
    assert!(!admins.hinges_on_unit("", &billing(), Verb::Get));
}

#[test]
fn a_profile_is_asked_for_its_own_rules_and_a_name_that_none_has_for_all() {
    let rules = whole(&[("a", allow(&["unit:a.service"])), ("b", allow(&["uid:7"]))]);
    let billing = peer(BILLING, 9, &[]);
    for (profile, expected) in [("a", true), ("b", false), ("invented", true)] {
        assert_eq!(rules.hinges_on_unit(profile, &billing, Verb::Get), expected, "{profile}");
    }
    assert!(rules.names_units() && !whole(&[("b", allow(&["uid:7"]))]).names_units());
}

#[test]
fn the_rules_say_what_they_go_by() {
    let rules = whole(&[]);
    assert_eq!(rules.unit_slices(), [SliceName::parse("system.slice").unwrap()]);
    assert_eq!(rules.directory(), &directory());
}

#[test]
fn what_the_audit_and_the_log_are_told() {
    let rules = [(Rule::Root, "root"), (Rule::Owner, "owner"), (Rule::Line("uid:7".into()), "uid:7")];
    for (rule, expected) in rules {
        assert_eq!((rule.as_str(), rule.to_string().as_str()), (expected, expected));
    }
    assert_eq!(Name::User("billing".into()).to_string(), "user \"billing\"");
    assert_eq!(Name::Group("credit".into()).to_string(), "group \"credit\"");
    assert_eq!(UnitName::parse("loans.service").unwrap().to_string(), "loans.service");
    assert_eq!(format!("{:?}", Selector::parse("uid:7 & gid:8").unwrap()), "Selector(\"uid:7 & gid:8\")");
}

#[test]
fn a_unit_counts_in_the_slices_that_were_named_and_below() {
    let slice = |text: &str| SliceName::parse(text).unwrap();
    let unit = UnitName::parse("loans.service").unwrap();
    let placement = Placement { unit: unit.clone(), slice: slice("system-loans.slice") };
    assert_eq!(placement.unit_within(&[slice("app.slice"), slice("system.slice")]), Some(&unit));
    assert_eq!(placement.unit_within(&[slice("app.slice")]), None);
    assert_eq!(placement.unit_within(&[]), None);
}
