//! The connections of one uid take turns, so that however many there are and whatever they send, another uid's call waits
//! for a few of their reads and not for one of each.
//!
//! - A turn is one read of a connection with all that comes of it ([`super::wire`] bounds it). A round of a uid's is as many
//!   of them as are [`ROUND`] of work; then one connection leads: it waits until every task that could run has run, and the
//!   next round begins.
//! - What costs the agent work and gives nobody an answer is charged to the uid: see [`Waste`]. A uid that wastes more than
//!   [`PER_SECOND`] is in disgrace until that is paid for, [`LONGEST`] at most: it has one turn in [`REST`], whatever its
//!   connections do, so that it gets a small share of a core and nobody of its own loses what is open.
//! - Honest clients never notice: an answered call is no waste, be the answer a refusal.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use crate::clock::{Clock, Timestamp};

/// The work of a round, in calls: a millisecond or two. Less would be fairer, and would make more reads wait for a round of
/// their own: 64 connections with a call each have theirs in one.
const ROUND: u32 = 128;

/// What a turn is at least: a read, and the call that it brings.
const TURN: u32 = 2;

/// So many bytes are at least the work of a call.
const BYTES_PER_CALL: usize = 64;

/// Who begins a round wakes so many; whoever of them has his turn wakes another.
const AT_ONCE: u32 = 8;

/// The time between two turns of a uid in disgrace.
const REST: Duration = Duration::from_millis(20);

/// What a uid may waste in a second, and at once, in microseconds: one 25th of a core.
const PER_SECOND: u32 = 40_000;

/// The longest disgrace after the last waste.
const LONGEST: Duration = Duration::from_secs(5);

/// Work that led to no answer, in microseconds: rounded measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waste {
    /// A connection ended, and there was no call on it.
    Connect,
    /// So many calls were refused for a limit, or cancelled, or could not be read.
    Calls(u32),
    /// So many requests were no calls: HTTP/2 answers each with a reset of its own, or there is no such method.
    Strays(u32),
    /// Frames and fields came that mean nothing, beyond what any client sends.
    Frames {
        /// The work that they were.
        micros: u32,
    },
    /// A connection had to be ended.
    Connection,
}

impl Waste {
    const fn micros(self) -> u32 {
        match self {
            Self::Connect => 50,
            Self::Calls(count) => count.saturating_mul(16),
            Self::Strays(count) => count.saturating_mul(64),
            Self::Frames { micros } => micros,
            Self::Connection => 1_000,
        }
    }
}

/// How long a turn may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// As long as any.
    Whole,
    /// As short as can be.
    Short,
}

/// What a connection that wants a turn is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is yours.
    Taken,
    /// The same, of a uid in disgrace: it should be short.
    TakenShort,
    /// You are woken when it may be.
    Queued,
    /// The same, of a uid in disgrace: it takes long.
    QueuedForLong,
    /// You lead: ask again when all others that can run have run.
    LeadAfterAll,
    /// You lead: ask again after that time.
    LeadAfter(Duration),
}

/// The turns of one uid; every connection of it has them.
pub(super) struct Turns {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    left: u32,
    leader: Option<u64>,
    waiting: VecDeque<(u64, Waker)>,
    /// Who waits: nobody looks for one among thousands.
    queued: HashSet<u64>,
    /// When all that was wasted is paid for.
    paid_at: Timestamp,
    /// It was in disgrace at the last look.
    disgraced: bool,
}

impl State {
    fn is_disgraced(&mut self, now: impl FnOnce() -> Timestamp) -> bool {
        // Without waste nobody asks what time it is.
        if self.disgraced {
            self.disgraced = self.paid_at.since(now()) > Duration::from_secs(1);
        }
        self.disgraced
    }

    /// Whoever waits relies on this: as long as somebody does, there is one who leads, or one who has been woken and has not
    /// asked yet.
    fn wake_next(&mut self) {
        if self.leader.is_none() {
            self.wake(1);
        }
    }

    fn wake(&mut self, count: u32) {
        for _ in 0..count {
            let Some((id, waker)) = self.waiting.pop_front() else { return };
            self.queued.remove(&id);
            waker.wake();
        }
    }
}

/// A clock has nothing to show, and wakers neither.
impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turns")
    }
}

impl Turns {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, state: Mutex::default() })
    }

    /// Asks for a turn of the connection `id`.
    pub(super) fn take(&self, id: u64, waker: &Waker) -> Turn {
        let mut state = self.state();
        if state.leader == Some(id) {
            state.leader = None;
            let disgraced = state.is_disgraced(|| self.clock.now().boot);
            state.left = if disgraced { 0 } else { ROUND - TURN };
            // Without a turn for anybody it is the next leader who is woken.
            state.wake(if disgraced { 1 } else { AT_ONCE });
            return if disgraced { Turn::TakenShort } else { Turn::Taken };
        }
        if state.left > 0 {
            state.left = state.left.saturating_sub(TURN);
            // The next to have a turn, or to lead.
            state.wake_next();
            return Turn::Taken;
        }
        if state.leader.is_some() {
            if state.queued.insert(id) {
                state.waiting.push_back((id, waker.clone()));
            }
            return if state.disgraced { Turn::QueuedForLong } else { Turn::Queued };
        }
        state.leader = Some(id);
        if state.is_disgraced(|| self.clock.now().boot) { Turn::LeadAfter(REST) } else { Turn::LeadAfterAll }
    }

    /// Gives a turn back that was not used: there was nothing to read.
    pub(super) fn give_back(&self) {
        let mut state = self.state();
        if !state.disgraced {
            state.left = (state.left + TURN).min(ROUND);
        }
        state.wake_next();
    }

    /// Takes so much of the round, beyond what a turn is at least.
    fn work(&self, calls: u32) {
        let mut state = self.state();
        state.left = state.left.saturating_sub(calls);
    }

    /// A connection does not want to read now, though it may have been woken for that, or leads.
    pub(super) fn pass(&self, id: u64) {
        let mut state = self.state();
        if state.leader == Some(id) {
            state.leader = None;
        }
        state.wake_next();
    }

    /// A connection goes: nobody waits for it any more.
    pub(super) fn leave(&self, id: u64) {
        let mut state = self.state();
        if state.queued.remove(&id) {
            state.waiting.retain(|(queued, _)| *queued != id);
        }
        if state.leader == Some(id) {
            state.leader = None;
        }
        state.wake_next();
    }

    /// Charges the uid. If it falls into disgrace by that, now is when.
    pub(super) fn charge(&self, waste: Waste) -> Option<Timestamp> {
        let now = self.clock.now().boot;
        let mut state = self.state();
        let cost = Duration::from_secs(1) * waste.micros() / PER_SECOND;
        state.paid_at = (state.paid_at.max(now) + cost).min(now + LONGEST);
        let was = state.disgraced;
        state.disgraced = state.paid_at.since(now) > Duration::from_secs(1);
        if state.disgraced {
            state.left = 0;
        }
        (state.disgraced && !was).then_some(now)
    }

    /// Whether nothing is owed.
    pub(super) fn is_even(&self) -> bool {
        self.state().paid_at <= self.clock.now().boot
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection among those of its uid. Dropping it leaves.
pub(super) struct Seat {
    id: u64,
    turns: Arc<Turns>,
    /// Until it may lead.
    rest: Option<Pin<Box<Sleep>>>,
    /// It has asked, and has not had its turn.
    waits: bool,
    waits_long: bool,
}

impl Seat {
    pub(super) const fn new(id: u64, turns: Arc<Turns>) -> Self {
        Self { id, turns, rest: None, waits: false, waits_long: false }
    }

    /// Waits for a turn.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Length> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        let turn = self.turns.take(self.id, cx.waker());
        self.waits = !matches!(turn, Turn::Taken | Turn::TakenShort);
        self.waits_long = matches!(turn, Turn::QueuedForLong | Turn::LeadAfter(_));
        match turn {
            Turn::Taken => Poll::Ready(Length::Whole),
            Turn::TakenShort => Poll::Ready(Length::Short),
            Turn::Queued | Turn::QueuedForLong => Poll::Pending,
            Turn::LeadAfterAll => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Turn::LeadAfter(rest) => {
                let mut rest = Box::pin(sleep(rest));
                // Not over yet; this is how it knows whom to wake.
                let _pending = rest.as_mut().poll(cx);
                self.rest = Some(rest);
                Poll::Pending
            }
        }
    }

    /// Whether the turn that was asked for last takes long to come.
    pub(super) const fn waits_long(&self) -> bool {
        self.waits_long
    }

    /// There was nothing to read.
    pub(super) fn give_back(&self) {
        self.turns.give_back();
    }

    /// There is nothing to read any more, whatever it waits for.
    pub(super) fn pass(&mut self) {
        if self.waits {
            (self.waits, self.waits_long, self.rest) = (false, false, None);
            self.turns.pass(self.id);
        }
    }

    /// What one read of the turn has brought. The `first` is paid for, and a call.
    pub(super) fn read(&self, first: bool, calls: u32, bytes: usize) {
        let bytes = u32::try_from(bytes / BYTES_PER_CALL).unwrap_or(u32::MAX);
        match calls.max(bytes).max(1).saturating_sub(u32::from(first)) {
            0 => {}
            more => self.turns.work(more),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.turns.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

    use proptest::prelude::*;

    use super::*;
    use crate::clock::Now;

    #[derive(Default)]
    struct Millis(AtomicU64);

    impl Clock for Millis {
        fn now(&self) -> Now {
            Now {
                boot: Timestamp::from_boot(Duration::from_millis(1_000 + self.0.load(Relaxed))),
                ..Now::default()
            }
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn turns() -> (Arc<Millis>, Arc<Turns>, Arc<Woken>, Waker) {
        let (clock, woken) = (Arc::new(Millis::default()), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        (Arc::clone(&clock), Turns::new(clock), woken, waker)
    }

    /// Begins a round with connection 0.
    fn begin(turns: &Turns, waker: &Waker) {
        assert_eq!(turns.take(0, waker), Turn::LeadAfterAll);
        assert_eq!(turns.take(0, waker), Turn::Taken);
    }

    #[test]
    fn a_round_has_so_much_work_and_then_one_leads_and_the_others_wait() {
        let (_, turns, woken, waker) = turns();
        begin(&turns, &waker);
        let whole = u64::from(ROUND / TURN);
        for id in 1..whole {
            assert_eq!(turns.take(id, &waker), Turn::Taken, "{id}");
        }
        assert_eq!(turns.take(whole, &waker), Turn::LeadAfterAll);
        for id in whole + 1..whole + 100 {
            assert_eq!(turns.take(id, &waker), Turn::Queued, "{id}");
            assert_eq!(turns.take(id, &waker), Turn::Queued, "{id}, once more");
        }
        assert_eq!(turns.take(whole, &waker), Turn::Taken);
        assert_eq!(woken.0.load(Relaxed), 8, "not all at once");
        assert_eq!(turns.take(whole + 1, &waker), Turn::Taken);
        assert_eq!(woken.0.load(Relaxed), 9, "one more for each that has had his");
    }

    #[test]
    fn a_turn_of_more_work_leaves_less_of_the_round() {
        for (calls, bytes, turns_of_a_round) in [
            (1, 37, 64),
            (0, 0, 64),
            (16, 16 * 37, 8),
            (1, 16 * 64, 8),
            (16, 64 * 1024, 1),
            (u32::MAX, usize::MAX, 1),
        ] {
            let (_, turns, _, waker) = turns();
            let seats = [0; 65].map(|_| Seat::new(0, Arc::clone(&turns)));
            begin(&turns, &waker);
            seats[0].read(true, calls, bytes);
            let others = (1..).zip(&seats[1..]).take_while(|(id, seat)| {
                let taken = turns.take(*id, &waker) == Turn::Taken;
                if taken {
                    seat.read(true, calls, bytes);
                }
                taken
            });
            assert_eq!(1 + others.count(), turns_of_a_round, "{calls} calls in {bytes} bytes");
        }
    }

    #[test]
    fn each_read_of_a_turn_counts() {
        let (_, turns, _, waker) = turns();
        begin(&turns, &waker);
        let seat = Seat::new(0, Arc::clone(&turns));
        seat.read(true, 8, 0);
        seat.read(false, 0, 1);
        seat.read(false, 118, 0);
        assert_eq!(turns.take(1, &waker), Turn::LeadAfterAll, "2 + 7 + 1 + 118");
    }

    #[test]
    fn a_turn_that_is_given_back_is_another_ones() {
        let (_, turns, _, waker) = turns();
        begin(&turns, &waker);
        for id in 1..100 {
            assert_eq!(turns.take(id, &waker), Turn::Taken);
            turns.give_back();
        }
    }

    #[test]
    fn nobody_waits_for_a_leader_that_has_gone() {
        let (_, turns, woken, waker) = turns();
        assert_eq!(turns.take(1, &waker), Turn::LeadAfterAll);
        assert_eq!(turns.take(2, &waker), Turn::Queued);
        assert_eq!(turns.take(3, &waker), Turn::Queued);
        turns.leave(2);
        turns.leave(1);
        assert_eq!(woken.0.load(Relaxed), 1, "the third");
        assert_eq!(turns.take(3, &waker), Turn::LeadAfterAll);
    }

    #[test]
    fn nobody_waits_for_one_that_was_woken_and_does_not_read() {
        let (_, turns, woken, waker) = turns();
        assert_eq!(turns.take(1, &waker), Turn::LeadAfterAll);
        for id in 2..5 {
            assert_eq!(turns.take(id, &waker), Turn::Queued);
        }
        turns.pass(1);
        assert_eq!(woken.0.load(Relaxed), 1, "the second, in the place of the leader");
        turns.pass(2);
        assert_eq!(woken.0.load(Relaxed), 2, "the third, in the place of the second");
        assert_eq!(turns.take(3, &waker), Turn::LeadAfterAll);
        assert_eq!(turns.take(3, &waker), Turn::Taken);
        assert_eq!(woken.0.load(Relaxed), 3);
    }

    /// What a connection does when it is polled.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Deed {
        /// It reads so much.
        Reads(u32),
        /// It has its turn, and there is nothing to read.
        FindsNothing,
        /// It does not want to read any more.
        Passes,
        /// It goes.
        Leaves,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            (0..40_u32).prop_map(Deed::Reads),
            Just(Deed::FindsNothing),
            Just(Deed::Passes),
            Just(Deed::Leaves)
        ]
    }

    /// Tasks to be polled, in their order.
    type Runnable = Arc<Mutex<VecDeque<u64>>>;

    struct Task(u64, Runnable);

    impl std::task::Wake for Task {
        fn wake(self: Arc<Self>) {
            self.1.lock().expect("whole").push_back(self.0);
        }
    }

    proptest! {
        #[test]
        fn whoever_waits_is_woken_whatever_the_others_do(deeds in prop::collection::vec(deed(), 1..300)) {
            let (_, turns, _, _) = turns();
            let seats: Vec<_> = (0..).zip(&deeds).map(|(id, _)| Seat::new(id, Arc::clone(&turns))).collect();
            let runnable = Runnable::default();
            runnable.lock().expect("whole").extend(0..deeds.len() as u64);
            let mut seats: Vec<_> = seats.into_iter().map(Some).collect();
            let mut waiting = vec![true; deeds.len()];
            let mut asked = vec![0; deeds.len()];
            loop {
                let Some(id) = runnable.lock().expect("whole").pop_front() else { break };
                let at = usize::try_from(id).expect("an index");
                let Some(seat) = seats[at].as_ref().filter(|_| waiting[at]) else { continue };
                asked[at] += 1;
                // Who passes or goes does so when it has waited for a turn, if it had to.
                match deeds[at] {
                    Deed::Passes if asked[at] > 1 => {
                        turns.pass(id);
                        waiting[at] = false;
                        continue;
                    }
                    Deed::Leaves if asked[at] > 1 => {
                        seats[at] = None;
                        continue;
                    }
                    _ => {}
                }
                let waker = Waker::from(Arc::new(Task(id, Arc::clone(&runnable))));
                match turns.take(id, &waker) {
                    Turn::Taken => {
                        waiting[at] = false;
                        match deeds[at] {
                            Deed::Reads(calls) => seat.read(true, calls, 0),
                            _ => seat.give_back(),
                        }
                    }
                    Turn::Queued => {}
                    Turn::LeadAfterAll => waker.wake_by_ref(),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let left: Vec<_> = (0..deeds.len()).filter(|at| waiting[*at] && seats[*at].is_some()).collect();
            prop_assert!(left.is_empty(), "nobody wakes {:?}", left);
        }
    }

    #[test]
    fn who_wastes_has_one_turn_in_twenty_milliseconds_until_it_is_paid_for() {
        let (clock, turns, woken, waker) = turns();
        begin(&turns, &waker);
        turns.charge(Waste::Calls(2_500));
        assert_eq!(turns.take(1, &waker), Turn::Taken, "40,000 µs may be wasted at once");
        turns.charge(Waste::Connect);
        assert_eq!(turns.take(2, &waker), Turn::LeadAfter(REST));
        assert_eq!(turns.take(3, &waker), Turn::QueuedForLong);
        assert_eq!(turns.take(2, &waker), Turn::TakenShort);
        assert_eq!(woken.0.load(Relaxed), 1, "the next to lead");
        assert_eq!(turns.take(3, &waker), Turn::LeadAfter(REST));
        assert!(!turns.is_even());
        for _ in 0..1_000 {
            turns.charge(Waste::Connection);
        }
        clock.0.store(4_000, Relaxed);
        assert_eq!(turns.take(3, &waker), Turn::Taken);
        assert_eq!(turns.take(4, &waker), Turn::Taken, "the disgrace is over after 4 s of the 5");
        clock.0.store(5_000, Relaxed);
        assert!(turns.is_even());
    }

    #[test]
    fn a_uid_that_wastes_little_is_never_in_disgrace() {
        let (clock, turns, _, waker) = turns();
        for second in 0..1_000 {
            clock.0.store(second * 1_000, Relaxed);
            turns.charge(Waste::Calls(2_000));
            turns.charge(Waste::Connection);
            let round: Vec<_> = (0..=u64::from(ROUND / TURN)).map(|_| turns.take(0, &waker)).collect();
            assert!(round.iter().all(|turn| matches!(turn, Turn::Taken | Turn::LeadAfterAll)), "{round:?}");
        }
    }
}
