//! The socket under honest and dishonest clients: a real listener, a real HTTP/2, a service that does what it is named.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd as _,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bloom_agent::{
    clock::{Clock, Now, Timestamp},
    limits::{Exceeded, Limits, Totals},
    log::{DroppedLines, Panics},
    metrics::Metrics,
    pb::{
        GetTokenRequest, GetTokenResponse, ListTokensRequest, ListTokensResponse, ReportRejectedRequest,
        ReportRejectedResponse, Token, WatchTokenRequest, WatchTokenResponse,
        token_service_client::TokenServiceClient,
        token_service_server::{TokenService, TokenServiceServer},
    },
    peer,
    server::{self, Address, Book, Connection, Faults, Observe, Patience, Phase, Place, Server, WatchPermit},
    units::Origin,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{Notify, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Request, Response, Status,
    service::Routes,
    transport::{Channel, Endpoint},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    abuse::attacks::{
        ATTACKS, Attack, EMPTY_MESSAGE, Ended, GET_TOKEN, GREETING, HTTP2 as NOTHING, Must, frame, strike,
    },
    support::nobody_listens,
};

/// Nothing below takes long; what takes so long hangs.
const HANG: Duration = Duration::from_secs(60);

/// Time stands still: budgets and rates are what they start with.
struct Still;

impl Clock for Still {
    fn now(&self) -> Now {
        Now { boot: Timestamp::from_boot(Duration::from_secs(1)), ..Now::default() }
    }
}

struct Answers;

impl Faults for Answers {
    fn exceeded(&self, limit: Exceeded) -> Status {
        let mut details = ErrorDetails::with_error_info("LIMIT", "bloom.agent", HashMap::new());
        details.set_retry_info(Some(limit.retry_after()));
        Status::with_error_details(Code::ResourceExhausted, limit.key(), details)
    }

    fn panicked(&self) -> Status {
        Status::internal("the agent failed in this call")
    }
}

/// Does what the profile's name says.
struct Stub {
    phase: watch::Receiver<Phase>,
    released: Arc<Notify>,
    entered: Arc<Notify>,
}

fn token(name: String, generation: u64) -> Option<Token> {
    Some(Token { name, generation, ..Token::default() })
}

fn connection<T>(request: &Request<T>) -> Arc<Connection> {
    Arc::clone(request.extensions().get().expect("every request has its connection"))
}

#[tonic::async_trait]
impl TokenService for Stub {
    async fn get_token(
        &self,
        request: Request<GetTokenRequest>,
    ) -> Result<Response<GetTokenResponse>, Status> {
        let connection = connection(&request);
        let name = request.into_inner().name;
        match &name[..] {
            "slow" => {
                self.entered.notify_one();
                self.released.notified().await;
            }
            "stubborn" => {
                self.entered.notify_one();
                std::future::pending::<()>().await;
            }
            "panic" => panic!("a handler panics"),
            _ => {}
        }
        let (uid, id) = (connection.peer().uid, connection.id());
        Ok(Response::new(GetTokenResponse { token: token(uid.to_string(), id) }))
    }

    type WatchTokenStream = Pin<Box<dyn Stream<Item = Result<WatchTokenResponse, Status>> + Send>>;

    async fn watch_token(
        &self,
        request: Request<WatchTokenRequest>,
    ) -> Result<Response<Self::WatchTokenStream>, Status> {
        let permit: WatchPermit = connection(&request).watch().map_err(|limit| Answers.exceeded(limit))?;
        let name = request.into_inner().name;
        if name == "panic" {
            return Ok(Response::new(Box::pin(tokio_stream::once(()).map(|()| panic!("a stream panics")))));
        }
        let first = tokio_stream::once(Ok(WatchTokenResponse { token: token(name, 1) }));
        let drained = server::draining(self.phase.clone());
        let (sender, last) = tokio::sync::mpsc::channel(1);
        // The stub's own end of a watch; the real service has a stream for it.
        tokio::runtime::Handle::current().spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = drained => {
                    let _ = sender.send(Err(Status::unavailable("the agent restarts"))).await;
                }
                () = sender.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(first.chain(tokio_stream::wrappers::ReceiverStream::new(last)))))
    }

    async fn list_tokens(
        &self,
        _: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        Ok(Response::new(ListTokensResponse::default()))
    }

    async fn report_rejected(
        &self,
        _: Request<ReportRejectedRequest>,
    ) -> Result<Response<ReportRejectedResponse>, Status> {
        Err(Status::unimplemented("the stub has no budget"))
    }
}

/// An agent's socket, served in this test.
struct Socket {
    path: PathBuf,
    book: Arc<Book>,
    metrics: Arc<Metrics>,
    phase: watch::Sender<Phase>,
    released: Arc<Notify>,
    entered: Arc<Notify>,
    serving: JoinSet<io::Result<()>>,
    _place: Place,
    _directory: tempfile::TempDir,
}

#[derive(Clone)]
struct Setting {
    limits: Limits,
    patience: Patience,
    observe: Observe,
}

impl Default for Setting {
    fn default() -> Self {
        // Long enough that nothing happens by waiting, unless a test wants it to.
        let patience = Patience { greeting: HANG * 2, idle: Duration::from_millis(20), drain: HANG * 2 };
        Self {
            limits: Limits::default(),
            patience,
            observe: Arc::new(|socket| Ok((peer::observe(socket)?, Origin::Gone))),
        }
    }
}

impl Socket {
    fn serve(setting: Setting) -> Self {
        // Others may enter it, as they may enter /run/bloom-agent.
        let directory = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in("/tmp")
            .expect("a directory");
        let path = directory.path().join("agent.sock");
        let bound = server::bind(Address { path: &path, mode: 0o666, group: None }).expect("binds");
        let (phase, phases) = watch::channel(Phase::Serving);
        let book = Book::new(setting.limits);
        let released = Arc::new(Notify::new());
        let entered = Arc::new(Notify::new());
        let stub =
            Stub { phase: phases.clone(), released: Arc::clone(&released), entered: Arc::clone(&entered) };
        let metrics = Metrics::new("0", DroppedLines::default(), Panics::default());
        let server = Server {
            service: Routes::new(TokenServiceServer::new(stub)).prepare(),
            at_once: None,
            book: Arc::clone(&book),
            clock: Arc::new(Still),
            observe: setting.observe,
            faults: Arc::new(Answers),
            metrics: Arc::clone(&metrics),
            patience: setting.patience,
            pulse: tokio::sync::mpsc::channel(1).1,
        };
        let mut serving = JoinSet::new();
        serving.spawn(server.serve(bound.listener, phases));
        Self {
            path,
            book,
            metrics,
            phase,
            released,
            entered,
            serving,
            _place: bound.place,
            _directory: directory,
        }
    }

    /// One honest client; clones of it share its connection.
    async fn client(&self) -> TokenServiceClient<Channel> {
        let target = format!("unix:{}", self.path.display());
        let channel = Endpoint::from_shared(target).expect("a target").connect().await.expect("connects");
        TokenServiceClient::new(channel)
    }

    async fn raw(&self) -> Raw {
        Raw(UnixStream::connect(&self.path).await.expect("connects"))
    }

    async fn greeted(&self) -> Raw {
        let mut raw = self.raw().await;
        raw.send(&GREETING).await;
        raw
    }

    /// Waits until the book says so.
    async fn until(&self, what: &str, mut ready: impl FnMut(Totals) -> bool) {
        let wait = async {
            while !ready(self.book.census().open) {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANG, wait).await.unwrap_or_else(|_| panic!("never: {what}; {:?}", self.book.census()));
    }

    fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    async fn ended(&mut self) {
        let end = timeout(HANG, self.serving.join_next()).await.expect("the server ends");
        end.expect("it was served").expect("without panic").expect("without error");
        assert_eq!(self.book.census().open, Totals::default(), "everything was given back");
        nobody_listens(&self.path).await;
    }
}

async fn get(client: &TokenServiceClient<Channel>, name: &str) -> Result<Token, Status> {
    let request = GetTokenRequest { name: name.to_owned(), min_validity: None };
    let response = timeout(HANG, client.clone().get_token(request)).await.expect("an answer");
    response.map(|response| response.into_inner().token.expect("a token"))
}

async fn watch_token(
    client: &TokenServiceClient<Channel>,
    name: &str,
) -> Result<tonic::Streaming<WatchTokenResponse>, Status> {
    let request = WatchTokenRequest { name: name.to_owned() };
    let response = timeout(HANG, client.clone().watch_token(request)).await.expect("an answer");
    response.map(Response::into_inner)
}

async fn next(
    stream: &mut tonic::Streaming<WatchTokenResponse>,
) -> Result<Option<WatchTokenResponse>, Status> {
    timeout(HANG, stream.message()).await.expect("a message or the end")
}

/// A client that writes its own bytes.
struct Raw(UnixStream);

impl Raw {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("writes");
    }

    /// All that comes until the server closes.
    async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = timeout(HANG, self.0.read_to_end(&mut bytes)).await.expect("the server closes");
        if let Err(error) = read {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        bytes
    }

    /// The next frame of this kind: its flags and its payload.
    async fn next(&mut self, kind: u8) -> (u8, Vec<u8>) {
        loop {
            let mut head = [0; 9];
            let read = timeout(HANG, self.0.read_exact(&mut head)).await.expect("a frame");
            read.expect("a whole head");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.expect("a whole frame");
            assert_ne!(head[3], 3, "RST_STREAM: {payload:?}");
            if head[3] == kind {
                return (head[4], payload);
            }
        }
    }

    /// Calls GetToken with these fields and says how it was answered.
    async fn call(
        &mut self,
        stream: u32,
        fields: &[u8],
        decoder: &mut fluke_hpack::Decoder<'static>,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.send(&frame(1, 0x4, stream, fields)).await;
        self.send(&frame(0, 0x1, stream, EMPTY_MESSAGE)).await;
        let mut answer = Vec::new();
        loop {
            let (flags, block) = self.next(1).await;
            answer.extend(decoder.decode(&block).expect("HPACK"));
            if flags & 0x1 != 0 {
                return answer;
            }
        }
    }
}

fn value<'a>(fields: &'a [(Vec<u8>, Vec<u8>)], name: &str) -> &'a [u8] {
    let field = fields.iter().find(|(field, _)| field == name.as_bytes());
    field.map_or(&b"(none)"[..], |(_, value)| &value[..])
}

fn own_uid() -> String {
    nix::unistd::geteuid().to_string()
}

#[tokio::test]
async fn a_handler_knows_its_connection_and_calls_of_one_share_it() {
    let socket = Socket::serve(Setting::default());
    let (first, second) = (socket.client().await, socket.client().await);
    let answers = [get(&first, "a").await, get(&first, "b").await, get(&second, "c").await];
    let answers = answers.map(|answer| answer.expect("a token"));
    assert!(answers.iter().all(|answer| answer.name == own_uid()));
    assert_eq!(answers[0].generation, answers[1].generation);
    assert_ne!(answers[0].generation, answers[2].generation);
    socket
        .until("two connections, no calls", |open| open == Totals { connections: 2, calls: 0, watches: 0 })
        .await;
}

#[tokio::test]
async fn every_clients_authority_is_answered() {
    let socket = Socket::serve(Setting::default());
    let authorities: [(&str, &[u8]); 6] = [
        ("grpc-core: a literal name", b"\x40\x0a:authority\x18tmp%2Fbloom%2Fagent.sock"),
        ("grpc-core: the name in Huffman", b"\x40\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f\x0ctmp%2Fx.sock"),
        ("grpc-java: raw slashes", b"\x41\x0b/run/x.sock"),
        ("localhost in Huffman", b"\x41\x86\xa0\xe4\x1d\x13\x9d\x09"),
        ("localhost", b"\x41\x09localhost"),
        ("none at all", b""),
    ];
    for (client, authority) in authorities {
        let mut raw = socket.greeted().await;
        let mut decoder = fluke_hpack::Decoder::new();
        let answer = raw.call(1, &[authority, GET_TOKEN].concat(), &mut decoder).await;
        assert_eq!(value(&answer, ":status"), b"200", "{client}");
        assert_eq!(value(&answer, "grpc-status"), b"0", "{client}");
        // The next call refers to the entry that the first one made: the table's newest.
        let reference: &[u8] = if authority.is_empty() { b"" } else { b"\xbe" };
        let answer = raw.call(3, &[reference, GET_TOKEN].concat(), &mut decoder).await;
        assert_eq!(value(&answer, "grpc-status"), b"0", "{client}, again");
    }
}

/// What an attacker can have written when it is ended: what the meter's budget is good for, and what sockets hold.
const ENDED_AFTER: u64 = 4 << 20;

#[tokio::test]
async fn every_attack_ends_as_the_table_says_and_others_are_served_meanwhile() {
    let mut wrong = Vec::new();
    for attack in ATTACKS {
        let setting = Setting::default();
        let greeting = if attack.must == Must::Outwait { Duration::from_millis(50) } else { HANG * 2 };
        let socket =
            Socket::serve(Setting { patience: Patience { greeting, ..setting.patience }, ..setting });
        let honest = socket.client().await;
        match attack.must {
            Must::Cut | Must::Close | Must::Outwait => {
                let ended = timeout(HANG, strike(&socket.path, attack));
                let Ok(Ended::ByTheAgent { sent, .. }) = ended.await else {
                    wrong.push(format!("{attack:?} goes on"));
                    continue;
                };
                if sent > ENDED_AFTER {
                    wrong.push(format!("{attack:?} went on for {sent} bytes"));
                }
            }
            Must::Answer | Must::Hold => {
                let mut strikes = JoinSet::new();
                let path = socket.path.clone();
                strikes.spawn(async move { strike(&path, attack).await });
                for _ in 0..20 {
                    assert!(get(&honest, "x").await.is_ok(), "{attack:?}");
                }
                if socket.book.census().open.connections != 2 {
                    wrong.push(format!("{attack:?} is over"));
                }
                // In the middle of whatever there is.
                strikes.shutdown().await;
            }
        }
        let only_the_honest_one = |open| open == Totals { connections: 1, calls: 0, watches: 0 };
        socket.until(attack.name, only_the_honest_one).await;
        let cut = u64::from(matches!(attack.must, Must::Cut | Must::Outwait));
        if socket.book.census().cut != cut {
            wrong.push(format!("{attack:?}: {:?}, and it must {:?}", socket.book.census(), attack.must));
        }
        assert!(get(&honest, "x").await.is_ok(), "{attack:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Many connections of one uid that call without end, each many times at once, and one of another.
#[tokio::test]
async fn a_uid_with_many_busy_connections_does_not_make_another_wait_for_all_of_them() {
    if crate::support::skipped_without_root("turns of two uids") {
        return;
    }
    let socket = Socket::serve(Setting::default());
    let busy = Attack {
        name: "calls without end",
        piece: |n| {
            Some(
                (n * 64..(n + 1) * 64)
                    .flat_map(|n| {
                        let head = frame(1, 0x4, 2 * n + 1, GET_TOKEN);
                        [head, frame(0, 0x1, 2 * n + 1, EMPTY_MESSAGE)].concat()
                    })
                    .collect(),
            )
        },
        ..NOTHING
    };
    let busy: &'static Attack = Box::leak(Box::new(busy));
    let mut strikes = JoinSet::new();
    for _ in 0..40 {
        let path = socket.path.clone();
        strikes.spawn(async move { strike(&path, busy).await });
    }
    socket.until("all are there", |open| open.connections == 40).await;
    let other = connect_as(&socket.path, 1234);
    other.set_nonblocking(true).expect("non-blocking");
    let mut other = Raw(UnixStream::from_std(other).expect("a stream"));
    other.send(&GREETING).await;
    let mut decoder = fluke_hpack::Decoder::new();
    let calls = || {
        socket
            .metrics
            .text()
            .lines()
            .filter_map(|line| {
                let count = line.strip_prefix("bloom_agent_calls_total{method=\"GetToken\",code=\"OK\"} ")?;
                count.parse::<u64>().ok()
            })
            .sum::<u64>()
    };
    let before = calls();
    for n in 0..5 {
        let answer = other.call(2 * n + 1, GET_TOKEN, &mut decoder).await;
        assert_eq!(value(&answer, "grpc-status"), b"0");
    }
    // Reading, answering and being told take some rounds of the others; each of theirs is eight turns of 32 calls.
    let meanwhile = (calls() - before) / 5;
    assert!(meanwhile < 20 * 8 * 32, "{meanwhile} calls of the others for one of this uid's");
}

#[tokio::test]
async fn a_silent_client_is_closed_and_an_idle_one_is_not() {
    let setting = Setting::default();
    let patience = Patience { greeting: Duration::from_millis(50), ..setting.patience };
    let socket = Socket::serve(Setting { patience, ..setting });
    let mut idle = socket.greeted().await;
    idle.next(4).await;
    // Each of them came later and is waited for, so the idle one's moment has passed too.
    socket.raw().await.rest().await;
    let mut half = socket.raw().await;
    half.send(&GREETING[..24]).await;
    half.rest().await;
    assert_eq!(socket.book.census().cut, 2);
    let answer = idle.call(1, GET_TOKEN, &mut fluke_hpack::Decoder::new()).await;
    assert_eq!(value(&answer, "grpc-status"), b"0");
}

#[tokio::test]
async fn a_uid_at_its_cap_is_closed_unread_until_it_lets_go() {
    let socket = Socket::serve(Setting {
        limits: Limits { connections: 2, ..Limits::default() },
        ..Setting::default()
    });
    let (first, second) = (socket.greeted().await, socket.greeted().await);
    socket.until("both are accepted", |open| open.connections == 2).await;
    let mut third = socket.raw().await;
    assert_eq!(third.rest().await, b"", "not a byte is answered");
    assert_eq!(socket.book.census().refused, 1);
    drop(first);
    socket.until("one has gone", |open| open.connections == 1).await;
    assert!(get(&socket.client().await, "x").await.is_ok());
    drop(second);
}

/// In Linux credentials belong to the thread; glibc's wrapper would change all threads.
#[allow(unsafe_code, reason = "the uid of one thread has no wrapper")]
fn connect_as(path: &std::path::Path, uid: u32) -> std::os::unix::net::UnixStream {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        // SAFETY: three numbers.
        let answer = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(answer, 0);
        std::os::unix::net::UnixStream::connect(path).expect("connects")
    });
    thread.join().expect("the thread has connected")
}

#[tokio::test]
async fn one_uid_at_its_cap_leaves_room_for_another() {
    if !nix::unistd::geteuid().is_root() {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!(
                "SKIPPED: one_uid_at_its_cap_leaves_room_for_another: it must be root to take another uid\n"
            ),
        );
        return;
    }
    let socket = Socket::serve(Setting {
        limits: Limits { connections: 1, ..Limits::default() },
        ..Setting::default()
    });
    let _root = socket.greeted().await;
    socket.until("root is accepted", |open| open.connections == 1).await;
    assert_eq!(socket.raw().await.rest().await, b"");
    let other = connect_as(&socket.path, 1234);
    other.set_nonblocking(true).expect("non-blocking");
    let mut other = Raw(UnixStream::from_std(other).expect("a stream"));
    other.send(&GREETING).await;
    let answer = other.call(1, GET_TOKEN, &mut fluke_hpack::Decoder::new()).await;
    assert_eq!(value(&answer, "grpc-status"), b"0");
}

#[tokio::test]
async fn the_rate_of_connects_is_capped() {
    let socket = Socket::serve(Setting {
        limits: Limits { connects_per_second: 5, ..Limits::default() },
        ..Setting::default()
    });
    // The clock stands still: a burst of two seconds' worth, and no more.
    for _ in 0..10 {
        assert!(get(&socket.client().await, "x").await.is_ok());
    }
    assert_eq!(socket.raw().await.rest().await, b"");
}

#[tokio::test]
async fn a_peer_that_the_kernel_does_not_know_is_closed_unread() {
    let observe: Observe = Arc::new(|_| Err(io::Error::from_raw_os_error(libc::ENODATA)));
    let socket = Socket::serve(Setting { observe, ..Setting::default() });
    let mut raw = socket.greeted().await;
    assert_eq!(raw.rest().await, b"");
    assert_eq!(socket.book.census().open, Totals::default());
}

#[tokio::test]
async fn calls_beyond_the_cap_are_refused_with_a_reason_and_a_time() {
    let socket =
        Socket::serve(Setting { limits: Limits { calls: 1, ..Limits::default() }, ..Setting::default() });
    let client = socket.client().await;
    let mut calls = JoinSet::new();
    let slow = client.clone();
    calls.spawn(async move { get(&slow, "slow").await });
    timeout(HANG, socket.entered.notified()).await.expect("the slow call has begun");
    let status = get(&client, "x").await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((&info.reason[..], &info.domain[..]), ("LIMIT", "bloom.agent"));
    let retry = status.get_details_retry_info().expect("a RetryInfo").retry_delay;
    assert_eq!(retry, Some(Duration::from_secs(1)));
    // Another connection of the same uid is the same uid.
    let status = get(&socket.client().await, "x").await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    socket.released.notify_one();
    calls.join_next().await.expect("one call").expect("no panic").expect("the slow call is answered");
    socket.until("it is over", |open| open.calls == 0).await;
    assert!(get(&client, "x").await.is_ok());
}

#[tokio::test]
async fn a_channel_full_of_watches_still_gets_tokens() {
    let socket =
        Socket::serve(Setting { limits: Limits { watches: 3, ..Limits::default() }, ..Setting::default() });
    let client = socket.client().await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        let mut stream = watch_token(&client, "a").await.expect("a stream");
        assert!(next(&mut stream).await.expect("a message").is_some());
        watches.push(stream);
    }
    let status = watch_token(&client, "a").await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(get(&client, "x").await.is_ok());
    assert_eq!(socket.book.census().open, Totals { connections: 1, calls: 3, watches: 3 });
    watches.pop();
    socket.until("one is over", |open| open.watches == 2 && open.calls == 2).await;
    assert!(watch_token(&client, "a").await.is_ok());
}

#[tokio::test]
async fn a_panic_ends_one_call_and_nothing_else() {
    let socket = Socket::serve(Setting::default());
    let client = socket.client().await;
    let mut watch = watch_token(&client, "a").await.expect("a stream");
    assert!(next(&mut watch).await.expect("a message").is_some());

    let status = get(&client, "panic").await.expect_err("an error");
    assert_eq!((status.code(), status.message()), (Code::Internal, "the agent failed in this call"));
    let mut panicking = watch_token(&client, "panic").await.expect("a stream");
    let status = next(&mut panicking).await.expect_err("an error");
    assert_eq!(status.code(), Code::Internal);

    assert_eq!(socket.book.census().panics, 2);
    assert!(get(&client, "x").await.is_ok());
    socket
        .until("only the watch is open", |open| open == Totals { connections: 1, calls: 1, watches: 1 })
        .await;
    drop(watch);
}

#[tokio::test]
async fn a_connect_is_not_a_call() {
    let socket = Socket::serve(Setting::default());
    let mut raw = socket.greeted().await;
    // :method CONNECT, :authority.
    raw.send(&frame(1, 0x4, 1, b"\x02\x07CONNECT\x01\x09localhost")).await;
    let (_, block) = raw.next(1).await;
    let answer = fluke_hpack::Decoder::new().decode(&block).expect("HPACK");
    assert_eq!(value(&answer, ":status"), b"405");
}

#[tokio::test]
async fn new_limits_hold_for_open_connections_too() {
    let socket = Socket::serve(Setting::default());
    let client = socket.client().await;
    assert!(get(&client, "x").await.is_ok());
    socket.book.replace(Limits { calls: 0, ..Limits::default() });
    assert_eq!(get(&client, "x").await.expect_err("refused").code(), Code::ResourceExhausted);
    socket.book.replace(Limits::default());
    assert!(get(&client, "x").await.is_ok());
}

#[tokio::test]
async fn draining_without_clients_ends_at_once() {
    let mut socket = Socket::serve(Setting::default());
    socket.drain();
    socket.ended().await;
}

#[tokio::test]
async fn draining_ends_when_the_daemon_has_gone_too() {
    let mut socket = Socket::serve(Setting::default());
    let client = socket.client().await;
    assert!(get(&client, "x").await.is_ok());
    let (unrelated, _) = watch::channel(Phase::Serving);
    // The stub holds receivers only; this was the sender.
    drop(std::mem::replace(&mut socket.phase, unrelated));
    socket.ended().await;
}

#[tokio::test]
async fn draining_tells_a_watch_and_lets_a_call_end() {
    let mut socket = Socket::serve(Setting::default());
    let client = socket.client().await;
    let mut watch = watch_token(&client, "a").await.expect("a stream");
    assert!(next(&mut watch).await.expect("a message").is_some());
    let mut calls = JoinSet::new();
    let slow = client.clone();
    calls.spawn(async move { get(&slow, "slow").await });
    timeout(HANG, socket.entered.notified()).await.expect("the slow call has begun");

    socket.drain();
    let status = next(&mut watch).await.expect_err("the end");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the agent restarts"));
    socket.until("only the slow call is open", |open| open.calls == 1).await;
    socket.released.notify_one();
    let answer = calls.join_next().await.expect("one call").expect("no panic");
    assert!(answer.is_ok(), "{answer:?}");
    socket.ended().await;
}

#[tokio::test]
async fn draining_does_not_wait_for_clients_that_say_nothing() {
    let mut socket = Socket::serve(Setting::default());
    // One that said nothing at all, and one that will not answer the PING that comes with the first GOAWAY.
    let (mut silent, mut idle) = (socket.raw().await, socket.greeted().await);
    idle.next(4).await;
    socket.until("both are accepted", |open| open.connections == 2).await;
    socket.drain();
    socket.ended().await;
    assert_eq!(silent.rest().await.first_chunk(), Some(&[0, 0]), "at most the server's SETTINGS");
    let bytes = idle.rest().await;
    assert!(!bytes.is_empty(), "it was told to go away");
    assert_eq!(socket.book.census().cut, 0, "a drain is not an offence");
}

#[tokio::test]
async fn draining_cuts_what_does_not_end() {
    let setting = Setting::default();
    let patience = Patience { drain: Duration::from_millis(50), ..setting.patience };
    let mut socket = Socket::serve(Setting { patience, ..setting });
    let client = socket.client().await;
    let mut calls = JoinSet::new();
    calls.spawn(async move { get(&client, "stubborn").await });
    timeout(HANG, socket.entered.notified()).await.expect("the call has begun");
    socket.drain();
    socket.ended().await;
    assert!(calls.join_next().await.expect("one call").expect("no panic").is_err());
}

/// The part of the next test that runs in a process of its own: it takes all descriptors away.
const STARVED: &str = "BLOOM_AGENT_TEST_STARVED";

#[tokio::test]
async fn without_descriptors_callers_are_closed_and_later_served() {
    if std::env::var_os(STARVED).is_none() {
        let this = std::env::current_exe().expect("the test's program");
        let name = "serving::without_descriptors_callers_are_closed_and_later_served";
        let output = tokio::process::Command::new(this)
            .args(["--exact", name, "--nocapture"])
            .env(STARVED, "1")
            .output()
            .await
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let socket = Socket::serve(Setting::default());
    let client = socket.client().await;
    assert!(get(&client, "x").await.is_ok());
    // Connected while there were descriptors, accepted when there are none: the runtime has one thread, and it is here.
    let waiting: Vec<_> = (0..4).map(|_| std::os::unix::net::UnixStream::connect(&socket.path)).collect();
    let hoard = Mutex::new(Vec::new());
    let take_all = || {
        let directory = std::fs::File::open("/").expect("opens");
        let mut hoard = hoard.lock().expect("no panic");
        while let Ok(one) = directory.as_fd().try_clone_to_owned() {
            hoard.push(one);
        }
        hoard.push(directory.into());
    };
    let (_, most) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 100, most).expect("fewer");
    take_all();
    for stream in waiting {
        let stream = stream.expect("connects");
        stream.set_nonblocking(true).expect("non-blocking");
        let mut raw = Raw(UnixStream::from_std(stream).expect("a stream"));
        // The socket itself becomes free with the end of the loop's turn, and is taken away again.
        assert_eq!(raw.rest().await, b"", "closed, not left to hang");
        drop(raw);
        take_all();
    }
    assert!(socket.book.census().starved);
    assert!(get(&client, "x").await.is_ok(), "open connections do not notice");
    hoard.lock().expect("no panic").clear();
    assert!(get(&socket.client().await, "x").await.is_ok());
    assert!(!socket.book.census().starved);
}
