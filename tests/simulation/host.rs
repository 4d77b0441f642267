//! The host: its clocks, timers, sleeps and steps. It knows three times: the real one, by which providers count; the boot
//! clock, which misses what a paused virtual machine misses; and the wall clock, which may say anything.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bloom_agent::{
    clock::{Clock, Now, Timestamp, WallTime},
    timer::{Alarm, Sleep, Time},
};
use tokio::sync::watch;

use super::dice::Dice;

/// Real time 0 on the wall, in ms.
const EPOCH: i64 = 1_700_000_000_000;

/// The host. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Host {
    state: Arc<Mutex<State>>,
    steps: Arc<watch::Sender<u64>>,
}

struct State {
    dice: Dice,
    real: Duration,
    /// What the boot clock does not show of it.
    unseen: Duration,
    wall_ahead_ms: i64,
    /// What the sleeper waits for.
    alarm: Option<Timestamp>,
    /// Until then (real) timers fire late, and by how much at most.
    late: (Duration, Duration),
}

impl Host {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let real = dice.between(Duration::from_secs(40), Duration::from_secs(86_400));
        let state = State {
            dice,
            real,
            unseen: Duration::ZERO,
            wall_ahead_ms: 0,
            alarm: None,
            late: (Duration::ZERO, Duration::ZERO),
        };
        Self { state: Arc::new(Mutex::new(state)), steps: Arc::new(watch::Sender::new(0)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn real(&self) -> Duration {
        self.state().real
    }

    /// Unix time in seconds, as the rest of the world has it.
    pub(crate) fn true_unix(&self) -> u64 {
        EPOCH.unsigned_abs() / 1_000 + self.real().as_secs()
    }

    /// The real time at which the boot clock shows `at`, if nothing is missed until then.
    pub(crate) fn real_of(&self, at: Timestamp) -> Duration {
        at.since_boot() + self.state().unseen
    }

    /// Time goes by, on all clocks.
    pub(crate) fn go_to(&self, real: Duration) {
        let mut state = self.state();
        state.real = state.real.max(real);
    }

    /// The virtual machine is paused, or restored from a snapshot: neither clock of the host sees the time that went by.
    pub(crate) fn pause(&self, by: Duration) {
        let mut state = self.state();
        state.real += by;
        state.unseen += by;
        state.wall_ahead_ms -= by.as_millis() as i64;
    }

    /// The wall clock is set right, which is a step.
    pub(crate) fn synchronize(&self) {
        self.state().wall_ahead_ms = 0;
        self.tell_of_a_step();
    }

    /// The wall clock is set wrong by so much more.
    pub(crate) fn step_by(&self, by_ms: i64) {
        // The kernel refuses to set it before 1970.
        let by_ms = by_ms.max(-self.wall_ms());
        self.state().wall_ahead_ms += by_ms;
        self.tell_of_a_step();
    }

    /// The wall clock is set to so many seconds since 1970.
    pub(crate) fn set_wall(&self, unix: i64) {
        let mut state = self.state();
        state.wall_ahead_ms = unix * 1_000 - EPOCH - state.real.as_millis() as i64;
        drop(state);
        self.tell_of_a_step();
    }

    /// The wall clock is slewed, which is no step.
    pub(crate) fn slew(&self, by_ms: i64) {
        self.state().wall_ahead_ms += by_ms;
    }

    /// Linux says so after a suspend too.
    pub(crate) fn tell_of_a_step(&self) {
        self.steps.send_modify(|count| *count += 1);
    }

    pub(crate) fn timers_are_late(&self, until: Duration, by: Duration) {
        self.state().late = (until, by);
    }

    /// Another boot: its clock starts again.
    pub(crate) fn reboot(&self) {
        let mut state = self.state();
        state.real += Duration::from_secs(30);
        state.unseen = state.real - Duration::from_secs(20);
        state.wall_ahead_ms = 0;
    }

    /// What the sleeper waits for; forgotten, for it says so again when it is asked.
    pub(crate) fn forget_alarm(&self) {
        self.state().alarm = None;
    }

    pub(crate) fn alarm(&self) -> Option<Timestamp> {
        self.state().alarm
    }

    /// Whether the wall clock tells the real time, but for a leap second.
    pub(crate) fn is_right(&self) -> bool {
        self.state().wall_ahead_ms.abs() < 2_000
    }

    pub(crate) fn wall_ms(&self) -> i64 {
        self.now().wall.unix_millis()
    }
}

impl Clock for Host {
    fn now(&self) -> Now {
        let state = self.state();
        Now {
            boot: Timestamp::from_boot(state.real - state.unseen),
            wall: WallTime::from_unix_millis(EPOCH + state.real.as_millis() as i64 + state.wall_ahead_ms),
        }
    }
}

impl Time for Host {
    fn alarm(&self) -> io::Result<Box<dyn Alarm>> {
        Ok(Box::new(Sleeper(self.clone())))
    }

    fn wall_steps(&self) -> watch::Receiver<u64> {
        self.steps.subscribe()
    }
}

struct Sleeper(Host);

impl Alarm for Sleeper {
    fn sleep_until(&mut self, at: Timestamp) -> Sleep<'_> {
        let mut fires = at;
        let mut drawn = false;
        Box::pin(std::future::poll_fn(move |_| {
            let mut state = self.0.state();
            let now = Timestamp::from_boot(state.real - state.unseen);
            // A moment that had passed before anybody asked needs no timer.
            if now == at && !drawn && state.real < state.late.0 {
                let most = state.late.1;
                fires = at + state.dice.between(Duration::ZERO, most);
            }
            drawn = true;
            if now >= fires {
                return std::task::Poll::Ready(Ok(()));
            }
            drawn = false;
            state.alarm = Some(fires);
            std::task::Poll::Pending
        }))
    }
}
