//! Time as the agent knows it: the only module that reads a clock.
//!
//! - [`Timestamp`] is a moment on `CLOCK_BOOTTIME`: it runs on in suspend and nobody can set it. It alone decides
//!   what is served (clock_gettime(2), since Linux 2.6.39).
//! - [`WallTime`] is a moment on `CLOCK_REALTIME`: it may be set, so it is only shown to people, and can only bring
//!   a refresh forward.
//!
//! Everything else takes time as an argument.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds since the host booted. Arithmetic saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// The moment that is `since_boot` after the boot.
    pub const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// How long after the boot this is.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(rhs))
    }
}

/// A moment on `CLOCK_REALTIME`, in milliseconds since 1970-01-01T00:00:00Z, before it negative. Arithmetic saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(i64);

impl WallTime {
    /// The moment `millis` milliseconds after the epoch.
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        let millis = self.0.saturating_sub(earlier.0);
        Duration::from_millis(if millis > 0 { millis.unsigned_abs() } else { 0 })
    }
}

impl Add<Duration> for WallTime {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for WallTime {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// RFC 3339, UTC, whole seconds: `2026-11-22T14:05:00Z`.
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0.div_euclid(1000)) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} ms since 1970", self.0),
        }
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// What decides.
    pub boot: Timestamp,
    /// What is shown.
    pub wall: WallTime,
}

/// Something that tells the time; a test has one that it sets.
pub trait Clock: Send + Sync {
    /// Both clocks, read together.
    fn now(&self) -> Now;
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let boot = read(ClockId::CLOCK_BOOTTIME);
        let wall = read(ClockId::CLOCK_REALTIME);
        Now { boot: Timestamp(boot), wall: WallTime(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)) }
    }
}

/// `CLOCK_MONOTONIC`, since some moment before the boot: what systemd wants to hear in MONOTONIC_USEC (sd_notify(3)), and
/// for nothing else, since it stops in suspend.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Neither clock can fail on a kernel that tokio runs on, and neither is ever negative there (the kernel refuses to
/// set CLOCK_REALTIME before 1970); zero is the answer that lets no token seem fresh.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(
            Timestamp::from_boot(Duration::from_secs(1)) - Duration::from_secs(2),
            Timestamp::default()
        );
        assert_eq!(
            (Timestamp::from_boot(Duration::MAX) + Duration::from_secs(1)).since_boot(),
            Duration::MAX
        );
        assert_eq!((WallTime::from_unix_millis(i64::MAX) + Duration::MAX).unix_millis(), i64::MAX);
        assert_eq!(WallTime::from_unix_millis(5).since(WallTime::from_unix_millis(9)), Duration::ZERO);
        assert_eq!(
            WallTime::from_unix_millis(i64::MIN).since(WallTime::from_unix_millis(i64::MAX)),
            Duration::ZERO
        );
    }

    #[test]
    fn wall_time_prints_as_rfc_3339() {
        assert_eq!(WallTime::from_unix_millis(1_795_356_300_999).to_string(), "2026-11-22T14:05:00Z");
        assert_eq!(WallTime::from_unix_millis(-1).to_string(), "1969-12-31T23:59:59Z");
        assert_eq!(WallTime::from_unix_millis(i64::MAX).to_string(), "9223372036854775807 ms since 1970");
    }

    #[test]
    fn the_system_clock_moves_forward() {
        let first = SystemClock.now();
        let second = SystemClock.now();
        assert!(second.boot >= first.boot && first.boot > Timestamp::default());
    }
}
