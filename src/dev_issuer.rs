//! An OAuth2 authorization server inside the process, for `bloom-agent dev` and for tests. It knows client_credentials
//! (RFC 6749 §4.4) in the two dialects that our providers speak.
//!
//! It is a development tool. It listens on a kernel-chosen port of 127.0.0.1 and cannot be told to listen elsewhere; it
//! speaks plain HTTP; the secrets it accepts are made up by whoever starts it; its tokens open nothing. The daemon's `run`
//! never starts it.
//!
//! - Credentials are checked for real, and each answer is what Ory Hydra or Auth0 would say, errors included.
//! - Each request is counted and remembered, so that a test can say what was sent, byte for byte.
//! - [`Control`] scripts faults. A fault that waits is released by the test, or by tokio's time, which a test may pause.

mod answer;
mod control;
mod fault;
mod request;

use std::{
    fmt,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub use answer::{Reply, TOKEN_PREFIX};
pub use control::{Control, MAX_RECORDED, Outage, Recorded};
use control::{Spend, State};
use fault::{Act, Wait};
pub use fault::{Ending, Fault};

/// The longest body that is read: a secret of 64 KiB, every byte percent-encoded, and the rest.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// Between two attempts to accept, when there is no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which server's manners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Ory Hydra: form only.
    #[default]
    Hydra,
    /// Auth0: form or JSON.
    Auth0,
}

impl Dialect {
    /// The path of the token endpoint. Every other is 404.
    pub const fn token_path(self) -> &'static str {
        match self {
            Self::Hydra => "/oauth2/token",
            Self::Auth0 => "/oauth/token",
        }
    }
}

/// The one client that it knows, and what that may have.
#[derive(Clone)]
pub struct Options {
    /// Which server's manners.
    pub dialect: Dialect,
    /// The client.
    pub client_id: String,
    /// Its secrets: any is accepted.
    pub secrets: Vec<String>,
    /// The audiences it may ask for; any if there are none.
    pub audiences: Vec<String>,
    /// The scopes it may ask for.
    pub scopes: Vec<String>,
    /// `expires_in`, in whole seconds.
    pub lifetime: Duration,
}

impl Options {
    /// Bloom's sandbox as far as a client sees it: its audience, its scopes, tokens for an hour.
    pub fn new(dialect: Dialect, client_id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            dialect,
            client_id: client_id.into(),
            secrets: vec![secret.into()],
            audiences: vec!["dev-api".to_owned()],
            scopes: vec!["data-access:all".to_owned(), "furnishment:all".to_owned()],
            lifetime: Duration::from_secs(3600),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("dialect", &self.dialect).finish_non_exhaustive()
    }
}

/// The server. Clones are the same one.
#[derive(Clone, Debug)]
pub struct DevIssuer {
    state: Arc<State>,
    address: Option<SocketAddr>,
}

impl DevIssuer {
    /// A server without a listener: it serves what [`Self::serve_connection`] is given.
    pub fn new(options: Options) -> Self {
        Self { state: Arc::new(State::new(options)), address: None }
    }

    /// Listens on 127.0.0.1, on a port of the kernel's choice. The future accepts and serves until [`Control::stop`]; the
    /// caller owns it, and dropping it drops every connection. It must be called within a runtime that has I/O.
    pub fn bind(options: Options) -> io::Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let issuer = Self { address: Some(listener.local_addr()?), ..Self::new(options) };
        Ok((issuer.clone(), accept(listener, issuer)))
    }

    /// The means to watch and to disturb it.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.state))
    }

    /// Where it listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The token endpoint, if it listens: `http://127.0.0.1:PORT/…`.
    pub fn token_url(&self) -> Option<String> {
        self.address.map(|address| format!("http://{address}{}", self.state.dialect().token_path()))
    }

    /// Serves one connection of any kind (TLS, a pipe in memory) until it ends or [`Control::stop`].
    pub async fn serve_connection(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let state = Arc::clone(&self.state);
        let service = service_fn(move |request| handle(Arc::clone(&state), request));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(io), service);
        tokio::select! {
            // How it ended is the client's story: it saw it.
            _ended = connection => {}
            () = self.state.stopped() => {}
        }
    }
}

async fn accept(listener: TcpListener, issuer: DevIssuer) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = issuer.state.stopped() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let issuer = issuer.clone();
                    connections.spawn(async move { issuer.serve_stream(stream).await });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

impl DevIssuer {
    async fn serve_stream(&self, stream: TcpStream) {
        if self.state.outage() == Outage::Refuse {
            // A reset, as of a server that has just died; the port stays ours for when it is back. What cannot be set on a
            // socket ends in an orderly close, which is as good.
            let _orderly = stream.set_zero_linger();
            return;
        }
        // Else the answer waits behind TLS's session tickets for a delayed acknowledgement, 40 ms. Without it is only slower.
        let _slower = stream.set_nodelay(true);
        self.serve_connection(stream).await;
    }
}

/// The connection is closed without the rest of the answer: hyper does so when a service or a body fails.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection is closed without the rest of the answer")]
struct Cut;

async fn handle(state: Arc<State>, request: Request<Incoming>) -> Result<Response<AnswerBody>, Cut> {
    if state.outage() == Outage::Refuse {
        return Err(Cut);
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
        return Ok(whole(Reply::empty(StatusCode::PAYLOAD_TOO_LARGE)));
    };
    let body = body.to_bytes();
    let is_endpoint = parts.uri.path() == state.dialect().token_path();
    let is_token_request = is_endpoint && parts.method == Method::POST;

    // From before the request is seen to have come: a release after that is for it.
    let mut release = state.release();
    let recorded = Recorded {
        method: parts.method,
        target: parts.uri.to_string(),
        headers: parts.headers.clone(),
        body: body.clone(),
    };
    let fault = state.record(recorded, if is_token_request { Spend::OneFault } else { Spend::Nothing });

    state.up_again().await;
    if !is_endpoint {
        return Ok(whole(Reply::empty(StatusCode::NOT_FOUND)));
    }
    if !is_token_request {
        let reply = Reply::empty(StatusCode::METHOD_NOT_ALLOWED);
        return Ok(whole(reply.header(header::ALLOW, HeaderValue::from_static("POST"))));
    }

    let Fault { wait, act } = fault.unwrap_or_default();
    match wait {
        Wait::No => {}
        Wait::For(delay) => tokio::time::sleep(delay).await,
        Wait::Released => release.wait().await,
    }
    match act {
        Act::Answer(change) => Ok(whole(state.answer(&parts.headers, &body, change))),
        Act::Reply(reply) => Ok(whole(reply)),
        Act::RateLimit { retry_after, reset } => {
            Ok(whole(answer::rate_limited(state.dialect(), retry_after, reset)))
        }
        Act::Close => Err(Cut),
        Act::Part { reply, sent, ending } => Ok(part(reply, sent, ending, release)),
    }
}

fn whole(reply: Reply) -> Response<AnswerBody> {
    let Reply { status, headers, body } = reply;
    let mut response = Response::new(AnswerBody { data: Some(body), unfinished: None });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Declares the whole body and sends the first `sent` bytes of it.
fn part(reply: Reply, sent: usize, ending: Ending, mut release: control::Release) -> Response<AnswerBody> {
    let declared = HeaderValue::from(reply.body.len());
    let mut response = whole(reply.header(header::CONTENT_LENGTH, declared));
    let body = response.body_mut();
    body.data = body.data.take().map(|whole| whole.slice(..sent.min(whole.len())));
    body.unfinished = Some(Box::pin(async move {
        // Pending once: hyper sends what it has before it hears of the failure.
        tokio::task::yield_now().await;
        if ending == Ending::Stall {
            release.wait().await;
        }
    }));
    response
}

/// A body of one piece, and perhaps of a rest that never comes.
struct AnswerBody {
    data: Option<Bytes>,
    /// When this is over, the body fails.
    unfinished: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(data) = self.data.take().filter(|data| !data.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match &mut self.unfinished {
            None => Poll::Ready(None),
            Some(end) => end.as_mut().poll(cx).map(|()| Some(Err(Cut))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.unfinished.is_none() && self.data.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.unfinished {
            None => SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64)),
            Some(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests;
