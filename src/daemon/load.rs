//! From files to a config that can be put in force: the one reader of `run`, `check` and every reload.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use nix::unistd::geteuid;

use super::profile::{Built, Workshop, judge_ca_file};
use crate::{
    access::Lookup,
    config::{self, Config, Draft, Kind, LogFormat, LogLevel, Problem, Problems, SourceFile, UnknownNames},
    files, log, names,
    token::ProfileName,
    units,
};

/// Reads the config. Blocking.
pub type ReadConfig = dyn Fn() -> Draft + Send + Sync;

/// A config with all done that can fail.
pub struct Prepared {
    pub(super) config: Config,
    pub(super) found: Lookup,
    pub(super) built: BTreeMap<ProfileName, Built>,
}

/// Reads `path` and `config.d` beside it. A file that cannot be read hides nothing of the others.
pub fn from_files(path: &Path) -> Draft {
    let set = files::read_config_set(path, geteuid());
    let kind = |text: &files::ConfigText| if text.path == path { Kind::Main } else { Kind::DropIn };
    let source = |text: &files::ConfigText| SourceFile {
        name: text.path.display().to_string().into(),
        text: text.text.to_string(),
        kind: kind(text),
    };
    let sources: Vec<_> = set.texts.iter().map(source).collect();
    let mut draft = Draft::read(path.display().to_string(), &sources);
    for fault in set.faults {
        let file = fault.path.display().to_string();
        draft.fault(Problem::of_file(file, format!("{}: {}", fault.what, fault.why), fault.remedy));
    }
    draft
}

/// Judges what only the host knows, and makes what can be made. `before` are the profiles that run, so that what did not
/// change is not made anew. Blocking.
pub fn judge(
    draft: &mut Draft,
    workshop: &Workshop,
    own_uid: u32,
    unknown: UnknownNames,
    before: &BTreeMap<ProfileName, Built>,
) -> (Lookup, BTreeMap<ProfileName, Built>) {
    let found = names::resolve(&draft.names());
    draft.judge_names(&found, own_uid, unknown);
    if let Some(why) = units::why_none() {
        draft.without_units(why);
    }
    if draft.is_faulty() {
        // Of profiles that will not be built, too.
        let problems = draft.ca_files().iter().filter_map(|written| {
            let problem = judge_ca_file(&written.value).err()?;
            Some(written.problem(problem.wrong, problem.right))
        });
        problems.collect::<Vec<_>>().into_iter().for_each(|problem| draft.fault(problem));
    }
    let mut built = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, profile) in draft.profiles() {
        match workshop.build(name, profile, before.get(name)) {
            Ok(one) => {
                built.insert(name.clone(), one);
            }
            Err(problem) => {
                faults.push(draft.problem_of_profile(name, problem.key, problem.wrong, problem.right));
            }
        }
    }
    faults.into_iter().for_each(|fault| draft.fault(fault));
    (found, built)
}

/// Reads the config and does everything for it that can fail; `running` is the config in force, of which some keys cannot
/// change. All faults at once: of the files, of what they say, and of what that means on this host.
pub async fn prepare(
    read: &Arc<ReadConfig>,
    workshop: &Arc<Workshop>,
    own_uid: u32,
    before: BTreeMap<ProfileName, Built>,
    running: Option<Config>,
) -> Result<Prepared, Problems> {
    let (read, workshop) = (Arc::clone(read), Arc::clone(workshop));
    let done = tokio::task::spawn_blocking(move || {
        let mut draft = read();
        if let Some(running) = &running {
            draft.judge_restart(running);
        }
        let (found, built) = judge(&mut draft, &workshop, own_uid, UnknownNames::AreWarnings, &before);
        Ok(Prepared { config: draft.finish()?, found, built })
    });
    done.await.unwrap_or_else(|_| {
        let wrong = "could not be read, by a fault of the agent's own";
        Err(Problem::of_file("the config", wrong, "see the log, which says where").into())
    })
}

/// `[log]`, in the log's own words.
pub fn log_config(config: &config::LogConfig) -> log::LogConfig {
    let level = match config.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let format = match config.format {
        None => log::Format::usual(),
        Some(LogFormat::Text) => log::Format::Text,
        Some(LogFormat::Json) => log::Format::Json,
        Some(LogFormat::Journal) => log::Format::Journal,
    };
    log::LogConfig { level, format, ..log::LogConfig::default() }
}
