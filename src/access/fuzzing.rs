//! Properties of the lines that say who may, and of the address that names a credential's consumer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property panics where it does not hold"
)]

use super::{
    Consumer, Directory, Name, OVERFLOW_UID, Peer, Policy, RootAccess, Rules, Selector, Term, UnitName,
    UnitPattern, Verb, decide,
};

/// A line is refused, or is exactly the terms that stand there and admits nobody else.
pub(crate) fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let selector = match Selector::parse(text) {
        Ok(selector) => selector,
        Err(fault) => {
            let shown = format!("{fault} {fault:?} {}", fault.right());
            assert!(shown.len() <= 400 && !shown.contains("c4n4ry"), "a fault quotes nothing: {shown}");
            return;
        }
    };
    let terms = selector.terms();
    assert_eq!(terms.len(), text.matches('&').count() + 1, "no term is dropped");
    let printed = terms.iter().map(print).collect::<Vec<_>>().join(" & ");
    assert_eq!(Selector::parse(&printed).unwrap().terms(), terms, "what is printed is read as the same");
    assert_eq!(Selector::parse(selector.as_written()).unwrap(), selector);

    // A peer made for it, and a directory in which the names have its ids; of two uids or units the last counts.
    let mut peer = Peer { uid: 1_001, gid: 2_001, groups: vec![], pid: 1, unit: None };
    for term in terms {
        match term {
            Term::Uid(uid) => peer.uid = *uid,
            Term::Gid(gid) => peer.groups.push(*gid),
            Term::User(_) => {}
            Term::Group(_) => peer.groups.push(GROUP),
            Term::Unit(pattern) => peer.unit = UnitName::parse(&meant(pattern)).ok(),
        }
    }
    let mut directory = Directory::default();
    for name in selector.names() {
        let id = if matches!(name, Name::User(_)) { peer.uid } else { GROUP };
        directory.insert(name.clone(), id).expect("no rule has a dynamic id");
    }
    let policy = Policy {
        root: RootAccess::ByRule,
        own_uid: 1,
        admin: vec![],
        directory: directory.into(),
        unit_slices: vec![],
    };
    let may = |line: &str, peer: &Peer| {
        let rules = Rules::Allow(vec![Selector::parse(line).unwrap()]);
        decide(&policy, &rules, peer, Verb::Get).is_allow()
    };
    let holds = |term: &Term| match term {
        Term::Uid(uid) => peer.uid == *uid,
        Term::Gid(gid) => peer.groups.contains(gid),
        Term::User(_) | Term::Group(_) => true,
        Term::Unit(UnitPattern::One(unit)) => peer.unit.as_ref() == Some(unit),
        Term::Unit(UnitPattern::InstancesOf(template)) => peer.unit.as_ref().is_some_and(|unit| {
            let unit = unit.as_str();
            unit.len() > template.len() + ".service".len() && unit[..template.len()] == **template
        }),
    };
    let expected = peer.uid != OVERFLOW_UID && terms.iter().all(holds);
    assert_eq!(may(text, &peer), expected, "{text:?} and {peer:?}");
    assert!(!may(&format!("{text} & uid:7777"), &peer) || peer.uid == 7_777, "one more term admits fewer");
    assert!(!may(text, &Peer { uid: OVERFLOW_UID, ..peer.clone() }), "nobody is nobody");
    for term in terms {
        let other = match term {
            Term::Uid(_) | Term::User(_) => Peer { uid: peer.uid.wrapping_add(1), ..peer.clone() },
            Term::Gid(_) | Term::Group(_) => Peer { groups: vec![], gid: u32::MAX, ..peer.clone() },
            Term::Unit(_) => Peer { unit: None, ..peer.clone() },
        };
        assert!(!may(text, &other), "{text:?} without {term:?}");
    }
}

/// The one group of all names.
const GROUP: u32 = 3_001;

/// A unit that a pattern means. None where a template's name leaves no room for an instance.
fn meant(pattern: &UnitPattern) -> String {
    match pattern {
        UnitPattern::One(unit) => unit.as_str().to_owned(),
        UnitPattern::InstancesOf(template) => format!("{template}x.service"),
    }
}

fn print(term: &Term) -> String {
    match term {
        Term::User(Name::User(name)) => format!("user:{name}"),
        Term::Group(Name::Group(name)) => format!("group:{name}"),
        Term::Uid(uid) => format!("uid:{uid}"),
        Term::Gid(gid) => format!("gid:{gid}"),
        Term::Unit(UnitPattern::One(unit)) => format!("unit:{}", unit.as_str()),
        Term::Unit(UnitPattern::InstancesOf(template)) => format!("unit:{template}.service"),
        Term::User(Name::Group(_)) | Term::Group(Name::User(_)) => panic!("a user is no group"),
    }
}

/// The name that a peer's socket is bound to: a stranger's bytes.
pub(crate) fn credential_address(data: &[u8]) {
    match Consumer::parse(data) {
        Ok(Consumer { unit, credential }) => {
            let text = std::str::from_utf8(data).unwrap();
            let (number, rest) = text.split_once('/').unwrap();
            assert_eq!(rest, format!("unit/{}/{credential}", unit.as_str()), "every byte has its place");
            assert!(u64::from_str_radix(number, 16).is_ok() && !number.contains('+'));
            assert!(
                credential.bytes().all(|byte| matches!(byte, b' '..=b'~'))
                    && !credential.contains([':', '/'])
            );
            assert_eq!(UnitName::parse(unit.as_str()), Ok(unit));
        }
        Err(fault) => assert!(format!("{fault} {fault:?}").len() < 200),
    }
}
