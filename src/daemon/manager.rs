//! What the service manager hears of the agent, and when (sd_notify(3)): ready, reloading, how it does, and that it is alive.
//!
//! - The watchdog's sign is earned: every loop that does the work (the accept loop, the daemon's own, each rotator) must
//!   answer a pulse first. One that does not leads to a restart, with every token kept.
//! - One task, on a manager only. It wakes when something changes, and twice in a watchdog's period; for nothing else.
//! - A manager that does not read holds nobody up but this task.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use async_stream::stream;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_stream::{Stream, StreamExt as _, StreamMap};

use super::{
    control::Asked,
    status_line::{Besides, Standing, status_line},
};
use crate::{
    clock::Clock,
    config::Ready,
    server::Phase,
    service::snapshot::{Profile, Snapshot},
    systemd::{Notifier, State},
    token::ProfileName,
};

/// Changes that come together are told together.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a manager that does not read is left alone.
const UNREAD: Duration = Duration::from_millis(100);
/// A round of pulses that was not answered is tried again after so long.
const AGAIN: Duration = Duration::from_secs(1);
/// While there is no first token the manager's patience is asked for anew this often, and for twice as long.
const EXTEND: Duration = Duration::from_secs(15);

/// The reloads so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reloads {
    /// Begun.
    pub(super) began: u64,
    /// Of them, done.
    pub(super) ended: u64,
    /// How many faults the last one was refused for; none if it was put in force.
    pub(super) refused: Option<usize>,
}

/// Whoever answers a pulse is alive.
pub(super) type Beat = oneshot::Sender<()>;

/// What the task works by.
pub(super) struct Reporter {
    pub(super) notifier: Notifier,
    /// The manager's patience, if it has a watchdog.
    pub(super) watchdog: Option<Duration>,
    /// When the agent counts as ready.
    pub(super) ready: Ready,
    pub(super) config: watch::Receiver<Arc<Snapshot>>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) reloads: watch::Receiver<Reloads>,
    pub(super) clock: Arc<dyn Clock>,
    /// The accept loops.
    pub(super) accepting: Vec<mpsc::Sender<Beat>>,
    /// The daemon's loop.
    pub(super) daemon: mpsc::Sender<Asked>,
}

type Changes = StreamMap<ProfileName, std::pin::Pin<Box<dyn Stream<Item = ()> + Send>>>;

/// What the manager has been told so far.
#[derive(Default)]
struct Told {
    is_ready: bool,
    line: String,
    reloads: Reloads,
    /// It could not be told something, and the log knows.
    complained: bool,
}

impl Reporter {
    /// Tells, until it is aborted.
    pub(super) async fn run(mut self) -> Infallible {
        let mut told = Told::default();
        let mut changes = changes(&self.config.borrow_and_update());
        let half = self.watchdog.map(|patience| patience / 2);
        let mut sign = half.map(|half| tokio::time::Instant::now() + half);
        let mut extend = tokio::time::Instant::now();
        loop {
            if *self.phase.borrow() == Phase::Draining {
                // The last word is the daemon's.
                std::future::pending::<()>().await;
            }
            self.catch_up(&mut told).await;
            if !told.is_ready && extend <= tokio::time::Instant::now() {
                extend = tokio::time::Instant::now() + EXTEND;
                self.tell(&mut told, &[State::ExtendTimeout(2 * EXTEND)]).await;
            }
            tokio::select! {
                Ok(()) = self.phase.changed() => {}
                Ok(()) = self.reloads.changed() => {}
                Ok(()) = self.config.changed() => changes = self::changes(&self.config.borrow_and_update()),
                Some(_) = changes.next() => sleep(SETTLE).await,
                () = sleep_until(extend), if !told.is_ready => {}
                () = until(sign) => {
                    let next = match self.pulses(half.unwrap_or(AGAIN) / 2).await {
                        Ok(()) => {
                            self.tell(&mut told, &[State::Watchdog]).await;
                            half.unwrap_or(AGAIN)
                        }
                        Err(silent) => {
                            tracing::error!(%silent, "a part of the agent does not answer; if that stays, the watchdog restarts it");
                            AGAIN.min(half.unwrap_or(AGAIN))
                        }
                    };
                    sign = Some(tokio::time::Instant::now() + next);
                }
            }
        }
    }

    /// Tells what has changed since.
    async fn catch_up(&self, told: &mut Told) {
        let snapshot = Arc::clone(&self.config.borrow());
        let reloads = *self.reloads.borrow();
        if told.is_ready && reloads.began > told.reloads.began {
            self.tell(told, &[State::Reloading]).await;
        }
        let now = self.clock.now();
        let standings: Vec<_> =
            snapshot.profiles.values().map(|profile| standing(profile, now.boot)).collect();
        let line = status_line(&standings, Besides { refused_reload: reloads.refused }, now);
        let became_ready = !told.is_ready && self.is_ready(&snapshot);
        let has_reloaded =
            told.is_ready && reloads.ended == reloads.began && reloads.ended > told.reloads.ended;
        let mut states = Vec::new();
        if became_ready || has_reloaded {
            states.push(State::Ready);
        }
        if told.line != line {
            states.push(State::Status(&line));
        }
        if !states.is_empty() {
            self.tell(told, &states).await;
        }
        told.is_ready |= became_ready;
        told.reloads = if told.is_ready && reloads.ended == reloads.began {
            reloads
        } else {
            Reloads { ended: told.reloads.ended, ..reloads }
        };
        told.line = line;
    }

    fn is_ready(&self, snapshot: &Snapshot) -> bool {
        // Not by when one expires: a restart tells that of a token that the last process had, and that nobody has now.
        let now = self.clock.now().boot;
        let has_token = |profile: &Arc<Profile>| profile.reader.current(profile.identity, now).is_some();
        match self.ready {
            Ready::Listening => true,
            Ready::Tokens => snapshot.profiles.values().all(has_token),
        }
    }

    /// Every loop that does the work answers within `patience`, or the name of the first that does not.
    async fn pulses(&self, patience: Duration) -> Result<(), String> {
        let until = tokio::time::Instant::now() + patience;
        let within = |what: String, answer: oneshot::Receiver<()>| async move {
            match timeout_at(until, answer).await {
                Ok(Ok(())) => Ok(()),
                _ => Err(what),
            }
        };
        for accepting in &self.accepting {
            let (beat, answer) = oneshot::channel();
            // A full queue is one that nobody empties.
            let _unsent = accepting.try_send(beat);
            within("accept loop".to_owned(), answer).await?;
        }
        let (beat, answer) = oneshot::channel();
        let asked = timeout(patience, self.daemon.send(Asked::Pulse(beat))).await;
        if !matches!(asked, Ok(Ok(()))) {
            return Err("daemon".to_owned());
        }
        within("daemon".to_owned(), answer).await?;
        let snapshot = Arc::clone(&self.config.borrow());
        for (name, profile) in &snapshot.profiles {
            let answered = timeout_at(until, profile.rotator.pulse()).await;
            if !matches!(answered, Ok(Ok(()))) {
                return Err(format!("rotator of {name}"));
            }
        }
        Ok(())
    }

    /// Tells it, however long it does not read. What else goes wrong is logged once.
    async fn tell(&self, told: &mut Told, states: &[State<'_>]) {
        loop {
            match self.notifier.tell(states) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(UNREAD).await,
                Err(error) => {
                    if !std::mem::replace(&mut told.complained, true) {
                        tracing::warn!(%error, "the service manager cannot be told how the agent does");
                    }
                    return;
                }
            }
        }
    }
}

fn standing(profile: &Profile, now: crate::clock::Timestamp) -> Standing {
    let attempts = profile.reader.attempts();
    let is_of_it = attempts.identity == profile.identity;
    let failure = attempts.last_failure.as_deref().filter(|_| is_of_it);
    Standing {
        name: profile.name.clone(),
        health: profile.reader.health(profile.identity, now),
        failure: failure.map(|(failure, _)| failure.clone()),
        next: match attempts.phase {
            crate::store::Phase::InFlight => None,
            crate::store::Phase::Idle { next } => Some(next),
        },
    }
}

fn changes(snapshot: &Snapshot) -> Changes {
    let each = snapshot.profiles.iter().map(|(name, profile)| {
        let mut reader = profile.reader.clone();
        let changes = stream! {
            while reader.changed().await.is_ok() {
                yield ();
            }
        };
        let changes: std::pin::Pin<Box<dyn Stream<Item = ()> + Send>> = Box::pin(changes);
        (name.clone(), changes)
    });
    each.collect()
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::net::UnixDatagram as Bound};

    use tokio::net::UnixDatagram;

    use super::*;
    use crate::{
        access::{AccessRules, Directory, Policy, RootAccess, Rules},
        clock::Now,
        obtain::{Attempt, Obtain},
        refresh,
        rotator::{self, Handle, Rotator, Task},
        store::{self, Identity, Reader},
        timer::ManualTime,
        token::{Generation, Life, LifeSource},
    };

    struct Never;

    impl Obtain for Never {
        fn obtain(&self) -> Attempt<'_> {
            Box::pin(std::future::pending())
        }
    }

    /// A manager, and an agent of one profile whose loops answer when the test says so.
    struct World {
        _directory: tempfile::TempDir,
        manager: UnixDatagram,
        accepting: mpsc::Receiver<Beat>,
        daemon: mpsc::Receiver<Asked>,
        rotator: Option<Rotator>,
        _config: watch::Sender<Arc<Snapshot>>,
        _phase: watch::Sender<Phase>,
        reloads: watch::Sender<Reloads>,
        running: tokio::task::JoinSet<Infallible>,
    }

    fn rotator() -> (Rotator, Handle, Reader) {
        let time = ManualTime::default();
        let (publisher, reader) = store::cell(Identity(1), time.now());
        let task = Task {
            name: ProfileName::parse("bloom").unwrap(),
            identity: Identity(1),
            policy: refresh::Policy::default(),
            audience: None,
            obtain: Arc::new(Never),
            secret_changes: None,
            preserve: None,
            frame: Arc::new(|token| token),
        };
        let (rotator, handle) = rotator::rotator(task, Arc::new(time), publisher, 1).unwrap();
        (rotator, handle, reader)
    }

    impl World {
        fn start(watchdog: Option<Duration>, ready: Ready) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("notify");
            let manager = Bound::bind(&path).unwrap();
            manager.set_nonblocking(true).unwrap();
            let (rotator, handle, reader) = rotator();
            let name = ProfileName::parse("bloom").unwrap();
            let profile = Profile {
                name: name.clone(),
                identity: Identity(1),
                allow: vec![],
                scopes: vec![],
                audience: None,
                token_url: "".into(),
                secret_source: "".into(),
                reader,
                rotator: handle,
            };
            let policy = Policy {
                root: RootAccess::Always,
                own_uid: 7,
                admin: vec![],
                directory: Arc::new(Directory::default()),
                unit_slices: vec![],
            };
            let access = AccessRules::new(policy, BTreeMap::from([(name.clone(), Rules::OwnerOnly)]));
            let (config, config_seen) = watch::channel(Arc::new(Snapshot {
                version: 1,
                configured_at: crate::clock::WallTime::default(),
                access,
                profiles: BTreeMap::from([(name, Arc::new(profile))]),
            }));
            let (phase, phase_seen) = watch::channel(Phase::Serving);
            let (reloads, reloads_seen) = watch::channel(Reloads::default());
            let (accepting, pulses) = mpsc::channel(1);
            let (asked, daemon) = mpsc::channel(16);
            let reporter = Reporter {
                notifier: Notifier::to(path.to_str().unwrap()).unwrap(),
                watchdog,
                ready,
                config: config_seen,
                phase: phase_seen,
                reloads: reloads_seen,
                clock: Arc::new(ManualTime::default()),
                accepting: vec![accepting],
                daemon: asked,
            };
            let mut running = tokio::task::JoinSet::new();
            running.spawn(reporter.run());
            Self {
                _directory: directory,
                manager: UnixDatagram::from_std(manager).unwrap(),
                accepting: pulses,
                daemon,
                rotator: Some(rotator),
                _config: config,
                _phase: phase,
                reloads,
                running,
            }
        }

        async fn hear(&self) -> String {
            hear(&self.manager).await
        }
    }

    async fn hear(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 2048];
        let length = manager.recv(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_does_not_wait_for_a_provider_and_a_reload_is_told_from_begin_to_end() {
        let world = World::start(None, Ready::Listening);
        assert_eq!(world.hear().await, "READY=1\nSTATUS=0 of 1 tokens valid; bloom is being fetched");
        world.reloads.send_modify(|reloads| reloads.began = 1);
        assert!(world.hear().await.starts_with("RELOADING=1\nMONOTONIC_USEC="));
        world.reloads.send_replace(Reloads { began: 1, ended: 1, refused: Some(1) });
        let line = "STATUS=0 of 1 tokens valid; bloom is being fetched; the last reload was refused: 1 fault, see \
                    bloom-agent check";
        assert_eq!(world.hear().await, format!("READY=1\n{line}"));
        // Begun and done before the task could look, and one more asked for meanwhile.
        world.reloads.send_replace(Reloads { began: 3, ended: 2, refused: None });
        assert!(world.hear().await.starts_with("RELOADING=1"));
        assert_eq!(world.hear().await, "STATUS=0 of 1 tokens valid; bloom is being fetched");
        world.reloads.send_replace(Reloads { began: 3, ended: 3, refused: None });
        assert_eq!(world.hear().await, "READY=1");
    }

    #[tokio::test(start_paused = true)]
    async fn where_tokens_are_waited_for_the_managers_patience_is_asked_for() {
        let world = World::start(None, Ready::Tokens);
        assert_eq!(world.hear().await, "STATUS=0 of 1 tokens valid; bloom is being fetched");
        assert_eq!(world.hear().await, "EXTEND_TIMEOUT_USEC=30000000");
        // A reload meanwhile is not what makes it ready.
        world.reloads.send_replace(Reloads { began: 1, ended: 1, refused: Some(2) });
        assert!(
            world.hear().await.starts_with("STATUS=0 of 1 tokens valid; bloom is being fetched; the last")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_expired_before_the_restart_makes_nobody_ready() {
        let mut world = World::start(None, Ready::Tokens);
        assert!(world.hear().await.starts_with("STATUS=0 of 1 tokens valid"));
        assert!(world.hear().await.starts_with("EXTEND_TIMEOUT_USEC="));
        let expired =
            Life { requested: Now::default(), length: Duration::ZERO, source: LifeSource::Provider };
        let mut rotator = world.rotator.take().unwrap();
        let held = refresh::Held {
            generation: Generation::from_u64(7),
            life: expired,
            draw: refresh::schedule::Draw::restored(0.0).unwrap(),
            reported: false,
        };
        let standing = refresh::Standing {
            generation: Some(held.generation),
            held: Some(held),
            ..refresh::Standing::default()
        };
        let state =
            rotator::State { identity: Identity(1), standing, token: None, failure: None, secret: None };
        rotator.restore(state, rotator::Settings::Same);
        // The readers have heard of it; what the manager hears next is a plea for more time.
        assert_eq!(world.hear().await, "EXTEND_TIMEOUT_USEC=30000000");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_of_life_is_earned_by_every_loop() {
        // So short that its half is over soon, and so long that a busy machine answers in a quarter.
        let mut world = World::start(Some(Duration::from_secs(2)), Ready::Listening);
        assert!(world.hear().await.starts_with("READY=1"));
        // The accept loop does not answer, then the daemon's does not, then the rotator.
        drop(world.accepting.recv().await.unwrap());
        world.accepting.recv().await.unwrap().send(()).unwrap();
        let Asked::Pulse(beat) = world.daemon.recv().await.unwrap() else { panic!("a pulse") };
        drop(beat);
        world.accepting.recv().await.unwrap().send(()).unwrap();
        let Asked::Pulse(beat) = world.daemon.recv().await.unwrap() else { panic!("a pulse") };
        beat.send(()).unwrap();
        // Nobody runs it; the next round begins when that one is given up.
        world.accepting.recv().await.unwrap().send(()).unwrap();
        let Asked::Pulse(beat) = world.daemon.recv().await.unwrap() else { panic!("a pulse") };
        let early = world.manager.try_recv(&mut [0; 64]).expect_err("no sign so far");
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        // From here on it runs, and its answers are all that was missing.
        let World {
            manager,
            mut accepting,
            mut daemon,
            rotator,
            mut running,
            _config,
            _phase,
            reloads: _reloads,
            ..
        } = world;
        let mut rotating = tokio::task::JoinSet::new();
        rotating.spawn(rotator.unwrap().run());
        beat.send(()).unwrap();
        let sign = loop {
            tokio::select! {
                heard = hear(&manager) => {
                    if !heard.starts_with("STATUS=") {
                        break heard;
                    }
                }
                // A round that came before the rotator ran is followed by others.
                Some(beat) = accepting.recv() => { let _late = beat.send(()); }
                Some(Asked::Pulse(beat)) = daemon.recv() => { let _late = beat.send(()); }
            }
        };
        assert_eq!(sign, "WATCHDOG=1");
        assert!(running.try_join_next().is_none());
    }
}
