//! Which of a profile's secrets is tried first, and whether there is another.
//!
//! The one that last worked goes first, until the content of a source changes: then the order of the config holds
//! again. No secret is kept between attempts, only the stamps of the sources.

use std::sync::{Mutex, PoisonError};

use crate::{
    source::{Gated, Nature, Reading, SourceFault, Stamp},
    stored::Mark,
};

/// `client_secret` or `client_secret_next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Current,
    Next,
}

impl Which {
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Current => "client_secret",
            Self::Next => "client_secret_next",
        }
    }
}

type Stamps = [Option<Stamp>; 2];

/// What a reading brought.
type Read = Result<Reading, SourceFault>;

/// The sources of a profile.
pub(super) struct Secrets {
    current: Gated,
    next: Option<Gated>,
    /// The one to begin with, as long as the sources have these stamps.
    preferred: Mutex<(Which, Stamps)>,
}

/// One attempt's turn: what to try, and what then.
pub(super) struct Turn {
    /// The secret to begin with.
    pub(super) reading: Reading,
    /// Where it was read.
    pub(super) which: Which,
    /// What there is besides.
    pub(super) other: Other,
    stamps: Stamps,
}

/// What there is besides the secret that an attempt begins with.
pub(super) enum Other {
    /// One source only, or the same secret in both.
    None,
    /// Another secret, which reads.
    Secret(Which),
    /// Another source, which does not read; if it comes first in the config, this attempt makes do without it.
    Unreadable(Which, SourceFault),
}

impl Secrets {
    pub(super) fn new(current: Gated, next: Option<Gated>) -> Self {
        Self { current, next, preferred: Mutex::new((Which::Current, [None, None])) }
    }

    /// Begins an attempt: reads both sources, and keeps the secret of one. The mark, under `key`, is of both.
    pub(super) async fn begin(&self, key: [u8; 16]) -> (Mark, Result<Turn, SourceFault>) {
        let (current, next) = self.read_both().await;
        (Mark::of(key, &texts(&current, next.as_ref())), self.choose(current, next))
    }

    /// Whether the sources hold what `mark` was made of. What cannot be read just now counts as unchanged: the next
    /// attempt finds out.
    pub(super) async fn fit(&self, mark: &Mark) -> bool {
        let (current, next) = self.read_both().await;
        let passes = |read: &Read| matches!(read, Err(fault) if fault.nature == Nature::Passing);
        let unknown = passes(&current) || next.as_ref().is_some_and(passes);
        unknown || mark.fits(&texts(&current, next.as_ref()))
    }

    /// Side by side, so that one that hangs does not cost the other.
    async fn read_both(&self) -> (Read, Option<Read>) {
        tokio::join!(self.current.read(), async {
            match &self.next {
                Some(next) => Some(next.read().await),
                None => None,
            }
        })
    }

    fn choose(&self, current: Read, next: Option<Read>) -> Result<Turn, SourceFault> {
        let stamp = |reading: &Read| reading.as_ref().ok().map(|reading| reading.stamp);
        let stamps = [stamp(&current), next.as_ref().and_then(stamp)];
        let first = match *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) {
            (preferred, of) if of == stamps => preferred,
            _ => Which::Current,
        };
        let (which, first, other) = match (first, next) {
            (_, None) => (Which::Current, current, None),
            (Which::Current, Some(next)) => (Which::Current, current, Some((Which::Next, next))),
            (Which::Next, Some(next)) => (Which::Next, next, Some((Which::Current, current))),
        };
        let (which, reading, other) = match (first, other) {
            (Ok(first), None) => (which, first, Other::None),
            (Ok(first), Some((other, Ok(second)))) => {
                let same = first.secret.expose_secret() == second.secret.expose_secret();
                (which, first, if same { Other::None } else { Other::Secret(other) })
            }
            (Ok(first), Some((other, Err(fault)))) => (which, first, Other::Unreadable(other, fault)),
            // Half a rotation is no reason to go without a token.
            (Err(fault), Some((other, Ok(second)))) => (other, second, Other::Unreadable(which, fault)),
            (Err(fault), None) => return Err(fault),
            // The order of the config says which is told, and what passes sooner says for how long.
            (Err(fault), Some((_, Err(other)))) => {
                let passes = [fault.nature, other.nature].contains(&Nature::Passing);
                return Err(SourceFault {
                    nature: if passes { Nature::Passing } else { Nature::Standing },
                    ..fault
                });
            }
        };
        Ok(Turn { reading, which, other, stamps })
    }

    /// Reads one source anew.
    pub(super) async fn read(&self, which: Which) -> Result<Reading, SourceFault> {
        match (which, &self.next) {
            (Which::Next, Some(next)) => next.read().await,
            _ => self.current.read().await,
        }
    }

    /// Ends when a source may hold something else than the last attempt found. See [`Gated::changed`].
    pub(super) async fn changed(&self) {
        match &self.next {
            Some(next) => tokio::select! {
                () = self.current.changed() => {}
                () = next.changed() => {}
            },
            None => self.current.changed().await,
        }
    }

    /// The next attempt begins with `which`, unless a source has changed since `stamps`.
    pub(super) fn prefer(&self, which: Which, stamps: Stamps) {
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) = (which, stamps);
    }
}

/// What a mark is made of: the secrets that could be read, by their place.
fn texts<'a>(current: &'a Read, next: Option<&'a Read>) -> [Option<&'a [u8]>; 2] {
    let text = |read: &'a Read| read.as_ref().ok().map(|reading| reading.secret.expose_secret().as_bytes());
    [text(current), next.and_then(text)]
}

impl Turn {
    /// Its parts: the secret goes its own way, and is wiped at the end of it.
    pub(super) fn into_parts(self) -> (Reading, Which, Other, Stamps) {
        (self.reading, self.which, self.other, self.stamps)
    }
}
