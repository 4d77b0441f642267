//! The config: from the texts of its files to checked values, or to every fault that they have.
//!
//! Pure: it is given texts, and neither opens a file nor looks up a name. The values are made by the domains' own
//! constructors ([`crate::access`], [`crate::oauth2`], [`crate::limits`]), which know nothing of a config. Whoever runs
//! `check` and whoever starts the agent read the same [`Draft`], and only one without a fault becomes a [`Config`]. What
//! holds for every message:
//! - no value of the config is in it, and no line: somebody will paste a secret there;
//! - all faults are found in one reading; only broken TOML syntax hides what else a file has;
//! - what is not understood is refused, never ignored, and so is what a later version will understand.

mod agent;
mod credential;
mod draft;
pub mod duration;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod key;
mod lookup;
mod oauth;
mod path;
mod problem;
mod profile;
mod provider;
mod report;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use agent::{
    AgentConfig, DEFAULT_SOCKET, DEFAULT_SOCKET_GROUP, DEFAULT_SOCKET_MODE, DEFAULT_UNIT_SLICE, LogConfig,
    LogFormat, LogLevel, Ready,
};
pub use credential::{CredentialName, NotACredentialName};
pub use draft::{Draft, Written};
pub use file::{Kind, SourceFile};
pub use lookup::UnknownNames;
pub use problem::{Place, Problem, Problems};
pub use profile::{DEFAULT_ASSUMED_LIFETIME, Profile, SecretSpec};
use toml::de::DeTable;

use self::{
    file::{File, Spot, Table},
    report::Report,
};
use crate::{limits::Limits, token::ProfileName};

const ROOT_KEYS: &[&str] = &["agent", "limits", "log", "tokens"];

/// A config without a fault: [`Draft::finish`] makes it, and nothing else.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[agent]`.
    pub agent: AgentConfig,
    /// `[limits]`.
    pub limits: Limits,
    /// `[log]`.
    pub log: LogConfig,
    /// `[tokens.*]`. None at all is a warning, since a package may bring the first one later.
    pub tokens: BTreeMap<ProfileName, Profile>,
    /// What works, but perhaps not as it was meant.
    pub warnings: Vec<Problem>,
    main: Arc<str>,
    places: BTreeMap<String, Place>,
}

/// Reads the config from all of its files: the main one, then the others by name. Who wants to find more before it is
/// refused asks for a [`Draft`].
pub fn read(sources: &[SourceFile]) -> Result<Config, Problems> {
    let main = sources.iter().find(|source| source.kind == Kind::Main);
    let name = main.map_or_else(|| "config".into(), |main| Arc::clone(&main.name));
    let mut draft = Draft::read(Arc::clone(&name), sources);
    if main.is_none() {
        draft.fault(Problem::of_file(name, "is missing", "write the main file"));
    }
    draft.finish()
}

impl Config {
    fn take<'a>(
        &mut self,
        kind: Kind,
        file: &'a File<'a>,
        tree: &'a DeTable<'a>,
        names: &mut BTreeMap<String, Place>,
        report: &mut Report,
    ) {
        let root = Table::open(Spot::root(file), tree, ROOT_KEYS, report);
        match kind {
            Kind::Main => {
                if let Some(table) = root.table("agent", agent::AGENT_KEYS, report) {
                    self.agent = agent::agent(&table, report);
                }
                if let Some(table) = root.table("limits", agent::LIMITS_KEYS, report) {
                    self.limits = agent::limits(&table, report);
                }
                if let Some(table) = root.table("log", agent::LOG_KEYS, report) {
                    self.log = agent::log(&table, report);
                }
            }
            Kind::DropIn => {
                for key in ["agent", "limits", "log"].into_iter().filter(|key| root.has(key)) {
                    let wrong = "does not belong in config.d, where only [tokens.NAME] may stand";
                    report.fault(&root.spot_of(key), wrong, "move it to the main file");
                }
            }
        }
        let Some(tokens) = root.free("tokens", report) else { return };
        for (name, at, value) in tokens.entries() {
            let parsed = ProfileName::parse(name);
            let spot =
                tokens.entry(at, parsed.as_ref().map_or_else(|_| key::printable(name), ProfileName::as_str));
            if let Err(fault) = &parsed {
                report.fault(&spot, fault.to_string(), "as in [tokens.bloom]");
            }
            if parsed.is_ok() {
                if let Some(other) = names.get(name) {
                    let wrong = format!("is also in {other}");
                    report.fault(&spot, wrong, "keep one of the two, or give one another name");
                } else {
                    names.insert(name.to_owned(), spot.place());
                }
            }
            let Some(table) = Table::of(spot, value.get_ref(), profile::PROFILE_KEYS, report) else {
                continue;
            };
            let profile = profile::profile(&table, &self.agent, report);
            if let (Ok(name), Some(profile)) = (parsed, profile) {
                self.tokens.entry(name).or_insert(profile);
            }
        }
    }

    /// Where a key stands, as `tokens.bloom.client_secret`; the nearest table around it if it is not written, and the
    /// main file if there is none.
    pub fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path).filter(|_| !path.is_empty()) {
                return place.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = path.get(..end).unwrap_or_default(),
                None => return Place { file: self.main.clone(), line: None, column: None },
            }
        }
    }

    /// The TCP ports by which the token endpoints and the proxies are reached.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.tokens.values().flat_map(Profile::ports).map(|(_, port)| port).collect()
    }

    /// A problem with a key of this config that only somebody else could find: a file that cannot be read.
    pub fn problem(
        &self,
        path: &str,
        wrong: impl Into<Cow<'static, str>>,
        right: impl Into<Cow<'static, str>>,
    ) -> Problem {
        Problem { place: self.place(path), path: path.to_owned(), wrong: wrong.into(), right: right.into() }
    }
}

#[cfg(test)]
mod tests;
