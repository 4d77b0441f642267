//! The kernel's timers: one timerfd for each sleeper, and one that hears of steps of the wall clock.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    unistd::read,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use super::{Alarm, Sleep, Time};
use crate::clock::{Clock, Now, SystemClock, Timestamp};

/// The kernel's clocks and timers. Clones hear of the same steps.
#[derive(Clone, Debug)]
pub struct KernelTime {
    steps: watch::Receiver<u64>,
}

impl KernelTime {
    /// Makes it, and the future that hears of steps of the wall clock: its owner runs it for as long as anybody is to hear
    /// of them. Must be called within a tokio runtime.
    pub fn new() -> io::Result<(Self, WallSteps)> {
        let timer = Timer::new(ClockId::CLOCK_REALTIME)?;
        let (count, steps) = watch::channel(0);
        Ok((Self { steps }, WallSteps { timer, count }))
    }
}

impl Clock for KernelTime {
    fn now(&self) -> Now {
        SystemClock.now()
    }
}

impl Time for KernelTime {
    fn alarm(&self) -> io::Result<Box<dyn Alarm>> {
        Ok(Box::new(KernelAlarm(Timer::new(ClockId::CLOCK_BOOTTIME)?)))
    }

    fn wall_steps(&self) -> watch::Receiver<u64> {
        self.steps.clone()
    }
}

/// Hears of steps of the wall clock.
#[derive(Debug)]
pub struct WallSteps {
    timer: Timer,
    count: watch::Sender<u64>,
}

impl WallSteps {
    /// Listens, and ends only when the kernel refuses to.
    pub async fn run(self) -> io::Error {
        listen(&self.timer, &self.count).await
    }
}

/// A timer that a step of the wall clock cancels: the kernel's, and a test's, since nobody may set the machine's clock to
/// try the other one.
trait Cancellable {
    /// Arms it for a moment that never comes. ECANCELED: the clock was set since it was armed last.
    fn arm(&self) -> nix::Result<()>;
    /// Waits. ECANCELED: the clock was set.
    async fn fired(&self) -> io::Result<()>;
}

impl Cancellable for Timer {
    fn arm(&self) -> nix::Result<()> {
        // Far enough never to come; systemd uses the same value for the same end (`time_change_fd`).
        let never = TimeSpec::new(libc::time_t::MAX, 0);
        self.set(never, TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET)
    }

    async fn fired(&self) -> io::Result<()> {
        Self::fired(self).await
    }
}

async fn listen(timer: &impl Cancellable, count: &watch::Sender<u64>) -> io::Error {
    loop {
        let stepped = match timer.arm() {
            // A step between two calls (fs/timerfd.c, timerfd_setup); the timer is armed all the same.
            Err(Errno::ECANCELED) => true,
            Err(errno) => return errno.into(),
            Ok(()) => match timer.fired().await {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => true,
                Err(error) => return error,
            },
        };
        if stepped {
            count.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

struct KernelAlarm(Timer);

impl Alarm for KernelAlarm {
    fn sleep_until(&mut self, at: Timestamp) -> Sleep<'_> {
        Box::pin(async move {
            // Woken early by the century below, or by an expiry left over from a sleep that was dropped.
            while SystemClock.now().boot < at {
                self.0.set(spec(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
                self.0.fired().await?;
            }
            Ok(())
        })
    }
}

/// Within what the kernel takes: later than a century is a century. (It is never 0, which would disarm the timer: 0 is
/// past, and nobody sleeps until then.)
fn spec(at: Timestamp) -> TimeSpec {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    TimeSpec::from_duration(at.since_boot().min(CENTURY))
}

#[derive(Debug)]
struct Timer(AsyncFd<Fd>);

/// Owns its descriptor; closed when the [`AsyncFd`] around it has deregistered it.
#[derive(Debug)]
struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    fn new(clock: ClockId) -> io::Result<Self> {
        let timer = TimerFd::new(clock, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // SAFETY: `Fd` owns the one descriptor that it returns, and nothing takes it out or replaces it.
        #[allow(unsafe_code, reason = "AsyncFd takes the word of AsRawFd that the descriptor stays open")]
        let registered = unsafe { AsyncFd::register_with_interest(Fd(timer), Interest::READABLE) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    fn set(&self, at: TimeSpec, flags: TimerSetTimeFlags) -> nix::Result<()> {
        self.0.get_ref().0.set(Expiration::OneShot(at), flags)
    }

    async fn fired(&self) -> io::Result<()> {
        let read = |fd: &Fd| Ok(read(&fd.0, &mut [0; 8])?);
        self.0.async_io(Interest::READABLE, read).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use super::*;

    /// What happens first matters here, not how long it takes: an alarm that never fires hangs the test.
    #[tokio::test]
    async fn an_alarm_sleeps_until_its_moment_and_can_be_set_again() {
        let (time, _steps) = KernelTime::new().unwrap();
        let mut alarm = time.alarm().unwrap();
        for _ in 0..3 {
            let at = time.now().boot + Duration::from_millis(3);
            alarm.sleep_until(at).await.unwrap();
            assert!(time.now().boot >= at);
        }
        for past in [Timestamp::default(), time.now().boot - Duration::from_secs(1)] {
            alarm.sleep_until(past).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_dropped_sleep_leaves_an_alarm_that_works() {
        let (time, _steps) = KernelTime::new().unwrap();
        let mut alarm = time.alarm().unwrap();
        let soon = time.now().boot + Duration::from_millis(2);
        for far in [Timestamp::from_boot(Duration::MAX), soon + Duration::from_secs(3_600), soon] {
            let mut sleep = alarm.sleep_until(far);
            assert!(futures_pending(&mut sleep).await || time.now().boot >= soon);
        }
        let at = soon + Duration::from_millis(2);
        alarm.sleep_until(at).await.unwrap();
        assert!(time.now().boot >= at, "an expiry of the dropped sleep woke it");
    }

    async fn futures_pending(sleep: &mut Sleep<'_>) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(sleep.as_mut().poll(cx).is_pending())).await
    }

    /// What the kernel says of a step, in the order of a script; then it fails.
    struct Script(Mutex<VecDeque<Said>>);

    #[derive(Clone, Copy)]
    enum Said {
        Arm(Option<Errno>),
        Fire(Option<Errno>),
    }

    impl Script {
        fn next(&self) -> Said {
            self.0.lock().unwrap().pop_front().unwrap()
        }
    }

    impl Cancellable for Script {
        fn arm(&self) -> nix::Result<()> {
            match self.next() {
                Said::Arm(errno) => errno.map_or(Ok(()), Err),
                Said::Fire(_) => panic!("armed where it should wait"),
            }
        }

        async fn fired(&self) -> io::Result<()> {
            match self.next() {
                Said::Fire(errno) => Ok(errno.map_or(Ok(()), Err)?),
                Said::Arm(_) => panic!("waits where it should be armed"),
            }
        }
    }

    #[tokio::test]
    async fn each_step_is_told_once_and_only_what_is_no_step_ends_the_listening() {
        use Said::{Arm, Fire};
        let cancelled = Some(Errno::ECANCELED);
        let cases: [(&str, &[Said], u64, Errno); 5] = [
            (
                "a step while it waits",
                &[Arm(None), Fire(cancelled), Arm(Some(Errno::EBADF))],
                1,
                Errno::EBADF,
            ),
            ("a step before it waits", &[Arm(cancelled), Arm(None), Fire(Some(Errno::EIO))], 1, Errno::EIO),
            (
                "several, of both kinds",
                &[
                    Arm(None),
                    Fire(cancelled),
                    Arm(cancelled),
                    Arm(None),
                    Fire(cancelled),
                    Arm(Some(Errno::EBADF)),
                ],
                3,
                Errno::EBADF,
            ),
            ("the end of time", &[Arm(None), Fire(None), Arm(Some(Errno::EINVAL))], 0, Errno::EINVAL),
            ("a kernel that refuses", &[Arm(Some(Errno::EINVAL))], 0, Errno::EINVAL),
        ];
        for (what, said, steps, end) in cases {
            let (count, told) = watch::channel(0);
            let error = listen(&Script(Mutex::new(said.iter().copied().collect())), &count).await;
            assert_eq!((*told.borrow(), error.raw_os_error()), (steps, Some(end as i32)), "{what}");
        }
    }

    /// That the kernel hears of a step is not tried: it would set the clock of the machine that the test runs on. What is
    /// made of its word is tried above, and what a step leads to with [`crate::timer::ManualTime`].
    #[tokio::test]
    async fn listening_for_steps_waits_and_says_nothing_while_there_is_none() {
        let (time, steps) = KernelTime::new().unwrap();
        let heard = time.wall_steps();
        let listening = steps.run();
        tokio::pin!(listening);
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(listening.as_mut().poll(cx).is_pending())).await
        );
        assert!(!heard.has_changed().unwrap());
    }
}
