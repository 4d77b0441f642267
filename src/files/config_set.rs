//! The config's files: the main one, and `config.d/*.toml` beside it.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use nix::{dir::Dir, errno::Errno, fcntl::OFlag, sys::stat::SFlag, unistd::Uid};
use zeroize::Zeroizing;

use super::{Asked, Fault, MAX_CONFIG_BYTES, Rule, Rules, fault, read, walk};

/// One file of the config.
pub struct ConfigText {
    /// The file, as people call it: not resolved.
    pub path: PathBuf,
    /// All of it. Wiped when it is dropped: somebody will paste a secret there.
    pub text: Zeroizing<String>,
}

/// All that could be read, and why the rest could not.
pub struct ConfigSet {
    /// The main file first, then those of `config.d` in the order of their names' bytes.
    pub texts: Vec<ConfigText>,
    /// In the same order. Empty if the set is whole.
    pub faults: Vec<Fault>,
}

/// Reads `main`, and every `config.d/*.toml` of the directory that `main` names. A `config.d` that is not there is no
/// fault; names that start with a dot (editors' locks) or end otherwise (editors' and dpkg's backups) are not ours.
pub fn read_config_set(main: &Path, agent: Uid) -> ConfigSet {
    let mut set = ConfigSet { texts: Vec::new(), faults: Vec::new() };
    set.add(main, agent);
    let directory = main.with_file_name("config.d");
    match fragments(&Asked { rules: Rules::config_directory(agent), path: &directory }) {
        Ok(names) => names.iter().for_each(|name| set.add(&directory.join(name), agent)),
        Err(fault) => set.faults.push(fault),
    }
    set
}

impl ConfigSet {
    fn add(&mut self, path: &Path, agent: Uid) {
        match read_text(path, agent) {
            Ok(text) => self.texts.push(ConfigText { path: path.to_owned(), text }),
            Err(fault) => self.faults.push(fault),
        }
    }
}

fn read_text(path: &Path, agent: Uid) -> Result<Zeroizing<String>, Fault> {
    let rules = Rules::config(agent);
    let mut contents = read(path, rules, MAX_CONFIG_BYTES)?;
    match String::from_utf8(std::mem::take(&mut *contents.bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            let offset = error.utf8_error().valid_up_to();
            let bytes = Zeroizing::new(error.into_bytes());
            let line = 1 + bytes.iter().take(offset).filter(|byte| **byte == b'\n').count();
            let why = format!("line {line} is not UTF-8 text");
            Err(Asked { rules, path }.fault(Rule::Text, why, "save it as UTF-8".to_owned()))
        }
    }
}

/// Reads a directory and nothing else. (O_RDONLY is no bit.)
const LIST: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The names in `config.d`, sorted.
fn fragments(asked: &Asked<'_>) -> Result<Vec<OsString>, Fault> {
    let place = match walk::walk(asked) {
        Ok(place) => place,
        Err(fault) if fault.rule == Rule::Present => return Ok(Vec::new()),
        Err(fault) => return Err(fault),
    };
    if walk::kind(&place.seen) != SFlag::S_IFDIR {
        let why = "it is not a directory".to_owned();
        return Err(asked.fault(Rule::Present, why, "make it a directory, or take it away".to_owned()));
    }
    walk::judge_directory(asked, &place.path, &place.seen)?;
    let listing = walk::step(&place.directory, &place.name, LIST).and_then(Dir::from_fd);
    let mut listing = listing.map_err(|errno| match errno {
        Errno::EACCES => {
            let why = format!("{}, who may not list it", asked.rules.agent_runs_as());
            let remedy = format!("run: chmod a+rx {}", fault::shell_word(&place.path));
            asked.fault(Rule::Readable { owner: Uid::from_raw(place.seen.st_uid) }, why, remedy)
        }
        errno => asked.failed(errno),
    })?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry.map_err(|errno| asked.failed(errno))?;
        let name = entry.file_name().to_bytes();
        if !name.starts_with(b".") && name.ends_with(b".toml") {
            names.push(std::ffi::OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
