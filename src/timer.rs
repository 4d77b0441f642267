//! Sleeping, on the clocks of [`crate::clock`]: it owns every timerfd, and never polls.
//!
//! - A sleeper waits on a timerfd of `CLOCK_BOOTTIME`, which goes on in suspend; tokio's timers stand on `CLOCK_MONOTONIC`,
//!   which does not, so a token that expires tonight would be refreshed a night late (rust-lang #87906, tokio #3185).
//! - Steps of the wall clock are heard, not looked for: a timerfd of `CLOCK_REALTIME` that is cancelled by them
//!   (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). Nothing wakes at intervals, so an idle agent does not wake.
//! - [`ManualTime`] is the same for tests, and moves only when told to.

mod kernel;
mod manual;

use std::{future::Future, io, pin::Pin};

use tokio::sync::watch;

pub use self::{
    kernel::{KernelTime, WallSteps},
    manual::ManualTime,
};
use crate::clock::{Clock, Timestamp};

/// A clock that one can sleep by.
pub trait Time: Clock {
    /// Makes a sleeper's alarm. Fails where the process or the host has no descriptor left. With [`KernelTime`] it must be
    /// called within a tokio runtime.
    fn alarm(&self) -> io::Result<Box<dyn Alarm>>;

    /// A number that changes when the wall clock may have been stepped. (Linux says so after a suspend as well.)
    fn wall_steps(&self) -> watch::Receiver<u64>;
}

/// What [`Alarm::sleep_until`] returns.
pub type Sleep<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

/// One sleeper's alarm, to be used again and again.
pub trait Alarm: Send {
    /// Sleeps until `at`; not at all if that is past. Dropping it is harmless. An error is the kernel's and does not
    /// pass: the sleeper has no clock any more.
    fn sleep_until(&mut self, at: Timestamp) -> Sleep<'_>;
}
