//! The consumer of a systemd credential: a unit that reads a token from a socket before it starts (`LoadCredential=`).
//!
//! The one who connects is a child of the service manager, of uid 0 whatever the unit's own user is, and already in the
//! unit's cgroup. Its address names the unit and the credential; anybody can bind such an address, so it is a question
//! and no proof. Pure: where the unit really comes from is somebody else's business.

use super::{Decision, Peer, ROOT_UID, Rule, Rules, Selector, Term, UnitName};

/// The longest name of a credential (systemd's `credential_name_valid` takes a file's name: NAME_MAX).
const MAX_CREDENTIAL_BYTES: usize = 255;
/// The random number in front, in hexadecimal: 64 bits.
const MAX_NUMBER_DIGITS: usize = 16;

/// What a manager's address says: whose credential, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// The unit that is to have it.
    pub unit: UnitName,
    /// The credential's ID, as the unit's file names it.
    pub credential: Box<str>,
}

/// An address that is not a manager's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the address of a service manager that asks for a credential")]
pub struct NotAConsumer;

impl Consumer {
    /// Reads the abstract address of a peer, without its leading NUL: `NUMBER/unit/NAME.service/ID`
    /// (systemd.exec(5), LoadCredential=; the same in systemd 252 and 257).
    pub fn parse(address: &[u8]) -> Result<Self, NotAConsumer> {
        let text = std::str::from_utf8(address).map_err(|_| NotAConsumer)?;
        let mut parts = text.split('/');
        let (Some(number), Some("unit"), Some(unit), Some(credential), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAConsumer);
        };
        let is_number = (1..=MAX_NUMBER_DIGITS).contains(&number.len())
            && number.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_number || !is_credential_name(credential) {
            return Err(NotAConsumer);
        }
        let unit = UnitName::parse(unit).map_err(|_| NotAConsumer)?;
        Ok(Self { unit, credential: credential.into() })
    }
}

/// systemd's `credential_name_valid` (src/shared/creds-util.c): a file's name that can name a descriptor too.
fn is_credential_name(name: &str) -> bool {
    let fits = |b: u8| (b' '..=b'~').contains(&b) && b != b':';
    (1..=MAX_CREDENTIAL_BYTES).contains(&name.len()) && name.bytes().all(fits) && name != "." && name != ".."
}

/// The decision for [`super::Verb::Credential`]: a line admits that names units and nothing else, and the peer's is one of
/// them. What else a line may name, a user or a group, is true of the unit's processes and not of the manager's child, so
/// such a line cannot be judged here and does not admit; nor does being root.
pub(super) fn decide(rules: &Rules, peer: &Peer) -> Decision {
    let Some(unit) = peer.unit.as_ref().filter(|_| peer.uid == ROOT_UID) else { return Decision::Deny };
    let names_it = |term: &Term| matches!(term, Term::Unit(pattern) if pattern.matches(unit));
    let admits = |line: &&Selector| line.terms().iter().all(names_it);
    match rules.selectors().iter().find(admits) {
        Some(line) => Decision::Allow(Rule::Line(line.as_written().clone())),
        None => Decision::Deny,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_whose_credential_is_asked_for_and_which() {
        let cases: &[(&str, &str, &str)] = &[
            ("a8d0dd31bf0c9b4f/unit/loans.service/bloom", "loans.service", "bloom"),
            ("0/unit/loans@eu.service/bloom-v1", "loans@eu.service", "bloom-v1"),
            ("f/unit/a-b_c:d\\x2de.service/x.y z", "a-b_c:d\\x2de.service", "x.y z"),
            ("1/unit/unit.service/unit", "unit.service", "unit"),
        ];
        for (address, unit, credential) in cases {
            let consumer = Consumer::parse(address.as_bytes()).unwrap();
            assert_eq!((consumer.unit.as_str(), &*consumer.credential), (*unit, *credential), "{address}");
        }
    }

    #[test]
    fn anything_else_is_nobodys_address() {
        let long_unit = format!("1/unit/{}.service/bloom", "a".repeat(248));
        let long_credential = format!("1/unit/loans.service/{}", "a".repeat(256));
        let cases: &[&[u8]] = &[
            b"",
            b"/",
            b"bloom",
            b"1/unit/loans.service",
            b"1/unit/loans.service/",
            b"1/unit//bloom",
            b"/unit/loans.service/bloom",
            b"1/unit/loans.service/bloom/",
            b"1/unit/loans.service/a/b",
            b"1/unit/../loans.service/bloom",
            b"1/unit/loans.service/..",
            b"1/unit/loans.service/.",
            b"1//unit/loans.service/bloom",
            b"/1/unit/loans.service/bloom",
            b"1/Unit/loans.service/bloom",
            b"1/system/loans.service/bloom",
            b"1/unit/loans/bloom",
            b"1/unit/loans@.service/bloom",
            b"1/unit/loans.slice/bloom",
            b"1/unit/loans .service/bloom",
            b"1/unit/loans.service\0/bloom",
            b"1/unit/loans.service/bloom\0",
            b"1/unit/loans.service/blo\nom",
            b"1/unit/loans.service/a:b",
            b"1/unit/loans.service/\xc3\xa9",
            b"1/unit/loans.service/\xff",
            b"\x001/unit/loans.service/bloom",
            b"x/unit/loans.service/bloom",
            b"-1/unit/loans.service/bloom",
            b"AB/unit/loans.service/bloom",
            b"0x1/unit/loans.service/bloom",
            b"10000000000000000/unit/loans.service/bloom",
            long_unit.as_bytes(),
            long_credential.as_bytes(),
        ];
        for address in cases {
            assert_eq!(Consumer::parse(address), Err(NotAConsumer), "{}", String::from_utf8_lossy(address));
        }
    }

    fn peer(uid: u32, unit: Option<&str>) -> Peer {
        let unit = unit.map(|unit| UnitName::parse(unit).unwrap());
        Peer { uid, gid: 0, groups: vec![0], pid: 7, unit }
    }

    fn allow(lines: &[&str]) -> Rules {
        Rules::Allow(lines.iter().map(|line| Selector::parse(line).unwrap()).collect())
    }

    #[test]
    fn only_a_line_that_names_the_unit_and_nothing_else_admits() {
        let loans = || peer(0, Some("loans.service"));
        let cases: &[(&str, Rules, Peer, Option<&str>)] = &[
            ("its own unit", allow(&["unit:loans.service"]), loans(), Some("unit:loans.service")),
            (
                "any of the lines",
                allow(&["uid:0", "unit:loans.service"]),
                loans(),
                Some("unit:loans.service"),
            ),
            (
                "an instance, by its template",
                allow(&["unit:loans@.service"]),
                peer(0, Some("loans@eu.service")),
                Some("unit:loans@.service"),
            ),
            (
                "two terms that say the same",
                allow(&["unit:loans@.service & unit:loans@eu.service"]),
                peer(0, Some("loans@eu.service")),
                Some("unit:loans@.service & unit:loans@eu.service"),
            ),
            ("two units at once", allow(&["unit:loans.service & unit:other.service"]), loans(), None),
            ("another unit", allow(&["unit:other.service"]), loans(), None),
            ("a unit that is not known", allow(&["unit:loans.service"]), peer(0, None), None),
            (
                "a peer that is not the manager's child",
                allow(&["unit:loans.service"]),
                peer(1, Some("loans.service")),
                None,
            ),
            ("a line with a user", allow(&["unit:loans.service & uid:0"]), loans(), None),
            ("a line with a group", allow(&["gid:0 & unit:loans.service"]), loans(), None),
            ("being root", allow(&["uid:0", "user:root", "gid:0"]), loans(), None),
            ("no line", allow(&[]), loans(), None),
            ("no rules", Rules::OwnerOnly, loans(), None),
        ];
        for (sentence, rules, peer, line) in cases {
            let expected = line.map_or(Decision::Deny, |line| Decision::Allow(Rule::Line(line.into())));
            assert_eq!(decide(rules, peer), expected, "{sentence}");
        }
    }
}
