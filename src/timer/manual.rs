//! Time that a test sets.

use std::{io, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{Alarm, Sleep, Time};
use crate::clock::{Clock, Now, Timestamp, WallTime};

/// Time for tests: it stands still until it is moved, and then wakes the sleepers whose moment has come. Clones are the
/// same clock. It is public for the tests of the whole agent; the programs never use it.
#[derive(Clone, Debug)]
pub struct ManualTime {
    now: Arc<watch::Sender<Now>>,
    steps: Arc<watch::Sender<u64>>,
}

impl ManualTime {
    /// A clock that stands at `now`.
    pub fn new(now: Now) -> Self {
        Self { now: Arc::new(watch::Sender::new(now)), steps: Arc::new(watch::Sender::new(0)) }
    }

    /// Lets `by` go by on both clocks.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now = Now { boot: now.boot + by, wall: now.wall + by });
    }

    /// Lets the time go by until `at`; none if that is past.
    pub fn advance_to(&self, at: Timestamp) {
        self.advance(at.since(self.now().boot));
    }

    /// Steps the wall clock, and tells those who listen.
    pub fn set_wall(&self, wall: WallTime) {
        self.now.send_modify(|now| now.wall = wall);
        self.steps.send_modify(|count| *count += 1);
    }
}

/// At a plausible moment: 1,000 s after the boot, on 2023-11-14.
impl Default for ManualTime {
    fn default() -> Self {
        Self::new(Now {
            boot: Timestamp::from_boot(Duration::from_secs(1_000)),
            wall: WallTime::from_unix_millis(1_700_000_000_000),
        })
    }
}

impl Clock for ManualTime {
    fn now(&self) -> Now {
        *self.now.borrow()
    }
}

impl Time for ManualTime {
    fn alarm(&self) -> io::Result<Box<dyn Alarm>> {
        Ok(Box::new(ManualAlarm(self.now.subscribe())))
    }

    fn wall_steps(&self) -> watch::Receiver<u64> {
        self.steps.subscribe()
    }
}

struct ManualAlarm(watch::Receiver<Now>);

impl Alarm for ManualAlarm {
    fn sleep_until(&mut self, at: Timestamp) -> Sleep<'_> {
        Box::pin(async move {
            if self.0.wait_for(|now| now.boot >= at).await.is_err() {
                // The clock is gone: nobody can move it, so the moment never comes.
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_pending(sleep: &mut Sleep<'_>) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(sleep.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn a_sleeper_wakes_when_its_moment_is_set_and_no_sooner() {
        let time = ManualTime::default();
        let mut alarm = time.alarm().unwrap();
        let mut sleep = alarm.sleep_until(time.now().boot + Duration::from_secs(10));
        assert!(is_pending(&mut sleep).await);
        time.advance(Duration::from_secs(9));
        assert!(is_pending(&mut sleep).await);
        time.set_wall(WallTime::from_unix_millis(i64::MAX));
        assert!(is_pending(&mut sleep).await, "the wall clock wakes nobody");
        time.advance(Duration::from_secs(1));
        sleep.await.unwrap();
    }

    #[tokio::test]
    async fn a_step_moves_the_wall_clock_alone_and_is_told() {
        let time = ManualTime::default();
        let mut steps = time.wall_steps();
        let before = time.now();
        time.advance_to(before.boot + Duration::from_secs(60));
        assert_eq!(time.now().wall, before.wall + Duration::from_secs(60));
        assert!(!steps.has_changed().unwrap());
        time.set_wall(WallTime::from_unix_millis(0));
        steps.changed().await.unwrap();
        assert_eq!(
            time.now(),
            Now { boot: before.boot + Duration::from_secs(60), wall: WallTime::default() }
        );
    }
}
