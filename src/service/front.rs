//! What stands before the router: the two calls that are common, answered from the frame that a rotation made once.
//!
//! - GetToken, for a token that is there, from a connection that was admitted to it by the config in force: no lock that
//!   anybody else holds, no wait, nothing encoded, no request made up for a service. `Agent::at_once` is the whole of its
//!   rule.
//! - WatchToken: decided and ended as ever ([`super::token`]), each message the shared frame.
//! - Anything out of the ordinary (headers, a body in pieces, a field that is new, a first call, a refusal) goes to the
//!   router with what was read put back. Both ways give the same bytes: `tests/it/front.rs` asks both.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body, service::Routes};
use tower_service::Service;

use super::{Agent, Caller, Replies, token::Tokens};
use crate::{
    metrics, reply,
    server::{AtOnce, Connection},
    token::Token,
};

const WATCH_TOKEN: &str = "/bloom.agent.v1.TokenService/WatchToken";

/// Made once: a header that is named by a text is parsed each time that it is looked for.
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// All services of the socket.
#[derive(Clone)]
pub struct Front {
    routes: Routes,
    agent: Arc<Agent>,
}

impl Front {
    /// Before `routes`, of the same agent.
    pub const fn new(routes: Routes, agent: Arc<Agent>) -> Self {
        Self { routes, agent }
    }
}

/// GetToken, for who was admitted before.
pub(super) struct GetToken(pub(super) Arc<Agent>);

impl AtOnce for GetToken {
    fn method(&self) -> metrics::Method {
        metrics::Method::GetToken
    }

    fn answer(&self, connection: &Connection, request: &[u8]) -> Option<Bytes> {
        self.0.at_once(connection, name(request)?)
    }
}

impl Service<Request<Body>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        if is_watch(&request) {
            Answering::Read(Some(Asked { request, front: self.clone() }))
        } else {
            Answering::Routed(self.routes.call(request))
        }
    }
}

/// Whether it is a watch, with nothing about it that the router would have to look at. Of its fields the server has left two
/// (`server/call.rs`); the other, its timeout, is looked at here.
fn is_watch<T>(request: &Request<T>) -> bool {
    request.uri().path() == WATCH_TOKEN
        && request.method() == Method::POST
        && !request.headers().contains_key(GRPC_ENCODING)
}

/// A call whose answer has not begun.
pub enum Answering {
    /// Its message has still to be read.
    Read(Option<Asked>),
    /// By the router.
    Routed(<Routes as Service<Request<Body>>>::Future),
    /// A watch that is being decided.
    Watched(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

/// A watch, as it came.
pub struct Asked {
    request: Request<Body>,
    front: Front,
}

impl Future for Answering {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Self::Read(asked) = this {
            // Polled again after its end: a fault of the caller's, which waits for ever.
            let Some(asked) = asked.take() else { return Poll::Pending };
            *this = asked.answer(cx);
        }
        match this {
            Self::Read(_) => Poll::Pending,
            Self::Routed(routed) => Pin::new(routed).poll(cx),
            Self::Watched(watched) => watched.as_mut().poll(cx).map(Ok),
        }
    }
}

impl Asked {
    /// The way to its answer. The message mostly comes with the head; who sends it later is not waited for here.
    fn answer(mut self, cx: &mut Context<'_>) -> Answering {
        let Poll::Ready(read) = Pin::new(self.request.body_mut()).poll_frame(cx) else {
            return Answering::Routed(self.front.routes.call(self.request));
        };
        let whole = read.as_ref().and_then(|read| read.as_ref().ok()).and_then(Frame::data_ref);
        let name = whole.filter(|_| self.request.body().is_end_stream()).and_then(|whole| name(whole));
        let connection = self.request.extensions().get::<Arc<Connection>>();
        if let (Some(name), Some(connection)) = (name, connection) {
            let caller = Caller::new(Arc::clone(connection), self.request.headers());
            let (agent, name) = (Arc::clone(&self.front.agent), name.to_owned());
            return Answering::Watched(Box::pin(watched(agent, caller, name)));
        }
        let Self { request, mut front } = self;
        Answering::Routed(front.routes.call(request.map(|rest| Body::new(PutBack { read, rest }))))
    }
}

/// The name in the one message of a request, if there is nothing else in it (field 1; protobuf, "Message Structure").
fn name(whole: &[u8]) -> Option<&str> {
    let (head, message) = whole.split_at_checked(reply::HEAD)?;
    let (compressed, length) = head.split_first()?;
    if *compressed != 0 || usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()? != message.len()
    {
        return None;
    }
    match message {
        [] => Some(""),
        [0x0a, length @ ..=127, name @ ..] if usize::from(*length) == name.len() => str::from_utf8(name).ok(),
        _ => None,
    }
}

/// The head of an answer that has messages.
fn answer(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

async fn watched(agent: Arc<Agent>, caller: Caller, name: String) -> Response<Body> {
    match Tokens(agent).watch(caller, &name).await {
        Ok(tokens) => answer(Body::new(Rotations { tokens: Some(tokens) })),
        Err(refusal) => Status::from(refusal).into_http(),
    }
}

/// The frame of each token of a watch, then why it ended.
struct Rotations {
    tokens: Option<Replies<Arc<Token>>>,
}

impl HttpBody for Rotations {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(tokens) = &mut self.tokens else { return Poll::Ready(None) };
        let status = match ready!(tokens.as_mut().poll_next(cx)) {
            Some(Ok(token)) => return Poll::Ready(Some(Ok(Frame::data(reply::of(&token))))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.tokens = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.tokens.is_none()
    }
}

/// A request's body of which something was read already.
struct PutBack {
    read: Option<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl HttpBody for PutBack {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.read.take() {
            Some(read) => Poll::Ready(Some(read)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What was read is no part of what is left; nobody here asks how much there is.
        SizeHint::default()
    }
}
