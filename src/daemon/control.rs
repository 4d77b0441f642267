//! How the handlers reach the daemon: a request into its loop, and an answer back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::timeout,
};

use crate::{
    clock::Clock,
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
    /// Look the names up again; answered when the config in force has them.
    LookNamesUp(oneshot::Sender<()>),
}

/// The handlers' end.
pub struct Control {
    asked: mpsc::Sender<Asked>,
    clock: Arc<dyn Clock>,
    /// Milliseconds since boot of the last look-up that was asked for, plus one; 0 before the first.
    looked_up: AtomicU64,
    denied: Arc<Notify>,
    degraded: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl Control {
    /// A control that asks through `asked`.
    pub fn new(
        asked: mpsc::Sender<Asked>,
        clock: Arc<dyn Clock>,
        denied: Arc<Notify>,
        degraded: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    ) -> Self {
        Self { asked, clock, looked_up: AtomicU64::new(0), denied, degraded }
    }

    /// Whether a look-up is due; if so, the next is due [`LOOK_UP_EVERY`] later.
    fn look_up_is_due(&self) -> bool {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now = millis(self.clock.now().boot.since_boot()).saturating_add(1);
        let every = millis(LOOK_UP_EVERY);
        let due = |last: u64| (last == 0 || now.saturating_sub(last) >= every).then_some(now);
        self.looked_up.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok()
    }
}

#[tonic::async_trait]
impl service::Control for Control {
    async fn reload(&self) -> Result<Reloaded, ReloadFault> {
        let (answer, answered) = oneshot::channel();
        self.asked.send(Asked::Reload(answer)).await.map_err(|_| ReloadFault::Stopping)?;
        answered.await.unwrap_or(Err(ReloadFault::Stopping))
    }

    async fn look_names_up(&self) {
        if !self.look_up_is_due() {
            return;
        }
        let (answer, answered) = oneshot::channel();
        // A daemon that is gone, or a look-up that takes too long, leaves the caller refused, as it was.
        if self.asked.send(Asked::LookNamesUp(answer)).await.is_ok() {
            let _answered = timeout(LOOK_UP_WAIT, answered).await;
        }
    }

    fn denial_noted(&self) {
        self.denied.notify_one();
    }

    fn degraded(&self) -> Vec<String> {
        (self.degraded)()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::clock::{Now, Timestamp};

    struct SetClock(Mutex<Timestamp>);

    impl Clock for SetClock {
        fn now(&self) -> Now {
            Now { boot: *self.0.lock().unwrap(), ..Now::default() }
        }
    }

    #[test]
    fn names_are_looked_up_at_most_once_in_ten_seconds_whoever_is_refused() {
        let clock = Arc::new(SetClock(Mutex::new(Timestamp::default())));
        let control = Control::new(mpsc::channel(1).0, clock.clone(), Arc::default(), Box::new(Vec::new));
        for (millis, due) in
            [(0, true), (0, false), (9_999, false), (10_000, true), (10_001, false), (60_000, true)]
        {
            *clock.0.lock().unwrap() = Timestamp::from_boot(Duration::from_millis(millis));
            assert_eq!(control.look_up_is_due(), due, "{millis} ms");
        }
    }
}
