//! One line of `allow` or `admin`: `term { "&" term }`, where every term has to match.
//!
//! `user:NAME`, `uid:N`, `group:NAME`, `gid:N`, `unit:NAME.service`, `unit:NAME@.service`; no wildcards, no negation.
//! Spaces and tabs may stand around a term, never in the middle of its kind or before its value. What is not
//! understood is refused, never ignored: a restriction that is dropped would admit more than was written.

use std::{fmt, sync::Arc};

use super::{
    Peer,
    directory::{DYNAMIC_IDS, Directory, Name},
    unit::UnitPattern,
};

/// Longer than any name that a system gives (LOGIN_NAME_MAX is 256 with its NUL).
const MAX_NAME_BYTES: usize = 255;

/// A line of `allow` or `admin`. It keeps the text it was made from, for the audit.
#[derive(Clone, PartialEq, Eq)]
pub struct Selector {
    written: Arc<str>,
    terms: Vec<Term>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// `user:NAME`: the effective uid is that user's.
    User(Name),
    /// `uid:N`.
    Uid(u32),
    /// `group:NAME`: the effective gid or one of the supplementary groups is that group's.
    Group(Name),
    /// `gid:N`.
    Gid(u32),
    /// `unit:…`: the process is in that systemd unit.
    Unit(UnitPattern),
}

/// What is wrong with a text that should be a selector. It never holds any of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorFault {
    /// Nothing but spaces.
    #[error("is empty")]
    Empty,
    /// Nothing before, between or after `&`.
    #[error("has nothing on one side of a '&'")]
    EmptyTerm,
    /// `!user:x`, `not user:x`.
    #[error("negates; rules only admit")]
    Negation,
    /// `user:*`, `gid:[12]`.
    #[error("holds a wildcard; every term names one user, group or unit")]
    Wildcard,
    /// Another word before the colon, or no colon.
    #[error("has a term that is none of user:, uid:, group:, gid:, unit:")]
    UnknownKind,
    /// Characters that no name has, or none at all.
    #[error("has a term whose name is not one that a user or group can have")]
    NotAName,
    /// `user:1000`.
    #[error("has a number where a name belongs")]
    NumericName,
    /// Not a decimal number that is an id.
    #[error("has an id that is not a decimal number from 0 to 4294967294")]
    NotAnId,
    /// One of [`DYNAMIC_IDS`].
    #[error("names one of systemd's dynamic ids (61184 to 65519), which are handed on to other services")]
    DynamicId,
    /// Not a service and not a service template.
    #[error("has a unit that is not a service")]
    NotAUnit,
}

impl SelectorFault {
    /// What to write instead.
    pub fn right(self) -> &'static str {
        match self {
            Self::Empty | Self::UnknownKind => "write terms such as user:billing, group:credit or uid:1000",
            Self::EmptyTerm => "write a term on each side of '&', as in \"user:billing & group:credit\"",
            Self::Negation => "list those who are to be admitted; everybody else is refused",
            Self::Wildcard => "write one line for each, or give them a group and write group:NAME",
            Self::NotAName => "write the name as `id -un` or `id -Gn` prints it, directly after the colon",
            Self::NumericName => "write uid:N or gid:N for a number",
            Self::NotAnId => "write the number as `id -u` or `id -g` prints it, directly after the colon",
            Self::DynamicId => "use unit:NAME.service",
            Self::NotAUnit => {
                "write unit:NAME.service, or unit:NAME@.service for every instance of a template"
            }
        }
    }
}

impl Selector {
    /// Reads a line. The first fault of it is the one that is told.
    pub fn parse(text: &str) -> Result<Self, SelectorFault> {
        if trim(text).is_empty() {
            return Err(SelectorFault::Empty);
        }
        let terms = text.split('&').map(|term| Term::parse(trim(term))).collect::<Result<_, _>>()?;
        Ok(Self { written: trim(text).into(), terms })
    }

    /// The rule that admits one uid: what `dev` makes for its own user.
    pub fn of_uid(uid: u32) -> Self {
        Self { written: format!("uid:{uid}").into(), terms: vec![Term::Uid(uid)] }
    }

    /// The line as it was written, without the spaces around it.
    pub fn as_written(&self) -> &Arc<str> {
        &self.written
    }

    /// Its conditions.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The names that have to be looked up before it can match.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.terms.iter().filter_map(|term| match term {
            Term::User(name) | Term::Group(name) => Some(name),
            Term::Uid(_) | Term::Gid(_) | Term::Unit(_) => None,
        })
    }

    /// Whether it asks for a unit, which the peer's facts do not always hold.
    pub fn names_a_unit(&self) -> bool {
        self.terms.iter().any(|term| matches!(term, Term::Unit(_)))
    }

    /// Whether every condition holds for `peer`. Not the whole answer: see [`super::decide`].
    pub(super) fn matches(&self, peer: &Peer, directory: &Directory) -> bool {
        // `all` of nothing is true: a selector without terms cannot be made, and would admit everybody.
        !self.terms.is_empty() && self.terms.iter().all(|term| term.matches(peer, directory))
    }
}

impl Selector {
    /// Whether every condition but those of the unit holds for `peer`.
    pub(super) fn matches_but_for_unit(&self, peer: &Peer, directory: &Directory) -> bool {
        self.terms.iter().all(|term| matches!(term, Term::Unit(_)) || term.matches(peer, directory))
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({:?})", self.written)
    }
}

impl Term {
    fn parse(term: &str) -> Result<Self, SelectorFault> {
        if term.is_empty() {
            return Err(SelectorFault::EmptyTerm);
        }
        if term.starts_with('!') || term.starts_with("not ") {
            return Err(SelectorFault::Negation);
        }
        let (kind, value) = term.split_once(':').ok_or(SelectorFault::UnknownKind)?;
        if !["user", "uid", "group", "gid", "unit"].contains(&kind) {
            return Err(SelectorFault::UnknownKind);
        }
        if value.starts_with('!') {
            return Err(SelectorFault::Negation);
        }
        if value.contains(['*', '?', '[', ']', '{', '}']) {
            return Err(SelectorFault::Wildcard);
        }
        match kind {
            "user" => Ok(Self::User(Name::User(name(value)?.into()))),
            "uid" => Ok(Self::Uid(id(value)?)),
            "group" => Ok(Self::Group(Name::Group(name(value)?.into()))),
            "gid" => Ok(Self::Gid(id(value)?)),
            _ => UnitPattern::parse(value).map(Self::Unit).map_err(|_| SelectorFault::NotAUnit),
        }
    }

    fn matches(&self, peer: &Peer, directory: &Directory) -> bool {
        let in_group = |gid: u32| peer.gid == gid || peer.groups.contains(&gid);
        match self {
            Self::User(name) => directory.id(name) == Some(peer.uid),
            Self::Uid(uid) => *uid == peer.uid,
            Self::Group(name) => directory.id(name).is_some_and(in_group),
            Self::Gid(gid) => in_group(*gid),
            Self::Unit(pattern) => peer.unit.as_ref().is_some_and(|unit| pattern.matches(unit)),
        }
    }
}

/// Whether `text` can be a user's or group's name: systemd's relaxed rules (USER_NAMES.md), since a directory service
/// gives names like `CORP\domain users`.
pub fn name(text: &str) -> Result<&str, SelectorFault> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SelectorFault::NumericName);
    }
    let fits = |c: char| !c.is_control() && !matches!(c, ':' | '/' | '&') && (c == ' ' || !c.is_whitespace());
    let whole = !text.is_empty() && text.len() <= MAX_NAME_BYTES && !matches!(text, "." | "..");
    if whole && text.trim() == text && text.chars().all(fits) {
        Ok(text)
    } else {
        Err(SelectorFault::NotAName)
    }
}

/// A decimal number as `id` prints it: no sign, no leading zero (which some would read as octal), and not the id that
/// means "none" to the kernel.
fn id(text: &str) -> Result<u32, SelectorFault> {
    let plain = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let id =
        text.parse().ok().filter(|id| plain && digits && *id != u32::MAX).ok_or(SelectorFault::NotAnId)?;
    if DYNAMIC_IDS.contains(&id) { Err(SelectorFault::DynamicId) } else { Ok(id) }
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Term {
        Term::User(Name::User(name.into()))
    }

    fn group(name: &str) -> Term {
        Term::Group(Name::Group(name.into()))
    }

    fn unit(text: &str) -> Term {
        Term::Unit(UnitPattern::parse(text).unwrap())
    }

    #[test]
    fn a_selector_is_its_terms() {
        let cases: Vec<(&str, Vec<Term>)> = vec![
            ("user:billing", vec![user("billing")]),
            ("  user:billing\t", vec![user("billing")]),
            ("uid:0", vec![Term::Uid(0)]),
            ("uid:61183", vec![Term::Uid(61_183)]),
            ("uid:65520", vec![Term::Uid(65_520)]),
            ("uid:4294967294", vec![Term::Uid(u32::MAX - 1)]),
            ("gid:100", vec![Term::Gid(100)]),
            ("group:credit & unit:loans.service", vec![group("credit"), unit("loans.service")]),
            ("group:credit&unit:loans@.service", vec![group("credit"), unit("loans@.service")]),
            ("group:a & group:b & uid:7", vec![group("a"), group("b"), Term::Uid(7)]),
            ("group:domain users", vec![group("domain users")]),
            ("user:CORP\\anna", vec![user("CORP\\anna")]),
            ("user:anna@corp.example", vec![user("anna@corp.example")]),
            ("user:host$", vec![user("host$")]),
            ("user:zoë", vec![user("zoë")]),
        ];
        for (text, terms) in cases {
            let selector = Selector::parse(text).unwrap_or_else(|fault| panic!("{text:?}: {fault}"));
            assert_eq!(selector.terms(), terms, "{text:?}");
            assert_eq!(selector.as_written().as_ref(), text.trim(), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_its_own_fault() {
        use SelectorFault as F;
        let long = format!("user:{}", "a".repeat(256));
        let cases: Vec<(&str, F)> = vec![
            ("", F::Empty),
            (" \t", F::Empty),
            ("&", F::EmptyTerm),
            ("user:a &", F::EmptyTerm),
            ("& user:a", F::EmptyTerm),
            ("user:a && user:b", F::EmptyTerm),
            ("!user:a", F::Negation),
            ("not user:a", F::Negation),
            ("user:!a", F::Negation),
            ("user:a & !unit:x.service", F::Negation),
            ("*", F::UnknownKind),
            ("user:*", F::Wildcard),
            ("user:a*", F::Wildcard),
            ("unit:*.service", F::Wildcard),
            ("unit:a@*.service", F::Wildcard),
            ("uid:?", F::Wildcard),
            ("billing", F::UnknownKind),
            ("User:billing", F::UnknownKind),
            ("pid:1", F::UnknownKind),
            ("user :a", F::UnknownKind),
            (":a", F::UnknownKind),
            ("user:", F::NotAName),
            ("user: a", F::NotAName),
            ("user:a user:b", F::NotAName),
            ("user:a/b", F::NotAName),
            ("user:a\nb", F::NotAName),
            ("user:a\0", F::NotAName),
            ("user:a\u{a0}b", F::NotAName),
            ("user:..", F::NotAName),
            (&long, F::NotAName),
            ("user:1000", F::NumericName),
            ("group:-1", F::NumericName),
            ("uid:", F::NotAnId),
            ("uid: 1", F::NotAnId),
            ("uid:+1", F::NotAnId),
            ("uid:-1", F::NotAnId),
            ("uid:01", F::NotAnId),
            ("uid:0x10", F::NotAnId),
            ("uid:1-9", F::NotAnId),
            ("uid:4294967295", F::NotAnId),
            ("uid:4294967296", F::NotAnId),
            ("gid:billing", F::NotAnId),
            ("uid:61184", F::DynamicId),
            ("uid:1 & gid:65519", F::DynamicId),
            ("unit:loans", F::NotAUnit),
            ("unit:loans.scope", F::NotAUnit),
            ("unit: loans.service", F::NotAUnit),
            ("unit:system.slice", F::NotAUnit),
            ("unit:@.service", F::NotAUnit),
        ];
        for (text, fault) in cases {
            assert_eq!(Selector::parse(text), Err(fault), "{text:?}");
        }
    }

    #[test]
    fn a_fault_says_what_to_write_and_quotes_nothing() {
        let fault = Selector::parse("user:CANARY*").unwrap_err();
        assert!(!format!("{fault}{fault:?}{}", fault.right()).contains("CANARY"));
        assert_eq!(SelectorFault::DynamicId.right(), "use unit:NAME.service");
    }

    #[test]
    fn the_rule_of_one_uid_reads_as_it_would_be_written() {
        assert_eq!(Selector::of_uid(1000), Selector::parse("uid:1000").unwrap());
    }
}
