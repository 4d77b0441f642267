//! The socket: who may connect, how much of everything, and how it ends.
//!
//! An accept loop of our own on hyper's HTTP/2, because every limit must be one that we chose:
//!
//! - A connection is refused before a byte of it is read, a call before its body is.
//! - The peer is observed once, at accept; a connection whose peer the kernel does not tell is closed.
//! - No bytes of a client can make the server grow without bound, spin, or starve another client: limits, the frame meter
//!   (`wire`), turns for the connections of a uid (`turns`), a bound for the memory that they hold (`account`), and a
//!   deadline for clients that never say what they want.
//! - Every task is owned by [`Server::serve`], which returns when the last one has ended.
//! - It knows no token and no secret: it hands requests to a service and bytes to a socket.

mod accept;
mod account;
mod bind;
mod call;
mod connection;
mod limits;
mod timeout;
mod turns;
mod wire;

#[cfg(any(test, fuzzing))]
pub(crate) use self::wire::fuzzing;
use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixListener,
    },
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Sleep, sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower_service::Service;

use self::{
    accept::Acceptor,
    account::Weighed,
    call::Calls,
    limits::ConnectionPermit,
    turns::Waste,
    wire::{Outbox, Socket, Traffic, Wire},
};
pub use self::{
    bind::{Address, BindFault, Bound, Occupant, Place, bind},
    call::{AtOnce, Faults},
    connection::Connection,
    limits::{Book, Census, WatchPermit},
    timeout::deadline_of,
};
use crate::{
    access::Peer,
    clock::Clock,
    limits::{Limits, Mention},
    metrics::Metrics,
    units::Origin,
    wiping,
};

/// So much freed is given back to the kernel, so long after the end of a connection; and once more what was freed later.
const TRIM_FROM: i64 = 1 << 20;
const TRIM_AFTER: Duration = Duration::from_secs(1);
const TRIM_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What the agent is about; its sender is the daemon's. When the sender is dropped, the agent drains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It answers.
    #[default]
    Serving,
    /// It ends: no new connection, no new call; the service ends its watches.
    Draining,
}

/// How long the server waits for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From accept to the client's preface and SETTINGS. A connection that has said so much may stay idle for ever: gRPC
    /// clients connect ahead of their first call.
    pub greeting: Duration,
    /// In a drain, for a connection without open calls to close.
    pub idle: Duration,
    /// In a drain, for everything. Then it is cut.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { greeting: Duration::from_secs(5), idle: Duration::from_secs(1), drain: Duration::from_secs(5) }
    }
}

/// How a peer is observed: [`crate::peer::observe`], and where it came from ([`crate::units::Capture`]). It must not wait.
pub type Observe = Arc<dyn Fn(BorrowedFd<'_>) -> io::Result<(Peer, Origin)> + Send + Sync>;

/// What it takes to serve a socket.
pub struct Server<S> {
    /// What answers: `tonic::service::Routes`, prepared, or something before it. It is never asked whether it is ready.
    pub service: S,
    /// What is asked before the service, if anything is.
    pub at_once: Option<Arc<dyn AtOnce>>,
    /// What is open and how much may be.
    pub book: Arc<Book>,
    /// Time, for the connect rate and the meter.
    pub clock: Arc<dyn Clock>,
    /// Who is there.
    pub observe: Observe,
    /// What is answered where the service is not asked.
    pub faults: Arc<dyn Faults>,
    /// Where calls are counted.
    pub metrics: Arc<Metrics>,
    /// How long clients are waited for.
    pub patience: Patience,
    /// Answered as long as the accept loop goes round.
    pub pulse: mpsc::Receiver<oneshot::Sender<()>>,
}

impl<S> Server<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    /// Serves a listening socket until `phase` says that it is over, then drains: every connection is told to go away,
    /// calls may end, and what is left after [`Patience::drain`] is cut. When it returns nothing of it runs any more.
    ///
    /// The error is that of taking the listener over; after that there is none.
    pub async fn serve(mut self, listener: UnixListener, phase: watch::Receiver<Phase>) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let mut acceptor = Acceptor::new(listener, Arc::clone(&self.book));
        let streams = TaskTracker::new();
        let mut connections = JoinSet::new();
        let mut next_id = 1;
        let mut trimming = None::<Pin<Box<Sleep>>>;

        let mut drained = pin!(draining(phase.clone()));
        loop {
            tokio::select! {
                biased;
                () = &mut drained => break,
                Some(ended) = connections.join_next() => {
                    self.ended(ended);
                    // What its calls held is freed a little later.
                    if trimming.is_none() {
                        trimming = Some(Box::pin(sleep(TRIM_AFTER)));
                    }
                }
                () = at(&mut trimming) => {
                    trimming = None;
                    if wiping::most_held() - wiping::held() > TRIM_FROM {
                        wiping::trim();
                        trimming = Some(Box::pin(sleep(TRIM_AGAIN_AFTER)));
                    }
                }
                Some(beat) = self.pulse.recv() => {
                    // Who asked has stopped waiting.
                    let _gone = beat.send(());
                }
                stream = acceptor.accept() => {
                    let began = self.clock.now().boot;
                    if let Some((connection, permit)) = self.admit(&stream, next_id) {
                        next_id += 1;
                        connections.spawn(self.connection(stream, connection, permit, &streams, phase.clone()));
                    } else {
                        drop(stream);
                        acceptor.refused(self.clock.now().boot.since(began));
                    }
                }
            }
        }
        drop(acceptor);

        let all_gone = async {
            while let Some(ended) = connections.join_next().await {
                self.ended(ended);
            }
        };
        if timeout(self.patience.drain, all_gone).await.is_err() {
            tracing::info!(
                connections = connections.len(),
                "connections are cut: their clients did not let go"
            );
            connections.shutdown().await;
        }
        // A stream whose connection has gone is over at its next poll, and h2 wakes it.
        streams.close();
        streams.wait().await;
        Ok(())
    }

    /// Who has connected, if he may.
    fn admit(&self, stream: &UnixStream, id: u64) -> Option<(Arc<Connection>, ConnectionPermit)> {
        let now = self.clock.now().boot;
        let (peer, origin) = match (self.observe)(stream.as_fd()) {
            Ok(observed) => observed,
            Err(error) => {
                self.book.count_refused();
                // Nobody's uid is all ones; this is the entry of those who have none.
                if self.book.mention(u32::MAX, Mention::Refused, now) {
                    tracing::warn!(%error, "a connection is refused: the kernel does not say whose it is");
                }
                return None;
            }
        };
        match self.book.connect(peer.uid, now) {
            Ok(permit) => {
                let standing = self.book.standing(peer.uid, &self.clock);
                let connection = Connection::new(id, peer, origin, Arc::clone(&self.book), standing);
                Some((connection, permit))
            }
            Err(limit) => {
                if self.book.mention(peer.uid, Mention::Refused, now) {
                    let (uid, pid) = (peer.uid, peer.pid);
                    tracing::warn!(
                        uid,
                        pid,
                        limit = limit.key(),
                        "connections are refused: the uid is at its limit"
                    );
                }
                None
            }
        }
    }

    /// The task of one connection.
    fn connection(
        &self,
        stream: UnixStream,
        connection: Arc<Connection>,
        permit: ConnectionPermit,
        streams: &TaskTracker,
        phase: watch::Receiver<Phase>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let outbox = Outbox::new(Socket::new(stream));
        let wire = Wire::new(outbox.clone(), Arc::clone(&self.clock), connection.seat());
        let calls = Calls {
            service: self.service.clone(),
            at_once: self.at_once.clone(),
            connection: Arc::clone(&connection),
            faults: Arc::clone(&self.faults),
            metrics: Arc::clone(&self.metrics),
        };
        let streams = Streams { tasks: streams.clone(), connection: Arc::clone(&connection) };
        let protocol = protocol(self.book.limits(), streams);
        let (clock, patience) = (Arc::clone(&self.clock), self.patience);
        // In boxes of their own: a future has room for what it captures beside the room for what it makes of that, and for all
        // that it ever waits for.
        let http = Box::pin(protocol.serve_connection(TokioIo::new(wire), calls));
        let mut greeting = Some(Box::pin(sleep(patience.greeting)));
        async move {
            // Given back when the connection is closed, whoever still holds what belongs to it.
            let _permit = permit;
            let mut http = http;
            let mut drained = pin!(draining(phase));
            let mut strays = Strays::default();
            let cut = loop {
                let polled = poll_fn(|cx| {
                    let polled = turn(&connection, &outbox, cx, |cx| http.as_mut().poll(cx));
                    strays.charge(&connection, outbox.traffic());
                    if polled.is_pending() && connection.account().is_overdrawn() {
                        return Poll::Ready(None);
                    }
                    polled.map(Some)
                });
                tokio::select! {
                    biased;
                    end = polled => {
                        let Some(end) = end else {
                            break Some("it makes the agent hold more memory than a uid may have");
                        };
                        // The client's doing, and the client has been told by GOAWAY where HTTP/2 can say it.
                        if let Err(error) = end {
                            tracing::debug!(connection = connection.id(), %error, "a connection has failed");
                            connection.charge(Waste::Connection);
                        }
                        break outbox.traffic().flooded().then_some("it floods the agent with empty frames");
                    }
                    () = at(&mut greeting) => {
                        if !outbox.traffic().greeted() {
                            break Some("it does not speak HTTP/2");
                        }
                        greeting = None;
                    }
                    () = &mut drained => {
                        http.as_mut().graceful_shutdown();
                        loop {
                            let polled = poll_fn(|cx| turn(&connection, &outbox, cx, |cx| http.as_mut().poll(cx)));
                            tokio::select! {
                                biased;
                                _ = polled => return,
                                () = Box::pin(sleep(patience.idle)) => if connection.calls() == 0 { return },
                            }
                        }
                    }
                }
            };
            if connection.begun() == 0 {
                connection.charge(Waste::Connect);
            }
            if let Some(reason) = cut {
                let Peer { uid, pid, .. } = *connection.peer();
                connection.charge(Waste::Connection);
                connection.book().count_cut();
                if connection.book().mention(uid, Mention::Cut, clock.now().boot) {
                    tracing::warn!(uid, pid, reason, "a connection is cut");
                }
            }
        }
    }

    /// A connection's task never panics: handlers are caught in their streams. If one does, the others live on.
    fn ended(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            self.book.count_panic();
            tracing::error!("a connection's task has panicked");
        }
    }
}

/// Waits until the agent drains: a watch ends itself then.
pub async fn draining(mut phase: watch::Receiver<Phase>) {
    // Nobody can say any more that it is over: it is.
    let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
}

/// Waits for a moment, if there is one to wait for.
async fn at(moment: &mut Option<Pin<Box<Sleep>>>) {
    match moment {
        Some(moment) => moment.as_mut().await,
        None => std::future::pending().await,
    }
}

/// One poll of a connection: a turn, if it wants one.
fn turn<T>(
    connection: &Connection,
    outbox: &Outbox<Socket>,
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut Context<'_>) -> T,
) -> T {
    outbox.traffic().begin_turn();
    outbox.open();
    let polled = connection.account().weigh(|| {
        let polled = poll(cx);
        outbox.close(cx);
        polled
    });
    if outbox.traffic().is_fresh() {
        // A connection whose client takes nothing off it reads nothing.
        connection.pass_turn();
    }
    polled
}

/// HEADERS that became no call: the client's mistakes, which HTTP/2 answers by itself.
#[derive(Default)]
struct Strays(u32);

impl Strays {
    /// So many may be under way, between the first byte of a HEADERS and its call.
    const UNDER_WAY: u32 = 16;

    /// Charges what the last turn has wasted.
    fn charge(&mut self, connection: &Connection, traffic: &Traffic) {
        let strays = traffic.heads().wrapping_sub(connection.begun()).wrapping_sub(self.0);
        // One more call than HEADERS there never is; but a difference that is none must not be a huge one.
        if strays > Self::UNDER_WAY && strays < u32::MAX / 2 {
            self.0 = self.0.wrapping_add(strays);
            connection.charge(Waste::Strays(strays));
        }
        match traffic.take_wasted() {
            0 => {}
            micros => connection.charge(Waste::Frames { micros }),
        }
    }
}

/// Where the stream tasks of a connection run: tracked, so that the server ends after them, and on the connection's account.
#[derive(Clone)]
struct Streams {
    tasks: TaskTracker,
    connection: Arc<Connection>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send + 'static> + Send + Unpin + 'static,
{
    fn execute(&self, stream: F) {
        let stream = Weighed::new(Arc::clone(&self.connection), stream);
        self.connection.account().unweighed(|| self.tasks.spawn(stream));
    }
}

/// h2 takes short DATA frames that nobody has read yet for an attack when they come to half of this, each counted as 256
/// bytes: a client may begin a call on every stream at once. What is really held is the account's business.
fn connection_window(limits: Limits) -> u32 {
    limits.streams_per_connection.saturating_mul(2 * 256).clamp(64 << 10, 16 << 20)
}

/// HTTP/2 with no limit left to a default. `None` would switch one off, and two of them together are what stops
/// unfinished and malformed streams from piling up (RUSTSEC-2024-0003).
fn protocol(limits: Limits, streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .max_concurrent_streams(limits.streams_per_connection)
        .max_local_error_reset_streams(1024)
        .max_pending_accept_reset_streams(20)
        .max_header_list_size(16 * 1024)
        .max_frame_size(16 * 1024)
        // A request has 4 KiB at most.
        .initial_stream_window_size(16 * 1024)
        .initial_connection_window_size(connection_window(limits))
        .header_table_size(4096)
        // Per stream: what a client that never reads can make the agent hoard, and how stale a slow reader's token gets.
        .max_send_buf_size(4096)
        // No gRPC server dates its answers, and each date would be a look at the clock.
        .auto_date_header(false)
        // A dead peer of a Unix socket is seen as end-of-file; a PING would only wake an idle agent.
        .keep_alive_interval(None);
    builder
}
