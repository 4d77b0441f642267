//! The tree of cgroups as the kernel shows it: from a cgroup's id to its path.
//!
//! - The id is the directory's inode number, and never given a second time: a directory that is gone was of processes
//!   that are gone.
//! - There is no call from the one to the other without privileges, so the tree is walked, once for all whose ids are not
//!   known yet, and what was seen is kept. What is kept is looked at again each time it is used.
//! - A walk is bounded in breadth, depth and time, never leaves the file system and follows no link. It goes where
//!   services can be and nowhere else: not into the users' slices, which users fill as they like.
//! - Walks are made one at a time, off the event loop.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::CStr,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{Mode, fstat, fstatat},
        statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

use super::{
    Trouble,
    path::{Step, step},
};
use crate::clock::Clock;

/// Where cgroup2 is: the whole of it, and beside the hierarchies of version 1 (systemd's "hybrid" set-up).
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// The first process's own cgroup, directly in the root of its manager's tree (bootup(7), systemd.special(7)).
const INIT: &str = "init.scope";

/// How much of the tree one walk looks at.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    directories: usize,
    /// Directories below one service, so that one that makes many takes nothing from the others.
    below_one_service: usize,
    depth: usize,
    time: Duration,
}

const BOUNDS: Bounds =
    Bounds { directories: 16_384, below_one_service: 1_024, depth: 32, time: Duration::from_millis(500) };

/// Ids that belong to no service, as a walk has found. When so many are known all are forgotten.
const MAX_ABSENT: usize = 4_096;

/// The tree.
pub(super) struct Tree {
    root: OwnedFd,
    device: u64,
    bounds: Bounds,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
    /// Held by the walk that is under way.
    walking: Arc<tokio::sync::Mutex<()>>,
    /// Walks that were begun.
    walks: AtomicU64,
}

#[derive(Default)]
struct Seen {
    /// The paths of services and of what is below them, from `/` on.
    paths: HashMap<u64, Box<str>>,
    /// Cgroups that are none of these.
    absent: HashSet<u64>,
    /// Why the last walk did not see everything.
    trouble: Option<Trouble>,
}

impl Seen {
    fn note(&mut self, read: Result<(), Trouble>) {
        if let Err(trouble) = read {
            self.trouble = Some(trouble);
        }
    }
}

/// The path of a cgroup that belongs to a service; none if it belongs to none, or is not there any more.
pub(super) type Found = Result<Option<Box<str>>, Trouble>;

impl Tree {
    /// The tree of this host. The error says why it is not to be used.
    pub(super) fn of_this_host(clock: Arc<dyn Clock>) -> Result<Self, &'static str> {
        let mut why = "no cgroup2 is mounted at /sys/fs/cgroup";
        for mount in MOUNTS {
            let Ok(root) = nix::fcntl::open(mount, LOOK, Mode::empty()) else { continue };
            if !fstatfs(&root).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
                continue;
            }
            match Self::at(root, Arc::clone(&clock)) {
                Ok(tree) => return Ok(tree),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// The tree below `root`.
    pub(super) fn below(root: &Path, clock: Arc<dyn Clock>) -> Result<Self, &'static str> {
        let root = nix::fcntl::open(root, LOOK, Mode::empty()).map_err(|_| "it cannot be opened")?;
        Self::at(root, clock)
    }

    /// The tree whose root this directory is.
    fn at(root: OwnedFd, clock: Arc<dyn Clock>) -> Result<Self, &'static str> {
        let stat = fstat(&root).map_err(|_| "the tree of cgroups cannot be looked at")?;
        // A unit that is shown its own part of the tree only (ProtectControlGroups=strict) sees no other.
        fstatat(&root, INIT, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|_| "the tree of cgroups that is visible here is not that of the service manager")?;
        let tree = Self {
            root,
            device: stat.st_dev,
            bounds: BOUNDS,
            clock,
            seen: Mutex::default(),
            walking: Arc::default(),
            walks: AtomicU64::new(0),
        };
        tree.each_directory("", |_, _| ()).map_err(|_| "the tree of cgroups cannot be read")?;
        Ok(tree)
    }

    /// Where the cgroup `id` is. `may_walk` is asked before a walk that nobody else has begun.
    pub(super) async fn find(self: &Arc<Self>, id: u64, may_walk: impl FnOnce() -> bool) -> Found {
        if let Some(found) = self.known(id) {
            return found;
        }
        let before = self.walks.load(Ordering::Acquire);
        let turn = Arc::clone(&self.walking).lock_owned().await;
        if let Some(found) = self.known(id) {
            return found;
        }
        // One that was begun after we asked has seen all that was there when we asked.
        if self.walks.load(Ordering::Acquire) == before {
            if !may_walk() {
                return Err(Trouble::TooOften);
            }
            let tree = Arc::clone(self);
            // It holds the turn by itself: a caller that goes away does not let a second walk begin beside it.
            let walk = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                tree.walks.fetch_add(1, Ordering::AcqRel);
                let seen = tree.walk();
                tree.keep(seen);
            });
            walk.await.map_err(|_| Trouble::Lost)?;
        }
        if let Some(found) = self.known(id) {
            return found;
        }
        let mut seen = self.seen();
        if let Some(trouble) = &seen.trouble {
            return Err(trouble.clone());
        }
        if seen.absent.len() >= MAX_ABSENT {
            seen.absent.clear();
        }
        seen.absent.insert(id);
        Ok(None)
    }

    /// Whether the last walk did not see everything.
    pub(super) fn is_in_part(&self) -> bool {
        self.seen().trouble.is_some()
    }

    /// What is known of `id` without a walk.
    fn known(&self, id: u64) -> Option<Found> {
        let path = {
            let seen = self.seen();
            if seen.absent.contains(&id) {
                return Some(Ok(None));
            }
            seen.paths.get(&id).cloned()?
        };
        match self.open(&path, LOOK).and_then(fstat) {
            Ok(stat) if stat.st_ino == id && stat.st_dev == self.device => return Some(Ok(Some(path))),
            // The directory of a unit that was stopped and started again has another id.
            Ok(_) => {}
            Err(errno) if is_gone(errno) => {}
            Err(errno) => return Some(Err(Trouble::System(errno))),
        }
        self.seen().paths.remove(&id);
        Some(Ok(None))
    }

    /// Puts what a walk has seen in the place of what was seen before.
    fn keep(&self, new: Seen) {
        let mut seen = self.seen();
        let absent = std::mem::take(&mut seen.absent);
        *seen = Seen { absent, ..new };
    }

    /// Looks at all services: first at all slices, then below the services.
    fn walk(&self) -> Seen {
        let until = self.clock.now().boot + self.bounds.time;
        let mut left = self.bounds.directories;
        let mut may_look = |depth: usize| {
            left = left.checked_sub(1)?;
            (depth <= self.bounds.depth && self.clock.now().boot <= until).then_some(())
        };
        let mut seen = Seen::default();
        let mut slices = VecDeque::from([(String::new(), 1)]);
        let mut services = VecDeque::new();
        while let Some((slice, depth)) = slices.pop_front() {
            if may_look(depth).is_none() {
                seen.trouble = Some(Trouble::TooLarge);
                continue;
            }
            let read = self.each_directory(&slice, |name, id| match step(name) {
                Step::Slice => slices.push_back((format!("{slice}/{name}"), depth + 1)),
                Step::Service => {
                    let path = format!("{slice}/{name}");
                    seen.paths.insert(id, path.as_str().into());
                    services.push_back(path);
                }
                Step::Other => {}
            });
            seen.note(read);
        }
        for service in services {
            let mut below = VecDeque::from([(service, 1)]);
            let mut of_it = self.bounds.below_one_service;
            while let Some((directory, depth)) = below.pop_front() {
                if may_look(depth).is_none() {
                    seen.trouble = Some(Trouble::TooLarge);
                    break;
                }
                let mut cut = Ok(());
                let read = self.each_directory(&directory, |name, id| {
                    let Some(less) = of_it.checked_sub(1) else {
                        cut = Err(Trouble::TooLarge);
                        return;
                    };
                    of_it = less;
                    let path = format!("{directory}/{name}");
                    seen.paths.insert(id, path.as_str().into());
                    below.push_back((path, depth + 1));
                });
                seen.note(read.and(cut));
            }
        }
        seen
    }

    /// Tells each directory in the one at `path`, which begins with `/` or is the root's, the empty one, with its id. One
    /// that has gone meanwhile has none.
    fn each_directory(&self, path: &str, mut tell: impl FnMut(&str, u64)) -> Result<(), Trouble> {
        let flags = LOOK.difference(OFlag::O_PATH);
        let mut directory = match self.open(path, flags).and_then(Dir::from_fd) {
            Ok(directory) => directory,
            Err(errno) if is_gone(errno) => return Ok(()),
            Err(errno) => return Err(Trouble::System(errno)),
        };
        for entry in directory.iter() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) if is_gone(errno) => return Ok(()),
                Err(errno) => return Err(Trouble::System(errno)),
            };
            let name = entry.file_name();
            if entry.file_type() == Some(Type::Directory)
                && ![c".", c".."].contains(&name)
                && let Ok(name) = CStr::to_str(name)
            {
                tell(name, entry.ino());
            }
        }
        Ok(())
    }

    /// Opens the directory at `path`, step by step: no link is followed, and no other file system is entered. (openat2(2)
    /// would do it in one, but is refused under RestrictSUIDSGID=.)
    fn open(&self, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let mut directory = openat(&self.root, ".", LOOK, Mode::empty())?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            directory = openat(&directory, name, LOOK, Mode::empty())?;
            if fstat(&directory)?.st_dev != self.device {
                return Err(Errno::ENOENT);
            }
        }
        if flags == LOOK { Ok(directory) } else { openat(&directory, ".", flags, Mode::empty()) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// ENODEV: a directory that was removed while it was open (kernfs).
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV)
}

const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

    use super::*;
    use crate::timer::ManualTime;

    /// A tree of ordinary directories: what is asked of cgroups here holds for any.
    struct Place {
        directory: tempfile::TempDir,
        tree: Arc<Tree>,
    }

    impl Place {
        fn with(bounds: Bounds) -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join(INIT)).unwrap();
            let root = nix::fcntl::open(directory.path(), LOOK, Mode::empty()).unwrap();
            let tree = Tree::at(root, Arc::new(ManualTime::default())).unwrap();
            Self { directory, tree: Arc::new(Tree { bounds, ..tree }) }
        }

        fn new() -> Self {
            Self::with(BOUNDS)
        }

        fn path(&self, path: &str) -> PathBuf {
            self.directory.path().join(path.trim_start_matches('/'))
        }

        fn make(&self, path: &str) -> u64 {
            fs::create_dir_all(self.path(path)).unwrap();
            fs::metadata(self.path(path)).unwrap().ino()
        }

        async fn find(&self, id: u64) -> Found {
            self.tree.find(id, || true).await
        }

        fn walks(&self) -> u64 {
            self.tree.walks.load(Ordering::Acquire)
        }
    }

    fn at(path: &str) -> Found {
        Ok(Some(path.into()))
    }

    #[tokio::test]
    async fn one_walk_finds_services_and_what_is_below_them_and_nothing_of_others() {
        let place = Place::new();
        let paths = [
            "/system.slice/loans.service",
            "/system.slice/system-loans.slice/loans@eu.service",
            "/system.slice/loans.service/sub/other.service",
            "/machine.slice/systemd-nspawn@a.service/payload/system.slice/x.service",
        ];
        let ids = paths.map(|path| place.make(path));
        let others = [
            "/user.slice/user-1000.slice/user@1000.service/app.slice/loans.service",
            "/system.slice/docker-1.scope/loans.service",
            "/system.slice",
            "/kubepods/loans.service",
        ]
        .map(|path| place.make(path));
        for (path, id) in paths.into_iter().zip(ids) {
            assert_eq!(place.find(id).await, at(path));
        }
        assert_eq!(place.walks(), 1);
        for id in others {
            assert_eq!(place.find(id).await, Ok(None));
        }
        // Each unknown one costs a walk, once.
        assert_eq!(place.walks(), 5);
        for id in others {
            assert_eq!(place.find(id).await, Ok(None));
        }
        assert_eq!(place.walks(), 5);
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_no_unit_nor_is_another_in_its_place() {
        let place = Place::new();
        let path = "/system.slice/loans.service";
        let first = place.make(path);
        assert_eq!(place.find(first).await, at(path));
        fs::rename(place.path(path), place.path("/aside")).unwrap();
        let second = place.make(path);
        assert_eq!(place.find(first).await, Ok(None));
        assert_eq!(place.find(second).await, at(path));
        fs::rename(place.path(path), place.path("/aside-2")).unwrap();
        assert_eq!(place.find(second).await, Ok(None));
    }

    #[tokio::test]
    async fn links_are_not_followed() {
        let place = Place::new();
        let hidden = place.make("/hidden/loans.service");
        place.make("/system.slice/a.service");
        std::os::unix::fs::symlink(place.path("/hidden"), place.path("/system.slice/app.slice")).unwrap();
        std::os::unix::fs::symlink(
            place.path("/hidden/loans.service"),
            place.path("/system.slice/loans.service"),
        )
        .unwrap();
        assert_eq!(place.find(hidden).await, Ok(None));
        assert_eq!(place.walks(), 1);
    }

    #[tokio::test]
    async fn a_tree_that_is_too_large_says_so_and_one_service_s_mass_hides_no_other() {
        let bounds = Bounds { below_one_service: 3, ..BOUNDS };
        let place = Place::with(bounds);
        let many: Vec<u64> = (0..5).map(|n| place.make(&format!("/system.slice/a.service/{n}"))).collect();
        let other = place.make("/system.slice/b.service/sub");
        assert_eq!(place.find(other).await, at("/system.slice/b.service/sub"));
        let mut told = Vec::new();
        for id in many {
            told.push(place.find(id).await);
        }
        assert_eq!(told.iter().filter(|found| matches!(found, Ok(Some(_)))).count(), 3);
        assert_eq!(told.iter().filter(|found| **found == Err(Trouble::TooLarge)).count(), 2);

        for bounds in [Bounds { directories: 2, ..BOUNDS }, Bounds { depth: 1, ..BOUNDS }] {
            let place = Place::with(bounds);
            let id = place.make("/system.slice/system-a.slice/system-a-b.slice/b.service");
            assert_eq!(place.find(id).await, Err(Trouble::TooLarge), "{bounds:?}");
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_walk_shares_it_and_who_may_not_walk_makes_none() {
        let place = Place::new();
        let id = place.make("/system.slice/a.service");
        assert_eq!(place.tree.find(id, || false).await, Err(Trouble::TooOften));
        assert_eq!(place.walks(), 0);
        let turn = Arc::clone(&place.tree.walking).lock_owned().await;
        let all = async {
            let (a, b, c) = tokio::join!(place.find(id), place.find(id), place.find(7));
            (a, b, c)
        };
        let (found, ()) = tokio::join!(all, async { drop(turn) });
        assert_eq!(found, (at("/system.slice/a.service"), at("/system.slice/a.service"), Ok(None)));
        assert_eq!(place.walks(), 1);
    }

    #[test]
    fn a_tree_that_is_not_the_managers_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let root = nix::fcntl::open(directory.path(), LOOK, Mode::empty()).unwrap();
        assert!(Tree::at(root, Arc::new(ManualTime::default())).is_err());
    }
}
