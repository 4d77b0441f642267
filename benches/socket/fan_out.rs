//! A rotation reaches everybody who watches: how long until the last has it, what a watcher costs, and how long others wait
//! meanwhile.
//!
//! The time runs from when the first client has read its message until the last has: how a token is got is no part of it. For
//! who waits at the socket there is a second figure, from the order to rotate on. The agent's order is an operator's
//! RefreshToken, and the exchange with the provider is in that; tonic's is a byte on its standard input.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    resource::{Resource, getrlimit, setrlimit},
};
use nix::unistd::{Uid, geteuid, seteuid};

use crate::{
    agent::{Bench, PROFILE, pid},
    process::{cpu_us, on, pin, rss},
    report::{Report, median},
    servers::Server,
    wire::{Call, Connection, Scratch},
};

const ROTATIONS: usize = 7;

/// The other of two users: one alone has no more than half of the connections that the agent's descriptors are enough for.
const OTHER_UID: u32 = 61_007;

pub(crate) fn measure(report: &mut Report) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // What is started from here on may open as many.
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut rows = Vec::new();
    for (connections, streams) in [(9_900, 1), (10, 1_000)] {
        rows.extend(compare(report, connections, streams));
    }
    let heads = [
        "watchers",
        "server",
        "first to last, ms",
        "x tonic",
        "order to last, ms",
        "x tonic",
        "GetToken meanwhile, worst ms",
        "server CPU per watcher, us",
        "kB per watcher, fresh / after",
    ];
    report.table("A rotation to all who watch", &heads, &rows);
}

/// Both servers with their watchers, and a rotation of one after one of the other: the machine is the same for both.
fn compare(report: &mut Report, connections: usize, streams: usize) -> Vec<Vec<String>> {
    let bench = Bench::for_users([geteuid().as_raw(), OTHER_UID]);
    let agent = bench.start(&on("0"));
    let socket = bench.host.path("tonic.sock");
    let mut tonic = Server::start(&on("0"), "tonic", &socket, &bench.reply_file());
    pin(1);
    let mut operator = Connection::open(&bench.socket()).unwrap();
    let mut subjects = [
        Subject::new("bare tonic", &socket, tonic.pid(), connections, streams),
        Subject::new("agent", &bench.socket(), pid(&agent), connections, streams),
    ];
    for _ in 0..ROTATIONS {
        subjects[0].rotate(|| tonic.rotate());
        subjects[1].rotate(|| {
            bench.mint();
            operator.ask(&Call::refresh_token(PROFILE));
            operator.flush().unwrap();
        });
    }
    let floor = (median(&subjects[0].spread), median(&subjects[0].last));
    subjects.iter().map(|subject| subject.row(report, floor)).collect()
}

/// A server, its watchers, and what each rotation took.
struct Subject {
    name: &'static str,
    socket: PathBuf,
    pid: u32,
    crowd: Crowd,
    /// Resident memory without watchers, and with them before any rotation, in kB.
    memory: (f64, f64),
    spread: Vec<f64>,
    last: Vec<f64>,
    meanwhile: Vec<f64>,
    cpu: Vec<f64>,
}

impl Subject {
    fn new(name: &'static str, socket: &Path, pid: u32, connections: usize, streams: usize) -> Self {
        let before = rss(pid);
        let mut crowd = Crowd::open(socket, connections, streams);
        crowd.hear();
        let (socket, memory) = (socket.to_owned(), (before, rss(pid)));
        let (spread, last, meanwhile, cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { name, socket, pid, crowd, memory, spread, last, meanwhile, cpu }
    }

    fn watchers(&self) -> f64 {
        (self.crowd.connections.len() * self.crowd.streams) as f64
    }

    fn rotate(&mut self, order: impl FnOnce()) {
        let passer_by = PasserBy::start(self.socket.clone());
        let (start, used) = (Instant::now(), cpu_us(self.pid));
        order();
        let first = self.crowd.hear();
        self.spread.push(first.elapsed().as_secs_f64() * 1000.0);
        self.last.push(start.elapsed().as_secs_f64() * 1000.0);
        self.cpu.push((cpu_us(self.pid) - used) / self.watchers());
        self.meanwhile.push(passer_by.longest().as_secs_f64() * 1000.0);
    }

    fn row(&self, report: &mut Report, floor: (f64, f64)) -> Vec<String> {
        let layout = format!("{} connections x {}", self.crowd.connections.len(), self.crowd.streams);
        let case = format!("{}, {layout}", self.name);
        let mut figure = |what, unit, rounds: &[f64]| report.figure("fan-out", &case, what, unit, rounds);
        let spread = figure("first to last receiver", "ms", &self.spread);
        let last = figure("order to last receiver", "ms", &self.last);
        let meanwhile = figure("longest GetToken meanwhile", "ms", &self.meanwhile);
        let cpu = figure("server CPU per watcher", "us", &self.cpu);
        let (before, fresh) = self.memory;
        let per_watcher = |now: f64| (now - before) / self.watchers();
        let fresh = figure("memory per watcher, fresh", "kB", &[per_watcher(fresh)]);
        let after = figure("memory per watcher, after rotations", "kB", &[per_watcher(rss(self.pid))]);
        vec![
            layout,
            self.name.to_owned(),
            format!("{spread:.0}"),
            format!("{:.2}", spread / floor.0),
            format!("{last:.0}"),
            format!("{:.2}", last / floor.1),
            format!("{meanwhile:.1}"),
            format!("{cpu:.1}"),
            format!("{fresh:.1} / {after:.1}"),
        ]
    }
}

/// Everybody who watches, on one thread.
struct Crowd {
    connections: Vec<Connection>,
    streams: usize,
    epoll: Epoll,
    scratch: Scratch,
}

impl Crowd {
    fn open(socket: &Path, connections: usize, streams: usize) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let call = Call::watch_token(PROFILE);
        let own = geteuid();
        let open = |index| {
            // What a server knows of its peer is the effective uid of the moment of the connect (unix(7), SO_PEERCRED).
            if own.is_root() && index % 2 == 1 {
                seteuid(Uid::from_raw(OTHER_UID)).unwrap();
            }
            let mut connection = Connection::open(socket).unwrap();
            if own.is_root() {
                seteuid(own).unwrap();
            }
            for _ in 0..streams {
                connection.ask(&call);
            }
            connection.flush().unwrap();
            epoll.add(&connection, EpollEvent::new(EpollFlags::EPOLLIN, index)).unwrap();
            connection
        };
        let connections = (0..connections as u64).map(open).collect();
        Self { connections, streams, epoll, scratch: Scratch::new() }
    }

    /// Waits until each stream has had one more message: a token is never cut into more than one DATA frame here. Returns when
    /// the first came.
    fn hear(&mut self) -> Instant {
        let mut first = None;
        let mut missing = self.connections.len() * self.streams;
        let mut events = vec![EpollEvent::empty(); 1024];
        while missing > 0 {
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
            first.get_or_insert_with(Instant::now);
            for event in &events[..count] {
                let connection = &mut self.connections[event.data() as usize];
                let heard = |part: crate::wire::Part<'_>| missing -= usize::from(!part.data.is_empty());
                connection.read(&mut self.scratch, heard).unwrap();
                connection.flush().unwrap();
            }
        }
        first.unwrap()
    }
}

/// Somebody who asks for the token now and then while it rotates.
struct PasserBy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl PasserBy {
    fn start(socket: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let (call, mut scratch) = (Call::get_token(PROFILE), Scratch::new());
        let mut connection = Connection::open(&socket).unwrap();
        connection.call(&call, &mut scratch).unwrap();
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                let start = Instant::now();
                connection.call(&call, &mut scratch).unwrap();
                longest = longest.max(start.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            longest
        });
        Self { stop, thread }
    }

    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
