//! Binding the socket where systemd did not: a path that nobody else can take, and no moment in which the wrong ones
//! can connect.
//!
//! - The directory is opened once and judged by its descriptor; everything after that happens through the descriptor,
//!   but for bind(2), which takes a path only. What it made is looked for through the descriptor before it is used.
//! - Mode and group are set before listen(2): until then a connect is refused by the kernel.
//! - What was not made here is not removed: only a dead socket of the same user, and at the end only our own.
//! - No abstract sockets: a path is absolute, so `@name` is refused.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat},
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, connect, listen, socket,
        },
        stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat},
    },
    unistd::{Gid, UnlinkatFlags, fchownat, geteuid, unlinkat},
};

/// `sun_path` less its NUL (unix(7)).
const LONGEST_PATH: usize = 107;

/// Why the socket cannot be bound: what, why, and what to do, each on a line of its own.
#[derive(Debug, thiserror::Error)]
pub enum BindFault {
    /// The path is not an absolute path of a file.
    #[error(
        "cannot bind the socket {path:?}\nit is not an absolute path of a file, and abstract sockets have no permissions\n\
         write a path such as /run/bloom-agent/agent.sock"
    )]
    NotAbsolute {
        /// As it was given.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error(
        "cannot bind the socket {path:?}\nits path has {length} bytes, and a socket's can have 107\nchoose a shorter one"
    )]
    TooLong {
        /// As it was given.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The directory is not there, or not a directory.
    #[error(
        "cannot open the socket's directory {directory:?}\n{error}\nmake it, for example by: install -d -m 0755 {directory:?}; \
         a symbolic link in its place is not followed"
    )]
    Directory {
        /// The parent of the path.
        directory: PathBuf,
        /// What open(2) said.
        error: Errno,
    },
    /// Somebody else owns the directory.
    #[error(
        "the socket's directory {directory:?} is not safe\nuid {owner} owns it and could put another socket in place of \
         ours\ngive it to root: chown root {directory:?}"
    )]
    DirectoryOwner {
        /// The parent of the path.
        directory: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others than its owner may write to the directory.
    #[error(
        "the socket's directory {directory:?} is not safe\nothers than its owner can write to it (mode {mode:04o}) and \
         could put another socket in place of ours\ntake that away: chmod go-w {directory:?}, or choose a directory of \
         the agent's own"
    )]
    DirectoryMode {
        /// The parent of the path.
        directory: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another agent serves, or is about to serve, this path.
    #[error(
        "cannot bind the socket {path:?}\nanother agent runs there\nstop it, or give this one another path"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something at the path is not ours to remove.
    #[error(
        "cannot bind the socket {path:?}\nthere is {found} in its place, and what others made is not removed\nlook at it, \
         and remove it if nobody needs it"
    )]
    Occupied {
        /// The socket.
        path: PathBuf,
        /// What it is.
        found: Occupant,
    },
    /// The group cannot be given.
    #[error(
        "cannot give the socket {path:?} to the group {gid}\n{error}\nonly root can give a file to a group that the agent \
         is not in: make the agent's user a member, let systemd pass the socket, or change agent.socket_group"
    )]
    Group {
        /// The socket.
        path: PathBuf,
        /// The group.
        gid: u32,
        /// What chown(2) said.
        error: Errno,
    },
    /// Anything else that the system refuses.
    #[error(
        "cannot bind the socket {path:?}\nit failed to {step}: {error}\nlook at the directory and at what confines the agent"
    )]
    System {
        /// The socket.
        path: PathBuf,
        /// In which step.
        step: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// What stands in the socket's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Not a socket at all.
    File,
    /// A socket of another user.
    SocketOf(u32),
}

impl std::fmt::Display for Occupant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File => f.write_str("something that is no socket"),
            Self::SocketOf(uid) => write!(f, "a socket of uid {uid}"),
        }
    }
}

/// What to bind.
#[derive(Clone, Copy, Debug)]
pub struct Address<'a> {
    /// Absolute, at most 107 bytes.
    pub path: &'a Path,
    /// Permission bits; connecting takes `w`.
    pub mode: u32,
    /// The group it is given to; without one it has the agent's.
    pub group: Option<u32>,
}

/// A listening socket, and its place in the file system.
#[derive(Debug)]
pub struct Bound {
    /// Non-blocking and close-on-exec.
    pub listener: UnixListener,
    /// Keep it as long as the agent serves.
    pub place: Place,
}

/// The path, held against other agents by a lock on `NAME.lock` beside it. Dropping it removes the path, if that is
/// still the socket that was bound, and then gives up the lock. The lock's file stays: removing it would let two agents
/// lock two files of one name.
#[derive(Debug)]
pub struct Place {
    directory: OwnedFd,
    name: OsString,
    inode: Option<Inode>,
    _lock: Flock<OwnedFd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inode {
    device: libc::dev_t,
    number: libc::ino_t,
}

impl From<&FileStat> for Inode {
    fn from(stat: &FileStat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
    }
}

/// Binds and listens. It changes nothing of the process (no umask), so threads may exist.
pub fn bind(address: Address<'_>) -> Result<Bound, BindFault> {
    let path = address.path;
    let (directory_path, name) = match (path.is_absolute(), path.parent(), path.file_name()) {
        (true, Some(directory), Some(name)) => (directory, name),
        _ => return Err(BindFault::NotAbsolute { path: path.to_owned() }),
    };
    let length = path.as_os_str().as_bytes().len();
    if length > LONGEST_PATH {
        return Err(BindFault::TooLong { path: path.to_owned(), length });
    }
    let system =
        |step| move |error: Errno| BindFault::System { path: path.to_owned(), step, error: error.into() };

    let directory = open_directory(directory_path)?;
    let lock = lock(&directory, name, path)?;
    let mut place = Place { directory, name: name.to_owned(), inode: None, _lock: lock };
    place.clear(path)?;

    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket =
        socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(system("make a socket"))?;
    // The file gets the mode of the socket's own inode less the umask (Linux: unix_bind_bsd), so no umask has to be
    // changed, which would be the whole process's.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(system("close the socket to others"))?;
    let unix_address = UnixAddr::new(path).map_err(system("write the address"))?;
    bind_to(socket.as_raw_fd(), &unix_address).map_err(system("bind it"))?;

    let made = place.stat().map_err(system("find it in its directory"))?;
    if !is_socket(&made) || made.st_uid != geteuid().as_raw() {
        return Err(system("find it in its directory")(Errno::ESTALE));
    }
    place.inode = Some(Inode::from(&made));
    if let Some(gid) = address.group {
        fchownat(&place.directory, name, None, Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|error| BindFault::Group { path: path.to_owned(), gid, error })?;
    }
    // Nobody else writes to the directory, so there is no link to follow.
    let mode = Mode::from_bits_truncate(address.mode & 0o777);
    fchmodat(&place.directory, name, mode, FchmodatFlags::FollowSymlink).map_err(system("set its mode"))?;
    listen(&socket, Backlog::MAXCONN).map_err(system("listen"))?;
    Ok(Bound { listener: UnixListener::from(socket), place })
}

fn open_directory(path: &Path) -> Result<OwnedFd, BindFault> {
    let fault = |error| BindFault::Directory { directory: path.to_owned(), error };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = open(path, flags, Mode::empty()).map_err(fault)?;
    let stat = fstat(&directory).map_err(fault)?;
    if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
        return Err(BindFault::DirectoryOwner { directory: path.to_owned(), owner: stat.st_uid });
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(BindFault::DirectoryMode { directory: path.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    Ok(directory)
}

fn lock(directory: &OwnedFd, name: &OsStr, path: &Path) -> Result<Flock<OwnedFd>, BindFault> {
    let mut file_name = name.to_owned();
    file_name.push(".lock");
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let fault = |error: Errno| BindFault::System {
        path: path.to_owned(),
        step: "open the lock file beside it",
        error: error.into(),
    };
    let file =
        openat(directory, file_name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(fault)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => BindFault::InUse { path: path.to_owned() },
        error => fault(error),
    })
}

impl Place {
    /// The directory that the path is removed from, opened with O_PATH.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    fn stat(&self) -> nix::Result<FileStat> {
        fstatat(&self.directory, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Removes what an agent left that died, and nothing else.
    fn clear(&self, path: &Path) -> Result<(), BindFault> {
        let fault =
            |step| move |error: Errno| BindFault::System { path: path.to_owned(), step, error: error.into() };
        let found = match self.stat() {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(fault("look at what is there")(error)),
        };
        let occupied = |found| Err(BindFault::Occupied { path: path.to_owned(), found });
        if !is_socket(&found) {
            return occupied(Occupant::File);
        }
        if found.st_uid != geteuid().as_raw() {
            return occupied(Occupant::SocketOf(found.st_uid));
        }
        match probe(path) {
            Err(Errno::ECONNREFUSED) => {
                unlinkat(&self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
                    .map_err(fault("remove the dead socket"))
            }
            // A full queue (EAGAIN) is somebody's queue; EPROTOTYPE is a datagram socket that somebody holds.
            Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => {
                Err(BindFault::InUse { path: path.to_owned() })
            }
            Err(error) => Err(fault("ask the socket that is there")(error)),
        }
    }
}

/// Whether somebody listens; it never waits.
fn probe(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

fn is_socket(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(inode) = self.inode else { return };
        if !matches!(self.stat(), Ok(found) if is_socket(&found) && Inode::from(&found) == inode) {
            return;
        }
        if let Err(error) = unlinkat(&self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            tracing::warn!(%error, "the socket's path stays behind; the next start clears it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{
            fs::{MetadataExt as _, PermissionsExt as _, symlink},
            net::{UnixDatagram, UnixStream},
        },
    };

    use tempfile::TempDir;

    use super::*;

    /// tempfile's directories are 0700 and ours.
    fn directory() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn at(path: &Path) -> Address<'_> {
        Address { path, mode: 0o660, group: None }
    }

    fn chmod(path: &Path, mode: u32) {
        let mode = Mode::from_bits_truncate(mode);
        fchmodat(nix::fcntl::AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink).expect("chmod");
    }

    #[test]
    fn a_bound_socket_serves_has_its_mode_and_goes_away() {
        let dir = directory();
        let path = dir.path().join("agent.sock");
        for mode in [0o600, 0o660, 0o666] {
            let bound = bind(Address { path: &path, mode, group: None }).expect("binds");
            assert_eq!(fs::symlink_metadata(&path).expect("is there").permissions().mode() & 0o7777, mode);
            let client = UnixStream::connect(&path).expect("connects");
            bound.listener.accept().expect("accepts");
            drop((bound, client));
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_file_is_never_open_to_others_before_its_mode_is_set() {
        // What bind() relies on, whatever the umask of the moment.
        let dir = directory();
        let path = dir.path().join("s");
        let fd =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).expect("fchmod");
        bind_to(fd.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("binds");
        assert_eq!(fs::symlink_metadata(&path).expect("is there").permissions().mode() & 0o177, 0);
    }

    #[test]
    fn the_group_is_given_or_it_is_a_fault_and_nothing_stays_behind() {
        let dir = directory();
        let path = dir.path().join("agent.sock");
        // (gid_t)-1 means "leave it" to chown(2), so the largest real one.
        let wanted = 4_000_000_000;
        match bind(Address { path: &path, mode: 0o660, group: Some(wanted) }) {
            Ok(bound) => {
                assert!(geteuid().is_root());
                assert_eq!(fs::symlink_metadata(&path).expect("is there").gid(), wanted);
                drop(bound);
            }
            Err(fault) => {
                assert!(!geteuid().is_root(), "{fault}");
                assert!(
                    matches!(fault, BindFault::Group { error: Errno::EPERM | Errno::EINVAL, .. }),
                    "{fault}"
                );
            }
        }
        assert!(!path.exists());
    }

    #[test]
    fn paths_that_no_socket_can_have_are_refused() {
        for path in ["agent.sock", "@abstract", "", "/", "/run/..", "run/agent.sock"] {
            assert!(matches!(bind(at(Path::new(path))), Err(BindFault::NotAbsolute { .. })), "{path:?}");
        }
        let dir = directory();
        let room = LONGEST_PATH - dir.path().as_os_str().len() - 1;
        let fits = dir.path().join("x".repeat(room));
        assert!(bind(at(&fits)).is_ok());
        let too_long = dir.path().join("x".repeat(room + 1));
        assert!(matches!(bind(at(&too_long)), Err(BindFault::TooLong { length: 108, .. })));
    }

    #[test]
    fn a_directory_that_others_could_change_is_refused() {
        let dir = directory();
        for mode in [0o720, 0o702, 0o777, 0o1777] {
            chmod(dir.path(), mode);
            let fault = bind(at(&dir.path().join("s"))).expect_err("refused");
            assert!(
                matches!(fault, BindFault::DirectoryMode { mode: found, .. } if found == mode),
                "{fault}"
            );
        }
        chmod(dir.path(), 0o755);
        assert!(bind(at(&dir.path().join("s"))).is_ok());
        let link = directory();
        symlink(dir.path(), link.path().join("link")).expect("links");
        assert!(matches!(
            bind(at(&link.path().join("link/s"))),
            Err(BindFault::Directory { error: Errno::ENOTDIR | Errno::ELOOP, .. })
        ));
        assert!(matches!(
            bind(at(&dir.path().join("missing/s"))),
            Err(BindFault::Directory { error: Errno::ENOENT, .. })
        ));
        if geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(1234), None).expect("chown");
            let fault = bind(at(&dir.path().join("s"))).expect_err("refused");
            assert!(matches!(fault, BindFault::DirectoryOwner { owner: 1234, .. }), "{fault}");
        } else {
            // Past the test runner, which keeps what a passing test prints to itself.
            let _loud = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("SKIPPED: another owner of the directory: it must be root to give it away\n"),
            );
        }
    }

    #[test]
    fn a_dead_socket_is_taken_over() {
        let dir = directory();
        let path = dir.path().join("agent.sock");
        drop(UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        let bound = bind(at(&path)).expect("takes it over");
        UnixStream::connect(&path).expect("connects");
        drop(bound);
    }

    #[test]
    fn a_live_socket_is_refused_and_stays() {
        let dir = directory();
        let path = dir.path().join("agent.sock");
        let first = bind(at(&path)).expect("binds");
        assert!(matches!(bind(at(&path)), Err(BindFault::InUse { .. })), "by the lock");
        drop(first);
        let stranger = UnixListener::bind(&path).expect("binds");
        assert!(matches!(bind(at(&path)), Err(BindFault::InUse { .. })), "by asking it");
        stranger.accept().expect("the question was a connect");
        fs::remove_file(&path).expect("removes");
        let datagrams = UnixDatagram::bind(&path).expect("binds");
        assert!(matches!(bind(at(&path)), Err(BindFault::InUse { .. })), "a datagram socket");
        assert!(path.exists());
        drop(datagrams);
    }

    #[test]
    fn what_is_not_our_socket_is_never_removed() {
        let dir = directory();
        let path = dir.path().join("agent.sock");
        fs::write(&path, "a file").expect("writes");
        let fault = bind(at(&path)).expect_err("refused");
        assert!(matches!(fault, BindFault::Occupied { found: Occupant::File, .. }), "{fault}");
        fs::remove_file(&path).expect("removes");
        let elsewhere = dir.path().join("elsewhere");
        drop(UnixListener::bind(&elsewhere).expect("binds"));
        symlink(&elsewhere, &path).expect("links");
        let fault = bind(at(&path)).expect_err("refused");
        assert!(
            matches!(fault, BindFault::Occupied { found: Occupant::File, .. }),
            "a link is no socket: {fault}"
        );
        fs::remove_file(&path).expect("removes");
        if geteuid().is_root() {
            drop(UnixListener::bind(&path).expect("binds"));
            std::os::unix::fs::lchown(&path, Some(1234), None).expect("chown");
            let fault = bind(at(&path)).expect_err("refused");
            assert!(matches!(fault, BindFault::Occupied { found: Occupant::SocketOf(1234), .. }), "{fault}");
            assert!(path.exists());
        } else {
            // Past the test runner, which keeps what a passing test prints to itself.
            let _loud = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("SKIPPED: another user's dead socket: it must be root to give one away\n"),
            );
        }
    }

    #[test]
    fn the_path_is_removed_only_while_it_is_still_ours() {
        let dir = directory();
        let path = dir.path().join("agent.sock");
        let bound = bind(at(&path)).expect("binds");
        fs::remove_file(&path).expect("removes");
        let other = UnixListener::bind(&path).expect("binds");
        drop(bound);
        assert!(path.exists(), "another's socket stays");
        drop(other);
        fs::remove_file(&path).expect("removes");
        let bound = bind(at(&path)).expect("binds");
        fs::remove_file(&path).expect("removes");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn every_fault_says_what_why_and_what_to_do() {
        let path = PathBuf::from("/run/x/agent.sock");
        let directory = PathBuf::from("/run/x");
        let faults = [
            BindFault::NotAbsolute { path: path.clone() },
            BindFault::TooLong { path: path.clone(), length: 120 },
            BindFault::Directory { directory: directory.clone(), error: Errno::ENOENT },
            BindFault::DirectoryOwner { directory: directory.clone(), owner: 7 },
            BindFault::DirectoryMode { directory, mode: 0o1777 },
            BindFault::InUse { path: path.clone() },
            BindFault::Occupied { path: path.clone(), found: Occupant::File },
            BindFault::Group { path: path.clone(), gid: 5, error: Errno::EPERM },
            BindFault::System { path, step: "listen", error: Errno::EACCES.into() },
        ];
        for fault in faults {
            let text = fault.to_string();
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(text.contains("/run/x"), "{text}");
        }
    }
}
