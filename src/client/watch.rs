//! The stream of a profile's tokens, over any number of connections.
//!
//! It never shows a generation twice and never gives up on an agent that is away; it ends when only a person can help:
//! the permission is gone, the profile is gone, the name was missing.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::Streaming;

use super::{Agent, Error, GRACE, Token, Wall};
use crate::{pb, token::Generation};

/// The headers come at once, whether there is a token or not.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest RetryInfo that is followed: the agent restarts in less.
const LONGEST_WISH: Duration = Duration::from_secs(60);

/// The tokens of one profile: the current one, then every rotation. A slow reader skips to the newest.
///
/// It reconnects by itself, with growing random pauses of at most 5 s, so that a thousand watchers do not fall upon an
/// agent that has just started. An error is the last item.
pub struct Watch {
    agent: Agent,
    name: String,
    shown: Option<Generation>,
    opened: Opened,
    failures: u32,
    state: State,
}

/// What happens on a [`Watch`], for whoever wants to tell a person about it.
#[derive(Debug)]
pub enum Event {
    /// A token that was not shown before.
    Token(Token),
    /// The stream broke and will be opened again.
    Lost {
        /// Why.
        error: Error,
        /// In how long it is opened again.
        retry_in: Duration,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Opened {
    Never,
    Once,
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<pb::WatchTokenResponse>, Error>> + Send>>;

enum State {
    Idle,
    Opening(Opening),
    Open(Box<Streaming<pb::WatchTokenResponse>>),
    Waiting(Pin<Box<Sleep>>),
    Ended,
}

impl Watch {
    pub(super) fn new(agent: Agent, name: String) -> Self {
        Self { agent, name, shown: None, opened: Opened::Never, failures: 0, state: State::Idle }
    }

    /// The next token; `None` after the error that ended the stream. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Token, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next event; `None` after the error that ended the stream. Cancel safe.
    pub async fn next_event(&mut self) -> Option<Result<Event, Error>> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, Error>>> {
        loop {
            let failed = match &mut self.state {
                State::Idle => {
                    self.state = State::Opening(open(self.agent.clone(), self.name.clone()));
                    continue;
                }
                State::Waiting(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.state = State::Idle;
                    continue;
                }
                State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(stream) => {
                        self.opened = Opened::Once;
                        self.state = State::Open(Box::new(stream));
                        continue;
                    }
                    Err(error) => error,
                },
                State::Open(stream) => match ready!(Pin::new(stream.as_mut()).poll_next(cx)) {
                    Some(Ok(response)) => match Token::check(response.token) {
                        Ok(token) => {
                            self.failures = 0;
                            let generation = token.generation();
                            if self.shown.replace(generation) == Some(generation) {
                                continue;
                            }
                            return Poll::Ready(Some(Ok(Event::Token(token))));
                        }
                        Err(error) => error,
                    },
                    Some(Err(status)) => Error::from_status(&self.agent.socket, &status),
                    None => Error::Internal { text: "the agent ended the stream without a word".to_owned() },
                },
                State::Ended => return Poll::Ready(None),
            };
            return Poll::Ready(Some(self.after(failed)));
        }
    }

    fn after(&mut self, error: Error) -> Result<Event, Error> {
        if !self.passes(&error) {
            self.state = State::Ended;
            return Err(error);
        }
        let retry_in = pause(self.failures, error.retry_after());
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting(Box::pin(sleep(retry_in)));
        Ok(Event::Lost { error, retry_in })
    }

    /// An agent that starts binds its socket under a tight umask and opens it up afterwards: who was in once waits.
    fn passes(&self, error: &Error) -> bool {
        let being_bound = matches!(error, Error::NotAllowed { wall: Wall::Socket(_), .. });
        error.is_passing() || (being_bound && self.opened == Opened::Once)
    }
}

impl Stream for Watch {
    type Item = Result<Token, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match ready!(this.poll_event(cx)) {
                Some(Ok(Event::Token(token))) => return Poll::Ready(Some(Ok(token))),
                Some(Ok(Event::Lost { .. })) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("name", &self.name).field("shown", &self.shown).finish_non_exhaustive()
    }
}

fn open(agent: Agent, name: String) -> Opening {
    Box::pin(async move {
        let mut client = agent.tokens(super::MAX_TOKEN_MESSAGE);
        let opening = client.watch_token(pb::WatchTokenRequest { name });
        match tokio::time::timeout(OPEN_DEADLINE.saturating_add(GRACE), opening).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::from_status(&agent.socket, &status)),
            Err(_) => Err(Error::deadline()),
        }
    })
}

/// Full jitter under a doubling bound, but not less than the agent asks for.
fn pause(failures: u32, wish: Option<Duration>) -> Duration {
    let bound = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
    let drawn = rand::random_range(FIRST_PAUSE / 10..=bound);
    drawn.saturating_add(wish.unwrap_or_default().min(LONGEST_WISH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_stay_bounded_and_honour_the_agent_s_wish() {
        let longest = |failures| (0..2000).map(|_| pause(failures, None)).max().unwrap();
        assert!(longest(0) <= FIRST_PAUSE);
        assert!(longest(3) > FIRST_PAUSE && longest(3) <= FIRST_PAUSE * 8);
        assert!(longest(u32::MAX) > LONGEST_PAUSE / 2 && longest(u32::MAX) <= LONGEST_PAUSE);
        assert!(pause(0, Some(Duration::from_secs(7))) >= Duration::from_secs(7));
        assert!(pause(0, Some(Duration::MAX)) <= LONGEST_WISH + FIRST_PAUSE);
        assert!((0..100).all(|_| pause(0, None) >= FIRST_PAUSE / 10), "never a busy loop");
    }
}
