//! The server: real sockets on the loopback, real TLS, and for each connection a script of moves.
//!
//! Time stands still while it works. A move that takes time says so ([`Tick`]), and whoever moves the clocks lets it go by:
//! so a deadline of ten seconds passes at once, and to the millisecond.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Shutdown},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    pki,
    script::{Answer, Certificate, Framing, Http2, Move, Tls, answered},
};

/// `{"alg":"none"}` and `{"sub":"somebody","exp":1}`.
const OTHERS_JWT: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzb21lYm9keSIsImV4cCI6MX0.";

/// So much time has to go by.
pub(crate) struct Tick {
    pub(crate) by: Duration,
    /// Told when it has: for a thread that waits for it.
    pub(crate) then: Option<std::sync::mpsc::Sender<()>>,
}

/// Where ticks are asked for.
pub(crate) type Ticks = mpsc::UnboundedSender<Tick>;

/// What the server says on connections from now on.
#[derive(Clone)]
pub(crate) enum Plan {
    /// This on each.
    Each(Vec<Move>),
    /// One after the other; when there is none left, good answers.
    InTurn(Vec<Vec<Move>>),
}

impl Plan {
    pub(crate) fn good() -> Self {
        Self::Each(answered(Answer::good()))
    }
}

/// A token request that came whole.
#[derive(Clone)]
pub(crate) struct Seen {
    /// The secret that it carried.
    pub(crate) secret: String,
}

/// What the server and whoever watches it share.
pub(crate) struct Shared {
    plan: Mutex<Plan>,
    seen: Mutex<Vec<Seen>>,
    minted: Mutex<Vec<String>>,
    accepted: AtomicU64,
    last_address: Mutex<Option<IpAddr>>,
    open: watch::Sender<usize>,
    ticks: Ticks,
}

/// The server, while it runs.
pub(crate) struct Server {
    shared: Arc<Shared>,
    port: u16,
    _accepting: JoinSet<()>,
}

impl Server {
    /// Listens on all of 127.0.0.0/8 that `addresses` names, on one port of the kernel's choice.
    pub(crate) async fn start(addresses: &[Ipv4Addr], ticks: Ticks) -> Self {
        let shared = Arc::new(Shared {
            plan: Mutex::new(Plan::good()),
            seen: Mutex::default(),
            minted: Mutex::default(),
            accepted: AtomicU64::new(0),
            last_address: Mutex::default(),
            open: watch::Sender::new(0),
            ticks,
        });
        let listeners = listen(addresses).await;
        let port = listeners[0].local_addr().unwrap().port();
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(accept(listener, Arc::clone(&shared)));
        }
        Self { shared, port, _accepting: accepting }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From the next connection on.
    pub(crate) fn set(&self, plan: Plan) {
        *self.shared.plan.lock().unwrap() = plan;
    }

    /// The requests that came whole so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The tokens that were given so far, or at least sent.
    pub(crate) fn minted(&self) -> Vec<String> {
        self.shared.minted.lock().unwrap().clone()
    }

    /// How often somebody connected.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Where somebody connected last.
    pub(crate) fn last_address(&self) -> IpAddr {
        self.shared.last_address.lock().unwrap().unwrap()
    }

    /// Waits until the agent has hung up everywhere.
    pub(crate) async fn nobody_is_connected(&self) {
        self.shared.open.subscribe().wait_for(|open| *open == 0).await.unwrap();
    }
}

/// All on one port: another try where somebody has it on one of the addresses.
async fn listen(addresses: &[Ipv4Addr]) -> Vec<TcpListener> {
    for _ in 0..100 {
        let mut listeners = vec![TcpListener::bind((addresses[0], 0)).await.unwrap()];
        let port = listeners[0].local_addr().unwrap().port();
        for address in &addresses[1..] {
            listeners.extend(TcpListener::bind((*address, port)).await.ok());
        }
        if listeners.len() == addresses.len() {
            return listeners;
        }
    }
    panic!("no port is free on {addresses:?}");
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        *shared.last_address.lock().unwrap() = Some(stream.local_addr().unwrap().ip());
        shared.open.send_modify(|open| *open += 1);
        let moves = match &mut *shared.plan.lock().unwrap() {
            Plan::Each(moves) => moves.clone(),
            Plan::InTurn(turns) if turns.is_empty() => answered(Answer::good()),
            Plan::InTurn(turns) => turns.remove(0),
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // A client that breaks it off is one of the things that are tested.
            let _broken_off = Connection::new(stream, Arc::clone(&shared)).play(moves).await;
            shared.open.send_modify(|open| *open -= 1);
        });
        while connections.try_join_next().is_some_and(|ended| ended.is_ok()) {}
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

struct Connection {
    shared: Arc<Shared>,
    io: Box<dyn Stream>,
    /// The same socket, for what no stream can do.
    socket: std::net::TcpStream,
    request: Option<Seen>,
    /// Whether a handshake is still to come.
    is_awaited: bool,
    relay: JoinSet<()>,
}

impl Connection {
    fn new(stream: TcpStream, shared: Arc<Shared>) -> Self {
        let stream = stream.into_std().unwrap();
        let socket = stream.try_clone().unwrap();
        let io = Box::new(TcpStream::from_std(stream).unwrap());
        Self { shared, io, socket, request: None, is_awaited: false, relay: JoinSet::new() }
    }

    async fn play(mut self, moves: Vec<Move>) -> io::Result<()> {
        for (number, one) in moves.iter().enumerate() {
            self.is_awaited = moves[number..].iter().any(|one| matches!(one, Move::Handshake(..)));
            match one.clone() {
                Move::Hear => {
                    let mut bytes = [0; 16 * 1024];
                    let length = self.io.read(&mut bytes).await?;
                    assert!(length > 0, "the agent speaks first");
                }
                Move::Pace(bytes, pause) => self.pace(bytes, pause),
                Move::Handshake(tls, certificate) => self.handshake(tls, certificate).await?,
                Move::Request => self.read_request().await?,
                Move::Answer(answer) => {
                    let bytes = self.bytes_of(&answer);
                    self.send(&bytes).await?;
                }
                Move::Bytes(bytes) => {
                    let bytes = self.filled(&bytes);
                    self.send(&bytes).await?;
                }
                Move::Drip(bytes, pause) => {
                    for byte in self.filled(&bytes) {
                        self.send(&[byte]).await?;
                        self.pause(pause).await?;
                    }
                }
                Move::Flood(bytes, times) => loop {
                    for _ in 0..times {
                        self.io.write_all(&bytes).await?;
                    }
                    self.io.flush().await?;
                    self.pause(Duration::from_secs(1)).await?;
                },
                Move::Pour(bytes) => loop {
                    self.send(&bytes).await?;
                },
                Move::Pause(by) => self.pause(by).await?,
                Move::Stall => loop {
                    self.pause(Duration::from_secs(10)).await?;
                },
                Move::Linger => return self.hung_up().await,
                Move::Reset => {
                    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(&self.socket, sockopt::Linger, &linger)?;
                    return Ok(());
                }
                Move::Fin => {
                    self.socket.shutdown(Shutdown::Write)?;
                    return self.hung_up().await;
                }
                Move::Judge(judge) => {
                    let seen = self.request.clone().expect("a request to be judged");
                    let bytes = self.bytes_of(&judge(&seen));
                    self.send(&bytes).await?;
                }
                Move::Http2(what) => return self.http_2(what).await,
            }
        }
        self.io.shutdown().await?;
        self.hung_up().await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// Reads until there is no more.
    async fn hung_up(&mut self) -> io::Result<()> {
        let mut rest = [0; 4096];
        while self.io.read(&mut rest).await? > 0 {}
        Ok(())
    }

    /// Lets time go by, unless the agent hangs up first.
    async fn pause(&mut self, by: Duration) -> io::Result<()> {
        let passed = tokio::time::sleep(by);
        // Whoever moves the clocks may be done.
        let _gone = self.shared.ticks.send(Tick { by, then: None });
        if self.is_awaited {
            // What comes meanwhile is the ClientHello, which is not to be lost.
            passed.await;
            return Ok(());
        }
        tokio::select! {
            () = passed => Ok(()),
            end = self.hung_up() => {
                end?;
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    async fn handshake(&mut self, tls: Tls, certificate: Certificate) -> io::Result<()> {
        let plain = std::mem::replace(&mut self.io, Box::new(tokio::io::empty()));
        let acceptor = TlsAcceptor::from(pki::server_config(tls, certificate));
        self.io = Box::new(acceptor.accept(plain).await?);
        Ok(())
    }

    /// What leaves goes through a pipe that another task empties, as slowly as it is told.
    fn pace(&mut self, bytes: usize, pause: Duration) {
        let (near, far) = tokio::io::duplex(bytes);
        let mut wire = std::mem::replace(&mut self.io, Box::new(near));
        let shared = Arc::clone(&self.shared);
        self.relay.spawn(async move {
            let (mut in_reader, mut in_writer) = tokio::io::split(far);
            let mut piece = vec![0; bytes];
            let mut heard = vec![0; 4096];
            let mut quiet = Box::pin(tokio::time::sleep(Duration::ZERO));
            loop {
                tokio::select! {
                    length = in_reader.read(&mut piece), if quiet.is_elapsed() => {
                        let Ok(length @ 1..) = length else { break };
                        if wire.write_all(&piece[..length]).await.is_err() || wire.flush().await.is_err() {
                            break;
                        }
                        let by = pause * u32::try_from(length).unwrap() / u32::try_from(bytes).unwrap();
                        // Whole milliseconds, as tokio counts them.
                        let by = Duration::from_millis(u64::try_from(by.as_millis()).unwrap() + 1);
                        quiet = Box::pin(tokio::time::sleep(by));
                        let _gone = shared.ticks.send(Tick { by, then: None });
                    }
                    length = wire.read(&mut heard) => {
                        let Ok(length @ 1..) = length else { break };
                        if in_writer.write_all(&heard[..length]).await.is_err() {
                            break;
                        }
                    }
                    () = &mut quiet, if !quiet.is_elapsed() => {}
                }
            }
        });
    }

    /// Reads a request with the body that its Content-Length announces.
    async fn read_request(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(self.io.read_u8().await?);
        }
        let head = String::from_utf8(bytes).unwrap();
        let value = |name: &str| {
            head.lines().find_map(|line| {
                let (found, value) = line.split_once(": ")?;
                found.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        assert!(head.starts_with("POST /token HTTP/1.1\r\n"), "{head}");
        let length = value("content-length").map_or(0, |length| length.parse().unwrap());
        let authorization = value("authorization");
        let mut body = vec![0; length];
        self.io.read_exact(&mut body).await?;
        self.note(authorization.as_deref(), &body);
        Ok(())
    }

    fn note(&mut self, authorization: Option<&str>, body: &[u8]) {
        let secret = match authorization.and_then(|value| value.strip_prefix("Basic ")) {
            Some(basic) => {
                let pair = String::from_utf8(STANDARD.decode(basic).unwrap()).unwrap();
                let (_, secret) = pair.split_once(':').unwrap();
                decoded(&format!("client_secret={secret}"))
            }
            None => decoded(std::str::from_utf8(body).unwrap()),
        };
        let seen = Seen { secret };
        self.request = Some(seen.clone());
        self.shared.seen.lock().unwrap().push(seen);
    }

    /// The answer's bytes.
    fn bytes_of(&self, answer: &Answer) -> Vec<u8> {
        let body = self.filled(&answer.body);
        let version = if answer.framing == Framing::Close { "1.0" } else { "1.1" };
        let mut head = format!("HTTP/{version} {} Whatever\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!(
                "{name}: {}\r\n",
                String::from_utf8(self.filled(value.as_bytes())).unwrap()
            ));
        }
        let chunked = |body: &[u8]| {
            let mut chunks = Vec::new();
            for chunk in body.chunks(7) {
                chunks.extend(format!("{:x}\r\n", chunk.len()).bytes());
                chunks.extend(chunk);
                chunks.extend(b"\r\n");
            }
            chunks.extend(b"0\r\n\r\n");
            chunks
        };
        let (framing, body) = match answer.framing {
            Framing::Length if matches!(answer.status, 100..=199 | 204 | 304) => (String::new(), body),
            Framing::Length => (format!("content-length: {}\r\n", body.len()), body),
            Framing::Says(length) => (format!("content-length: {length}\r\n"), body),
            Framing::Chunked => ("transfer-encoding: chunked\r\n".to_owned(), chunked(&body)),
            Framing::Both => {
                ("content-length: 5\r\ntransfer-encoding: chunked\r\n".to_owned(), chunked(&body))
            }
            Framing::Close => (String::new(), body),
        };
        [head.as_bytes(), framing.as_bytes(), b"\r\n", &body].concat()
    }

    /// With what stands there for something.
    fn filled(&self, text: &[u8]) -> Vec<u8> {
        if !text.contains(&b'{') {
            return text.to_vec();
        }
        let mut text = text.to_vec();
        let secret = self.request.as_ref().map(|seen| seen.secret.clone()).unwrap_or_default();
        let json = serde_json::to_string(&secret).unwrap();
        let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let last = self.shared.minted.lock().unwrap().last().cloned().unwrap_or_default();
        for (place, value) in [
            ("{SECRET}", json.trim_matches('"').to_owned()),
            ("{FORM}", form),
            ("{BASE64}", STANDARD.encode(&secret)),
            ("{LAST}", last),
        ] {
            text = replaced(&text, place, || value.clone());
        }
        let text = replaced(&text, "{JWT}", || self.mint(OTHERS_JWT));
        replaced(&text, "{TOKEN}", || self.mint("tok-"))
    }

    /// A new token.
    fn mint(&self, beginning: &str) -> String {
        let token = format!("{beginning}{:032x}-{:016x}", rand::random::<u128>(), rand::random::<u64>());
        self.shared.minted.lock().unwrap().push(token.clone());
        token
    }

    async fn http_2(mut self, what: Http2) -> io::Result<()> {
        self.handshake(Tls::Http2, Certificate::Good).await?;
        if let Http2::Raw(frames) = what {
            // SETTINGS with nothing in it.
            self.send(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
            self.send(&frames).await?;
            return self.hung_up().await;
        }
        let broken = |error: h2::Error| io::Error::other(error);
        let io = std::mem::replace(&mut self.io, Box::new(tokio::io::empty()));
        let mut connection = h2::server::handshake(io).await.map_err(broken)?;
        if matches!(what, Http2::GoAwayAtOnce) {
            connection.abrupt_shutdown(h2::Reason::NO_ERROR);
        }
        let mut reading = JoinSet::new();
        loop {
            tokio::select! {
                next = connection.accept() => match next {
                    None => return Ok(()),
                    Some(request) => {
                        let (request, respond) = request.map_err(broken)?;
                        let (head, mut body) = request.into_parts();
                        reading.spawn(async move {
                            let mut bytes = Vec::new();
                            while let Some(Ok(data)) = body.data().await {
                                body.flow_control().release_capacity(data.len()).unwrap();
                                bytes.extend(data);
                            }
                            (head, bytes, respond)
                        });
                    }
                },
                Some(read) = reading.join_next() => {
                    let (head, body, mut respond) = read.unwrap();
                    let authorization = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
                    self.note(authorization.as_deref(), &body);
                    let answer = match &what {
                        Http2::Answer(answer) => answer.clone(),
                        Http2::ManyHeaders(number) => {
                            (0..*number).fold(Answer::good(), |answer, n| answer.with(&format!("x-{n}"), "y"))
                        }
                        Http2::LongHeader(length) => Answer::good().with("x", &"y".repeat(*length)),
                        Http2::Reset(reason) => {
                            respond.send_reset(*reason);
                            continue;
                        }
                        Http2::GoAway(reason) => {
                            connection.abrupt_shutdown(*reason);
                            continue;
                        }
                        Http2::GoAwayAtOnce | Http2::Raw(_) => continue,
                    };
                    let mut head = http::Response::builder().status(answer.status);
                    for (name, value) in &answer.headers {
                        head = head.header(name.as_str(), value.as_str());
                    }
                    // The agent may have reset the stream meanwhile.
                    if let Ok(mut stream) = respond.send_response(head.body(()).unwrap(), false) {
                        let _gone = stream.send_data(Bytes::from(self.filled(&answer.body)), true);
                    }
                }
            }
        }
    }
}

/// The `client_secret` of a form.
fn decoded(form: &str) -> String {
    let value = url::form_urlencoded::parse(form.as_bytes()).find(|(name, _)| name == "client_secret");
    value.map(|(_, secret)| secret.into_owned()).unwrap_or_default()
}

fn replaced(text: &[u8], place: &str, value: impl Fn() -> String) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(place.len()).position(|window| window == place.as_bytes()) {
        out.extend(&rest[..at]);
        out.extend(value().bytes());
        rest = &rest[at + place.len()..];
    }
    out.extend(rest);
    out
}
