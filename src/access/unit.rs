//! Names of systemd units, as far as rules and peers need them.
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
