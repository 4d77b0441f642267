//! What of one profile outlives a restart, as bytes: the token, how refreshing stands, and what both were for.
//!
//! - A record is taken whole or not at all: its size, its checksum, every length and every value are judged, and nothing
//!   may follow it. It is of this boot, or it is nothing: its moments are on a clock that starts with the boot.
//! - No client secret is in it, and nothing that would confirm a guess of one ([`Mark`]).
//! - Its bytes hold a token: every buffer of them is wiped, and none of them is ever in an error.
//!
//! Where it lies, and who may have written it, is [`crate::sealed`]'s.

mod bytes;
mod digest;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use zeroize::Zeroizing;

use self::bytes::{Reader, Writer};
pub use self::digest::{BootId, Digest, Mark, NotABootId, identity};
use crate::{
    clock::{Now, Timestamp, WallTime},
    failure::{Failure, FailureKind, Schedule, known_code},
    refresh::{
        Failing, Held, Standing,
        backoff::{Backoff, RETRY_AFTER_CAP},
        budget::Budget,
        schedule::Draw,
    },
    token::{AccessToken, Generation, Life, LifeSource, ProfileName, Scope},
};

/// The longest record, in bytes.
pub const MAX_RECORD: usize = 64 * 1024;

/// The eighth byte is the version: another layout has another one.
const MAGIC: [u8; 8] = *b"bloomtk\x01";

/// Of a failure's text. It was cut when it was made; this holds for any.
const MAX_TEXT: usize = 2048;

/// A checksum's length. It finds damage; who may write is the seal's matter.
const CHECKSUM: usize = 32;

/// All of a record but what is as long as the provider likes, rounded up.
const FIXED: usize = 1024;

/// One profile's record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Whose it is, and which one.
    pub name: RecordName,
    /// On which boot's clock its moments are.
    pub boot: BootId,
    /// What the token is for ([`identity`]).
    pub identity: Digest,
    /// How it is obtained besides: a change of that may be what a failing profile waited for.
    pub settings: Mark,
    /// The secrets that the provider refused, or that could not be read.
    pub secret: Option<Mark>,
    /// How refreshing stands.
    pub standing: Standing,
    /// The token that [`Standing::held`] speaks of; there if, and only if, that is.
    pub token: Option<StoredToken>,
    /// Why the last attempt failed, and when; only if [`Standing::failing`] is there.
    pub failure: Option<(Failure, Now)>,
}

/// A token's value and what belongs to it. The audience is the config's, which [`Record::identity`] binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredToken {
    /// The token itself.
    pub access_token: AccessToken,
    /// As granted.
    pub scopes: Vec<Scope>,
}

/// A record's name in the manager's store: `token.PROFILE.NUMBER`. The number is the token's generation for the first
/// record of a token, and grows with each record, so that the old one can be removed by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordName {
    /// The profile.
    pub profile: ProfileName,
    /// Which of its records.
    pub number: u64,
}

impl RecordName {
    /// Reads a name; none if it is not written exactly so.
    pub fn parse(text: &str) -> Option<Self> {
        let (profile, digits) = text.strip_prefix("token.")?.split_once('.')?;
        let name = Self { profile: ProfileName::parse(profile).ok()?, number: digits.parse().ok()? };
        // One name has one spelling: no sign, no leading zero.
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token.{}.{}", self.profile, self.number)
    }
}

/// More than [`MAX_RECORD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record is longer than 64 KiB: the token and its scopes are too long together")]
pub struct TooLarge;

/// Why some bytes are not a record. It never holds any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// More than [`MAX_RECORD`].
    #[error("it is longer than 64 KiB")]
    TooLarge,
    /// Not ours, or of another version of the agent.
    #[error("it is in no form that this version knows")]
    Form,
    /// The checksum says that bytes are missing or other.
    #[error("it is damaged")]
    Damaged,
    /// Its moments are on another boot's clock.
    #[error("it is from before the host was booted")]
    OtherBoot,
    /// A value that this agent never writes.
    #[error("it holds {0} that cannot be")]
    Value(&'static str),
}

impl Record {
    /// Its bytes.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, TooLarge> {
        let text = self.failure.as_ref().map_or("", |(failure, _)| failure.text.as_ref());
        let text = text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default();
        let token = self.token.as_ref().map_or(0, |token| {
            let scopes = token.scopes.iter().map(|scope| scope.as_str().len() + 4).sum::<usize>();
            token.access_token.expose_secret().len() + scopes
        });
        // Once and for all: a buffer that grows leaves a copy behind.
        let mut out = Writer::with_capacity(FIXED + token + text.len());
        out.raw(&MAGIC);
        out.raw(&self.boot.0);
        out.short(self.name.profile.as_str().as_bytes());
        out.u64(self.name.number);
        out.raw(&self.identity.0);
        mark(&mut out, &self.settings);
        out.optional(self.secret.as_ref(), mark);
        standing(&mut out, &self.standing);
        out.optional(self.token.as_ref(), |out, token| {
            out.long(token.access_token.expose_secret().as_bytes());
            out.long_count(token.scopes.len());
            for scope in &token.scopes {
                out.long(scope.as_str().as_bytes());
            }
        });
        out.optional(self.failure.as_ref(), |out, (failure, at)| {
            out.u8(kind_number(failure.kind));
            out.u8(schedule_number(failure.schedule));
            out.optional(failure.retry_after.as_ref(), |out, asked| out.duration(*asked));
            out.optional(failure.code.as_ref(), |out, code| out.short(code.as_bytes()));
            moment(out, at);
            out.long(text.as_bytes());
        });
        let bytes = out.finish();
        if bytes.len() > MAX_RECORD { Err(TooLarge) } else { Ok(bytes) }
    }

    /// Reads one that was written on the boot `boot`, at `now` on its clock. `keep` copies a token to where it stays.
    pub fn parse(
        bytes: &[u8],
        boot: &BootId,
        now: Timestamp,
        keep: impl Fn(&[u8]) -> ::bytes::Bytes,
    ) -> Result<Self, Unusable> {
        if bytes.len() > MAX_RECORD {
            return Err(Unusable::TooLarge);
        }
        if !bytes.starts_with(&MAGIC) {
            return Err(Unusable::Form);
        }
        let mut from = Reader::checked(bytes).ok_or(Unusable::Damaged)?;
        from.raw::<{ MAGIC.len() }>()?;
        if BootId(from.raw()?) != *boot {
            return Err(Unusable::OtherBoot);
        }
        let profile = text(from.short()?).and_then(|text| ProfileName::parse(text).ok());
        let profile = profile.ok_or(Unusable::Value("a profile's name"))?;
        let name = RecordName { profile, number: from.u64()? };
        let identity = Digest(from.raw()?);
        let settings = read_mark(&mut from)?;
        let secret = from.optional(read_mark)?;
        let standing = read_standing(&mut from)?;
        let token = from.optional(|from| read_token(from, &keep))?;
        let failure = from.optional(read_failure)?;
        if !from.is_at_its_end() {
            return Err(Unusable::Value("something at its end"));
        }
        if !standing.is_plausible(now) || failure.as_ref().is_some_and(|(_, at)| at.boot > now) {
            return Err(Unusable::Value("a moment or a number"));
        }
        if token.is_some() != standing.held.is_some() || failure.is_some() && standing.failing.is_none() {
            return Err(Unusable::Value("a state"));
        }
        Ok(Self { name, boot: *boot, identity, settings, secret, standing, token, failure })
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn mark(out: &mut Writer, mark: &Mark) {
    out.raw(&mark.key);
    out.raw(&mark.tag);
}

fn read_mark(from: &mut Reader<'_>) -> Result<Mark, Unusable> {
    Ok(Mark { key: from.raw()?, tag: from.raw()? })
}

fn moment(out: &mut Writer, at: &Now) {
    out.timestamp(at.boot);
    out.i64(at.wall.unix_millis());
}

fn read_moment(from: &mut Reader<'_>) -> Result<Now, Unusable> {
    Ok(Now { boot: from.timestamp()?, wall: WallTime::from_unix_millis(from.i64()?) })
}

fn span(out: &mut Writer, (at, length): &(Timestamp, Duration)) {
    out.timestamp(*at);
    out.duration(*length);
}

fn read_span(from: &mut Reader<'_>) -> Result<(Timestamp, Duration), Unusable> {
    Ok((from.timestamp()?, from.duration()?))
}

fn standing(out: &mut Writer, standing: &Standing) {
    // All of it, by name: what is added there has to be added here.
    let Standing { generation, held, granted, failing, budget, last_stepped, last_mended } = standing;
    out.optional(generation.as_ref(), |out, generation| out.u64(generation.as_u64()));
    out.optional(held.as_ref(), |out, Held { generation, life, draw, reported }| {
        out.u64(generation.as_u64());
        moment(out, &life.requested);
        out.duration(life.length);
        out.u8(match life.source {
            LifeSource::Provider => 0,
            LifeSource::Assumed => 1,
        });
        out.u64(draw.place().to_bits());
        out.u8(u8::from(*reported));
    });
    out.optional(granted.as_ref(), span);
    out.optional(failing.as_ref(), |out, Failing { backoff, count, last, retry }| {
        backoff.counts().into_iter().for_each(|count| out.u32(count));
        out.optional(backoff.not_before().as_ref(), |out, at| out.timestamp(*at));
        out.u32(*count);
        out.u8(schedule_number(*last));
        out.timestamp(*retry);
    });
    out.optional(budget.spent().as_ref(), span);
    out.optional(last_stepped.as_ref(), |out, at| out.timestamp(*at));
    out.optional(last_mended.as_ref(), |out, at| out.timestamp(*at));
}

fn read_standing(from: &mut Reader<'_>) -> Result<Standing, Unusable> {
    Ok(Standing {
        generation: from.optional(|from| from.u64().map(Generation::from_u64))?,
        held: from.optional(read_held)?,
        granted: from.optional(read_span)?,
        failing: from.optional(read_failing)?,
        budget: Budget::restored(from.optional(read_span)?),
        last_stepped: from.optional(Reader::timestamp)?,
        last_mended: from.optional(Reader::timestamp)?,
    })
}

fn read_held(from: &mut Reader<'_>) -> Result<Held, Unusable> {
    let generation = Generation::from_u64(from.u64()?);
    let requested = read_moment(from)?;
    let length = from.duration()?;
    let source = match from.u8()? {
        0 => LifeSource::Provider,
        1 => LifeSource::Assumed,
        _ => return Err(Unusable::Value("a life's source")),
    };
    let draw = Draw::restored(f64::from_bits(from.u64()?)).ok_or(Unusable::Value("a draw"))?;
    let reported = match from.u8()? {
        0 => false,
        1 => true,
        _ => return Err(Unusable::Value("a mark of a report")),
    };
    Ok(Held { generation, life: Life { requested, length, source }, draw, reported })
}

fn read_failing(from: &mut Reader<'_>) -> Result<Failing, Unusable> {
    let counts = [from.u32()?, from.u32()?, from.u32()?];
    let backoff = Backoff::restored(counts, from.optional(Reader::timestamp)?);
    Ok(Failing { backoff, count: from.u32()?, last: schedule(from.u8()?)?, retry: from.timestamp()? })
}

fn read_token(
    from: &mut Reader<'_>,
    keep: impl Fn(&[u8]) -> ::bytes::Bytes,
) -> Result<StoredToken, Unusable> {
    let value = from.long()?;
    let access_token =
        AccessToken::parse(keep(value)).map_err(|_| Unusable::Value("something for a token"))?;
    let count = from.count()?;
    let mut scopes = Vec::new();
    for _ in 0..count {
        let scope = text(from.long()?).and_then(|text| Scope::parse(text).ok());
        scopes.push(scope.ok_or(Unusable::Value("a scope"))?);
    }
    Ok(StoredToken { access_token, scopes })
}

fn read_failure(from: &mut Reader<'_>) -> Result<(Failure, Now), Unusable> {
    let kind = match from.u8()? {
        0 => FailureKind::Unreachable,
        1 => FailureKind::ProviderError,
        2 => FailureKind::Refused,
        3 => FailureKind::SecretUnreadable,
        _ => return Err(Unusable::Value("a kind of failure")),
    };
    let schedule = schedule(from.u8()?)?;
    let retry_after = from.optional(Reader::duration)?;
    let code = from.optional(|from| {
        let known = text(from.short()?).and_then(known_code);
        known.ok_or(Unusable::Value("an error code"))
    })?;
    let at = read_moment(from)?;
    let text = text_of_failure(from.long()?).ok_or(Unusable::Value("a failure's text"))?;
    if retry_after.is_some_and(|asked| asked > RETRY_AFTER_CAP) {
        return Err(Unusable::Value("a Retry-After"));
    }
    Ok((Failure { kind, schedule, retry_after, code, text: text.into() }, at))
}

/// It goes to the log and to admins: one line, and no longer than what is written.
fn text_of_failure(bytes: &[u8]) -> Option<&str> {
    text(bytes).filter(|text| text.len() <= MAX_TEXT && !text.contains(char::is_control))
}

const fn kind_number(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Unreachable => 0,
        FailureKind::ProviderError => 1,
        FailureKind::Refused => 2,
        FailureKind::SecretUnreadable => 3,
    }
}

const fn schedule_number(schedule: Schedule) -> u8 {
    match schedule {
        Schedule::Transient => 0,
        Schedule::RateLimited => 1,
        Schedule::Refusal => 2,
    }
}

const fn schedule(number: u8) -> Result<Schedule, Unusable> {
    match number {
        0 => Ok(Schedule::Transient),
        1 => Ok(Schedule::RateLimited),
        2 => Ok(Schedule::Refusal),
        _ => Err(Unusable::Value("a schedule")),
    }
}
