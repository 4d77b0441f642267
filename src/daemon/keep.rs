//! Keeps each profile's last state where the service manager lets it outlive us: in its file descriptor store
//! (systemd.service(5), FileDescriptorStoreMax=), as a sealed memfd, never on a disk.
//!
//! - One record per profile. The new one is given first, then the old one is removed by its name: whenever we are killed,
//!   one of them is there.
//! - Nobody waits for the manager. What it does not take now is tried again, the newest state of each profile only.
//! - What is found at the start is read, judged and closed. What is not taken over is removed, with one line in the log.
//! - Without a manager nothing is made at all.

mod found;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, task::yield_now};

pub use self::found::Found;
use super::profile::Built;
use crate::{
    locked::LockedPages,
    metrics::Metrics,
    rotator::{Preserve, Settings, State},
    sealed,
    store::Identity,
    stored::{BootId, Digest, Mark, Record, RecordName, StoredToken, TooLarge},
    systemd::Notifier,
    timer::{Alarm, Time},
    token::{ProfileName, Reply, Token},
};

/// The gauge's word.
const WHAT: &str = "fdstore";
/// After the first failure to tell the manager; it doubles to [`LONGEST_GAP`].
const FIRST_GAP: Duration = Duration::from_millis(100);
/// The longest time between two tries.
const LONGEST_GAP: Duration = Duration::from_secs(60);
/// After so many tries in vain it is said.
const PATIENCE: u32 = 5;
/// At the end there is so much time, in steps of [`LAST_STEP`].
const LAST_STEPS: u32 = 20;
/// See [`LAST_STEPS`].
const LAST_STEP: Duration = Duration::from_millis(50);

/// Gives states to the manager, and takes those over that it has kept. See the module.
pub(super) struct Keeper {
    notifier: Notifier,
    boot: Option<BootId>,
    most: usize,
    time: Arc<dyn Time>,
    metrics: Arc<Metrics>,
    work: Notify,
    desk: Mutex<Desk>,
}

/// What there is to do, and what the manager has.
#[derive(Default)]
struct Desk {
    profiles: BTreeMap<ProfileName, Entry>,
    /// To be removed from the store.
    stale: Vec<String>,
    /// Read at the start, and not yet asked for.
    found: Vec<Record>,
    /// Tries in vain since the last success, and why the last one was.
    in_vain: u32,
    why: String,
    said: Said,
}

/// What was logged once.
#[derive(Default)]
struct Said {
    full: bool,
    too_large: bool,
    degraded: bool,
}

/// One profile.
struct Entry {
    identity: Identity,
    digest: Digest,
    settings: Digest,
    /// The number of the last record.
    last: u64,
    stored: Option<RecordName>,
    /// The newest state, until it is stored.
    pending: Option<State>,
    unkept: Option<Unkept>,
}

/// Why a profile has no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unkept {
    NoRoom,
    TooLarge,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There may be more to do.
    Done,
    /// There is nothing to do.
    Idle,
    /// The manager, or the kernel, does not take it now.
    InVain,
}

impl Keeper {
    /// Reads and closes what was found. None without a manager.
    pub(super) fn new(
        found: Found,
        notifier: &Notifier,
        time: &Arc<dyn Time>,
        metrics: &Arc<Metrics>,
        pages: &LockedPages,
    ) -> Option<Arc<Self>> {
        if !notifier.is_there() {
            return None;
        }
        let (boot, most) = (found.boot, found.most);
        let found::Readings { records, unusable } = found.read(time.now().boot, pages);
        for (name, why) in &unusable {
            tracing::warn!(
                record = name.escape_debug().to_string(),
                "a stored token is not taken over: {why}"
            );
        }
        let desk = Desk {
            found: records,
            stale: unusable.into_iter().map(|(name, _)| name).collect(),
            ..Desk::default()
        };
        let keeper = Self {
            notifier: notifier.clone(),
            boot,
            most,
            time: Arc::clone(time),
            metrics: Arc::clone(metrics),
            work: Notify::new(),
            desk: Mutex::new(desk),
        };
        if boot.is_none() {
            tracing::warn!(
                "tokens will not survive a restart: the boot id of this host is not known; write \
                 Environment=BLOOM_AGENT_BOOT_ID=%b into the unit"
            );
            metrics.degrade(WHAT);
        }
        Some(Arc::new(keeper))
    }

    /// From now on the profile's states are kept, those of this identity only. What was found of it comes back, once.
    pub(super) fn follow(
        &self,
        profile: &ProfileName,
        identity: Identity,
        built: &Built,
    ) -> Option<(State, Settings)> {
        let (digest, settings) = (built.identity(), built.settings());
        let mut guard = self.desk();
        let desk = &mut *guard;
        let entry = desk.profiles.entry(profile.clone()).or_insert_with(|| Entry {
            identity,
            digest,
            settings,
            last: 0,
            stored: None,
            pending: None,
            unkept: None,
        });
        if entry.identity != identity {
            desk.stale.extend(entry.stored.take().map(|name| name.to_string()));
            (entry.pending, entry.unkept) = (None, None);
        }
        (entry.identity, entry.digest, entry.settings) = (identity, digest, settings);
        let mut records: Vec<_> =
            desk.found.extract_if(.., |record| record.name.profile == *profile).collect();
        records.sort_by_key(|record| record.name.number);
        entry.last = records.last().map_or(entry.last, |record| record.name.number);
        let mut newest = None;
        while let Some(record) = records.pop() {
            let why = match &newest {
                None if record.identity == digest => {
                    newest = Some(record);
                    continue;
                }
                None => "its profile asks for other tokens now",
                Some(_) => "there is a newer one",
            };
            drop_found(&mut desk.stale, &record, why);
        }
        let record = newest?;
        entry.stored = Some(record.name.clone());
        let is_same = record.settings.fits(&[Some(settings.as_bytes())]);
        let settings = if is_same { Settings::Same } else { Settings::Changed };
        drop(guard);
        self.work.notify_one();
        Some((state(record, identity, built.audience()), settings))
    }

    /// What was found and belongs to no profile goes.
    pub(super) fn settle_in(&self) {
        let mut guard = self.desk();
        let desk = &mut *guard;
        for record in desk.found.drain(..) {
            drop_found(&mut desk.stale, &record, "there is no such profile any more");
        }
        drop(guard);
        self.work.notify_one();
    }

    /// The profile is gone.
    pub(super) fn forget(&self, profile: &ProfileName) {
        let mut guard = self.desk();
        let desk = &mut *guard;
        if let Some(entry) = desk.profiles.remove(profile) {
            desk.stale.extend(entry.stored.map(|name| name.to_string()));
        }
        drop(guard);
        self.work.notify_one();
    }

    /// Does what there is to do, for ever.
    pub(super) async fn run(&self, mut alarm: Box<dyn Alarm>) -> Infallible {
        let mut gap = FIRST_GAP;
        loop {
            match self.step() {
                Step::Done => {
                    gap = FIRST_GAP;
                    // Each step is some system calls: others have their turn between two.
                    yield_now().await;
                }
                Step::Idle => self.work.notified().await,
                Step::InVain => {
                    let again = self.time.now().boot + gap;
                    gap = (gap * 2).min(LONGEST_GAP);
                    if alarm.sleep_until(again).await.is_err() {
                        // Without a clock the next state brings the next try.
                        self.work.notified().await;
                    }
                }
            }
        }
    }

    /// At the end: all that is still to be done, in a second at most.
    pub(super) async fn flush(&self) {
        let mut left = LAST_STEPS;
        loop {
            match self.step() {
                Step::Done => {}
                Step::Idle => return,
                Step::InVain if left == 0 => {
                    let why = self.desk().why.clone();
                    tracing::warn!("the manager was not given all tokens to keep: {why}");
                    return;
                }
                Step::InVain => {
                    left -= 1;
                    tokio::time::sleep(LAST_STEP).await;
                }
            }
        }
    }

    /// What the agent must do without, in words.
    pub(super) fn degraded(&self) -> Vec<String> {
        let desk = self.desk();
        let count = |why| desk.profiles.values().filter(|entry| entry.unkept == Some(why)).count();
        let mut lines = Vec::new();
        if self.boot.is_none() {
            lines.push(
                "tokens will not survive a restart: the boot id is not known; write \
                 Environment=BLOOM_AGENT_BOOT_ID=%b into the unit"
                    .to_owned(),
            );
            return lines;
        }
        if count(Unkept::NoRoom) > 0 {
            let (lost, room) = (count(Unkept::NoRoom), self.room());
            lines.push(format!(
                "the tokens of {lost} profiles will not survive a restart: the manager's store takes those of {room}; \
                 raise FileDescriptorStoreMax="
            ));
        }
        if count(Unkept::TooLarge) > 0 {
            let lost = count(Unkept::TooLarge);
            lines.push(format!("the tokens of {lost} profiles will not survive a restart: {TooLarge}"));
        }
        if desk.in_vain >= PATIENCE {
            lines.push(format!(
                "new tokens will not survive a restart: the manager does not take them: {}",
                desk.why
            ));
        }
        lines
    }

    /// How many profiles can have a record: one descriptor more is there while one of them is replaced.
    const fn room(&self) -> usize {
        self.most.saturating_sub(1)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thing. Removals come first, so that there is never more than one descriptor above one per profile.
    fn step(&self) -> Step {
        let mut guard = self.desk();
        let desk = &mut *guard;
        let done = match desk.stale.last() {
            Some(name) => self.notifier.remove(name).map(|()| {
                desk.stale.pop();
                Step::Done
            }),
            None => self.store_one(desk),
        };
        let step = done.unwrap_or_else(|why| {
            desk.in_vain = desk.in_vain.saturating_add(1);
            desk.why = why.to_string();
            if desk.in_vain == PATIENCE {
                tracing::warn!(
                    "new tokens will not survive a restart: the manager does not take them: {why}; it is tried again"
                );
            }
            Step::InVain
        });
        if step == Step::Done && std::mem::take(&mut desk.in_vain) >= PATIENCE {
            tracing::info!("the manager takes tokens again");
        }
        self.gauge(desk);
        step
    }

    fn store_one(&self, desk: &mut Desk) -> io::Result<Step> {
        let kept = desk.profiles.values().filter(|entry| entry.stored.is_some()).count();
        let waiting = desk.profiles.iter_mut().find(|(_, entry)| entry.pending.is_some());
        let Some((profile, entry)) = waiting else { return Ok(Step::Idle) };
        let (Some(state), Some(boot)) = (&entry.pending, self.boot) else {
            entry.pending = None;
            return Ok(Step::Done);
        };
        if entry.stored.is_none() && kept >= self.room() {
            (entry.pending, entry.unkept) = (None, Some(Unkept::NoRoom));
            if !std::mem::replace(&mut desk.said.full, true) {
                let room = self.room();
                tracing::warn!(
                    profile = %profile, room,
                    "the manager's store is full: tokens of further profiles will not survive a restart; raise \
                     FileDescriptorStoreMax="
                );
            }
            return Ok(Step::Done);
        }
        let number = number(entry.last, state);
        let name = RecordName { profile: profile.clone(), number };
        let Ok(bytes) = record(name.clone(), boot, entry, state).encode() else {
            // What the manager has is an older token.
            desk.stale.extend(entry.stored.take().map(|name| name.to_string()));
            (entry.pending, entry.unkept) = (None, Some(Unkept::TooLarge));
            if !std::mem::replace(&mut desk.said.too_large, true) {
                tracing::warn!(profile = %profile, "a token will not survive a restart: {TooLarge}");
            }
            return Ok(Step::Done);
        };
        let memory = sealed::seal(&bytes)?;
        self.notifier.store(&name.to_string(), memory.as_fd())?;
        entry.last = number;
        desk.stale.extend(entry.stored.replace(name).map(|old| old.to_string()));
        (entry.pending, entry.unkept) = (None, None);
        Ok(Step::Done)
    }

    fn gauge(&self, desk: &mut Desk) {
        let degraded = self.boot.is_none()
            || desk.in_vain >= PATIENCE
            || desk.profiles.values().any(|entry| entry.unkept.is_some());
        if degraded != desk.said.degraded {
            desk.said.degraded = degraded;
            if degraded {
                self.metrics.degrade(WHAT);
            } else {
                self.metrics.restore(WHAT);
            }
        }
    }
}

impl Preserve for Keeper {
    fn preserve(&self, profile: &ProfileName, state: State) {
        let mut desk = self.desk();
        // One of another identity comes from a rotator that has yet to hear of a reload.
        if let Some(entry) = desk.profiles.get_mut(profile).filter(|entry| entry.identity == state.identity) {
            entry.pending = Some(state);
            drop(desk);
            self.work.notify_one();
        }
    }
}

fn drop_found(stale: &mut Vec<String>, record: &Record, why: &'static str) {
    let name = record.name.to_string();
    tracing::info!(record = name, "a stored token is not taken over: {why}");
    stale.push(name);
}

/// The number of a new record after `last`: its token's generation, if that has no record yet.
fn number(last: u64, state: &State) -> u64 {
    let generation = state.standing.generation.map_or(0, crate::token::Generation::as_u64);
    generation.max(last.saturating_add(1))
}

fn record(name: RecordName, boot: BootId, entry: &Entry, state: &State) -> Record {
    Record {
        name,
        boot,
        identity: entry.digest,
        settings: Mark::of(rand::random(), &[Some(entry.settings.as_bytes())]),
        secret: state.secret,
        standing: state.standing,
        token: state.token.as_ref().map(|token| StoredToken {
            access_token: token.access_token.clone(),
            scopes: token.scopes.clone(),
        }),
        failure: state.failure.as_deref().cloned(),
    }
}

fn state(record: Record, identity: Identity, audience: Option<Box<str>>) -> State {
    let Record { name, secret, standing, token, failure, .. } = record;
    let token = token.zip(standing.held).map(|(StoredToken { access_token, scopes }, held)| {
        let (generation, life) = (held.generation, held.life);
        Arc::new(Token {
            name: name.profile,
            generation,
            access_token,
            scopes,
            audience,
            life,
            reply: Reply::default(),
        })
    });
    State { identity, standing, token, failure: failure.map(Arc::new), secret }
}
