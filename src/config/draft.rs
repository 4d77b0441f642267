//! What the files say so far as it can be understood, with every fault of it: what is judged before a [`Config`] is made.
//!
//! One fault hides no other: whoever finds more (a name that nobody has, a file that cannot be read) adds it here, and
//! only [`Draft::finish`] makes a config, if nothing was found at all.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use super::{
    AgentConfig, Config, Kind, LogConfig, Place, Problem, Problems, Profile, SecretSpec, SourceFile,
    file::File, report::Report,
};
use crate::{access::Selector, limits::Limits, token::ProfileName};

/// Something that is written in the config and is judged by what this host has.
#[derive(Clone, Debug)]
pub struct Written<T> {
    place: Place,
    path: String,
    /// What is written.
    pub value: T,
}

impl<T> Written<T> {
    pub(super) const fn new(place: Place, path: String, value: T) -> Self {
        Self { place, path, value }
    }

    /// A problem with it.
    pub fn problem(
        &self,
        wrong: impl Into<Cow<'static, str>>,
        right: impl Into<Cow<'static, str>>,
    ) -> Problem {
        Problem {
            place: self.place.clone(),
            path: self.path.clone(),
            wrong: wrong.into(),
            right: right.into(),
        }
    }
}

/// How much of the main file could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Main {
    /// All of it.
    Read,
    /// It is not there, or is no TOML: what the agent's own keys say is not known.
    Unread,
}

/// A config with its faults. Defaults stand for what could not be understood; a profile is left out if its client or its
/// secret could not be, or if another has its name.
#[derive(Clone, Debug)]
pub struct Draft {
    pub(super) config: Config,
    faults: Vec<Problem>,
    main: Main,
    selectors: Vec<Written<Selector>>,
    secrets: Vec<Written<SecretSpec>>,
    ca_files: Vec<Written<PathBuf>>,
}

impl Draft {
    /// Reads the texts of all files: of `main`, and of the others by name. A `main` that is not among them is a fault that
    /// the caller knows more of: [`Self::fault`].
    pub fn read(main: impl Into<Arc<str>>, sources: &[SourceFile]) -> Self {
        let mut sources: Vec<&SourceFile> = sources.iter().collect();
        sources.sort_by(|a, b| (a.kind == Kind::DropIn, &a.name).cmp(&(b.kind == Kind::DropIn, &b.name)));
        let mut config = Config {
            agent: AgentConfig::default(),
            limits: Limits::default(),
            log: LogConfig::default(),
            tokens: BTreeMap::new(),
            warnings: Vec::new(),
            main: main.into(),
            places: BTreeMap::new(),
        };
        let mut read = Main::Unread;
        let mut report = Report::default();
        let mut names = BTreeMap::new();
        for source in &sources {
            let file = File::new(source);
            if let Some(tree) = file.tree(&mut report) {
                config.take(source.kind, &file, tree.get_ref(), &mut names, &mut report);
                if source.kind == Kind::Main {
                    read = Main::Read;
                }
            }
        }
        let Report { faults, warnings, places, selectors, secrets, ca_files } = report;
        let config = Config { warnings, places, ..config };
        Self { config, faults, main: read, selectors, secrets, ca_files }
    }

    /// The same with what no text can name: the endpoint on the loopback of an issuer of one's own.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// A config if there is no fault, or else all faults: in the order of the files and their lines, each once.
    pub fn finish(self) -> Result<Config, Problems> {
        self.finish_with_warnings().0
    }

    /// As [`Self::finish`], with the warnings in the same order, which what is refused has too.
    pub fn finish_with_warnings(mut self) -> (Result<Config, Problems>, Vec<Problem>) {
        // Of a set with faults this would only be said of what could be read.
        if self.config.tokens.is_empty() && !self.is_faulty() {
            let right = "write a [tokens.NAME] table, or put a file with one into config.d";
            let main = self.config.main.clone();
            self.warn(Problem::of_file(main, "names no token, so the agent has none to serve", right));
        }
        let main = Arc::clone(&self.config.main);
        let by_place = |a: &Problem, b: &Problem| {
            let (a, b) = (&a.place, &b.place);
            (a.file != main, &a.file, a.line, a.column).cmp(&(b.file != main, &b.file, b.line, b.column))
        };
        // Stable: what is found on one line stays in the order in which it was found.
        self.faults.sort_by(by_place);
        self.config.warnings.sort_by(by_place);
        let warnings = self.config.warnings.clone();
        let finished = match Problems::of(self.faults) {
            None => Ok(self.config),
            Some(problems) => Err(problems),
        };
        (finished, warnings)
    }

    /// Whether a fault was found by now.
    pub fn is_faulty(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Adds a fault. One that was found already is not told again.
    pub fn fault(&mut self, problem: Problem) {
        if !self.faults.contains(&problem) {
            self.faults.push(problem);
        }
    }

    /// Adds a warning. One that was found already is not told again.
    pub fn warn(&mut self, problem: Problem) {
        if !self.config.warnings.contains(&problem) {
            self.config.warnings.push(problem);
        }
    }

    /// A problem with a key; see [`Config::problem`].
    pub fn problem(
        &self,
        path: &str,
        wrong: impl Into<Cow<'static, str>>,
        right: impl Into<Cow<'static, str>>,
    ) -> Problem {
        self.config.problem(path, wrong, right)
    }

    /// A problem with a profile's key; with the agent's of that name, if it holds for the profile.
    pub fn problem_of_profile(
        &self,
        profile: &ProfileName,
        key: &'static str,
        wrong: impl Into<Cow<'static, str>>,
        right: impl Into<Cow<'static, str>>,
    ) -> Problem {
        let own = format!("tokens.{profile}.{key}");
        let agents = format!("agent.{key}");
        let is_agents = !self.config.places.contains_key(&own) && self.config.places.contains_key(&agents);
        self.config.problem(if is_agents { &agents } else { &own }, wrong, right)
    }

    /// `[agent]`, where its key `key` was read as it is written; none where a fault stands for it, which is told already.
    pub fn agent_key(&self, key: &str) -> Option<&AgentConfig> {
        let path = format!("agent.{key}");
        let is_read = self.main == Main::Read
            && !self.faults.iter().any(|fault| fault.path == path || fault.path == "agent");
        is_read.then_some(&self.config.agent)
    }

    /// The profiles whose parts can be made.
    pub fn profiles(&self) -> &BTreeMap<ProfileName, Profile> {
        &self.config.tokens
    }

    /// Every selector that could be read, of profiles with faults too.
    pub(super) fn selectors(&self) -> &[Written<Selector>] {
        &self.selectors
    }

    /// Every place of a secret that could be read, of profiles with faults too.
    pub fn secrets(&self) -> &[Written<SecretSpec>] {
        &self.secrets
    }

    /// Every `ca_file` that could be read, of profiles with faults too.
    pub fn ca_files(&self) -> &[Written<PathBuf>] {
        &self.ca_files
    }

    /// Adds what a reload cannot change under an agent that runs with `running`: its socket.
    pub fn judge_restart(&mut self, running: &Config) {
        let old = &running.agent;
        let is_other = |key: &'static str, differs: fn(&AgentConfig, &AgentConfig) -> bool| {
            self.agent_key(key).filter(|new| differs(new, old)).map(|_| format!("agent.{key}"))
        };
        let changed: Vec<String> = [
            is_other("socket", |new, old| new.socket != old.socket),
            is_other("socket_mode", |new, old| new.socket_mode != old.socket_mode),
            is_other("socket_group", |new, old| new.socket_group != old.socket_group),
        ]
        .into_iter()
        .flatten()
        .collect();
        for path in changed {
            self.fault(self.problem(&path, "has changed, which a reload cannot do", "restart for that"));
        }
    }

    /// Adds what a reload cannot change under an agent that has closed itself to every other TCP port than `open` ones.
    pub fn judge_ports(&mut self, open: &BTreeSet<u16>) {
        let closed: Vec<Problem> = self
            .config
            .tokens
            .iter()
            .flat_map(|(name, profile)| profile.ports().map(move |(key, port)| (name, key, port)))
            .filter(|(_, _, port)| !open.contains(port))
            .map(|(name, key, _)| {
                let wrong = "has a port that the agent closed itself to when it started";
                self.problem_of_profile(name, key, wrong, "restart for that")
            })
            .collect();
        closed.into_iter().for_each(|problem| self.fault(problem));
    }
}
