//! The task of one token: drives [`crate::refresh::Refresh`], and has no rule of its own.
//!
//! - It alone holds the profile's [`Publisher`]. The token is published first and the attempts after it, so whoever sees an
//!   attempt settled finds its token there.
//! - It holds one request at most, as a future of its own: nobody else can start one, and no caller can cancel it.
//! - It ends when it is told to, when the last [`Handle`] is gone, when the kernel takes its clock away, or with a panic of
//!   [`crate::obtain::Obtain`]. Its readers then see [`crate::store::Closed`]; whoever runs it must look at how it ended.
//! - What it knows is given to [`Preserve`] before each attempt and after it, so that neither a restart nor a crash costs a
//!   request.
//! - No token is ever logged. A failure that repeats itself is logged rarely (`journal`).

mod handle;
mod journal;
mod preserve;
#[cfg(test)]
mod tests;

use std::{future::Future, io, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use self::{
    handle::Command,
    journal::{Journal, Loudness},
};
pub use self::{
    handle::{Changed, Changes, Frame, Handle, Task},
    preserve::{Preserve, Settings, State},
};
use crate::{
    clock::{Now, Timestamp, WallTime},
    failure::{Failure, FailureKind, Schedule},
    obtain::{Obtained, Outcome},
    refresh::{Action, Adoption, Grant, Novelty, Refresh, Standing},
    store::{Attempts, Phase, Publisher},
    stored::Mark,
    timer::{Alarm, Time},
    token::{Generation, Reply, Token},
};

/// Makes the task of one token and the handle to it. `publisher` is a fresh cell's, of the same identity; `seed` is what its
/// jitter is drawn from. Fails where the host has no timer left.
pub fn rotator(
    task: Task,
    time: Arc<dyn Time>,
    publisher: Publisher,
    seed: u64,
) -> io::Result<(Rotator, Handle)> {
    // Small: those who ask wait for their answer anyway.
    let (sender, commands) = mpsc::channel(16);
    let machine = Refresh::new(task.policy, time.now().boot, seed);
    let rotator = Rotator {
        alarm: time.alarm()?,
        steps: time.wall_steps(),
        time,
        machine,
        publisher,
        commands,
        served: None,
        flight: None,
        secret_changed: None,
        noticed: None,
        requests: 0,
        last_failure: None,
        expires: None,
        mark: None,
        since: None,
        told: None,
        journal: Journal::default(),
        task,
    };
    Ok((rotator, Handle { commands: sender }))
}

enum Event {
    Ended(Outcome),
    SecretChanged,
    Stepped,
    Timeout,
    Command(Command),
}

/// The task of one token. See the module.
pub struct Rotator {
    task: Task,
    time: Arc<dyn Time>,
    alarm: Box<dyn Alarm>,
    steps: watch::Receiver<u64>,
    machine: Refresh,
    publisher: Publisher,
    commands: mpsc::Receiver<Command>,
    served: Option<Arc<Token>>,
    flight: Option<Pin<Box<dyn Future<Output = Outcome> + Send>>>,
    secret_changed: Option<Changed<'static>>,
    /// After which attempt a change of the secret was last noticed: it is listened for again after the next.
    noticed: Option<u64>,
    requests: u64,
    last_failure: Option<Arc<(Failure, Now)>>,
    expires: Option<WallTime>,
    /// The secrets that the last attempt was refused with, or could not read.
    mark: Option<Mark>,
    /// The same of the process before this one, until an attempt of our own has settled.
    since: Option<Mark>,
    /// What the readers were told last: they are not woken to hear it again.
    told: Option<Attempts>,
    journal: Journal,
}

impl Rotator {
    /// Takes a token over that was obtained elsewhere for this task's identity, its life told on this boot's clock. Before
    /// [`Self::run`], so that it saves the first request.
    pub fn adopt(&mut self, token: Arc<Token>) -> Adoption {
        let adoption = self.machine.handle_adopted(self.time.now(), token.generation, &token.life);
        if adoption == Adoption::Served {
            self.take_over(token);
            self.tell();
        }
        adoption
    }

    /// Goes on where the process before this one was, for the same identity. Before [`Self::run`].
    pub fn restore(&mut self, state: State, settings: Settings) {
        let State { identity: _, standing, token, failure, secret } = state;
        let now = self.time.now();
        // What has expired meanwhile is told of, and not served.
        self.expires = standing.held.map(|held| held.life.expires_wall());
        if let (Adoption::Served, Some(token)) = (self.machine.handle_restored(now, standing), token) {
            self.take_over(token);
        }
        (self.last_failure, self.mark, self.since) = (failure, secret, secret);
        if settings == Settings::Changed {
            self.machine.handle_mended(now.boot);
        }
        let failures = self.machine.consecutive_failures();
        if let (true, Some(next)) = (failures > 0, self.machine.next_attempt()) {
            let next = now.wall + next.since(now.boot);
            let text = self.last_failure.as_ref().map_or("the last attempt was cut off", |last| &last.0.text);
            tracing::info!(
                profile = %self.task.name, failures, next = %next,
                "goes on where it was before the restart, without a new token: {text}"
            );
        }
        self.tell();
    }

    fn take_over(&mut self, token: Arc<Token>) {
        let token = if token.reply.is_made() {
            token
        } else {
            Arc::new((self.task.frame)(Arc::unwrap_or_clone(token)))
        };
        tracing::info!(
            profile = %self.task.name, generation = %token.generation, expires = %token.life.expires_wall(),
            "took a token over"
        );
        self.publisher.publish(self.task.identity, Arc::clone(&token));
        self.expires = Some(token.life.expires_wall());
        self.served = Some(token);
    }

    /// Takes the place of a rotator of the same profile that was lost by a fault of our own: with the token it `held`, and
    /// after as many failures as it had and one more. Before [`Self::run`].
    pub fn succeed(&mut self, lost: &Attempts, held: Option<Arc<Token>>) {
        if let Some(held) = held {
            // One whose life is over meanwhile is not served; then there is none.
            let _adoption = self.adopt(held);
        }
        let is_same = lost.identity == self.task.identity;
        let (failures, next) = match lost.phase {
            _ if !is_same => (0, None),
            Phase::InFlight => (lost.consecutive_failures, None),
            Phase::Idle { next } => (lost.consecutive_failures, Some(next)),
        };
        self.machine.handle_lost(self.time.now().boot, failures, next);
        self.requests = lost.requests;
        self.last_failure = lost.last_failure.clone().filter(|_| is_same);
        self.expires = self.expires.or(lost.expires.filter(|_| is_same));
        self.preserve();
        self.tell();
    }

    /// Keeps the token fresh until it is told to stop, or nobody holds a handle any more. An error is the kernel's, about
    /// the timer; a panic of [`crate::obtain::Obtain`] comes through.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            self.act();
            self.publisher.ring().await;
            match self.next_event().await? {
                Some(Event::Ended(outcome)) => self.settle(outcome),
                Some(Event::SecretChanged) => {
                    self.noticed = Some(self.machine.settled());
                    self.machine.handle_mended(self.time.now().boot);
                }
                Some(Event::Stepped) => self.machine.handle_wall_step(self.time.now()),
                Some(Event::Timeout) => {}
                Some(Event::Command(Command::Demand(demand, reply))) => {
                    let answer = self.machine.handle_demand(self.time.now().boot, demand);
                    // A caller that went away has changed its mind about the answer only.
                    let _gone = reply.send(answer);
                }
                Some(Event::Command(Command::Reconfigure(task, done))) => {
                    self.reconfigure(*task);
                    let _gone = done.send(());
                }
                Some(Event::Command(Command::Pulse(beat))) => {
                    let _gone = beat.send(());
                }
                Some(Event::Command(Command::Stop)) | None => return Ok(()),
            }
        }
    }

    /// Waits for what comes first; none when nobody holds a handle any more.
    async fn next_event(&mut self) -> io::Result<Option<Event>> {
        let timeout = self.machine.poll_timeout();
        // Commands come last: a flood of demands holds up neither an outcome nor an expiry.
        tokio::select! {
            biased;
            outcome = of(&mut self.flight) => Ok(Some(Event::Ended(outcome))),
            slept = async {
                match timeout {
                    Some(at) => self.alarm.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => slept.map(|()| Some(Event::Timeout)),
            () = async {
                // Nobody tells of steps any more when the clock's owner is gone: the boot clock decides anyway.
                if self.steps.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            } => Ok(Some(Event::Stepped)),
            () = of(&mut self.secret_changed) => Ok(Some(Event::SecretChanged)),
            command = self.commands.recv() => Ok(command.map(Event::Command)),
        }
    }

    /// Does what the machine says, and tells the readers.
    fn act(&mut self) {
        let now = self.time.now();
        self.machine.handle_timeout(now.boot);
        while let Some(action) = self.machine.poll_action(now.boot) {
            match action {
                Action::Expire => {
                    tracing::warn!(profile = %self.task.name, "the token has expired, and there is no newer one");
                    self.publisher.withdraw();
                    self.served = None;
                }
                Action::Fetch => {
                    self.preserve_as_cut(now.boot);
                    let obtain = Arc::clone(&self.task.obtain);
                    self.flight = Some(Box::pin(async move { obtain.obtain().await }));
                }
            }
        }
        self.listen_for_the_secret();
        self.tell();
    }

    fn listen_for_the_secret(&mut self) {
        if !self.machine.is_refused() || self.noticed == Some(self.machine.settled()) {
            self.secret_changed = None;
        } else if self.secret_changed.is_none() {
            let since = self.since;
            self.secret_changed = self.task.secret_changes.clone().map(|changes| -> Changed<'static> {
                Box::pin(async move {
                    match since {
                        Some(mark) => changes.changed_since(mark).await,
                        None => changes.changed().await,
                    }
                })
            });
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        self.flight = None;
        self.requests += u64::from(outcome.requests);
        (self.mark, self.since) = (outcome.refused, None);
        let now = self.time.now();
        match outcome.result {
            Ok(obtained) => self.granted(now, obtained),
            Err(failure) => {
                self.machine.handle_failed(now.boot, &failure);
                self.failed(now, failure);
            }
        }
        self.preserve();
    }

    /// Before the attempt, its state if nobody sees the outcome: a process that dies of its attempts, and is started again
    /// and again, asks the provider no more often than one that fails.
    fn preserve_as_cut(&mut self, now: Timestamp) {
        if self.task.preserve.is_some() {
            let standing = self.machine.standing_if_cut(now);
            self.preserve_standing(standing);
        }
    }

    fn preserve(&self) {
        self.preserve_standing(self.machine.standing());
    }

    fn preserve_standing(&self, standing: Standing) {
        let Some(preserve) = &self.task.preserve else { return };
        // The machine may know of an expiry, or of a success, that is still to be acted on.
        let state = State {
            identity: self.task.identity,
            standing,
            token: self.served.clone().filter(|_| standing.held.is_some()),
            failure: self.last_failure.clone().filter(|_| standing.failing.is_some()),
            secret: self.mark,
        };
        preserve.preserve(&self.task.name, state);
    }

    fn granted(&mut self, now: Now, obtained: Obtained) {
        let held = self.served.as_ref().filter(|token| token.access_token == obtained.access_token);
        let novelty = if held.is_some() { Novelty::Same } else { Novelty::New };
        match self.machine.handle_granted(now, &obtained.life, novelty) {
            Grant::Rotated(generation) => {
                let token = self.serve(generation, obtained);
                tracing::info!(
                    profile = %self.task.name, generation = %generation, expires = %token.life.expires_wall(),
                    "a new token"
                );
                self.publisher.publish(self.task.identity, token);
            }
            Grant::Prolonged(generation) => {
                let token = self.serve(generation, obtained);
                tracing::info!(
                    profile = %self.task.name, generation = %generation, expires = %token.life.expires_wall(),
                    "the provider gave the same token again"
                );
                self.publisher.prolong(self.task.identity, token);
            }
            Grant::Late => {
                let life = obtained.life.length;
                let took = now.boot.since(obtained.life.requested.boot);
                return self.failed(now, late(life, took));
            }
        }
        self.last_failure = None;
        if let Some(failures) = self.journal.recovered() {
            tracing::info!(profile = %self.task.name, failures, "recovered: the provider gives tokens again");
        }
    }

    fn serve(&mut self, generation: Generation, obtained: Obtained) -> Arc<Token> {
        let Obtained { access_token, scopes, life } = obtained;
        if self.journal.is_first_short_life(life.length, self.task.policy.floor()) {
            tracing::warn!(
                profile = %self.task.name, seconds = life.length.as_secs(),
                "the provider's tokens live for a very short time; there may be gaps between them"
            );
        }
        let token = Arc::new((self.task.frame)(Token {
            name: self.task.name.clone(),
            generation,
            access_token,
            scopes,
            audience: self.task.audience.clone(),
            life,
            reply: Reply::default(),
        }));
        self.expires = Some(token.life.expires_wall());
        self.served = Some(Arc::clone(&token));
        token
    }

    fn failed(&mut self, now: Now, failure: Failure) {
        let failures = self.machine.consecutive_failures();
        let next = self.machine.next_attempt().map(|next| now.wall + next.since(now.boot));
        let next = next.unwrap_or(now.wall);
        let (name, text) = (&self.task.name, &failure.text);
        match self.journal.failed(now.boot, &failure) {
            Loudness::Loud => {
                tracing::warn!(profile = %name, failures, next = %next, "no new token: {text}");
            }
            Loudness::Quiet => {
                tracing::debug!(profile = %name, failures, next = %next, "no new token: {text}");
            }
        }
        self.last_failure = Some(Arc::new((failure, now)));
    }

    fn reconfigure(&mut self, task: Task) {
        let now = self.time.now();
        let is_other = task.identity != self.task.identity;
        self.task = task;
        // Of the old source, in any case.
        (self.secret_changed, self.noticed, self.mark, self.since) = (None, None, None, None);
        if is_other {
            self.publisher.withdraw();
            (self.served, self.flight, self.last_failure, self.expires) = (None, None, None, None);
            self.journal = Journal::default();
            self.machine.handle_identity(now.boot, self.task.policy);
        } else {
            self.machine.handle_policy(now, self.task.policy);
            self.machine.handle_mended(now.boot);
        }
    }

    fn tell(&mut self) {
        let attempts = Attempts {
            identity: self.task.identity,
            phase: self.machine.next_attempt().map_or(Phase::InFlight, |next| Phase::Idle { next }),
            settled: self.machine.settled(),
            requests: self.requests,
            consecutive_failures: self.machine.consecutive_failures(),
            last_failure: self.last_failure.clone(),
            expires: self.expires,
        };
        if self.told.as_ref() != Some(&attempts) {
            self.told = Some(attempts.clone());
            self.publisher.attempts(|told| *told = attempts);
        }
    }
}

/// Whoever ends it in the middle of an attempt never sees the outcome; the next process is to know that there was one. A
/// panic is not an end: [`Rotator::succeed`] takes its place.
impl Drop for Rotator {
    fn drop(&mut self) {
        if self.flight.is_some() && !std::thread::panicking() {
            self.machine.handle_cut(self.time.now().boot);
            self.preserve();
        }
    }
}

/// The slot's future, or never.
async fn of<T>(slot: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn late(life: Duration, took: Duration) -> Failure {
    let (life, took) = (life.as_secs(), took.as_secs());
    let text = format!(
        "the token had expired when it arrived: it lives for {life} s, and the exchange took {took} s; \
         ask the provider for longer lives, or look at the network"
    );
    Failure {
        kind: FailureKind::ProviderError,
        schedule: Schedule::Transient,
        retry_after: None,
        code: None,
        text: text.into(),
    }
}
