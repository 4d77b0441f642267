//! From `/` to a file, one component at a time, each opened in the directory before it and judged on its descriptor:
//! whatever is renamed meanwhile, the file at the end lies in the directories that were judged.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat},
};

use super::{Asked, Rule, fault};

/// As many as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Looks at whatever the name is, a link too, without opening it: opening a device can have effects.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// The same, for a directory that is to be stepped from.
const LOOK_INSIDE: OFlag = LOOK.union(OFlag::O_DIRECTORY);
/// No link is followed, whatever the flags say.
const BY_NO_LINK: ResolveFlag = ResolveFlag::RESOLVE_NO_SYMLINKS.union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// Where a path leads: not a link, and in directories that nobody else can change.
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) name: OsString,
    /// Without the links that were followed.
    pub(super) path: PathBuf,
    /// What was seen there. A file that is opened under this name later has to be judged anew.
    pub(super) seen: FileStat,
}

/// Walks to what `asked` names.
pub(super) fn walk(asked: &Asked<'_>) -> Result<Place, super::Fault> {
    let wanted = std::path::absolute(asked.path).map_err(|error| asked.failed(errno_of(&error)))?;
    let root = || {
        let root = nix::fcntl::open("/", LOOK_INSIDE, Mode::empty());
        root.map_err(|errno| asked.failed(errno))
    };
    let mut directory = root()?;
    let mut path = PathBuf::from("/");
    judge_directory(asked, &path, &fstat(&directory).map_err(|errno| asked.failed(errno))?)?;
    let mut ahead = names(&wanted);
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        let here = path.join(&name);
        let found = match step(&directory, &name, LOOK) {
            Ok(found) => found,
            Err(errno) => return Err(unreachable(asked, &directory, &path, &here, errno)),
        };
        let seen = fstat(&found).map_err(|errno| asked.failed(errno))?;
        match kind(&seen) {
            SFlag::S_IFLNK => {
                judge_link(asked, &here, &seen)?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(asked.failed(Errno::ELOOP));
                }
                let target = PathBuf::from(readlinkat(&found, "").map_err(|errno| asked.failed(errno))?);
                if target.is_absolute() {
                    directory = root()?;
                    path = PathBuf::from("/");
                }
                let mut names = names(&target);
                names.append(&mut ahead);
                ahead = names;
            }
            _ if ahead.is_empty() => return Ok(Place { directory, name, path: here, seen }),
            SFlag::S_IFDIR => {
                judge_directory(asked, &here, &seen)?;
                directory = found;
                path = here;
            }
            _ => {
                let why = format!("{} is not a directory", fault::quoted(&here));
                return Err(asked.fault(Rule::Present, why, "name a file that is there".to_owned()));
            }
        }
    }
    Err(asked.fault(Rule::Regular, "it names a directory".to_owned(), "name a regular file".to_owned()))
}

/// One component, without following a link. Kernels before 5.6 have no openat2(2), and filters that do not know it
/// answer EPERM; for a name without `/`, O_NOFOLLOW says the same.
pub(super) fn step(directory: impl AsFd, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    match openat2(directory.as_fd(), name, OpenHow::new().flags(flags).resolve(BY_NO_LINK)) {
        Err(Errno::ENOSYS | Errno::EPERM) => openat(directory.as_fd(), name, flags, Mode::empty()),
        result => result,
    }
}

pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// `..` is a step like any other: into a directory that is judged.
fn names(path: &Path) -> VecDeque<OsString> {
    let steps = path.components().filter(|step| matches!(step, Component::Normal(_) | Component::ParentDir));
    steps.map(|step| step.as_os_str().to_owned()).collect()
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

/// Whoever can write a directory can put another file where a checked one was. An ACL needs no look of its own: what it
/// grants to others at the most shows in the group's bits (acl(5), mask).
pub(super) fn judge_directory(asked: &Asked<'_>, path: &Path, stat: &FileStat) -> Result<(), super::Fault> {
    let directory = fault::quoted(path);
    let owner = nix::unistd::Uid::from_raw(stat.st_uid);
    if !asked.rules.trusts(owner) {
        let why = format!(
            "its directory {directory} is owned by {}, who can put another file there",
            fault::user(owner)
        );
        let new_owner = fault::user_argument(asked.rules.directory_owner());
        let remedy = format!("run: chown {new_owner} {}", fault::shell_word(path));
        return Err(asked.fault(Rule::Directories, why, remedy));
    }
    let (others, change) = match stat.st_mode & 0o022 {
        0 => return Ok(()),
        // Sticky: what lies in it can be replaced by its own owner only, and each step judges the owner.
        _ if stat.st_mode & libc::S_ISVTX != 0 => return Ok(()),
        0o020 => ("its group", "g-w"),
        0o002 => ("everybody", "o-w"),
        _ => ("its group and by everybody", "go-w"),
    };
    let mode = fault::octal(stat.st_mode);
    let why = format!(
        "its directory {directory} can be written by {others} (mode {mode}), so another file could be put there"
    );
    Err(asked.fault(Rule::Directories, why, format!("run: chmod {change} {}", fault::shell_word(path))))
}

fn judge_link(asked: &Asked<'_>, path: &Path, stat: &FileStat) -> Result<(), super::Fault> {
    let link = fault::quoted(path);
    if !asked.rules.follows_links() {
        let why = format!("{link} is a symbolic link, and links are not followed to it");
        let remedy = format!("write the path without links, as this prints it: realpath {}", asked.word());
        return Err(asked.fault(Rule::Links, why, remedy));
    }
    // In a sticky directory anybody can make one.
    let owner = nix::unistd::Uid::from_raw(stat.st_uid);
    if !asked.rules.trusts(owner) {
        let why = format!(
            "the symbolic link {link} is owned by {}, who can make it lead elsewhere",
            fault::user(owner)
        );
        let new_owner = fault::user_argument(asked.rules.directory_owner());
        let remedy = format!("run: chown -h {new_owner} {}", fault::shell_word(path));
        return Err(asked.fault(Rule::Links, why, remedy));
    }
    Ok(())
}

fn unreachable(
    asked: &Asked<'_>,
    directory: &OwnedFd,
    path: &Path,
    here: &Path,
    errno: Errno,
) -> super::Fault {
    match errno {
        Errno::ENOENT => asked.missing(here),
        Errno::EACCES => match fstat(directory) {
            Ok(stat) => {
                let owner = nix::unistd::Uid::from_raw(stat.st_uid);
                let why = format!(
                    "its directory {} is owned by {}, mode {}, and {}, who may not enter it",
                    fault::quoted(path),
                    fault::user(owner),
                    fault::octal(stat.st_mode),
                    asked.rules.agent_runs_as(),
                );
                let who = if owner == asked.rules.agent { "u" } else { "a" };
                let remedy = format!("run: chmod {who}+x {}", fault::shell_word(path));
                asked.fault(Rule::Readable { owner }, why, remedy)
            }
            Err(errno) => asked.failed(errno),
        },
        errno => asked.failed(errno),
    }
}
