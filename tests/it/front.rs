//! What stands before the router answers as the router does: both are asked the same, byte for byte.

use std::{
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use bloom_agent::service;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use proptest::prelude::*;
use tokio::{net::UnixStream, task::JoinSet};
use tonic::{body::Body, service::Routes};
use tower_service::Service;

use crate::support::{handmade::Handmade, soon};

const GET: &str = "/bloom.agent.v1.TokenService/GetToken";
const WATCH: &str = "/bloom.agent.v1.TokenService/WatchToken";

/// One request, as it goes over the wire.
#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    path: String,
    headers: Vec<(&'static str, &'static str)>,
    /// Its DATA frames.
    pieces: Vec<Bytes>,
    trailers: bool,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    head: Option<(StatusCode, HeaderMap)>,
    data: Bytes,
    trailers: Option<HeaderMap>,
    reset: Option<h2::Reason>,
}

impl Asked {
    fn of(path: &str, message: &[u8]) -> Self {
        Self {
            method: Method::POST,
            path: path.to_owned(),
            headers: vec![("content-type", "application/grpc"), ("te", "trailers")],
            pieces: vec![framed(message)],
            trailers: false,
        }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self
    }

    fn in_pieces(mut self, pieces: Vec<Bytes>) -> Self {
        self.pieces = pieces;
        self
    }

    fn cut_at(self, at: usize) -> Self {
        let whole = self.pieces.concat();
        let (one, other) = whole.split_at(at.min(whole.len()));
        let pieces = vec![Bytes::copy_from_slice(one), Bytes::copy_from_slice(other)];
        self.in_pieces(pieces)
    }
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

/// `string name = 1`.
fn name(name: &[u8]) -> Vec<u8> {
    [&[0x0a, u8::try_from(name.len()).unwrap()], name].concat()
}

/// One server, and one connection to it.
struct Side {
    requests: SendRequest<Bytes>,
    _connection: JoinSet<()>,
}

impl Side {
    async fn of(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await.unwrap();
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // It ends with the server.
            let _ended = connection.await;
        });
        Self { requests, _connection: driver }
    }

    /// Asks, and reads `messages` frames of the answer, or all of it.
    async fn ask(&self, asked: &Asked, messages: Option<usize>) -> Answer {
        let mut requests = self.requests.clone().ready().await.unwrap();
        let mut request =
            Request::builder().method(&asked.method).uri(format!("http://localhost{}", asked.path));
        for (name, value) in &asked.headers {
            request = request.header(*name, *value);
        }
        let has_body = !asked.pieces.is_empty() || asked.trailers;
        let (response, mut stream) = requests.send_request(request.body(()).unwrap(), !has_body).unwrap();
        for (number, piece) in asked.pieces.iter().enumerate() {
            let is_last = number + 1 == asked.pieces.len() && !asked.trailers;
            // It may have been answered and closed already.
            let _sent = stream.send_data(piece.clone(), is_last);
            if !is_last {
                tokio::task::yield_now().await;
            }
        }
        if asked.trailers {
            let _sent = stream.send_trailers(HeaderMap::new());
        }
        let mut answer = Answer { head: None, data: Bytes::new(), trailers: None, reset: None };
        let response = match soon("an answer", response).await {
            Ok(response) => response,
            Err(error) => return Answer { reset: error.reason(), ..answer },
        };
        let (head, mut body) = response.into_parts();
        answer.head = Some((head.status, head.headers));
        let mut data = BytesMut::new();
        let mut read = 0;
        while messages.is_none_or(|messages| read < messages)
            && let Some(frame) = soon("the answer", body.data()).await
        {
            match frame {
                Ok(bytes) => {
                    let _credit = body.flow_control().release_capacity(bytes.len());
                    data.extend_from_slice(&bytes);
                    read += 1;
                }
                Err(error) => return Answer { data: data.freeze(), reset: error.reason(), ..answer },
            }
        }
        answer.data = data.freeze();
        if messages.is_none() {
            answer.trailers = soon("the end", body.trailers()).await.unwrap();
        }
        answer
    }
}

/// Both servers of one agent.
struct Both {
    handmade: Handmade,
    front: Side,
    router: Side,
}

impl Both {
    async fn new() -> Self {
        let mut handmade = Handmade::serve(1234);
        let routes = service::routes(&handmade.agent).unwrap();
        let router = handmade.also_serve("router.sock", routes, None);
        Self { front: Side::of(&handmade.socket()).await, router: Side::of(&router).await, handmade }
    }

    /// The answer of both; more than once, for what stands before the router knows a caller from the second time on.
    async fn ask(&self, asked: &Asked) -> Answer {
        let expected = self.router.ask(asked, None).await;
        for round in 0..3 {
            assert_eq!(self.front.ask(asked, None).await, expected, "{round}: {asked:?}");
        }
        expected
    }
}

fn shapes() -> Vec<(&'static str, Asked)> {
    let bloom = || Asked::of(GET, &name(b"bloom"));
    let with_validity = |more: &[u8]| Asked::of(GET, &[&name(b"bloom"), more].concat());
    vec![
        ("the usual call", bloom()),
        ("no name", Asked::of(GET, b"")),
        ("another name", Asked::of(GET, &name(b"other"))),
        ("a name that is not one", Asked::of(GET, &name(b"Not A Name"))),
        ("a name that is no text", Asked::of(GET, &name(b"\xff\xfe"))),
        ("a long name", Asked::of(GET, &name(&[b'x'; 127]))),
        ("the name twice", Asked::of(GET, &[name(b"other"), name(b"bloom")].concat())),
        ("an empty name", Asked::of(GET, &name(b""))),
        (
            "a name with two bytes of length",
            Asked::of(GET, &[0x0a, 0x85, 0x00, b'b', b'l', b'o', b'o', b'm']),
        ),
        ("an unknown field", with_validity(&[0x78, 1])),
        ("a wrong wire type", Asked::of(GET, &[0x08, 1])),
        ("a length beyond the end", Asked::of(GET, &[0x0a, 9, b'b'])),
        ("min_validity of nothing", with_validity(&[0x12, 0])),
        ("min_validity of a minute", with_validity(&[0x12, 2, 0x08, 60])),
        (
            "min_validity below zero",
            with_validity(&[0x12, 11, 0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ),
        ("a wrong length", bloom().in_pieces(vec![Bytes::from_static(b"\0\0\0\0\x09\x0a\x05bloom")])),
        ("a shorter length", bloom().in_pieces(vec![Bytes::from_static(b"\0\0\0\0\x02\x0a\x05bloom")])),
        ("a compressed message", bloom().in_pieces(vec![Bytes::from_static(b"\x01\0\0\0\x07\x0a\x05bloom")])),
        ("a strange flag", bloom().in_pieces(vec![Bytes::from_static(b"\x02\0\0\0\x07\x0a\x05bloom")])),
        ("two messages", bloom().in_pieces(vec![framed(&name(b"bloom")), framed(&name(b"bloom"))])),
        ("two messages in one frame", {
            let twice = [framed(&name(b"bloom")), framed(&name(b"bloom"))].concat();
            bloom().in_pieces(vec![twice.into()])
        }),
        ("in two pieces", bloom().cut_at(3)),
        ("head and message apart", bloom().cut_at(5)),
        ("an empty last piece", bloom().cut_at(100)),
        ("an empty first piece", bloom().cut_at(0)),
        ("trailers after the message", Asked { trailers: true, ..bloom() }),
        ("no message", bloom().in_pieces(vec![])),
        ("an empty body", bloom().in_pieces(vec![Bytes::new()])),
        ("too large", Asked::of(GET, &[0x7a; 5000])),
        ("+proto", bloom().with("content-type", "application/grpc+proto")),
        ("+json", bloom().with("content-type", "application/grpc+json")),
        ("no content type", bloom().without("content-type")),
        ("another content type", bloom().with("content-type", "text/plain")),
        ("grpc-web", bloom().with("content-type", "application/grpc-web")),
        ("no te", bloom().without("te")),
        ("identity", bloom().with("grpc-encoding", "identity")),
        ("gzip", bloom().with("grpc-encoding", "gzip")),
        ("gzip is accepted", bloom().with("grpc-accept-encoding", "gzip, identity")),
        ("metadata", bloom().with("x-anything", "at all")),
        ("a deadline", bloom().with("grpc-timeout", "5S")),
        ("a tiny deadline", bloom().with("grpc-timeout", "1n")),
        ("a deadline that is past", bloom().with("grpc-timeout", "0n")),
        ("a deadline that is none", bloom().with("grpc-timeout", "soon")),
        ("GET", Asked { method: Method::GET, ..bloom() }),
        ("PUT", Asked { method: Method::PUT, ..bloom() }),
        ("a query", Asked { path: format!("{GET}?x"), ..bloom() }),
        ("a slash at the end", Asked { path: format!("{GET}/"), ..bloom() }),
        ("a slash too many", Asked { path: format!("/{GET}"), ..bloom() }),
        ("another case", Asked { path: GET.to_lowercase(), ..bloom() }),
        ("an escaped letter", Asked { path: GET.replace("GetToken", "%47etToken"), ..bloom() }),
        ("an unknown method", Asked { path: format!("{GET}s"), ..bloom() }),
        ("a list", Asked { path: GET.replace("GetToken", "ListTokens"), ..Asked::of(GET, b"") }),
    ]
}

#[tokio::test]
async fn whatever_the_call_looks_like_both_ways_answer_alike() {
    let both = Both::new().await;
    both.handmade.publish(7).await;
    for (what, asked) in shapes() {
        let answer = both.ask(&asked).await;
        let is_answered = answer.head.is_some() || answer.reset.is_some();
        assert!(is_answered, "{what}");
    }
    let usual = both.ask(&shapes()[0].1).await;
    assert_eq!(usual.trailers.unwrap()["grpc-status"], "0");
    both.handmade.end().await;
}

#[tokio::test]
async fn without_a_token_or_a_right_to_it_both_ways_refuse_alike() {
    let both = Both::new().await;
    let usual = Asked::of(GET, &name(b"bloom")).with("grpc-timeout", "1m");
    let status = |answer: &Answer| {
        answer
            .head
            .as_ref()
            .unwrap()
            .1
            .get("grpc-status")
            .cloned()
            .map(|status| status.to_str().unwrap().to_owned())
    };
    assert_eq!(status(&both.ask(&usual).await).as_deref(), Some("14"), "there is none yet");
    both.handmade.publish(7).await;
    assert_eq!(status(&both.ask(&usual).await), None, "granted");
    both.handmade.withdraw();
    assert_eq!(status(&both.ask(&usual).await).as_deref(), Some("7"), "not any more");
    both.handmade.readmit();
    assert_eq!(status(&both.ask(&usual).await), None, "again");
    both.handmade.publish(8).await;
    let newest = both.ask(&usual).await;
    assert!(newest.data.windows(7).any(|window| window == b"token-8"), "the newest token");
    both.handmade.time.advance(std::time::Duration::from_secs(3600));
    assert_eq!(status(&both.ask(&usual).await).as_deref(), Some("14"), "it has expired");
    both.handmade.end().await;
}

#[tokio::test]
async fn a_watch_says_the_same_both_ways_from_its_first_token_to_its_end() {
    let both = Both::new().await;
    both.handmade.publish(7).await;
    let watch = Asked::of(WATCH, &name(b"bloom"));
    for asked in [watch.clone(), watch.clone().cut_at(5), watch.clone().with("grpc-timeout", "1H")] {
        let (one, other) = tokio::join!(both.front.ask(&asked, Some(1)), both.router.ask(&asked, Some(1)));
        assert_eq!(one, other, "{asked:?}");
        assert!(one.data.windows(7).any(|window| window == b"token-7"), "{asked:?}");
    }
    for asked in [Asked::of(WATCH, &name(b"other")), Asked::of(WATCH, &[0x08, 1]), Asked::of(WATCH, b"\xff")]
    {
        both.ask(&asked).await;
    }
    // Until its end: the agent stops.
    let Both { handmade, front, router } = both;
    let (one, other, ()) = tokio::join!(front.ask(&watch, None), router.ask(&watch, None), async {
        // Each has a watch of its own when the two first tokens are on their way.
        while handmade.agent.book.census().open.watches < 2 {
            tokio::task::yield_now().await;
        }
        handmade.end().await;
    });
    assert_eq!(one, other);
    assert_eq!(one.trailers.unwrap()["grpc-status"], "14");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_bytes_are_both_ways_answer_alike(
        start in prop::sample::select(vec![name(b"bloom"), name(b""), vec![], [name(b"bloom"), vec![0x12, 2, 8, 60]].concat()]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in 0_usize..16,
    ) {
        let mut bytes = framed(&start).to_vec();
        for (at, byte) in edits {
            // Not the length's high bytes: a message of megabytes never comes to its end.
            let at = at.index(bytes.len());
            if !(1..4).contains(&at) {
                bytes[at] = byte;
            }
        }
        let asked = Asked::of(GET, b"").in_pieces(vec![bytes.into()]).cut_at(cut);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let both = Both::new().await;
            both.handmade.publish(7).await;
            both.ask(&asked).await;
            both.handmade.end().await;
        });
    }
}

/// Services that count how often they are asked.
#[derive(Clone)]
struct Counting {
    routes: Routes,
    asked: Arc<AtomicU32>,
}

impl Service<Request<Body>> for Counting {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = <Routes as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.routes.call(request)
    }
}

#[tokio::test]
async fn who_was_admitted_is_answered_without_the_service_until_the_config_changes() {
    let mut handmade = Handmade::serve(1234);
    handmade.publish(1).await;
    let asked = Arc::new(AtomicU32::new(0));
    let services = Counting { routes: service::routes(&handmade.agent).unwrap(), asked: Arc::clone(&asked) };
    let at_once = service::at_once(&handmade.agent);
    let side = Side::of(&handmade.also_serve("counted.sock", services, Some(at_once))).await;
    let bloom = Asked::of(GET, &name(b"bloom"));
    let first = side.ask(&bloom, None).await;
    let head = &first.head.as_ref().unwrap().1;
    assert_eq!(
        head.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(),
        ["content-type"],
        "and no date"
    );
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    for _ in 0..10 {
        assert_eq!(side.ask(&bloom, None).await, first);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the first call only");
    handmade.withdraw();
    assert_ne!(side.ask(&bloom, None).await, first);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}
