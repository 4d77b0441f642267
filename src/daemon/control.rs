//! How the handlers reach the daemon: a request into its loop, and an answer back.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    clock::{Clock, Timestamp},
    service::{self, ReloadFault, Reloaded},
};

/// Names are looked up for refused callers at most this often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(10);
/// A refused caller waits this long for a look-up; a directory service may hang.
const LOOK_UP_WAIT: Duration = Duration::from_secs(2);

/// What is asked of the daemon's loop.
#[derive(Debug)]
pub enum Asked {
    /// Reload, and say what it did.
    Reload(oneshot::Sender<Result<Reloaded, ReloadFault>>),
    /// Look the names up again; [`LookUps`] tells when the config in force has them.
    LookNamesUp,
    /// Say that the loop is alive.
    Pulse(oneshot::Sender<()>),
}

/// Look-ups that are done, told by the daemon's loop.
pub type LookUps = watch::Receiver<u64>;

/// The handlers' end.
pub struct Control {
    asked: mpsc::Sender<Asked>,
    clock: Arc<dyn Clock>,
    look_ups: LookUps,
    last: Mutex<LastLookUp>,
    denied: Arc<Notify>,
    degraded: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    confinement: String,
}

/// The look-up that was asked for last.
#[derive(Default)]
struct LastLookUp {
    at: Option<Timestamp>,
    /// It is done when as many are.
    number: u64,
}

impl Control {
    /// A control that asks through `asked` and hears of look-ups through `look_ups`.
    pub fn new(
        asked: mpsc::Sender<Asked>,
        look_ups: LookUps,
        clock: Arc<dyn Clock>,
        denied: Arc<Notify>,
        degraded: Box<dyn Fn() -> Vec<String> + Send + Sync>,
        confinement: String,
    ) -> Self {
        Self { asked, clock, look_ups, last: Mutex::default(), denied, degraded, confinement }
    }

    /// The number of the look-up to wait for; asks for one if it is due.
    fn look_up(&self) -> u64 {
        let now = self.clock.now().boot;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.at.is_none_or(|at| now.since(at) >= LOOK_UP_EVERY);
        // One that is under way is joined, however old; a loop that is too busy to be asked is asked by the next caller.
        if is_due && *self.look_ups.borrow() >= last.number && self.asked.try_send(Asked::LookNamesUp).is_ok()
        {
            *last = LastLookUp { at: Some(now), number: last.number + 1 };
        }
        last.number
    }
}

#[tonic::async_trait]
impl service::Control for Control {
    async fn reload(&self) -> Result<Reloaded, ReloadFault> {
        let (answer, answered) = oneshot::channel();
        self.asked.send(Asked::Reload(answer)).await.map_err(|_| ReloadFault::Stopping)?;
        answered.await.unwrap_or(Err(ReloadFault::Stopping))
    }

    async fn look_names_up(&self, patience: Duration) {
        let number = self.look_up();
        let mut look_ups = self.look_ups.clone();
        // A look-up that takes too long leaves the caller refused, as it was; so does a daemon that is gone.
        let _done = timeout(patience.min(LOOK_UP_WAIT), look_ups.wait_for(|done| *done >= number)).await;
    }

    fn denial_noted(&self) {
        self.denied.notify_one();
    }

    fn degraded(&self) -> Vec<String> {
        (self.degraded)()
    }

    fn confinement(&self) -> String {
        self.confinement.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Now, Timestamp};

    struct SetClock(Mutex<Timestamp>);

    impl Clock for SetClock {
        fn now(&self) -> Now {
            Now { boot: *self.0.lock().unwrap(), ..Now::default() }
        }
    }

    #[test]
    fn names_are_looked_up_at_most_once_in_ten_seconds_and_one_at_a_time_whoever_is_refused() {
        let clock = Arc::new(SetClock(Mutex::new(Timestamp::default())));
        let (asked, mut requests) = mpsc::channel(1);
        let (done, look_ups) = watch::channel(0);
        let control =
            Control::new(asked, look_ups, clock.clone(), Arc::default(), Box::new(Vec::new), String::new());
        let steps = [
            // Milliseconds since the start, look-ups done by then, the one that a refused caller waits for.
            (0, 0, 1),
            (0, 0, 1),
            (9_999, 1, 1),
            (10_000, 1, 2),
            (25_000, 1, 2),
            (25_000, 2, 3),
        ];
        let mut asked_for = 0;
        for (millis, finished, number) in steps {
            *clock.0.lock().unwrap() = Timestamp::from_boot(Duration::from_millis(millis));
            done.send_replace(finished);
            assert_eq!(control.look_up(), number, "{millis} ms");
            asked_for += u64::from(requests.try_recv().is_ok());
            assert_eq!(asked_for, number, "{millis} ms");
        }
    }
}
