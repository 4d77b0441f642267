//! Hearing that a secret file was replaced: inotify(7) on its directory, since a rename brings another inode.
//!
//! A hint and no more: the schedule tries again by itself. Nothing is watched while nobody waits.

use std::{
    ffi::OsString,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        stat::lstat,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::Stamp;

/// What lies at `path`, a link included: a secret that became one is a change too.
pub(super) fn glance(path: &Path) -> Option<Stamp> {
    lstat(path).ok().as_ref().map(Stamp::of)
}

/// Ends when `path` may hold something else than it did when its stamp was `seen`. Where the host cannot watch, that is
/// never; it is said in the log once per source.
pub(super) async fn changed(path: &Path, seen: Option<Stamp>, said: &AtomicBool) {
    let heard = match Watch::start(path) {
        // The watch first, then the look: a change before the watch is seen, one after it is heard.
        Ok(_) if glance(path) != seen => return,
        Ok(watch) => watch.heard().await,
        Err(errno) => Err(errno),
    };
    if let Err(errno) = heard {
        if !said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                path = %crate::files::fault::quoted(path),
                error = errno.desc(),
                "the directory of a secret file cannot be watched; a new secret is tried at the next scheduled attempt"
            );
        }
        std::future::pending::<()>().await;
    }
}

struct Watch<'a> {
    inotify: AsyncFd<Descriptor>,
    path: &'a Path,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl<'a> Watch<'a> {
    fn start(path: &'a Path) -> Result<Self, Errno> {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(
            directory,
            AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_MOVED_FROM
                // A link(2) into place, as O_TMPFILE needs it.
                | AddWatchFlags::IN_CREATE
                // A chmod or chown is how most faults are mended, the directory's too.
                | AddWatchFlags::IN_ATTRIB
                | AddWatchFlags::IN_DELETE
                // Another directory may have this name now.
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_ONLYDIR,
        )?;
        Ok(Self { inotify: register(Descriptor(inotify)).map_err(|error| errno_of(&error))?, path })
    }

    /// Ends with the first event that concerns the file: of its name, or of none (the directory itself, or a queue that
    /// overflowed).
    async fn heard(&self) -> Result<(), Errno> {
        loop {
            let mut ready = self.inotify.readable().await.map_err(|error| errno_of(&error))?;
            let events = ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?));
            // Not ready after all: wait again.
            let Ok(events) = events else { continue };
            let ours = |name: &OsString| Some(name.as_os_str()) == self.path.file_name();
            if events
                .map_err(|error| errno_of(&error))?
                .iter()
                .any(|event| event.name.as_ref().is_none_or(ours))
            {
                return Ok(());
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn register(descriptor: Descriptor) -> std::io::Result<AsyncFd<Descriptor>> {
    // SAFETY: a `Descriptor` owns its open descriptor until it is dropped, and always names that one.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::{fs, task::Poll};

    use crate::{
        hardening::trial,
        source::{ReadSecret as _, Source},
    };

    async fn is_pending(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|context| {
            Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }

    #[tokio::test]
    async fn every_way_to_bring_a_new_secret_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let new = directory.path().join("secret.new");
        let steps: [(&str, &dyn Fn()); 7] = [
            ("made where there was none", &|| fs::write(&path, "first").unwrap()),
            ("written in place", &|| fs::write(&path, "second").unwrap()),
            ("renamed into place", &|| {
                fs::write(&new, "third").unwrap();
                fs::rename(&new, &path).unwrap();
            }),
            ("given another mode", &|| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
                fs::File::open(&path).unwrap().set_permissions(mode).unwrap();
            }),
            ("moved away", &|| fs::rename(&path, &new).unwrap()),
            ("linked into place", &|| fs::hard_link(&new, &path).unwrap()),
            ("deleted", &|| fs::remove_file(&path).unwrap()),
        ];
        let source = Source::file(&path);
        for (how, act) in steps {
            let mut change = source.changed_since(source.glance());
            assert!(is_pending(&mut change).await, "{how}");
            act();
            change.await;
        }
    }

    #[tokio::test]
    async fn a_change_between_the_reading_and_the_watch_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let source = Source::file(&path);
        let nothing = source.glance();
        let change = source.changed_since(nothing);
        fs::write(&path, "first").unwrap();
        change.await;
        let first = source.glance();
        assert!(first.is_some());
        fs::write(&path, "the second").unwrap();
        source.changed_since(first).await;
    }

    #[tokio::test]
    async fn other_files_of_the_directory_end_nothing_and_its_own_changes_do() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("secret"), directory.path().join("secret2"));
        let source = Source::file(&path);
        let others = Source::file(&other);
        let mut change = source.changed_since(None);
        let mut sign = others.changed_since(None);
        assert!(is_pending(&mut change).await && is_pending(&mut sign).await);
        fs::write(&other, "x").unwrap();
        sign.await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(is_pending(&mut change).await);
        // chmod of the directory may be what mends it.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o750);
        fs::File::open(directory.path()).unwrap().set_permissions(mode).unwrap();
        change.await;
    }

    #[test]
    fn nothing_is_watched_before_the_first_poll_or_after_the_drop() {
        let inotifies = || {
            let target = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.unwrap().path()).ok();
            let targets = fs::read_dir("/proc/self/fd").unwrap().filter_map(target);
            targets.filter(|target| target.as_os_str() == "anon_inode:inotify").count()
        };
        let name = "source::watch::tests::nothing_is_watched_before_the_first_poll_or_after_the_drop";
        trial::in_own_process(name, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let source = Source::file(directory.path().join("secret"));
                let mut change = source.changed_since(None);
                assert_eq!(inotifies(), 0);
                assert!(is_pending(&mut change).await);
                assert_eq!(inotifies(), 1);
                drop(change);
                assert_eq!(inotifies(), 0);
            });
        });
    }

    #[tokio::test]
    async fn where_nothing_can_be_watched_it_never_ends_and_is_said_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("secret");
        let source = Source::file(&path);
        let log = trial::Log::start();
        for _ in 0..2 {
            assert!(is_pending(&mut source.changed_since(None)).await);
        }
        assert_eq!(
            log.text(),
            format!(
                " WARN the directory of a secret file cannot be watched; a new secret is tried at the next scheduled \
                 attempt path={path:?} error=\"No such file or directory\"\n"
            )
        );
        let credential = Source::credential(crate::config::CredentialName::parse("bloom").unwrap(), None);
        assert_eq!(credential.glance(), None);
        assert!(is_pending(&mut credential.changed_since(None)).await);
    }
}
