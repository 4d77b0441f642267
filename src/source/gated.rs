//! A source off the event loop. A file system may never answer, and a thread that waits for it cannot be called back:
//! so a source has one blocking call at a time, all sources together have [`READINGS`], and who waits gives up in time.
//!
//! Nothing of a secret is kept here: only the stamp of what was last seen.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout,
};

use super::{Nature, ReadSecret, Reading, SourceFault, Stamp};

/// The time for reading a source, with all the waiting. They are local files; one on a file system that hangs is not.
const DEADLINE: Duration = Duration::from_secs(5);

/// The blocking calls of all sources that share [`Readings`]: what hangs among them leaves threads for everything else.
pub const READINGS: usize = 8;

/// Who may block; clones are the same. See [`READINGS`].
#[derive(Clone, Debug)]
pub struct Readings(Arc<Semaphore>);

impl Default for Readings {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(READINGS)))
    }
}

/// A source, behind its gate.
pub struct Gated {
    source: Arc<dyn ReadSecret>,
    readings: Readings,
    gate: Arc<Semaphore>,
    /// The pass of the reading that was last given up: it lives until that comes back.
    given_up: Mutex<Weak<Pass>>,
    /// What was there when the last reading began.
    seen: Arc<Mutex<Option<Stamp>>>,
}

/// Held by the blocking call itself: who waits for it may go, it may not.
struct Pass {
    _gate: OwnedSemaphorePermit,
    _reading: OwnedSemaphorePermit,
}

/// What a reading waits for.
#[derive(Clone, Copy)]
enum Stage {
    Gate,
    Readings,
    File,
}

impl Gated {
    /// `source`, one among those that share `readings`.
    pub fn new(source: Arc<dyn ReadSecret>, readings: Readings) -> Self {
        Self {
            source,
            readings,
            gate: Arc::new(Semaphore::new(1)),
            given_up: Mutex::default(),
            seen: Arc::default(),
        }
    }

    /// Reads it anew, within 5 s; at once if the file system has not even answered the last reading.
    pub async fn read(&self) -> Result<Reading, SourceFault> {
        if self.given_up.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0 {
            return Err(self.lost(Stage::Gate));
        }
        let mut stage = Stage::Gate;
        let mut under_way = Weak::new();
        let reading = async {
            let pass = Arc::new(self.pass(&mut stage).await.ok()?);
            stage = Stage::File;
            under_way = Arc::downgrade(&pass);
            let (source, seen) = (Arc::clone(&self.source), Arc::clone(&self.seen));
            let reading = spawn_blocking(move || {
                let _pass = pass;
                // Before the reading: a change meanwhile is a change.
                let glance = source.glance();
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = glance;
                source.read()
            });
            reading.await.ok()
        };
        match timeout(DEADLINE, reading).await {
            Ok(Some(read)) => read,
            Ok(None) => {
                Err(self.fault("the reading broke off, by a fault of the agent's own", "look into the log"))
            }
            Err(_) => {
                *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = under_way;
                Err(self.lost(stage))
            }
        }
    }

    /// Ends at the first sign that what is there is not what was there when the last reading began; also for a change
    /// before the first poll. It is a hint: it may end for nothing, and where the source cannot change, or cannot be
    /// watched, it never does. It watches until it is dropped; poll it within a tokio runtime.
    pub async fn changed(&self) {
        let started = async {
            let pass = self.pass(&mut Stage::Gate).await.ok()?;
            let source = Arc::clone(&self.source);
            let started = spawn_blocking(move || {
                let _pass = pass;
                // The watch first, then the look: a change before the watch is seen, one after it is heard.
                source.watch().map(|watch| (watch, source.glance()))
            });
            started.await.ok()?
        };
        match started.await {
            Some((_, found)) if found != self.seen() => {}
            Some((watch, _)) => watch.heard().await,
            None => std::future::pending().await,
        }
    }

    fn seen(&self) -> Option<Stamp> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits without a thread until a blocking call may be made.
    async fn pass(&self, stage: &mut Stage) -> Result<Pass, AcquireError> {
        let gate = Arc::clone(&self.gate).acquire_owned().await?;
        *stage = Stage::Readings;
        let reading = Arc::clone(&self.readings.0).acquire_owned().await?;
        Ok(Pass { _gate: gate, _reading: reading })
    }

    fn lost(&self, stage: Stage) -> SourceFault {
        let limit = DEADLINE.as_secs();
        match stage {
            Stage::Gate => self.fault(
                "the call before has not come back: the file system that it is on does not answer",
                "check that file system; the secret is read as soon as it answers again",
            ),
            Stage::Readings => self.fault(
                format!(
                    "for {limit} s all readers waited for other secrets, whose file systems do not answer"
                ),
                "check the file systems that the secrets of other profiles are on",
            ),
            Stage::File => self.fault(
                format!("it took longer than {limit} s: the file system that it is on does not answer"),
                "check that file system; the secret is read as soon as it answers again",
            ),
        }
    }

    fn fault(&self, why: impl Into<String>, remedy: &str) -> SourceFault {
        SourceFault {
            what: format!("the secret of {} was not read", self.source.describe()),
            why: why.into(),
            remedy: remedy.to_owned(),
            nature: Nature::Passing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        pin::pin,
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        task::Poll,
    };

    use zeroize::Zeroizing;

    use super::*;
    use crate::{hardening::trial, secret::Secret, source::Source};

    /// tokio's timers are rounded up to the millisecond, and with a thread at work paused time does not go on by itself.
    const PAST_THE_DEADLINE: Duration = DEADLINE.saturating_add(Duration::from_millis(2));

    /// A source on a file system that answers a call when the test lets it.
    struct Hanging {
        calls: AtomicUsize,
        answers: Mutex<mpsc::Receiver<()>>,
    }

    impl Hanging {
        fn new() -> (Arc<Self>, mpsc::Sender<()>) {
            let (answer, answers) = mpsc::channel();
            (Arc::new(Self { calls: AtomicUsize::new(0), answers: Mutex::new(answers) }), answer)
        }

        fn calls(&self) -> usize {
            self.calls.load(Ordering::SeqCst)
        }

        fn hang(&self) {
            self.calls.fetch_add(1, Ordering::SeqCst);
            // An error when the test is over.
            let _ = self.answers.lock().unwrap().recv();
        }
    }

    impl ReadSecret for Hanging {
        fn read(&self) -> Result<Reading, SourceFault> {
            let secret = Secret::parse(Zeroizing::new(b"s".to_vec())).unwrap();
            Ok(Reading { secret, stamp: Stamp::numbered(0) })
        }

        fn describe(&self) -> String {
            "a script".to_owned()
        }

        fn glance(&self) -> Option<Stamp> {
            self.hang();
            None
        }

        fn watch(&self) -> Option<super::super::Watch> {
            self.hang();
            None
        }
    }

    async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
        std::future::poll_fn(|context| {
            Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }

    fn why(read: Result<Reading, SourceFault>) -> String {
        let fault = read.unwrap_err();
        assert_eq!(fault.nature, Nature::Passing, "{fault}");
        fault.why
    }

    #[tokio::test]
    async fn a_file_that_hangs_costs_one_thread_however_often_it_is_tried_and_holds_nothing_up() {
        let (source, answer) = Hanging::new();
        let gated = Gated::new(source.clone(), Readings::default());
        tokio::time::pause();
        {
            let mut first = pin!(gated.read());
            // The event loop goes on: this returns.
            assert!(is_pending(&mut first).await);
            tokio::time::advance(PAST_THE_DEADLINE).await;
            assert_eq!(
                why(first.await),
                "it took longer than 5 s: the file system that it is on does not answer"
            );
        }
        let again = "the call before has not come back: the file system that it is on does not answer";
        for _ in 0..20 {
            let mut next = pin!(gated.read());
            assert!(!is_pending(&mut next).await, "at once");
        }
        assert_eq!(why(gated.read().await), again);
        let mut change = pin!(gated.changed());
        assert!(is_pending(&mut change).await);
        assert_eq!(gated.readings.0.available_permits(), READINGS - 1);

        answer.send(()).unwrap();
        // As soon as the file system answers, the watch is next, and hangs.
        while source.calls() < 2 {
            tokio::task::yield_now().await;
            assert!(is_pending(&mut change).await);
        }
        let mut second = pin!(gated.read());
        assert!(is_pending(&mut second).await);
        tokio::time::advance(PAST_THE_DEADLINE).await;
        assert_eq!(why(second.await), again, "a watch that hangs is in the way too");
        assert_eq!(source.calls(), 2);

        answer.send(()).unwrap();
        answer.send(()).unwrap();
        assert_eq!(gated.read().await.unwrap().secret.expose_secret(), "s");
    }

    #[tokio::test]
    async fn who_gives_up_a_reading_leaves_the_gate_to_it() {
        let (source, answer) = Hanging::new();
        let gated = Gated::new(source.clone(), Readings::default());
        {
            let mut dropped = pin!(gated.read());
            assert!(is_pending(&mut dropped).await);
        }
        assert_eq!(gated.gate.available_permits(), 0, "held by the call, not by who waited for it");
        answer.send(()).unwrap();
        answer.send(()).unwrap();
        assert!(gated.read().await.is_ok());
    }

    #[tokio::test]
    async fn hanging_secrets_leave_threads_to_everything_else_and_a_healthy_one_says_what_it_waits_for() {
        let readings = Readings::default();
        let hanging: Vec<_> = (0..READINGS).map(|_| Hanging::new()).collect();
        let gates: Vec<_> =
            hanging.iter().map(|(source, _)| Gated::new(source.clone(), readings.clone())).collect();
        let mut calls: Vec<_> = gates.iter().map(|gated| Box::pin(gated.read())).collect();
        for call in &mut calls {
            assert!(is_pending(call).await);
        }
        tokio::time::pause();
        let healthy = Gated::new(
            Arc::new(Source::credential(crate::config::CredentialName::parse("bloom").unwrap(), None)),
            readings,
        );
        let mut read = pin!(healthy.read());
        assert!(is_pending(&mut read).await);
        tokio::time::advance(PAST_THE_DEADLINE).await;
        assert_eq!(
            why(read.await),
            "for 5 s all readers waited for other secrets, whose file systems do not answer"
        );
        hanging[3].1.send(()).unwrap();
        drop(gates[3].gate.acquire().await.unwrap());
        let fault = healthy.read().await.unwrap_err();
        assert_eq!(fault.nature, Nature::Standing, "its own: {fault}");
    }

    #[tokio::test]
    async fn a_change_between_the_reading_and_the_watch_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let gated = Gated::new(Arc::new(Source::file(&path)), Readings::default());
        gated.read().await.unwrap_err();
        fs::write(&path, "first").unwrap();
        gated.changed().await;
        // It may be refused; it was seen.
        let _ = gated.read().await;
        fs::write(&path, "the second").unwrap();
        gated.changed().await;
    }

    #[tokio::test]
    async fn without_a_change_it_is_listened_until_there_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "first").unwrap();
        let gated = Gated::new(Arc::new(Source::file(&path)), Readings::default());
        let _ = gated.read().await;
        let mut change = pin!(gated.changed());
        assert!(is_pending(&mut change).await);
        // The set-up has the gate until the watch stands.
        drop(gated.gate.acquire().await.unwrap());
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(is_pending(&mut change).await);
        }
        fs::write(&path, "the second").unwrap();
        change.await;
    }

    #[tokio::test]
    async fn what_cannot_be_watched_never_changes() {
        let gated = Gated::new(
            Arc::new(Source::credential(crate::config::CredentialName::parse("bloom").unwrap(), None)),
            Readings::default(),
        );
        let mut change = pin!(gated.changed());
        assert!(is_pending(&mut change).await);
        drop(gated.gate.acquire().await.unwrap());
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(is_pending(&mut change).await);
        }
    }

    #[test]
    fn nothing_is_watched_before_the_first_poll_or_after_the_drop() {
        let inotifies = || {
            let target = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.unwrap().path()).ok();
            let targets = fs::read_dir("/proc/self/fd").unwrap().filter_map(target);
            targets.filter(|target| target.as_os_str() == "anon_inode:inotify").count()
        };
        let name = "source::gated::tests::nothing_is_watched_before_the_first_poll_or_after_the_drop";
        trial::in_own_process(name, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let source = Arc::new(Source::file(directory.path().join("secret")));
                let gated = Gated::new(source, Readings::default());
                let mut change = Box::pin(gated.changed());
                assert_eq!(inotifies(), 0);
                assert!(is_pending(&mut change).await);
                drop(gated.gate.acquire().await.unwrap());
                assert_eq!(inotifies(), 1);
                drop(change);
                // Where the call came back unheard, its runtime drops the watch.
                while inotifies() > 0 {
                    tokio::task::yield_now().await;
                }
            });
        });
    }
}
