//! Years of bad weather in seconds: seeded worlds in which the refresh machine, and the rotator over it, are held to the
//! contract after every event. A run is a function of its seed, so a failing one replays exactly.
//!
//! - [`machine`]: the pure machine against [`law::Law`], the contract as bounds.
//! - [`weather`]: the rotator's own task with its select loop, its store and its record ([`world`]), between a simulated
//!   host (clocks, timers, sleeps: [`host`]), a simulated provider ([`provider`]) and its callers.
//!
//! A small share runs with the tests; all of it, with the figures: `tests/rules/simulate.rs`.

pub(crate) mod dice;
pub(crate) mod host;
pub(crate) mod law;
pub(crate) mod machine;
pub(crate) mod provider;
pub(crate) mod tally;
#[cfg(test)]
mod tests;
pub(crate) mod weather;
pub(crate) mod world;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use self::tally::Tally;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// For sums of floating-point shares.
pub(crate) const GRAIN: Duration = Duration::from_micros(1);

/// How to run seeds again that failed.
pub(crate) const REPLAY: &str = "cargo run -p bloom-agent-rules --profile simulation --bin simulate --";

/// Runs the seeds from `first` on, on two threads; an error is the first bad seed and what was wrong with it.
pub(crate) fn all(
    first: u64,
    seeds: u64,
    run: impl Fn(u64) -> Result<Tally, String> + Sync,
) -> Result<Tally, (u64, String)> {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let work = || {
        let mut sum = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds || stop.load(Ordering::Relaxed) {
                return Ok(sum);
            }
            match run(seed) {
                Ok(tally) => sum.add(&tally),
                Err(what) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err((seed, what));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let own = work();
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut sum = own?;
        sum.add(&other?);
        Ok(sum)
    })
}

/// One seed of the rotator's worlds.
pub(crate) fn rotator_seed(seed: u64, span: Duration) -> Result<Tally, String> {
    let run = weather::a_seed(seed, span, false);
    run.fault.map_or(Ok(run.tally), Err)
}
