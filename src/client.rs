//! The client library: a token for a service in one call, or a stream of every rotation.
//!
//! It owns the caller's side of the socket: where it is, how a call is bounded in time and size, and what an error
//! means to the caller. It never shows a token in `Debug`, never hands out one that could break a header or a
//! terminal, and holds no secret: the agent gives none.
//!
//! ```no_run
//! use bloom_agent::client::{Agent, Error};
//!
//! # async fn example() -> Result<(), Error> {
//! let agent = Agent::discover().await?;
//!
//! // Ask for each request: the agent has a fresh one ready, and it costs the provider nothing.
//! let token = agent.token(Some("bloom")).await?;
//! println!("good until {:?}", token.expires_at());
//! send_request(&token.authorization());
//!
//! // Or hold the newest one at hand. The stream outlives restarts of the agent.
//! let mut tokens = agent.watch(Some("bloom"));
//! while let Some(token) = tokens.next().await {
//!     send_request(&token?.authorization());
//! }
//! # Ok(())
//! # }
//! # fn send_request(_authorization: &str) {}
//! ```
//!
//! When the API answers 401 to a token, say so with [`Agent::report_rejected`] and ask again.

mod admin;
mod error;
mod socket;
mod token;
mod watch;

use std::{future::Future, path::Path, sync::Arc, time::Duration};

pub use error::{Error, Reason, Wall, printable};
pub use socket::SocketPath;
pub use token::Token;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};
pub use watch::{Event, Watch};

use crate::{
    pb::{self, token_service_client::TokenServiceClient},
    token::Generation,
};

/// How long a call may take, unless [`Agent::with_deadline`] says otherwise: the longest that the agent waits.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// A token of 32 KiB, its scopes and its audience fit in well.
const MAX_TOKEN_MESSAGE: usize = 128 * 1024;
/// A list of thousands of profiles fits in.
const MAX_LIST_MESSAGE: usize = 4 * 1024 * 1024;
/// Many names, or all faults of a configuration, arrive in a trailer.
const MAX_HEADER_LIST: u32 = 256 * 1024;
/// The longest that a protobuf Duration holds, 10,000 years: beyond any token's life.
const FOREVER: prost_types::Duration = prost_types::Duration { seconds: 315_576_000_000, nanos: 0 };
/// What a call gets beyond its deadline, so that the agent's own word on what is missing wins over our silence.
const GRACE: Duration = Duration::from_millis(500);

/// A connection to the agent. Cheap to clone; clones share the connection, which mends itself when the agent restarts.
#[derive(Clone, Debug)]
pub struct Agent {
    channel: Channel,
    socket: Arc<Path>,
    deadline: Duration,
}

impl Agent {
    /// Connects to the agent that listens at `socket`.
    pub async fn connect(socket: SocketPath) -> Result<Self, Error> {
        let path: Arc<Path> = socket.as_path().into();
        let channel = Endpoint::from_static("http://localhost")
            .user_agent(concat!("bloom-agent/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Error::Internal { text: error.to_string() })?
            .http2_max_header_list_size(MAX_HEADER_LIST)
            .connect_with_connector(socket::Connector::new(Arc::clone(&path)))
            .await
            .map_err(|error| Error::from_connect(&path, &error))?;
        Ok(Self { channel, socket: path, deadline: DEFAULT_DEADLINE })
    }

    /// Connects to the agent of this host: `$BLOOM_AGENT_SOCK` if it is set, else the first of
    /// `/run/bloom-agent/agent.sock` and `$XDG_RUNTIME_DIR/bloom-agent/agent.sock` that exists.
    pub async fn discover() -> Result<Self, Error> {
        Self::connect(SocketPath::discover(None)?).await
    }

    /// The same connection, with another limit on how long a call may take. The agent itself waits 30 s at most.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Where the agent listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The current token of the profile `name`; without a name, of the only profile that this caller may use.
    ///
    /// A valid token comes at once. Without one the agent waits for an attempt that is under way or due before the
    /// deadline.
    pub async fn token(&self, name: Option<&str>) -> Result<Token, Error> {
        self.get_token(name, None).await
    }

    /// The same, and refreshes a token that is valid for less than `min_validity` from now, as far as the profile's
    /// budget permits. What comes may still be valid for less: [`Token::expires_at`] tells.
    pub async fn token_valid_for(&self, name: Option<&str>, min_validity: Duration) -> Result<Token, Error> {
        self.get_token(name, Some(min_validity)).await
    }

    /// The current token, then every rotation, over restarts of the agent: see [`Watch`].
    pub fn watch(&self, name: Option<&str>) -> Watch {
        Watch::new(self.clone(), name.unwrap_or_default().to_owned())
    }

    /// The state of every profile that this caller may use, by name; never a token.
    pub async fn list(&self) -> Result<Vec<pb::TokenStatus>, Error> {
        let mut client = self.tokens(MAX_LIST_MESSAGE);
        let ask = |request| async move { client.list_tokens(request).await };
        Ok(self.call(pb::ListTokensRequest {}, ask).await?.tokens)
    }

    /// Says that an API answered 401 to the token of `generation`, and returns once the agent has another one or knows
    /// that it gets none now. A generation that is not the current one is answered at once.
    pub async fn report_rejected(
        &self,
        name: Option<&str>,
        generation: Generation,
    ) -> Result<pb::ReportRejectedResponse, Error> {
        let mut client = self.tokens(MAX_TOKEN_MESSAGE);
        let message = pb::ReportRejectedRequest {
            name: name.unwrap_or_default().to_owned(),
            generation: generation.as_u64(),
        };
        self.call(message, |request| async move { client.report_rejected(request).await }).await
    }

    async fn get_token(&self, name: Option<&str>, min_validity: Option<Duration>) -> Result<Token, Error> {
        let mut client = self.tokens(MAX_TOKEN_MESSAGE);
        let message = pb::GetTokenRequest {
            name: name.unwrap_or_default().to_owned(),
            min_validity: min_validity.map(|wish| wish.try_into().unwrap_or(FOREVER)),
        };
        let response = self.call(message, |request| async move { client.get_token(request).await }).await?;
        Token::check(response.token)
    }

    fn tokens(&self, max_message: usize) -> TokenServiceClient<Channel> {
        TokenServiceClient::new(self.channel.clone()).max_decoding_message_size(max_message)
    }

    /// One unary call under the deadline. The header tells it to the agent; the timer here also covers an agent that
    /// has stopped, and an answer that does not end.
    async fn call<M, R, F>(&self, message: M, send: impl FnOnce(Request<M>) -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        match tokio::time::timeout(self.deadline.saturating_add(GRACE), send(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::from_status(&self.socket, &status)),
            Err(_) => Err(Error::deadline()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_has_stopped_ends_a_call_at_its_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _never_accepts = UnixListener::bind(&path).unwrap();
        let agent =
            Agent::connect(SocketPath::new(&path)).await.unwrap().with_deadline(Duration::from_secs(5));
        let before = tokio::time::Instant::now();
        let error = agent.token(Some("bloom")).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { reason: Reason::Deadline, .. }), "{error}");
        assert_eq!(before.elapsed().as_secs(), 5);
    }

    #[tokio::test]
    async fn no_agent_is_told_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("a.sock");
        let error = Agent::connect(SocketPath::new(&missing)).await.unwrap_err();
        let Error::NotRunning { sockets, source } = error else { panic!("{error}") };
        assert_eq!((sockets, source.kind()), (vec![missing.clone()], std::io::ErrorKind::NotFound));

        drop(UnixListener::bind(&missing).unwrap());
        let error = Agent::connect(SocketPath::new(&missing)).await.unwrap_err();
        let Error::NotRunning { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn the_longest_wish_is_a_duration_that_protobuf_can_hold() {
        let wish: Result<prost_types::Duration, _> = Duration::MAX.try_into();
        assert!(wish.is_err());
        assert_eq!(wish.unwrap_or(FOREVER).seconds, FOREVER.seconds);
    }
}
