//! Hearing that a secret file was replaced: inotify(7) on its directory, since a rename brings another inode.
//!
//! A hint and no more: the schedule tries again by itself. Nothing is watched while nobody waits.

use std::{
    ffi::OsString,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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

/// Hears what happens to a file, from when it was made until it is dropped.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    path: PathBuf,
    said: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Listens for changes of `path`. Blocking, and as long as its directory's file system pleases. Where the host cannot
    /// watch there is none, and `said` says whether the log knows.
    pub(super) fn start(path: &Path, said: &Arc<AtomicBool>) -> Option<Self> {
        let watching = || {
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
            Ok(inotify)
        };
        watching()
            .map(|inotify| Self { inotify, path: path.to_owned(), said: Arc::clone(said) })
            .inspect_err(|errno| say(path, *errno, said))
            .ok()
    }

    /// Ends with the first event that concerns the file: of its name, or of none (the directory itself, or a queue that
    /// overflowed). If the kernel takes the descriptor away it never does. Within a tokio runtime; it blocks nothing.
    pub async fn heard(self) {
        let Self { inotify, path, said } = self;
        if let Err(error) = first_event(inotify, &path).await {
            say(&path, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw), &said);
            // To end here would be a sign of a change, and a refused profile would ask its provider again and again.
            std::future::pending::<()>().await;
        }
    }
}

async fn first_event(inotify: Inotify, path: &Path) -> std::io::Result<()> {
    let inotify = register(Descriptor(inotify))?;
    loop {
        let mut ready = inotify.readable().await?;
        let events = ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?));
        // Not ready after all: wait again.
        let Ok(events) = events else { continue };
        let ours = |name: &OsString| Some(name.as_os_str()) == path.file_name();
        if events?.iter().any(|event| event.name.as_ref().is_none_or(ours)) {
            return Ok(());
        }
    }
}

fn say(path: &Path, errno: Errno, said: &AtomicBool) {
    if !said.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            path = %crate::files::fault::quoted(path),
            error = errno.desc(),
            "the directory of a secret file cannot be watched; a new secret is tried at the next scheduled attempt"
        );
    }
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn register(descriptor: Descriptor) -> std::io::Result<AsyncFd<Descriptor>> {
    // SAFETY: a `Descriptor` owns its open descriptor until it is dropped, and always names that one.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

#[cfg(test)]
mod tests {
    use std::{fs, pin::pin, task::Poll};

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
            let mut change = pin!(source.watch().unwrap().heard());
            assert!(is_pending(&mut change).await, "{how}");
            act();
            change.await;
        }
    }

    #[tokio::test]
    async fn other_files_of_the_directory_end_nothing_and_its_own_changes_do() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("secret"), directory.path().join("secret2"));
        let source = Source::file(&path);
        let others = Source::file(&other);
        let mut change = pin!(source.watch().unwrap().heard());
        let mut sign = pin!(others.watch().unwrap().heard());
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
    fn where_nothing_can_be_watched_there_is_no_watch_and_it_is_said_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("secret");
        let source = Source::file(&path);
        let log = trial::Log::start();
        for _ in 0..2 {
            assert!(source.watch().is_none());
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
        assert!(credential.watch().is_none());
    }
}
