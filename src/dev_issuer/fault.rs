//! The script: one departure from the good answer to a token request. Pure.

use std::time::Duration;

use http::StatusCode;

use super::answer::Reply;
use crate::clock::WallTime;

/// How an answer that is only sent in part ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The connection is closed.
    Close,
    /// Nothing more comes, until [`Control::release`](super::Control::release) closes the connection.
    Stall,
}

/// One departure from the good answer to a token request: what happens, and when. It may hold a token and does not print.
#[derive(Clone, Default)]
pub struct Fault {
    pub(super) wait: Wait,
    pub(super) act: Act,
}

#[derive(Clone, Copy, Default)]
pub(super) enum Wait {
    #[default]
    No,
    For(Duration),
    Released,
}

#[derive(Clone)]
pub(super) enum Act {
    Answer(Change),
    Reply(Reply),
    RateLimit { retry_after: Option<Duration>, reset: WallTime },
    Close,
    Part { reply: Reply, sent: usize, ending: Ending },
}

impl Default for Act {
    fn default() -> Self {
        Self::Answer(Change::None)
    }
}

/// What is different about a true answer.
#[derive(Clone, Copy)]
pub(super) enum Change {
    None,
    Lifetime(Duration),
    SameToken,
}

impl Fault {
    fn act(act: Act) -> Self {
        Self { wait: Wait::No, act }
    }

    /// The true answer: only of use with [`Self::after`] or [`Self::held`], or to let one request pass a standing rule.
    pub fn none() -> Self {
        Self::default()
    }

    /// This answer, whatever is asked.
    pub fn reply(reply: Reply) -> Self {
        Self::act(Act::Reply(reply))
    }

    /// This status with an empty body.
    pub fn status(status: StatusCode) -> Self {
        Self::reply(Reply::empty(status))
    }

    /// 429 as the dialect has it; `reset` is for Auth0's X-RateLimit-Reset.
    pub fn too_many_requests(retry_after: Option<Duration>, reset: WallTime) -> Self {
        Self::act(Act::RateLimit { retry_after, reset })
    }

    /// The true answer with another `expires_in`, in whole seconds.
    pub fn lifetime(lifetime: Duration) -> Self {
        Self::act(Act::Answer(Change::Lifetime(lifetime)))
    }

    /// The true answer with the token that was granted last, as a server gives it that caches.
    pub fn same_token() -> Self {
        Self::act(Act::Answer(Change::SameToken))
    }

    /// The connection is closed without an answer.
    pub fn close() -> Self {
        Self::act(Act::Close)
    }

    /// The headers of `reply` and the first `sent` bytes of its body; the whole is declared.
    pub fn part(reply: Reply, sent: usize, ending: Ending) -> Self {
        Self::act(Act::Part { reply, sent, ending })
    }

    /// The same, later: by tokio's clock.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { wait: Wait::For(delay), ..self }
    }

    /// The same, once [`Control::release`](super::Control::release) is called.
    #[must_use]
    pub fn held(self) -> Self {
        Self { wait: Wait::Released, ..self }
    }
}
