//! What a reading of the config finds besides the config: faults, warnings, and where every key stands.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf};

use toml::de::DeValue;

use super::{
    draft::Written,
    file::Spot,
    problem::{Place, Problem},
    profile::SecretSpec,
};
use crate::access::Selector;

/// How a secret is given, told to whoever wrote it down.
pub(super) const SECRET_FORMS: &str = "write client_secret.credential = \"NAME\" (with LoadCredential=NAME:/path in the \
     unit) or client_secret.file = \"/path\"; if it was a real secret, have it replaced at the provider";

/// Collects while the tree is read.
#[derive(Default)]
pub(super) struct Report {
    pub(super) faults: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    pub(super) places: BTreeMap<String, Place>,
    /// What only the host can judge, whatever becomes of the profile that it stands in.
    pub(super) selectors: Vec<Written<Selector>>,
    pub(super) secrets: Vec<Written<SecretSpec>>,
    pub(super) ca_files: Vec<Written<PathBuf>>,
}

impl Report {
    /// Remembers where a key stands; the first of two counts.
    pub(super) fn note(&mut self, spot: &Spot<'_>) {
        self.places.entry(spot.path().to_owned()).or_insert_with(|| spot.place());
    }

    pub(super) fn fault(
        &mut self,
        spot: &Spot<'_>,
        wrong: impl Into<Cow<'static, str>>,
        right: impl Into<Cow<'static, str>>,
    ) {
        self.faults.push(problem(spot, wrong.into(), right.into()));
    }

    pub(super) fn warn(
        &mut self,
        spot: &Spot<'_>,
        wrong: impl Into<Cow<'static, str>>,
        right: impl Into<Cow<'static, str>>,
    ) {
        self.warnings.push(problem(spot, wrong.into(), right.into()));
    }

    /// A secret, or what is called like one, stands in the config.
    pub(super) fn secret(&mut self, spot: &Spot<'_>) {
        self.fault(
            spot,
            "is a secret, or is called like one, and no secret may stand in the config",
            SECRET_FORMS,
        );
    }

    /// Names the two types and nothing else.
    pub(super) fn wrong_type(&mut self, spot: &Spot<'_>, expected: &'static str, found: &DeValue<'_>) {
        let article = if matches!(found, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" };
        self.fault(spot, format!("is {article} {}", found.type_str()), format!("write {expected}"));
    }

    /// What the TOML parser found: it knows a key by its last name only.
    pub(super) fn syntax(&mut self, place: Place, key: &str, wrong: Cow<'static, str>, right: &'static str) {
        self.faults.push(Problem { place, path: key.to_owned(), wrong, right: right.into() });
    }
}

fn problem(spot: &Spot<'_>, wrong: Cow<'static, str>, right: Cow<'static, str>) -> Problem {
    Problem { place: spot.place(), path: spot.path().to_owned(), wrong, right }
}
