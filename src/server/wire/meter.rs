//! The frame meter: cuts floods of frames that cost the sender nothing and the server a wake-up.
//!
//! Cheap is every frame but HEADERS: PING, SETTINGS, WINDOW_UPDATE, PRIORITY, RST_STREAM, unknown types, and DATA, which
//! can have one byte. HTTP/2 libraries answer all of them without end; one flooding connection takes the better part of a
//! core. Honest clients send three or four of them per call and three per message received, so calls and bytes written
//! earn credit.

use std::time::Duration;

use crate::clock::Timestamp;

/// What a connection starts with, and what time alone can bring it back to.
const BUDGET: i32 = 2_000;
/// What calls and bytes written can raise it to: a burst of messages to every watch of a connection is answered in one
/// go, some 3 frames each.
const CEILING: i32 = 8_000;
/// Credit for one HEADERS frame.
const PER_HEAD: i32 = 8;
/// One frame of credit for so many bytes written: 4 per KiB.
const BYTES_PER_FRAME: usize = 256;

/// Field blocks of a call that are ordinary, in µs of decoding: 12 fields in 576 bytes of which none was said before.
const ORDINARY: u32 = 48;
/// What short ones can save up; whoever connects has it.
const SAVED: u32 = 8 * ORDINARY;

/// The work that field blocks make. What is said before is one byte from then on, so honest clients send long ones once;
/// who makes new ones for each call makes the agent work for nothing.
#[derive(Debug)]
pub(super) struct Labour {
    saved: u32,
}

impl Labour {
    pub(super) const fn new() -> Self {
        Self { saved: SAVED }
    }

    /// Takes in what one read brought: work beyond the ordinary, in µs (one for each field, one for 16 bytes: rounded
    /// measurements).
    pub(super) fn read(&mut self, heads: u32, fields: u32, bytes: u32) -> u32 {
        let cost = fields.saturating_add(bytes / 16);
        let paid = self.saved.saturating_add(heads.saturating_mul(ORDINARY));
        self.saved = paid.saturating_sub(cost).min(SAVED);
        cost.saturating_sub(paid)
    }
}

/// The budget is gone, and time has not made up for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flood;

#[derive(Debug)]
pub(super) struct Meter {
    budget: i32,
    /// Bytes written that have not made a whole frame's credit yet.
    change: usize,
    refilled: Timestamp,
}

impl Meter {
    pub(super) const fn new(now: Timestamp) -> Self {
        Self { budget: BUDGET, change: 0, refilled: now }
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.change = self.change.saturating_add(bytes);
        let frames = i32::try_from(self.change / BYTES_PER_FRAME).unwrap_or(CEILING);
        self.change %= BYTES_PER_FRAME;
        self.earn(frames);
    }

    /// Whether more is spent than any client has reason to.
    pub(super) const fn is_low(&self) -> bool {
        self.budget < BUDGET / 2
    }

    /// Takes in what one read brought. The clock is read only when the budget is gone.
    pub(super) fn read(
        &mut self,
        heads: u32,
        cheap: u32,
        now: impl FnOnce() -> Timestamp,
    ) -> Result<(), Flood> {
        self.earn(i32::try_from(heads).unwrap_or(CEILING).saturating_mul(PER_HEAD));
        self.budget = self.budget.saturating_sub_unsigned(cheap);
        if self.budget >= 0 {
            return Ok(());
        }
        let now = now();
        let elapsed = now.since(self.refilled).min(Duration::from_secs(60)).as_millis();
        self.refilled = now;
        // 1,000 a second is one a millisecond; the rest of a millisecond is lost, to the sender's disadvantage.
        self.budget = self.budget.saturating_add(i32::try_from(elapsed).unwrap_or(BUDGET)).min(BUDGET);
        if self.budget < 0 { Err(Flood) } else { Ok(()) }
    }

    fn earn(&mut self, frames: i32) {
        self.budget = self.budget.saturating_add(frames).min(CEILING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_boot(Duration::from_millis(millis))
    }

    fn unread() -> Timestamp {
        panic!("the clock is read while there is budget")
    }

    #[test]
    fn ordinary_field_blocks_are_free_however_many_and_long_ones_are_not() {
        let mut labour = Labour::new();
        for _ in 0..10_000 {
            assert_eq!(labour.read(1, 12, 570), 0, "a first call's, each time");
            assert_eq!(labour.read(16, 16 * 9, 16 * 40), 0, "later ones'");
        }
        assert_eq!(labour.read(1, 20, 6 * 1024), 0, "a long one is saved for");
        let excess: u32 = (0..100).map(|_| labour.read(1, 24, 15 * 1024)).sum();
        assert!(excess > 40_000, "15 KiB each time: {excess}");
        let mut labour = Labour::new();
        let excess: u32 = (0..100).map(|_| labour.read(1, 450, 550)).sum();
        assert!(excess > 20_000, "fields of one byte: {excess}");
        assert_eq!(Labour::new().read(u32::MAX, u32::MAX, u32::MAX), 0, "no overflow");
        assert!(Labour::new().read(0, u32::MAX, u32::MAX) > u32::MAX / 2);
    }

    #[test]
    fn a_flood_ends_when_the_budget_does() {
        let mut meter = Meter::new(at(0));
        for _ in 0..2_000 {
            assert_eq!(meter.read(0, 1, unread), Ok(()));
        }
        assert_eq!(meter.read(0, 1, || at(0)), Err(Flood));
    }

    #[test]
    fn one_read_can_hold_a_whole_flood() {
        assert_eq!(Meter::new(at(0)).read(0, u32::MAX, || at(1_000_000)), Err(Flood));
        assert_eq!(
            Meter::new(at(0)).read(u32::MAX, 8_000, unread),
            Ok(()),
            "credit has a ceiling, and no overflow"
        );
    }

    #[test]
    fn a_thousand_cheap_frames_a_second_go_on_for_ever() {
        let mut meter = Meter::new(at(0));
        for second in 1..10_000 {
            for _ in 0..10 {
                assert_eq!(meter.read(0, 100, || at(second * 1000)), Ok(()), "in second {second}");
            }
        }
    }

    #[test]
    fn a_long_silence_earns_one_budget_and_no_more() {
        let mut meter = Meter::new(at(0));
        assert_eq!(meter.read(0, 2_001, || at(3_600_000)), Ok(()));
        assert_eq!(meter.read(0, 2_000, unread), Ok(()));
        assert_eq!(meter.read(0, 1, || at(3_600_000)), Err(Flood));
    }

    #[test]
    fn calls_pay_for_their_cheap_frames() {
        let mut meter = Meter::new(at(0));
        for _ in 0..100_000 {
            assert_eq!(meter.read(1, 3, unread), Ok(()));
        }
    }

    #[test]
    fn a_thousand_watches_may_answer_each_rotation_however_often_it_comes() {
        let mut meter = Meter::new(at(0));
        for _ in 0..1_000 {
            meter.wrote(1_000 * 1_100);
            assert_eq!(meter.read(0, 3_000, unread), Ok(()));
        }
    }

    #[test]
    fn small_writes_add_up_and_answers_to_pings_do_not_pay_for_them() {
        let mut meter = Meter::new(at(0));
        let answered = (0..100_000).take_while(|_| {
            meter.wrote(17);
            meter.read(0, 1, || at(0)).is_ok()
        });
        assert_eq!(answered.count(), 2_142, "2,000 and 17/256 more for each answer");
    }
}
