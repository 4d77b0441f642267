//! One call from its head to the end of its answer: counted before its body is read, given its [`Connection`], kept apart
//! from all others if its handler panics, and put into the metrics with the status that its answer ended with.
//!
//! The service answers; but before it [`AtOnce`] is asked, which needs nothing of what a service is called with.

mod answer;

use std::{
    convert::Infallible,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};
use tonic::{Code, Status, body::Body};
use tower_service::Service;

use self::answer::{Reply, Served};
use super::{
    connection::{CallPermit, Connection},
    turns::Waste,
};
use crate::{
    limits::Exceeded,
    metrics::{self, Metrics},
};

/// The answers that the server gives by itself. The service's error table makes them.
pub trait Faults: Send + Sync {
    /// A limit of the caller's uid is reached: RESOURCE_EXHAUSTED, reason LIMIT, with RetryInfo.
    fn exceeded(&self, limit: Exceeded) -> Status;
    /// The handler panicked: INTERNAL.
    fn panicked(&self) -> Status;
}

/// The answer to the call that is made most, where it can be given without any wait: one message, and the status OK.
pub trait AtOnce: Send + Sync {
    /// The only method that it is asked for.
    fn method(&self) -> metrics::Method;

    /// The message for this request, both framed ("Length-Prefixed-Message"); without one the service is asked.
    fn answer(&self, connection: &Connection, request: &[u8]) -> Option<Bytes>;
}

/// What hyper calls for each request of one connection.
pub(super) struct Calls<S> {
    pub(super) service: S,
    pub(super) at_once: Option<Arc<dyn AtOnce>>,
    pub(super) connection: Arc<Connection>,
    pub(super) faults: Arc<dyn Faults>,
    pub(super) metrics: Arc<Metrics>,
}

impl<S> hyper::service::Service<Request<Incoming>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = Call<S::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        // hyper would make a tunnel of a CONNECT that is answered with 200.
        if request.method() == Method::CONNECT {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            return Call::Settled(Some(response.map(Reply::unguarded)));
        }
        let (method, path) = known(request.uri().path());
        let mut counted = Counted { metrics: Arc::clone(&self.metrics), method, code: Code::Cancelled };
        let permit = match self.connection.open_call() {
            Ok(permit) => permit,
            Err(limit) => {
                self.connection.charge(Waste::Calls(1));
                let status = self.faults.exceeded(limit);
                counted.code = status.code();
                return Call::Settled(Some(status.into_http::<Body>().map(Reply::unguarded)));
            }
        };
        let mut guard = Guard { permit, faults: Arc::clone(&self.faults), counted };
        // A handler may be entered at once, before the first poll.
        let entered = catch_unwind(AssertUnwindSafe(|| {
            let read = match self.at_once(method, &mut request) {
                ControlFlow::Break(message) => return ControlFlow::Break(message),
                ControlFlow::Continue(read) => read,
            };
            lean(&mut request, path);
            request.extensions_mut().insert(Arc::clone(&self.connection));
            let mut service = self.service.clone();
            ControlFlow::Continue(service.call(request.map(|body| Body::new(Patient::new(body, read)))))
        }));
        match entered {
            Ok(ControlFlow::Break(message)) => Call::Settled(Some(answered(message, guard))),
            Ok(ControlFlow::Continue(future)) => {
                Call::Running { future: Some(Box::pin(future)), guard: Some(guard) }
            }
            Err(_) => Call::Settled(Some(guard.panicked().into_http::<Body>().map(Reply::unguarded))),
        }
    }
}

impl<S> Calls<S> {
    /// The message of the answer; or what was read of the request's body, if anything was.
    fn at_once(
        &self,
        method: metrics::Method,
        request: &mut Request<Incoming>,
    ) -> ControlFlow<Bytes, Option<Read>> {
        let nothing = ControlFlow::Continue(None);
        let Some(way) = self.at_once.as_ref().filter(|way| way.method() == method) else { return nothing };
        // A compression is for the service to refuse.
        if request.method() != Method::POST || request.headers().contains_key(GRPC_ENCODING) {
            return nothing;
        }
        // The body mostly comes with the head. If not, whoever asks next is woken.
        let polled = Pin::new(request.body_mut()).poll_frame(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(read) = polled else { return nothing };
        if let Some(Ok(frame)) = &read
            && let Some(whole) = frame.data_ref()
            && request.body().is_end_stream()
            && let Some(message) = way.answer(&self.connection, whole)
        {
            return ControlFlow::Break(message);
        }
        ControlFlow::Continue(Some(read))
    }
}

/// What a poll of a request's body gave.
type Read = Option<Result<Frame<Bytes>, hyper::Error>>;

/// The head of an answer of one message, and the message.
fn answered(message: Bytes, guard: Guard) -> Response<Reply> {
    let mut response = Response::new(Reply::Once { message: Some(message), guard: Some(guard) });
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The paths that are answered, each made once.
static PATHS: LazyLock<Vec<(metrics::Method, Uri)>> = LazyLock::new(|| {
    let of = |method| move |path| (method, Uri::from_static(path));
    metrics::Method::paths().flat_map(|(method, paths)| paths.iter().copied().map(of(method))).collect()
});

/// Which method a path is, and the path in memory that is everybody's.
fn known(path: &str) -> (metrics::Method, Option<&'static Uri>) {
    let found = PATHS.iter().find(|(_, known)| known.path() == path);
    found.map_or((metrics::Method::Unknown, None), |(method, uri)| (*method, Some(uri)))
}

/// The fields that somebody behind here reads. Made once: a name that is a text is parsed each time that it is looked for.
const KEPT: [HeaderName; 2] = [HeaderName::from_static("grpc-timeout"), GRPC_ENCODING];
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The longest of the fields that are kept. A timeout has nine bytes at most.
const LONGEST_FIELD: usize = 64;

/// Leaves of a request's head what somebody behind here reads: [`KEPT`], copied, and the path. HTTP/2 cuts fields out of
/// the buffer that they were read with, so that one of a few bytes keeps 16 KiB; and 16 KiB of fields are 75 KiB when
/// they are decoded. A call may wait long, and a uid may have thousands.
fn lean<B>(request: &mut Request<B>, path: Option<&Uri>) {
    let read = std::mem::take(request.headers_mut());
    for name in &KEPT {
        if let Some(value) = read.get(name)
            && let Ok(copy) = HeaderValue::from_bytes(&value.as_bytes()[..value.len().min(LONGEST_FIELD)])
        {
            request.headers_mut().insert(name, copy);
        }
    }
    // Any other path is answered at once, and its head is gone with that.
    if let Some(path) = path {
        *request.uri_mut() = path.clone();
    }
    // A method of its own making has no meaning here, and any length.
    if request.method().as_str().len() > LONGEST_FIELD {
        *request.method_mut() = Method::POST;
    }
}

/// What a call holds until its answer has ended.
pub(super) struct Guard {
    permit: CallPermit,
    faults: Arc<dyn Faults>,
    counted: Counted,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let waste = match self.counted.code {
            // Nobody was there any more when the answer was; or nobody could read what was asked.
            Code::Cancelled | Code::Internal | Code::OutOfRange | Code::ResourceExhausted => Waste::Calls(1),
            // It was no call: its path is no method's.
            Code::Unimplemented => Waste::Strays(1),
            _ => return,
        };
        self.permit.connection().charge(waste);
    }
}

/// A call in the metrics: counted when it is over, with the status it ended with. One whose client went away first was
/// cancelled.
struct Counted {
    metrics: Arc<Metrics>,
    method: metrics::Method,
    code: Code,
}

impl Counted {
    /// The status stands in the trailers, or in the headers of an answer that has nothing else.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.call(self.method, self.code);
    }
}

impl Guard {
    /// The panic's own words stay with the panic hook: they may hold a token.
    fn panicked(&mut self) -> Status {
        self.permit.connection().book().count_panic();
        self.counted.code = Code::Internal;
        self.faults.panicked()
    }
}

/// A call whose answer has not begun.
pub(super) enum Call<F> {
    Running { future: Option<Pin<Box<F>>>, guard: Option<Guard> },
    Settled(Option<Response<Reply>>),
}

impl<F> Future for Call<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = Result<Response<Reply>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (future, guard) = match self.get_mut() {
            Self::Running { future, guard } => (future, guard),
            Self::Settled(response) => {
                return response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)));
            }
        };
        // Polled again after its end: a fault of the caller's, which waits for ever.
        let Some(running) = future else { return Poll::Pending };
        let response = match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
            Ok(polled) => {
                let Ok(response) = ready!(polled);
                *future = None;
                if let Some(guard) = guard {
                    guard.counted.note(response.headers());
                }
                let guard = guard.take();
                response.map(|body| Reply::Served(Served::new(body, guard)))
            }
            Err(_) => {
                drop_quietly(future.take());
                let status = guard.take().map_or_else(|| Status::internal(""), |mut guard| guard.panicked());
                status.into_http::<Body>().map(Reply::unguarded)
            }
        };
        Poll::Ready(Ok(response))
    }
}

/// How long a request's body may pause. Nobody needs longer for a name and two numbers; without an end to it, calls that
/// never finish their request hold what they have sent for as long as they like.
const PAUSE: Duration = Duration::from_secs(30);

/// The longest body: several requests of the longest kind, and thousands of questions to reflection. Without an end to it a
/// request of empty messages is work for as long as somebody likes.
const LONGEST_BODY: usize = 64 * 1024;

/// A request's body that does not wait for ever for its client.
struct Patient {
    body: Incoming,
    /// What was read of it already.
    read: Option<Read>,
    /// Bytes that may still come.
    left: usize,
    /// Made when there is something to wait for, which is rare: the body comes with the head.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(body: Incoming, read: Option<Read>) -> Self {
        Self { body, read, left: LONGEST_BODY, pause: None }
    }
}

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = match self.read.take() {
            Some(read) => Poll::Ready(read),
            None => Pin::new(&mut self.body).poll_frame(cx),
        };
        if let Poll::Ready(frame) = polled {
            self.pause = None;
            if let Some(Ok(data)) = &frame
                && let Some(data) = data.data_ref()
            {
                let Some(left) = self.left.checked_sub(data.len()) else {
                    return Poll::Ready(Some(Err(Status::resource_exhausted("the request is too long"))));
                };
                self.left = left;
            }
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| Status::from_error(Box::new(error)))),
            );
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
        ready!(pause.as_mut().poll(cx));
        Poll::Ready(Some(Err(Status::deadline_exceeded("the request did not come to its end"))))
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What was read is no part of what is left; nobody here asks how much there is.
        SizeHint::default()
    }
}

/// What has panicked may panic again while it is dropped.
fn drop_quietly<T>(value: T) {
    // The first panic was counted and answered; this one belongs to it.
    let _ = catch_unwind(AssertUnwindSafe(move || drop(value)));
}
