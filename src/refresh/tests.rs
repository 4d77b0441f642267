//! The rules one by one. What they are together, the simulation holds them to (`tests/simulation`).

use super::*;
use crate::{clock::WallTime, failure::FailureKind, token::LifeSource};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// A machine and its clock.
struct Bench {
    machine: Refresh,
    now: Now,
}

impl Bench {
    fn new() -> Self {
        let now = Now {
            boot: Timestamp::from_boot(1_000 * SECOND),
            wall: WallTime::from_unix_millis(1_700_000_000_000),
        };
        Self { machine: Refresh::new(Policy::default(), now.boot, 1), now }
    }

    /// With a token of this life, just granted.
    fn holding(length: Duration) -> Self {
        let mut bench = Self::new();
        bench.fetch();
        bench.grant(length);
        bench
    }

    fn pass(&mut self, by: Duration) -> &mut Self {
        self.now = Now { boot: self.now.boot + by, wall: self.now.wall + by };
        self
    }

    fn actions(&mut self) -> Vec<Action> {
        self.machine.handle_timeout(self.now.boot);
        std::iter::from_fn(|| self.machine.poll_action(self.now.boot)).collect()
    }

    fn fetch(&mut self) {
        assert_eq!(self.actions(), [Action::Fetch]);
    }

    /// Lets the time pass until the next attempt, and starts it.
    fn fetch_when_due(&mut self) {
        self.pass(self.due_in());
        assert_eq!(self.actions().pop(), Some(Action::Fetch));
    }

    fn life(&self, length: Duration) -> Life {
        Life { requested: self.now, length, source: LifeSource::Provider }
    }

    fn grant(&mut self, length: Duration) -> Generation {
        match self.machine.handle_granted(self.now, &self.life(length), Novelty::New) {
            Grant::Rotated(generation) => generation,
            other => panic!("{other:?}"),
        }
    }

    fn fail(&mut self, schedule: Schedule, retry_after: Option<Duration>) {
        let failure =
            Failure { kind: FailureKind::ProviderError, schedule, retry_after, code: None, text: "".into() };
        self.machine.handle_failed(self.now.boot, &failure);
    }

    fn demand(&mut self, demand: Demand) -> Answer {
        self.machine.handle_demand(self.now.boot, demand)
    }

    fn report(&mut self) -> Answer {
        let generation = self.machine.held.map_or(Generation::from_u64(1), |held| held.generation);
        self.demand(Demand::Rejected(generation))
    }

    /// The demand starts a request after `wait`.
    fn assert_joined(&self, answer: Answer, wait: Duration) {
        let attempt = self.machine.settled() + 1;
        assert_eq!(answer, Answer::Joined { attempt, starts: self.now.boot + wait });
    }

    fn due_in(&self) -> Duration {
        self.machine.next_attempt().expect("none is in flight").since(self.now.boot)
    }

    fn health(&self) -> Health {
        self.machine.health(self.now.boot)
    }
}

#[test]
fn a_loss_counts_as_a_failure_and_undercuts_no_moment_that_was_waited_for() {
    for (failures, longest) in [(0, SECOND), (3, 8 * SECOND), (40, 30 * SECOND), (u32::MAX, 30 * SECOND)] {
        let mut bench = Bench::new();
        bench.machine.handle_lost(bench.now.boot, failures, None);
        assert_eq!(bench.machine.consecutive_failures(), failures.saturating_add(1));
        let delay = bench.due_in();
        assert!(delay > Duration::ZERO && delay <= longest, "after {failures}: {delay:?}");
        bench.pass(delay).fetch();
        bench.grant(HOUR);
        assert_eq!(bench.machine.consecutive_failures(), 0);
    }
    let mut bench = Bench::new();
    let asked = bench.now.boot + 40 * MINUTE;
    bench.machine.handle_lost(bench.now.boot, 1, Some(asked));
    assert_eq!(bench.machine.next_attempt(), Some(asked));
}

#[test]
fn the_first_fetch_is_at_once_and_there_is_one_at_a_time() {
    let mut bench = Bench::new();
    assert_eq!((bench.due_in(), bench.health()), (Duration::ZERO, Health::Pending));
    bench.fetch();
    assert_eq!((bench.machine.next_attempt(), bench.machine.poll_timeout()), (None, None));
    assert_eq!(bench.pass(HOUR).actions(), []);
    let before = bench.machine.settled();
    for demand in [Demand::Operator, Demand::MinValidity(HOUR)] {
        let starts = bench.now.boot - HOUR;
        assert_eq!(bench.demand(demand), Answer::Joined { attempt: before + 1, starts });
        assert_eq!(bench.actions(), []);
    }
}

#[test]
fn a_token_is_refreshed_at_its_point_and_expires_only_by_its_life() {
    let mut bench = Bench::holding(HOUR);
    let point = bench.due_in();
    assert!((HOUR.mul_f64(0.75)..=HOUR.mul_f64(0.85)).contains(&point), "{point:?}");
    assert_eq!(bench.machine.poll_timeout(), bench.machine.next_attempt());
    bench.fetch_when_due();
    // The provider is silent: the old token is held until 5 s before its end.
    bench.pass(HOUR - point - 5 * SECOND - Duration::from_nanos(1));
    assert_eq!((bench.actions(), bench.health()), (vec![], Health::Valid));
    assert_eq!(bench.pass(Duration::from_nanos(1)).actions(), [Action::Expire]);
    assert_eq!(bench.health(), Health::Pending);
}

#[test]
fn an_expiry_that_a_grant_overtakes_is_not_told() {
    let mut bench = Bench::holding(HOUR);
    bench.fetch_when_due();
    bench.pass(HOUR);
    bench.machine.handle_timeout(bench.now.boot);
    bench.grant(HOUR);
    assert_eq!((bench.actions(), bench.health()), (vec![], Health::Valid));
}

#[test]
fn a_new_token_that_expires_sooner_takes_the_place_of_the_old() {
    let mut bench = Bench::holding(24 * HOUR);
    bench.demand(Demand::Operator);
    bench.fetch();
    bench.grant(MINUTE);
    assert_eq!(bench.pass(MINUTE).actions().first(), Some(&Action::Expire));
}

#[test]
fn the_same_token_goes_on_under_its_generation_with_the_life_that_is_left() {
    let mut bench = Bench::holding(HOUR);
    let generation = bench.machine.generation.unwrap();
    bench.fetch_when_due();
    let grant = bench.machine.handle_granted(bench.now, &bench.life(10 * MINUTE), Novelty::Same);
    assert_eq!(grant, Grant::Prolonged(generation));
    assert!((450 * SECOND..=510 * SECOND).contains(&bench.due_in()));
    // Down to nothing: never more often than by the floor.
    bench.fetch_when_due();
    let grant = bench.machine.handle_granted(bench.now, &bench.life(3 * SECOND), Novelty::Same);
    assert_eq!((grant, bench.due_in()), (Grant::Prolonged(generation), 10 * SECOND));
    // Once it has expired it is held no more, so it would be a rotation.
    bench.fetch_when_due();
    let grant = bench.machine.handle_granted(bench.now, &bench.life(3 * SECOND), Novelty::Same);
    assert!(matches!(grant, Grant::Rotated(new) if new > generation), "{grant:?}");
}

#[test]
fn lives_below_the_floor_are_fetched_by_the_floor() {
    for (floor, length, expected) in [(10, 1, 10), (10, 5, 10), (10, 11, 10), (1, 1, 1)] {
        let mut bench = Bench::new();
        bench.machine.handle_policy(bench.now, Policy::default().with_floor(floor * SECOND));
        bench.fetch();
        bench.grant(length * SECOND);
        assert_eq!(bench.due_in(), expected * SECOND, "floor {floor}, life {length}");
    }
}

#[test]
fn a_token_that_comes_too_late_is_a_failure_and_waits_for_the_floor() {
    let mut bench = Bench::holding(HOUR);
    bench.fetch_when_due();
    let life = bench.life(2 * SECOND);
    bench.pass(3 * SECOND);
    assert_eq!(bench.machine.handle_granted(bench.now, &life, Novelty::New), Grant::Late);
    assert_eq!(bench.health(), Health::Degraded, "the old token stays");
    assert_eq!((bench.machine.consecutive_failures(), bench.due_in()), (1, 7 * SECOND));
}

#[test]
fn callers_refreshes_have_a_budget_and_wait_for_the_floor() {
    let mut bench = Bench::holding(24 * HOUR);
    bench.pass(4 * SECOND);
    let answer = bench.report();
    bench.assert_joined(answer, 6 * SECOND);
    let again = bench.report();
    bench.assert_joined(again, 6 * SECOND);
    bench.fetch_when_due();
    bench.grant(24 * HOUR);
    // 1 min, 2 min, … to 1 h after the last, and then no less.
    for gap in [60, 120, 240, 480, 960, 1_920, 3_600, 3_600] {
        bench.pass(20 * SECOND);
        let retry = bench.now.boot + gap * SECOND - 20 * SECOND;
        assert_eq!(bench.report(), Answer::Exhausted { retry });
        assert_eq!(bench.demand(Demand::MinValidity(24 * HOUR - 3 * HOUR)), Answer::Unneeded);
        bench.pass(gap * SECOND - 20 * SECOND);
        let answer = bench.report();
        bench.assert_joined(answer, Duration::ZERO);
        bench.fetch();
        bench.grant(24 * HOUR);
    }
}

#[test]
fn half_a_life_without_a_report_restores_the_budget() {
    for (is_reported, refreshes) in [(false, true), (true, false)] {
        let mut bench = Bench::holding(24 * HOUR);
        bench.pass(MINUTE).report();
        bench.fetch();
        bench.grant(24 * HOUR);
        // Now the budget's gap is a minute; spend until it is an hour.
        for _ in 0..7 {
            bench.pass(HOUR).report();
            bench.fetch();
            bench.grant(24 * HOUR);
        }
        if is_reported {
            assert!(matches!(bench.pass(MINUTE).report(), Answer::Exhausted { .. }));
        }
        bench.pass(13 * HOUR).report();
        bench.fetch();
        bench.grant(24 * HOUR);
        // The second after a restored one is a minute away; otherwise still an hour.
        bench.pass(2 * MINUTE);
        let is_joined = matches!(bench.report(), Answer::Joined { .. });
        assert_eq!(is_joined, refreshes, "reported: {is_reported}");
    }
}

#[test]
fn who_comes_back_after_the_next_regular_refresh_needs_no_budget() {
    let mut bench = Bench::holding(HOUR);
    bench.pass(10 * SECOND);
    for _ in 0..7 {
        bench.machine.budget.spend(bench.now.boot);
    }
    bench.pass(10 * MINUTE);
    let due = bench.now.boot + bench.due_in();
    assert_eq!(bench.report(), Answer::Exhausted { retry: due });
}

#[test]
fn a_min_validity_that_no_token_can_have_makes_no_request() {
    let mut bench = Bench::holding(HOUR);
    bench.pass(30 * MINUTE);
    for (wanted, expected) in
        [(30 * MINUTE, false), (31 * MINUTE, true), (54 * MINUTE, true), (55 * MINUTE, false)]
    {
        let mut machine = Bench { machine: Bench::holding(HOUR).machine, now: bench.now };
        let is_joined = matches!(machine.demand(Demand::MinValidity(wanted)), Answer::Joined { .. });
        assert_eq!(is_joined, expected, "{wanted:?}");
    }
}

#[test]
fn a_report_of_another_generation_makes_no_request() {
    let mut bench = Bench::holding(HOUR);
    bench.pass(MINUTE);
    assert_eq!(bench.demand(Demand::Rejected(Generation::from_u64(5))), Answer::Unneeded);
    assert_eq!(bench.actions(), []);
    let mut empty = Bench::new();
    assert_eq!(empty.report(), Answer::Unneeded);
}

#[test]
fn no_caller_moves_an_attempt_forward_and_the_operator_moves_it_to_now() {
    let cases = [
        (Schedule::Transient, None),
        (Schedule::Transient, Some(20 * MINUTE)),
        (Schedule::RateLimited, None),
        (Schedule::Refusal, None),
    ];
    for (schedule, retry_after) in cases {
        let mut bench = Bench::holding(HOUR);
        bench.fetch_when_due();
        bench.fail(schedule, retry_after);
        let wait = bench.due_in();
        assert!(wait >= Duration::from_millis(100));
        for answer in [bench.report(), bench.demand(Demand::MinValidity(50 * MINUTE))] {
            bench.assert_joined(answer, wait);
        }
        assert_eq!(bench.actions(), []);
        let answer = bench.demand(Demand::Operator);
        bench.assert_joined(answer, Duration::ZERO);
        bench.fetch();
        // Its failure forgets nothing that the provider wished.
        bench.fail(Schedule::Transient, None);
        if let Some(asked) = retry_after {
            assert!(bench.due_in() >= asked, "{:?}", bench.due_in());
        }
    }
    let mut fresh = Bench::holding(HOUR);
    let answer = fresh.demand(Demand::Operator);
    fresh.assert_joined(answer, Duration::ZERO);
}

#[test]
fn what_was_mended_is_tried_at_once_but_not_twice_within_the_floor_nor_against_a_retry_after() {
    let mut bench = Bench::new();
    bench.fetch();
    bench.fail(Schedule::Refusal, None);
    assert!(bench.machine.is_refused() && bench.due_in() == 30 * SECOND);
    bench.machine.handle_mended(bench.now.boot);
    bench.fetch();
    bench.fail(Schedule::Refusal, None);
    assert_eq!(bench.due_in(), 30 * SECOND, "counted from the start again");
    bench.machine.handle_mended(bench.now.boot);
    assert_eq!(bench.due_in(), 10 * SECOND);
    bench.fetch_when_due();
    // Mended while the request that may have read the old secret is in flight.
    bench.pass(11 * SECOND);
    bench.machine.handle_mended(bench.now.boot);
    bench.fail(Schedule::Refusal, None);
    assert_eq!(bench.due_in(), Duration::ZERO);
    bench.fetch();
    bench.fail(Schedule::Refusal, Some(20 * MINUTE));
    bench.pass(MINUTE);
    bench.machine.handle_mended(bench.now.boot);
    assert_eq!(bench.due_in(), 19 * MINUTE);

    let mut healthy = Bench::holding(HOUR);
    let before = healthy.machine.next_attempt();
    healthy.machine.handle_mended(healthy.now.boot);
    assert_eq!(healthy.machine.next_attempt(), before, "nothing was broken");
}

#[test]
fn the_wall_clock_brings_a_refresh_forward_once_in_ten_minutes_and_nothing_back() {
    let mut bench = Bench::holding(24 * HOUR);
    let regular = bench.machine.next_attempt();
    let step = |bench: &mut Bench, by: Duration| {
        bench.now.wall = bench.now.wall + by;
        bench.machine.handle_wall_step(bench.now);
    };
    bench.pass(HOUR);
    step(&mut bench, SECOND / 2);
    assert_eq!(bench.machine.next_attempt(), regular, "as far as clocks differ anyway");
    // What a paused machine hears before the refresh point: the token is that much older than the boot clock knows.
    step(&mut bench, 10 * HOUR - SECOND / 2);
    let forward = regular.unwrap().since(bench.machine.next_attempt().unwrap());
    // The wall clock is read in whole milliseconds.
    assert_eq!((forward + SECOND / 1_000).as_secs(), 36_000, "{forward:?}");
    bench.now.wall = bench.now.wall - 20 * HOUR;
    bench.machine.handle_wall_step(bench.now);
    assert_eq!(bench.machine.next_attempt(), regular, "nothing is put off");
    step(&mut bench, 400 * HOUR);
    assert_eq!((bench.due_in(), bench.health()), (Duration::ZERO, Health::Valid));
    bench.fetch();
    bench.grant(24 * HOUR);
    bench.pass(MINUTE);
    let regular = bench.machine.next_attempt();
    step(&mut bench, 400 * HOUR);
    assert_eq!(bench.due_in(), 9 * MINUTE);
    bench.now.wall = WallTime::default();
    bench.machine.handle_wall_step(bench.now);
    assert_eq!(bench.machine.next_attempt(), regular, "the wall clock went back before the request");
    // A step while the request is under way counts for the token that it brings.
    let mut bench = Bench::new();
    bench.fetch();
    let life = bench.life(24 * HOUR);
    bench.now.wall = bench.now.wall + 400 * HOUR;
    bench.machine.handle_wall_step(bench.now);
    bench.machine.handle_granted(bench.now, &life, Novelty::New);
    assert_eq!(bench.due_in(), 10 * SECOND, "after the floor");
}

#[test]
fn an_adopted_token_is_served_if_it_is_valid_lasts_longer_and_is_of_this_boot() {
    let generation = Generation::from_u64(u64::MAX / 2);
    let mut bench = Bench::new();
    let life = bench.life(HOUR);
    bench.pass(10 * MINUTE);
    assert_eq!(bench.machine.handle_adopted(bench.now, generation, &life), Adoption::Served);
    assert_eq!((bench.actions(), bench.health()), (vec![], Health::Valid), "no request");
    let shorter = bench.life(30 * MINUTE);
    assert_eq!(bench.machine.handle_adopted(bench.now, generation, &shorter), Adoption::Unneeded);
    bench.fetch_when_due();
    assert!(bench.grant(HOUR) > generation);

    for shift in [2 * HOUR, HOUR] {
        let mut bench = Bench::new();
        let life = bench.life(HOUR);
        bench.pass(shift);
        assert_eq!(bench.machine.handle_adopted(bench.now, generation, &life), Adoption::Unneeded);
        bench.fetch();
    }
    let mut bench = Bench::new();
    let mut other_boot = bench.life(HOUR);
    other_boot.requested.boot = bench.now.boot + SECOND;
    assert_eq!(bench.machine.handle_adopted(bench.now, generation, &other_boot), Adoption::Unneeded);
}

#[test]
fn another_identity_starts_anew_but_for_the_generation_and_the_count() {
    let mut bench = Bench::holding(HOUR);
    let before = bench.machine.generation.unwrap();
    bench.fetch_when_due();
    bench.fail(Schedule::Refusal, Some(HOUR));
    bench.now.wall = WallTime::default();
    bench.machine.handle_identity(bench.now.boot, Policy::default());
    assert_eq!(
        (bench.health(), bench.due_in(), bench.machine.settled()),
        (Health::Pending, Duration::ZERO, 2)
    );
    bench.fetch();
    assert_eq!(bench.grant(HOUR), Generation::from_u64(before.as_u64() + 1));
}

#[test]
fn another_policy_moves_the_point_with_the_same_draw() {
    let mut bench = Bench::holding(HOUR);
    let before = bench.machine.next_attempt();
    bench.machine.handle_policy(bench.now, Policy::new(0.5, 0.05).unwrap());
    let moved = before.unwrap().since(bench.machine.next_attempt().unwrap());
    assert!(moved.abs_diff(HOUR.mul_f64(0.3)) < Duration::from_micros(1), "{moved:?}");
    // A wall clock that is ahead had brought it forward by the old policy.
    bench.now.wall = bench.now.wall + 10 * MINUTE;
    bench.machine.handle_wall_step(bench.now);
    bench.machine.handle_policy(bench.now, Policy::default());
    let moved = before.unwrap().since(bench.machine.next_attempt().unwrap());
    assert!(moved.abs_diff(10 * MINUTE) < SECOND, "{moved:?}");
    bench.now.wall = bench.now.wall - 10 * MINUTE;
    bench.machine.handle_wall_step(bench.now);
    assert_eq!(bench.machine.next_attempt(), before);
}

#[test]
fn the_silence_after_a_429_outlasts_an_attempt_that_the_operator_forced() {
    let mut bench = Bench::new();
    bench.fetch();
    bench.fail(Schedule::RateLimited, None);
    bench.demand(Demand::Operator);
    bench.fetch();
    bench.fail(Schedule::Transient, None);
    assert!(bench.due_in() >= 30 * SECOND && !bench.machine.is_refused());
}

#[test]
fn mending_what_is_planned_for_that_moment_anyway_uses_nothing_up() {
    let mut bench = Bench::new();
    bench.fetch();
    bench.fail(Schedule::Refusal, Some(20 * MINUTE));
    bench.machine.handle_mended(bench.now.boot);
    assert_eq!(bench.due_in(), 20 * MINUTE);
    bench.fetch_when_due();
    bench.fail(Schedule::Refusal, None);
    bench.machine.handle_mended(bench.now.boot);
    assert_eq!(bench.due_in(), Duration::ZERO);
}

#[test]
fn at_the_moment_of_its_end_a_token_is_not_valid_and_one_of_this_moment_is_no_strangers() {
    let mut bench = Bench::holding(HOUR);
    bench.pass(HOUR - 5 * SECOND);
    assert_eq!(bench.health(), Health::Pending);
    let mut bench = Bench::new();
    let (generation, life) = (Generation::from_u64(7), bench.life(HOUR));
    assert_eq!(bench.machine.handle_adopted(bench.now, generation, &life), Adoption::Served);
}

#[test]
fn a_restart_goes_on_where_the_machine_was() {
    let restored = |bench: &Bench| {
        let mut machine = Refresh::new(Policy::default(), bench.now.boot, 2);
        let adoption = machine.handle_restored(bench.now, bench.machine.standing());
        (adoption, Bench { machine, now: bench.now })
    };
    let mut bench = Bench::holding(HOUR);
    bench.report();
    bench.pass(10 * SECOND).fetch();
    bench.fail(Schedule::Transient, None);
    bench.fetch_when_due();
    bench.fail(Schedule::Refusal, Some(20 * MINUTE));
    let (adoption, next) = restored(&bench);
    assert_eq!(adoption, Adoption::Served);
    assert_eq!(next.machine.standing(), bench.machine.standing());
    assert_eq!((next.due_in(), next.health()), (20 * MINUTE, Health::Degraded));
    assert_eq!(next.machine.consecutive_failures(), 2);
    // A step that nobody heard while nobody ran is heard now.
    let mut bench = Bench::holding(24 * HOUR);
    bench.now.wall = bench.now.wall + 48 * HOUR;
    bench.pass(MINUTE);
    assert_eq!(restored(&bench).1.due_in(), Duration::ZERO);
    // The last moment of a token, and its end.
    let mut bench = Bench::holding(HOUR);
    let generation = bench.machine.standing().generation;
    bench.pass(HOUR - 5 * SECOND - Duration::from_nanos(1));
    assert_eq!(restored(&bench).0, Adoption::Served);
    bench.pass(Duration::from_nanos(1));
    let (adoption, mut next) = restored(&bench);
    assert_eq!((adoption, next.health()), (Adoption::Unneeded, Health::Pending));
    assert_eq!((next.machine.standing().held, next.machine.standing().generation), (None, generation));
    assert_eq!(next.actions(), [Action::Fetch], "nobody saw it served: there is no end to tell of");
}

#[test]
fn an_attempt_whose_end_nobody_sees_counts_as_a_failure_and_its_record_says_so_before() {
    let mut bench = Bench::holding(HOUR);
    let before = bench.machine.standing();
    bench.machine.handle_cut(bench.now.boot);
    assert_eq!(bench.machine.standing(), before, "there is none");
    bench.fetch_when_due();
    let told = bench.machine.standing_if_cut(bench.now.boot);
    assert_eq!((bench.machine.consecutive_failures(), bench.machine.next_attempt()), (0, None));
    bench.machine.handle_cut(bench.now.boot);
    let standing = bench.machine.standing();
    for Standing { held, failing, .. } in [told, standing] {
        let failing = failing.unwrap();
        assert_eq!((held, failing.count, failing.last), (before.held, 1, Schedule::Transient));
        let wait = failing.retry.since(bench.now.boot);
        assert!(wait >= SECOND / 10 && wait <= SECOND, "{wait:?}");
    }
    assert_eq!(bench.machine.settled(), 2);
}

#[test]
fn a_min_validity_beyond_the_budget_gets_the_token_there_is() {
    let mut bench = Bench::holding(HOUR);
    for _ in 0..7 {
        bench.machine.budget.spend(bench.now.boot);
    }
    bench.pass(10 * MINUTE);
    let before = bench.machine.next_attempt();
    assert_eq!(bench.demand(Demand::MinValidity(54 * MINUTE)), Answer::Unneeded);
    assert_eq!(bench.machine.next_attempt(), before);
    bench.machine.budget.restore();
    let answer = bench.demand(Demand::MinValidity(54 * MINUTE));
    bench.assert_joined(answer, Duration::ZERO);
}

#[test]
fn the_same_token_again_keeps_its_place_in_the_window() {
    let mut bench = Bench::holding(HOUR);
    let share = |bench: &Bench, length: Duration| bench.due_in().as_secs_f64() / length.as_secs_f64();
    let before = share(&bench, HOUR);
    bench.fetch_when_due();
    let life = bench.life(30 * MINUTE);
    let grant = bench.machine.handle_granted(bench.now, &life, Novelty::Same);
    assert!(matches!(grant, Grant::Prolonged(_)), "{grant:?}");
    assert!((share(&bench, 30 * MINUTE) - before).abs() < 1e-9);
}
