//! What happens to the world: the provider's bad days, the operator's doings, the host's nights, and callers who want more
//! than there is. Everything that is drawn is drawn here, or by the provider.

use std::time::Duration;

use bloom_agent::{clock::Clock as _, refresh::Demand, token::Generation};

use super::{
    DAY, HOUR, MINUTE, SECOND,
    provider::{BAD, Bad, Weather},
    tally::Tally,
    world::{Restart, World},
};

/// What has been begun and is still to come.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// The wall clock is set right.
    Synchronize,
    /// Somebody mends the secret.
    MendSecret,
    /// The first of two secrets is revoked.
    RevokeFirst,
    /// The second becomes the first.
    Promote,
    /// The file can be read again.
    Readable(u64),
    /// Another report, wish or restart of a storm that lasts until then.
    Storm(Storm, Duration),
    /// The wall clock goes a little faster, for a leap second.
    Slew(u32),
    /// The wall clock jumps ahead again, so many times more.
    Jump(u32),
    /// Lives are as they were.
    Length(u64),
}

#[derive(Clone, Copy, Debug)]
enum Storm {
    Rejecting,
    Greedy,
    Calling,
    Restarting,
}

/// A world with its weather.
pub(crate) struct Years {
    pub(super) world: World,
    agenda: Vec<(Duration, Then)>,
    next: Duration,
    pace: Duration,
    /// The life that the provider gives on ordinary days.
    length: u64,
    /// A pair of secrets is being rotated, or one is revoked.
    rotating: bool,
}

/// The result of a seed.
pub(crate) struct Run {
    pub(crate) tally: Tally,
    /// Of the moments of all requests.
    pub(crate) digest: u64,
    /// What went wrong, with what happened before, if that was asked for.
    pub(crate) fault: Option<String>,
}

/// Runs one seed.
pub(crate) fn a_seed(seed: u64, span: Duration, trace: bool) -> Run {
    // As documented, Hydra's default, what partners have, and what no provider should give.
    const LENGTHS: [u64; 10] =
        [86_400, 86_400, 86_400, 86_400, 36_000, 3_599, 604_800, 2_592_000, 31_536_000, 43_200];
    let length = LENGTHS[(seed % 10) as usize];
    let world = match World::new(seed, length, trace) {
        Ok(world) => world,
        Err(fault) => return Run { tally: Tally::default(), digest: 0, fault: Some(fault) },
    };
    // One disturbance a day, and storms, spells and their ends besides.
    let pace = DAY;
    let next = world.host.real() + pace;
    let mut years = Years { world, agenda: Vec::new(), next, pace, length, rotating: false };
    let end = years.world.host.real() + span;
    let fault = years.run(end).err().map(|what| {
        let (real, world) = (years.world.host.real(), &years.world);
        format!(
            "{}{what}\n  at day {:.6}, {:?}; the law: {:?}, not before {:?}",
            world.traced(),
            real.as_secs_f64() / 86_400.0,
            world.now(),
            world.law.retry,
            world.law.not_before,
        )
    });
    let mut tally = std::mem::take(&mut years.world.tally);
    for (name, count) in &years.world.provider.book().injected {
        *tally.faults.entry(name).or_default() += count;
    }
    tally.count("hours", span.as_secs() / 3_600);
    Run { tally, digest: years.world.digest, fault }
}

impl Years {
    fn run(&mut self, end: Duration) -> Result<(), String> {
        loop {
            let due = self.agenda.iter().map(|(at, _)| *at).min();
            let by_itself = self.world.next();
            let at = [due, by_itself].into_iter().flatten().fold(self.next, Duration::min);
            if at >= end {
                return Ok(());
            }
            self.world.host.go_to(at);
            self.world.tally.count("events", 1);
            if by_itself == Some(at) {
                // What happens by itself comes first: nobody disturbs a world that has not caught up.
                self.world.settle()?;
            } else if due == Some(at) {
                let place = self.agenda.iter().position(|(due, _)| *due == at).unwrap_or_default();
                let (_, then) = self.agenda.swap_remove(place);
                self.then(then)?;
            } else {
                self.next = at + self.world.dice.between(SECOND, 2 * self.pace);
                self.disturb()?;
            }
        }
    }

    fn later(&mut self, from: Duration, to: Duration, then: Then) {
        let at = self.world.host.real() + self.world.dice.between(from, to);
        self.agenda.push((at, then));
    }

    fn then(&mut self, then: Then) -> Result<(), String> {
        let real = self.world.host.real();
        match then {
            Then::Synchronize => self.world.synchronize(),
            Then::Slew(left) => {
                self.world.host.slew(50);
                if left > 0 {
                    self.agenda.push((real + HOUR, Then::Slew(left - 1)));
                }
                self.world.settle()
            }
            Then::Jump(left) => {
                self.world.host.step_by(20 * 3_600_000);
                if left > 0 {
                    self.later(SECOND, 5 * MINUTE, Then::Jump(left - 1));
                }
                self.world.wall_moved()
            }
            Then::Length(length) => {
                self.world.provider.book().length = length;
                self.world.settle()
            }
            Then::MendSecret => {
                self.world.fault("a new secret that works only after 30 s");
                self.write(0, |secrets| Some(secrets.make(real + 30 * SECOND)))?;
                self.rotating = false;
                Ok(())
            }
            Then::RevokeFirst => {
                self.world.fault("first of two secrets revoked");
                let mut book = self.world.provider.book();
                if let Some(first) = book.secrets.files[0] {
                    book.secrets.revoke(first, real);
                }
                drop(book);
                self.later(HOUR, 5 * DAY, Then::Promote);
                self.world.settle()
            }
            Then::Promote => {
                self.rotating = false;
                let next = self.world.provider.book().secrets.files[1];
                self.write(0, |_| next)?;
                self.write(1, |_| None)
            }
            Then::Readable(secret) => {
                self.rotating = false;
                self.write(0, |_| Some(secret))
            }
            Then::Storm(storm, until) => {
                if real < until {
                    self.later(SECOND, MINUTE, then);
                }
                match storm {
                    Storm::Rejecting => self.reject(),
                    Storm::Greedy => self.want(0.85),
                    Storm::Calling => {
                        self.world.call();
                        self.world.settle()
                    }
                    Storm::Restarting => self.restart(),
                }
            }
        }
    }

    fn write(
        &mut self,
        file: usize,
        secret: impl FnOnce(&mut super::provider::Secrets) -> Option<u64>,
    ) -> Result<(), String> {
        self.world.settle()?;
        self.world.secret_changes();
        let mut book = self.world.provider.book();
        let secret = secret(&mut book.secrets);
        book.secrets.write(file, secret);
        book.well_since = book.well_since.max(self.world.host.real() + 30 * SECOND);
        drop(book);
        self.world.settle()
    }

    fn disturb(&mut self) -> Result<(), String> {
        let real = self.world.host.real();
        match self.world.dice.below(100) {
            0..=21 => self.change_weather(),
            22..=24 => self.lives(),
            25..=31 => return self.reject(),
            32..=38 => {
                let share = self.world.dice.pick(&[0.0, 0.1, 0.5, 0.85, 0.9, 0.95, 2.0]);
                return self.want(share);
            }
            39..=42 => {
                self.world.fault("operator's refresh");
                return self.world.ask(Demand::Operator);
            }
            43..=46 => {
                let storms = [Storm::Rejecting, Storm::Greedy, Storm::Calling, Storm::Restarting];
                let storm = self.world.dice.pick(&storms);
                self.world.fault(match storm {
                    Storm::Rejecting => "storm of reports",
                    Storm::Greedy => "storm of min_validity",
                    Storm::Calling => "storm of GetToken",
                    Storm::Restarting => "storm of restarts while the provider fails",
                });
                let until = real + self.world.dice.between(MINUTE, HOUR);
                self.agenda.push((real + SECOND, Then::Storm(storm, until)));
                if matches!(storm, Storm::Restarting) {
                    // There is a reason to, and a failing attempt that shows it.
                    let bad = self.world.dice.pick(&BAD);
                    self.set(Weather::Outage(bad), HOUR);
                    return self.world.ask(Demand::Operator);
                }
            }
            47..=52 => {
                self.world.call();
                return self.world.settle();
            }
            53..=60 => return self.wall(),
            61..=64 => {
                let hours = self.world.dice.between(MINUTE, 30 * HOUR);
                self.world.fault("suspend");
                let breaks = self.world.dice.percent(70);
                self.world.sleep(hours, breaks);
                self.world.host.tell_of_a_step();
                return self.world.wall_moved();
            }
            65..=67 => {
                self.world.fault("SIGSTOP");
                let minutes = self.world.dice.between(SECOND, 20 * MINUTE);
                self.world.sleep(minutes, false);
                return self.world.settle();
            }
            68..=70 => {
                self.world.fault("timers up to 30 s late");
                let span = self.world.dice.between(MINUTE, 2 * DAY);
                return self.world.timers_are_late(span);
            }
            71..=73 => {
                let by = self.world.dice.between(MINUTE, 3 * DAY);
                self.world.fault("VM paused or restored from a snapshot");
                // The time that the snapshot did not see may have brought another token, and another secret.
                if self.world.dice.percent(50) {
                    self.world.provider.book().forget_issued();
                }
                self.later(SECOND, 20 * MINUTE, Then::Synchronize);
                return self.world.pause(by);
            }
            74..=80 => return self.restart(),
            81..=84 => {
                self.world.fault("reload");
                let policies = [(0.8, 0.05), (0.8, 0.05), (0.5, 0.1), (0.1, 0.05), (0.95, 0.05), (0.9, 0.0)];
                let policy = self.world.dice.pick(&policies);
                return self.world.reload(policy, false);
            }
            85 | 86 => {
                self.world.fault("reload to another identity");
                let policy = self.world.policy;
                return self.world.reload(policy, true);
            }
            87..=92 => return self.secrets(),
            93..=95 => {
                let caches = self.world.dice.percent(8);
                self.world.provider.book().caches = caches;
            }
            _ => {
                self.world.fault("token revoked early");
                self.world.provider.book().forget_issued();
                return self.reject();
            }
        }
        self.world.settle()
    }

    fn set(&mut self, weather: Weather, span: Duration) {
        let until = self.world.host.real() + span;
        let mut book = self.world.provider.book();
        (book.weather, book.until) = (weather, until);
        // Whatever was before is over.
        book.well_since = until;
    }

    fn change_weather(&mut self) {
        let dice = &mut self.world.dice;
        let short = dice.between(SECOND, 20 * MINUTE);
        let long = dice.between(HOUR, 10 * HOUR);
        let (name, weather, span) = match dice.below(20) {
            0..=3 => ("outage", Weather::Outage(dice.pick(&BAD)), short),
            4 => ("outage of hours", Weather::Outage(dice.pick(&BAD)), long),
            5 => ("brown-out of 23 h 59 min", Weather::BrownOut(dice.pick(&[50, 90])), DAY - MINUTE),
            6..=8 => ("brown-out", Weather::BrownOut(dice.pick(&[20, 50, 90])), short),
            9 | 10 => ("half of the answers are 503", Weather::Random503(50), long),
            11 | 12 => ("flapping each 7 s", Weather::Flapping, long),
            13 if dice.percent(50) => ("one token a minute", Weather::OneAMinute, long),
            13 => ("one request a minute, refused ones counted", Weather::OneRequestAMinute, long),
            14 => ("slow answers", Weather::Slow, long),
            15 | 16 => ("burst of connection resets", Weather::Outage(Bad::Reset), short / 4),
            17 => ("a fault of our own at each answer", Weather::Outage(Bad::Panic), short / 4),
            18 => {
                let span = self.world.token.map_or(HOUR, |token| {
                    let left = token.served.life.expires().since(self.world.host.now().boot);
                    left.min(2 * DAY) + short
                });
                let bad = self.world.dice.pick(&BAD);
                ("outage past the expiry", Weather::Outage(bad), span)
            }
            _ => ("fair again", Weather::Fair, Duration::ZERO),
        };
        if !matches!(weather, Weather::Fair) {
            self.world.fault(name);
        }
        self.set(weather, span);
        if self.world.dice.percent(40) {
            // While it lasts.
            let soon = self.world.dice.between(SECOND, span.max(SECOND));
            self.next = self.world.host.real() + soon;
        }
    }

    fn lives(&mut self) {
        let dice = &mut self.world.dice;
        if dice.percent(60) {
            self.length =
                dice.pick(&[3_599, 36_000, 36_000, 43_200, 86_400, 86_400, 86_400, 604_800, 2_592_000]);
            let length = self.length;
            self.world.fault("another life");
            self.world.provider.book().length = length;
            return;
        }
        let length = dice.pick(&[5, 9, 10, 11, 12, 20, 29, 30, 31, 45, 59, 60, 120, 300]);
        self.world.fault("lives of seconds, for a while");
        self.world.provider.book().length = length;
        let back = self.length;
        self.later(MINUTE, HOUR, Then::Length(back));
    }

    fn wall(&mut self) -> Result<(), String> {
        let host = self.world.host.clone();
        // Whatever a sync had told is not true any more.
        self.world.wall_is_wrong();
        let hour = 3_600_000_i64;
        let name = match self.world.dice.below(9) {
            0 | 1 => {
                host.step_by(hour);
                "wall clock +1 h"
            }
            2 | 3 => {
                host.step_by(-hour);
                "wall clock -1 h"
            }
            4 => {
                host.step_by(10 * 365 * 24 * hour);
                "wall clock +10 years"
            }
            5 => {
                host.set_wall(0);
                "wall clock to 1970"
            }
            7 => {
                self.later(SECOND, MINUTE, Then::Jump(8));
                self.later(HOUR, DAY, Then::Synchronize);
                self.world.fault("wall clock +20 h again and again");
                return self.world.settle();
            }
            6 => {
                self.world.fault("leap second smeared");
                self.agenda.push((host.real() + HOUR, Then::Slew(20)));
                return self.world.settle();
            }
            _ => {
                let by = self.world.dice.below(7_200_000) as i64 - 3_600_000;
                host.step_by(by);
                "wall clock by something"
            }
        };
        self.world.fault(name);
        match self.world.dice.below(3) {
            // Clocks that step once step again.
            0 => self.later(SECOND, 5 * MINUTE, Then::Synchronize),
            1 => self.later(MINUTE, 10 * DAY, Then::Synchronize),
            _ => {}
        }
        self.world.wall_moved()
    }

    fn restart(&mut self) -> Result<(), String> {
        let (name, how) = match self.world.dice.below(20) {
            0..=9 => ("restart", Restart::Orderly),
            10..=16 => ("SIGKILL", Restart::Crash),
            17 => ("SIGKILL, and a bit of the record is other", Restart::Damaged),
            _ => ("reboot", Restart::Reboot),
        };
        let in_flight = self.world.plan().is_none();
        self.world.fault(name);
        if in_flight {
            self.world.fault("restart in the middle of a request");
        }
        self.world.restart(how)
    }

    fn secrets(&mut self) -> Result<(), String> {
        let real = self.world.host.real();
        if std::mem::replace(&mut self.rotating, true) {
            return self.world.settle();
        }
        let first = self.world.provider.book().secrets.files[0];
        match self.world.dice.below(4) {
            0 => {
                self.world.fault("secret revoked");
                if let Some(first) = first {
                    self.world.provider.book().secrets.revoke(first, real);
                }
                self.later(MINUTE, 2 * DAY, Then::MendSecret);
            }
            1 | 2 => {
                self.world.fault("rotation with two secrets");
                self.write(1, |secrets| Some(secrets.make(real + 30 * SECOND)))?;
                self.later(HOUR, 10 * DAY, Then::RevokeFirst);
            }
            _ => {
                self.world.fault("secret file taken away");
                self.later(MINUTE, DAY, Then::Readable(first.unwrap_or(1)));
                return self.write(0, |_| None);
            }
        }
        self.world.settle()
    }

    fn reject(&mut self) -> Result<(), String> {
        let other = Generation::from_u64(self.world.dice.below(1_000));
        let current = self.world.token.map_or(other, |token| token.served.generation);
        let generation = if self.world.dice.percent(10) { other } else { current };
        self.world.fault("ReportRejected");
        self.world.ask(Demand::Rejected(generation))
    }

    fn want(&mut self, share: f64) -> Result<(), String> {
        let last = self.world.law.last_life.unwrap_or(HOUR);
        self.world.fault("min_validity");
        self.world.ask(Demand::MinValidity(last.mul_f64(share)))
    }
}
