//! Opening a file safely: the only file-system calls of config and secrets.
//!
//! - Everything is judged on descriptors: the file's own, and those of the directories that lead to it. Nothing is
//!   checked by its name and then opened by it.
//! - Opening never blocks (a FIFO), never takes a terminal, never touches a device, and a file is read only once it is
//!   known to be at rest.
//! - A fault names the rule that is broken and the command that mends it; it never holds what a file holds.
//!
//! Nothing here writes.

#[cfg(test)]
mod tests;

mod config_set;
pub(crate) mod fault;
mod stable;
mod walk;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::stat::{FileStat, SFlag, fstat},
    unistd::Uid,
};
use zeroize::Zeroizing;

use self::walk::{Place, kind, step, walk};
pub use self::{
    config_set::{ConfigSet, ConfigText, read_config_set},
    fault::{Fault, Rule, shell_word},
};

/// The longest config file, and the longest CA file (a system's whole bundle is 220 KiB).
pub const MAX_CONFIG_BYTES: usize = 1024 * 1024;
/// How often a file that is being replaced or written is tried, without waiting: a rename is over by the next time, and
/// a writer that takes longer is waited for by whoever watches the file.
const ATTEMPTS: usize = 5;
const READ: OFlag = OFlag::O_CLOEXEC.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// What is asked of a file. In every set: a regular file, in directories that belong to root or the agent's user and
/// that nobody else can write (a sticky one passes, since what lies in it has to belong to them too).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    set: Set,
    agent: Uid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Secret,
    Credential,
    Config,
    ConfigDirectory,
    CaFile,
}

impl Rules {
    /// A client secret: owned by `agent`, the user that the agent runs as; nothing for group and others; one name; no
    /// ACL; no symbolic link on the way.
    pub const fn secret(agent: Uid) -> Self {
        Self { set: Set::Secret, agent }
    }

    /// A credential in systemd's own directory, as any version of systemd makes it: owned by the service's user with
    /// mode 0400 (252), or by root with mode 0440 and an ACL for the service's user (257). So: owned by either, written
    /// by nobody, nothing for others, one name, no symbolic link on the way.
    pub const fn credential(agent: Uid) -> Self {
        Self { set: Set::Credential, agent }
    }

    /// A config file: owned by root or by `agent`, written by nobody else. Symbolic links are followed, step by step by
    /// us: in /etc they are usual (a whole directory, or config management's links into its store), and where nobody
    /// else can write the directories, nobody else can turn them.
    pub const fn config(agent: Uid) -> Self {
        Self { set: Set::Config, agent }
    }

    /// A `ca_file`: as a config file. Who can change it can read the client secret.
    pub const fn ca_file(agent: Uid) -> Self {
        Self { set: Set::CaFile, agent }
    }

    const fn config_directory(agent: Uid) -> Self {
        Self { set: Set::ConfigDirectory, agent }
    }

    const fn noun(self) -> &'static str {
        match self.set {
            Set::Secret => "secret file",
            Set::Credential => "credential",
            Set::Config => "config file",
            Set::ConfigDirectory => "config directory",
            Set::CaFile => "CA file",
        }
    }

    const fn follows_links(self) -> bool {
        matches!(self.set, Set::Config | Set::ConfigDirectory | Set::CaFile)
    }

    fn trusts(self, owner: Uid) -> bool {
        owner.is_root() || owner == self.agent
    }

    /// Whom a directory is best given to: the one who may replace the file.
    fn directory_owner(self) -> Uid {
        if self.set == Set::Secret { self.agent } else { Uid::from_raw(0) }
    }

    fn agent_runs_as(self) -> String {
        format!("the agent runs as {}", fault::user(self.agent))
    }
}

/// A file that was asked for, and the rules for it: what a fault is about.
struct Asked<'a> {
    rules: Rules,
    path: &'a Path,
}

impl Asked<'_> {
    fn fault(&self, rule: Rule, why: String, remedy: String) -> Fault {
        let what = format!("cannot use the {} {}", self.rules.noun(), fault::quoted(self.path));
        Fault { path: self.path.to_owned(), rule, what, why, remedy }
    }

    fn failed(&self, errno: Errno) -> Fault {
        let why = format!("the system says: {}", errno.desc());
        let remedy = match errno {
            Errno::EMFILE => "raise LimitNOFILE= of the unit".to_owned(),
            Errno::ELOOP => format!("untie the circle of symbolic links on the way to {}", self.word()),
            _ => format!(
                "look at the path and at the kernel's log; this shows each step: namei -l {}",
                self.word()
            ),
        };
        self.fault(Rule::FileSystem(errno), why, remedy)
    }

    fn missing(&self, here: &Path) -> Fault {
        let why = format!("{} does not exist", fault::quoted(here));
        let remedy = match self.rules.set {
            Set::Secret => format!(
                "make it, and write the client secret into it: install -m 600 -o {} /dev/null {}",
                fault::user_argument(self.rules.agent),
                self.word()
            ),
            Set::Config => "write it, or name another with --config".to_owned(),
            _ => "name a file that is there".to_owned(),
        };
        self.fault(Rule::Present, why, remedy)
    }

    fn word(&self) -> String {
        fault::shell_word(self.path)
    }
}

/// A file that keeps the rules, open for reading.
#[derive(Debug)]
pub struct Opened {
    file: OwnedFd,
    rules: Rules,
    path: PathBuf,
}

/// What a file holds, and its status while that was so.
pub struct Contents {
    /// All of it; wiped when it is dropped.
    pub bytes: Zeroizing<Vec<u8>>,
    /// fstat(2) of the descriptor it was read from.
    pub stat: FileStat,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// Opens `path` if it keeps the `rules`.
pub fn open(path: &Path, rules: Rules) -> Result<Opened, Fault> {
    let asked = Asked { rules, path };
    for _ in 0..ATTEMPTS {
        let place = walk(&asked)?;
        judge_kind(&asked, &place.seen)?;
        let file = match step(&place.directory, &place.name, READ) {
            Ok(file) => file,
            Err(Errno::EACCES) => return Err(unreadable(&asked, &place)),
            // Gone, or a link or a socket by now: it is being replaced.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => continue,
            Err(errno) => return Err(asked.failed(errno)),
        };
        let stat = fstat(&file).map_err(|errno| asked.failed(errno))?;
        // The name went to another file between open and fstat.
        if stat.st_nlink == 0 {
            continue;
        }
        judge_kind(&asked, &stat)?;
        judge(&asked, &place.path, &stat, has_acl(&file).map_err(|errno| asked.failed(errno))?)?;
        return Ok(Opened { file, rules, path: path.to_owned() });
    }
    Err(unsettled(&asked))
}

/// Opens and reads `path` if it keeps the `rules` and has at most `max_bytes`.
pub fn read(path: &Path, rules: Rules, max_bytes: usize) -> Result<Contents, Fault> {
    open(path, rules)?.read(max_bytes)
}

impl Opened {
    /// Reads all of it, at most `max_bytes`.
    pub fn read(&self, max_bytes: usize) -> Result<Contents, Fault> {
        let asked = Asked { rules: self.rules, path: &self.path };
        match stable::read(&self.file, max_bytes, ATTEMPTS, || ()) {
            Ok(contents) => Ok(contents),
            Err(stable::Unread::TooLong) => {
                let why = format!("it is longer than {} KiB", max_bytes / 1024);
                let remedy = format!("see whether it is the {} that you mean", self.rules.noun());
                Err(asked.fault(Rule::Size, why, remedy))
            }
            Err(stable::Unread::Restless) => Err(unsettled(&asked)),
            Err(stable::Unread::Failed(errno)) => Err(asked.failed(errno)),
        }
    }

    /// The descriptor, to ask which file system it lies on.
    pub(crate) const fn descriptor(&self) -> &OwnedFd {
        &self.file
    }
}

fn unsettled(asked: &Asked<'_>) -> Fault {
    let why = "it was being written each time it was read".to_owned();
    let new = asked.path.with_added_extension("new");
    let remedy = format!(
        "write the new content beside it, then rename it into place: mv {} {}",
        fault::shell_word(&new),
        asked.word()
    );
    asked.fault(Rule::AtRest, why, remedy)
}

fn judge_kind(asked: &Asked<'_>, stat: &FileStat) -> Result<(), Fault> {
    let found = match kind(stat) {
        SFlag::S_IFREG => return Ok(()),
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFLNK => "a symbolic link",
        _ => "a device",
    };
    let why = format!("it is {found}, not a regular file");
    Err(asked.fault(Rule::Regular, why, "name a regular file".to_owned()))
}

/// An ACL beyond the mode (acl(5)); a file system without ACLs has none.
fn has_acl(file: &OwnedFd) -> nix::Result<bool> {
    match fgetxattr_size(file, c"system.posix_acl_access") {
        Ok(_) => Ok(true),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[expect(unsafe_code, reason = "nix has no fgetxattr")]
fn fgetxattr_size(file: &OwnedFd, name: &std::ffi::CStr) -> nix::Result<isize> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: `name` is a C string; with size 0 nothing is written to the null buffer (fgetxattr(2)).
    Errno::result(unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), std::ptr::null_mut(), 0) })
}

/// Owner, names, ACL and mode. The first rule that is broken is the one that is named; the remedy mends all of them.
fn judge(asked: &Asked<'_>, real: &Path, stat: &FileStat, has_acl: bool) -> Result<(), Fault> {
    let rules = asked.rules;
    let owner = Uid::from_raw(stat.st_uid);
    let (right_owner, forbidden) = match rules.set {
        Set::Secret => (owner == rules.agent, 0o077),
        Set::Credential => (rules.trusts(owner), 0o337),
        _ => (rules.trusts(owner), 0o022),
    };
    let single = matches!(rules.set, Set::Secret | Set::Credential);
    let excess = stat.st_mode & forbidden;
    let word = fault::shell_word(real);
    if single && stat.st_nlink != 1 {
        let why = format!(
            "it has {} names, and the others may lie where somebody else can reach them",
            stat.st_nlink
        );
        let copy = fault::shell_word(&real.with_added_extension("new"));
        let remedy = format!("give it an inode of its own: cp -p {word} {copy} && mv {copy} {word}");
        return Err(asked.fault(Rule::OneName, why, remedy));
    }
    let mut commands = Vec::new();
    let mut broken = Vec::new();
    if !right_owner {
        let (wanted, new_owner) = match rules.set {
            Set::Secret => (rules.agent_runs_as(), rules.agent),
            _ if rules.agent.is_root() => ("the agent trusts root only".to_owned(), rules.agent),
            _ => (format!("the agent trusts root and {} only", fault::user(rules.agent)), Uid::from_raw(0)),
        };
        broken.push((Rule::Owner, format!("it is owned by {}, and {wanted}", fault::user(owner))));
        commands.push(format!("chown {} {word}", fault::user_argument(new_owner)));
    }
    if rules.set == Set::Secret && has_acl {
        broken.push((Rule::NoAcl, "it has an access control list, which can let others read it".to_owned()));
        commands.push(format!("setfacl -b {word}"));
    }
    // Without the ACL, the group's own entry counts again, whatever the mode says now.
    if has_acl && excess == 0 && rules.set == Set::Secret {
        commands.push(format!("chmod 600 {word}"));
    }
    if excess != 0 {
        let mode = fault::octal(stat.st_mode);
        let (why, new_mode) = match rules.set {
            Set::Secret => (
                format!("its mode {mode} lets others at it; it may have nothing for group and others"),
                "600",
            ),
            Set::Credential => (format!("its mode is {mode}, and systemd's own are 0400 and 0440"), "0400"),
            _ => (format!("its mode {mode} lets others write it"), "go-w"),
        };
        broken.push((Rule::Mode, why));
        commands.push(format!("chmod {new_mode} {word}"));
    }
    match broken.into_iter().next() {
        Some((rule, why)) => Err(asked.fault(rule, why, format!("run: {}", commands.join(" && ")))),
        None => Ok(()),
    }
}

/// EACCES on opening: from the owner and the mode, where they explain it.
fn unreadable(asked: &Asked<'_>, place: &Place) -> Fault {
    let owner = Uid::from_raw(place.seen.st_uid);
    let roots = owner.is_root() && !asked.rules.agent.is_root();
    if !roots && let Err(fault) = judge(asked, &place.path, &place.seen, false) {
        return fault;
    }
    let word = fault::shell_word(&place.path);
    let why = format!(
        "it is owned by {}, mode {}, and {}, who may not read it",
        fault::user(owner),
        fault::octal(place.seen.st_mode),
        asked.rules.agent_runs_as()
    );
    let remedy = match asked.rules.set {
        Set::Secret if roots => {
            format!("run: chown {} {word} && chmod 600 {word}", fault::user_argument(asked.rules.agent))
        }
        _ if place.seen.st_mode & 0o400 != 0 && owner == asked.rules.agent => {
            "look for a denial by a security module (SELinux, AppArmor) in the kernel's log".to_owned()
        }
        Set::Secret => format!("run: chmod 600 {word}"),
        // Neither holds a secret, but who is whose client is nobody else's business.
        _ if roots => {
            format!("run: chgrp {} {word} && chmod 640 {word}", fault::group_argument(asked.rules.agent))
        }
        _ => format!("run: chmod 644 {word}"),
    };
    asked.fault(Rule::Readable { owner }, why, remedy)
}
