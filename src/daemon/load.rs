//! From files to a config that can be put in force: the one reader of `run`, `check` and every reload.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use nix::unistd::geteuid;

use super::profile::{Built, Workshop};
use crate::{
    access::Lookup,
    config::{self, Config, Kind, LogFormat, LogLevel, SourceFile},
    files, log, names,
    token::ProfileName,
};

/// Reads the config. Blocking.
pub type ReadConfig = dyn Fn() -> Result<Loaded, Vec<String>> + Send + Sync;

/// A config without faults.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// What works but is probably not meant, one line each.
    pub warnings: Vec<String>,
}

/// A config with all done that can fail.
pub struct Prepared {
    pub(super) loaded: Loaded,
    pub(super) found: Lookup,
    pub(super) built: BTreeMap<ProfileName, Built>,
}

/// Reads `path` and `config.d` beside it. All faults at once: of the files, then of what they say.
pub fn from_files(path: &Path) -> Result<Loaded, Vec<String>> {
    let set = files::read_config_set(path, geteuid());
    let mut faults: Vec<_> =
        set.faults.iter().map(|fault| format!("{}: {}; {}", fault.what, fault.why, fault.remedy)).collect();
    let kind = |text: &files::ConfigText| if text.path == path { Kind::Main } else { Kind::DropIn };
    let source = |text: &files::ConfigText| SourceFile {
        name: text.path.display().to_string().into(),
        text: text.text.to_string(),
        kind: kind(text),
    };
    let sources: Vec<_> = set.texts.iter().map(source).collect();
    // Without its main file, what the others say is not judged: half of it would be missing.
    if !sources.iter().any(|source| source.kind == Kind::Main) {
        return Err(faults);
    }
    match config::read(&sources) {
        Ok(config) if faults.is_empty() => {
            let warnings = config.warnings.iter().map(ToString::to_string).collect();
            Ok(Loaded { config, warnings })
        }
        Ok(_) => Err(faults),
        Err(problems) => {
            faults.extend(problems.as_slice().iter().map(ToString::to_string));
            Err(faults)
        }
    }
}

/// Reads the config and does everything for it that can fail. `before` are the profiles that run, so that what did not
/// change is not made anew; `running` is the config in force, of which some keys cannot change.
pub async fn prepare(
    read: &Arc<ReadConfig>,
    workshop: &Arc<Workshop>,
    own_uid: u32,
    before: BTreeMap<ProfileName, Built>,
    running: Option<Config>,
) -> Result<Prepared, Vec<String>> {
    let (read, workshop) = (Arc::clone(read), Arc::clone(workshop));
    let done = tokio::task::spawn_blocking(move || {
        let loaded = read()?;
        let config = &loaded.config;
        let fixed = running.map(|running| config.restart_problems(&running)).unwrap_or_default();
        let mut faults: Vec<_> = fixed.iter().map(ToString::to_string).collect();
        let mut warnings = loaded.warnings.clone();
        let found = names::resolve(&config.names());
        let findings = config.check_names(&found, own_uid);
        faults.extend(findings.faults.iter().map(ToString::to_string));
        warnings.extend(findings.unknown.iter().chain(&findings.warnings).map(ToString::to_string));
        let mut built = BTreeMap::new();
        for (name, profile) in &config.tokens {
            match workshop.build(name, profile, before.get(name)) {
                Ok(one) => {
                    built.insert(name.clone(), one);
                }
                Err(problem) => {
                    let path = format!("tokens.{name}.{}", problem.key);
                    faults.push(config.problem(&path, problem.wrong, problem.right).to_string());
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let loaded = Loaded { config: loaded.config, warnings };
        Ok(Prepared { loaded, found, built })
    });
    done.await.unwrap_or_else(|_| {
        Err(vec![
            "the config could not be read, by a fault of the agent's own; the log says where".to_owned(),
        ])
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
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    log::LogConfig { level, format, ..log::LogConfig::default() }
}
