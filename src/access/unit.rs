//! Names of systemd units and slices, as far as rules and peers need them.
//!
//! The grammar is systemd's `unit_name_is_valid` (src/basic/unit-name.c), for the kinds of unit that hold processes.
//! Which unit a peer is in is somebody else's question.

use std::fmt;

/// The longest unit name (systemd's UNIT_NAME_MAX counts the closing NUL).
const MAX_UNIT_BYTES: usize = 255;
/// The kinds of unit that processes can be in.
const KINDS: [&str; 5] = ["service", "scope", "socket", "mount", "swap"];

/// The full name of a unit that is no template: `loans.service`, `loans@eu.service`, `session-3.scope`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(Box<str>);

/// A text that is not the name of a unit that can hold processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the name of a unit that holds processes")]
pub struct NotAUnit;

impl UnitName {
    /// Checks `text` against systemd's grammar. A template (`loans@.service`) is no unit: it never runs itself.
    pub fn parse(text: &str) -> Result<Self, NotAUnit> {
        let stem = stem(text).ok_or(NotAUnit)?;
        if stem.ends_with('@') && stem.matches('@').count() == 1 {
            Err(NotAUnit)
        } else {
            Ok(Self(text.into()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a slice other than the root slice (systemd.slice(5)): `system.slice`, `system-loans.slice`. What stands
/// before a `-` names the slice around it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName(Box<str>);

/// Why a text is no slice that units are looked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SliceFault {
    /// Not systemd's grammar.
    #[error("is not the name of a slice")]
    NotASlice,
    /// `-.slice`.
    #[error("is the root slice, which holds the slice of the users too")]
    Root,
    /// `user.slice` and what is below it.
    #[error("is a slice of the users, where everybody can run a unit of any name")]
    Users,
}

impl SliceName {
    /// Checks `text` against systemd's grammar (`slice_name_is_valid`, src/basic/unit-name.c); the slices of the users
    /// are slices too.
    pub fn parse(text: &str) -> Result<Self, SliceFault> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.' | b'\\');
        if text == "-.slice" {
            return Err(SliceFault::Root);
        }
        let stem = text.strip_suffix(".slice").ok_or(SliceFault::NotASlice)?;
        let is_whole = text.len() <= MAX_UNIT_BYTES && stem.bytes().all(fits);
        if is_whole && stem.split('-').all(|part| !part.is_empty()) {
            Ok(Self(stem.into()))
        } else {
            Err(SliceFault::NotASlice)
        }
    }

    /// The same, for a slice that units may be looked for in.
    pub fn parse_allowed(text: &str) -> Result<Self, SliceFault> {
        let slice = Self::parse(text)?;
        if slice.is_of_users() { Err(SliceFault::Users) } else { Ok(slice) }
    }

    /// Whether it is `user.slice` or below it: a user's own manager runs units of any name in there.
    pub fn is_of_users(&self) -> bool {
        self.0.split('-').next() == Some("user")
    }

    /// Whether it is `other` or below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    /// Whether it lies directly in `parent`; without one, in the root slice.
    pub fn is_child_of(&self, parent: Option<&Self>) -> bool {
        let own = match parent {
            None => Some(&*self.0),
            Some(parent) => self.0.strip_prefix(&*parent.0).and_then(|rest| rest.strip_prefix('-')),
        };
        own.is_some_and(|own| !own.contains('-'))
    }
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.slice", self.0)
    }
}

/// The service that a process runs in, and the slice around that: a rule's `unit:` means it in some slices only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The service.
    pub unit: UnitName,
    /// The innermost slice.
    pub slice: SliceName,
}

impl Placement {
    /// The unit, if it lies in one of these slices or below.
    pub fn unit_within(&self, slices: &[SliceName]) -> Option<&UnitName> {
        slices.iter().any(|slice| self.slice.is_within(slice)).then_some(&self.unit)
    }
}

/// What follows `unit:` in a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitPattern {
    /// `NAME.service`, exactly this one; also one instance of a template.
    One(UnitName),
    /// `NAME@.service`: every instance of that template. Holds `NAME@`.
    InstancesOf(Box<str>),
}

impl UnitPattern {
    /// Checks `text`: a service, or a service template. No other kind of unit and no wildcard.
    pub fn parse(text: &str) -> Result<Self, NotAUnit> {
        if !text.ends_with(".service") {
            return Err(NotAUnit);
        }
        match stem(text).ok_or(NotAUnit)?.split_once('@') {
            Some((name, "")) => Ok(Self::InstancesOf(format!("{name}@").into())),
            _ => Ok(Self::One(UnitName(text.into()))),
        }
    }

    /// Whether `unit` is meant.
    pub fn matches(&self, unit: &UnitName) -> bool {
        match self {
            Self::One(name) => name == unit,
            // An instance's name is not empty, and is split off at the first '@'.
            Self::InstancesOf(template) => unit
                .as_str()
                .strip_prefix(template.as_ref())
                .and_then(|rest| rest.strip_suffix(".service"))
                .is_some_and(|instance| !instance.is_empty()),
        }
    }
}

/// The part before the kind, if `text` is a valid name of a unit or of a template.
fn stem(text: &str) -> Option<&str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.' | b'\\' | b'@');
    let (stem, kind) = text.rsplit_once('.')?;
    let whole = text.len() <= MAX_UNIT_BYTES && text.bytes().all(fits);
    (whole && KINDS.contains(&kind) && !stem.is_empty() && !stem.starts_with('@')).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_a_service_or_a_scope_that_can_run() {
        for good in [
            "a.service",
            "a-b_c:d.e.service",
            "a@b.service",
            "a@b@c.service",
            "session-3.scope",
            "x\\x2dy.service",
        ] {
            assert!(UnitName::parse(good).is_ok(), "{good}");
        }
        let long = format!("{}.service", "a".repeat(248));
        for bad in [
            "",
            "a",
            ".service",
            "@.service",
            "@a.service",
            "a@.service",
            "a/b.service",
            "a b.service",
            "*.service",
            "system.slice",
            "é.service",
            &long,
        ] {
            assert_eq!(UnitName::parse(bad), Err(NotAUnit), "{bad}");
        }
        assert!(UnitName::parse(long.strip_prefix('a').unwrap()).is_ok());
    }

    #[test]
    fn a_slice_is_within_those_that_its_name_begins_with() {
        let slice = |text: &str| SliceName::parse(text).unwrap();
        let cases: &[(&str, &str, bool)] = &[
            ("system.slice", "system.slice", true),
            ("system-loans.slice", "system.slice", true),
            ("system-loans-eu.slice", "system.slice", true),
            ("system-loans-eu.slice", "system-loans.slice", true),
            ("systemx.slice", "system.slice", false),
            ("system.slice", "system-loans.slice", false),
            ("app-system.slice", "system.slice", false),
        ];
        for (inner, outer, expected) in cases {
            assert_eq!(slice(inner).is_within(&slice(outer)), *expected, "{inner} in {outer}");
        }
        assert!(
            slice("a.slice").is_child_of(None) && slice("a-b.slice").is_child_of(Some(&slice("a.slice")))
        );
        for (child, parent) in
            [("a-b.slice", None), ("a-b-c.slice", Some("a.slice")), ("ab.slice", Some("a.slice"))]
        {
            assert!(!slice(child).is_child_of(parent.map(slice).as_ref()), "{child}");
        }
        assert_eq!(slice("system-x\\x2dy.slice").to_string(), "system-x\\x2dy.slice");
    }

    #[test]
    fn units_are_never_looked_for_in_the_slices_of_the_users() {
        let cases = [
            ("user.slice", SliceFault::Users),
            ("user-1000.slice", SliceFault::Users),
            ("-.slice", SliceFault::Root),
            ("system", SliceFault::NotASlice),
            ("system.service", SliceFault::NotASlice),
            (".slice", SliceFault::NotASlice),
            ("-a.slice", SliceFault::NotASlice),
            ("a-.slice", SliceFault::NotASlice),
            ("a--b.slice", SliceFault::NotASlice),
            ("a@b.slice", SliceFault::NotASlice),
            ("a/b.slice", SliceFault::NotASlice),
        ];
        for (text, fault) in cases {
            assert_eq!(SliceName::parse_allowed(text), Err(fault), "{text}");
        }
        assert!(SliceName::parse_allowed("users.slice").is_ok());
    }

    #[test]
    fn a_pattern_means_one_service_or_every_instance_of_a_template() {
        let cases: &[(&str, &str, bool)] = &[
            ("loans.service", "loans.service", true),
            ("loans.service", "loans.scope", false),
            ("loans.service", "xloans.service", false),
            ("loans.service", "loans@eu.service", false),
            ("loans@.service", "loans@eu.service", true),
            ("loans@.service", "loans@a@b.service", true),
            ("loans@.service", "loans.service", false),
            ("loans@.service", "loans@eu.scope", false),
            ("loans@.service", "loans2@eu.service", false),
            ("loans@eu.service", "loans@eu.service", true),
            ("loans@eu.service", "loans@us.service", false),
        ];
        for (pattern, unit, expected) in cases {
            let matched = UnitPattern::parse(pattern).unwrap().matches(&UnitName::parse(unit).unwrap());
            assert_eq!(matched, *expected, "{pattern} on {unit}");
        }
        for bad in ["loans", "loans.scope", "loans*.service", "@.service", "loans@*.service", "", ".service"]
        {
            assert_eq!(UnitPattern::parse(bad), Err(NotAUnit), "{bad}");
        }
    }
}
