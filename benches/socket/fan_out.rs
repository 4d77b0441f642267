//! A rotation reaches everybody who watches: how long until the last has it, what a watcher costs, and how long others wait
//! meanwhile.
//!
//! The time runs from the order to rotate until the client has read the last message. The agent's order is an operator's
//! RefreshToken, and the exchange with the provider is in its time; tonic's is a byte on its standard input.

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

use crate::{
    agent::{Bench, PROFILE, pid},
    process::{cpu_us, on, pin, rss},
    report::Report,
    servers::Server,
    wire::{Call, Connection, Scratch},
};

const ROTATIONS: usize = 7;

pub(crate) fn measure(report: &mut Report) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // What is started from here on may open as many.
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut rows = Vec::new();
    for (connections, streams) in [(9_900, 1), (10, 1_000)] {
        for server in ["bare tonic", "agent"] {
            rows.push(one(report, server, connections, streams));
        }
    }
    let heads = [
        "watchers",
        "server",
        "last has it, ms",
        "GetToken meanwhile, worst ms",
        "server CPU per watcher, us",
        "kB per watcher, fresh / after",
    ];
    report.table("A rotation to all who watch", &heads, &rows);
}

fn one(report: &mut Report, server: &str, connections: usize, streams: usize) -> Vec<String> {
    let bench = Bench::without_limits();
    let agent = bench.start(&on("0"));
    let reply = bench.reply_file();
    let socket = bench.host.path("tonic.sock");
    pin(1);
    let Figures { last, meanwhile, cpu, fresh, after } = if server == "agent" {
        let mut operator = Connection::open(&bench.socket()).unwrap();
        let rotate = || {
            bench.mint();
            operator.ask(&Call::refresh_token(PROFILE));
            operator.flush().unwrap();
        };
        rotations(&bench.socket(), pid(&agent), connections, streams, rotate)
    } else {
        agent.stop();
        let mut tonic = Server::start(&on("0"), "tonic", &socket, &reply);
        let pid = tonic.pid();
        rotations(&socket, pid, connections, streams, move || tonic.rotate())
    };
    let case = format!("{server}, {connections} x {streams}");
    let last = report.figure("fan-out", &case, "last receiver", "ms", &last);
    let meanwhile = report.figure("fan-out", &case, "longest GetToken meanwhile", "ms", &meanwhile);
    let cpu = report.figure("fan-out", &case, "server CPU per watcher", "us", &cpu);
    report.figure("fan-out", &case, "memory per watcher, fresh", "kB", &[fresh]);
    report.figure("fan-out", &case, "memory per watcher, after rotations", "kB", &[after]);
    vec![
        format!("{connections} connections x {streams}"),
        server.to_owned(),
        format!("{last:.0}"),
        format!("{meanwhile:.1}"),
        format!("{cpu:.1}"),
        format!("{fresh:.1} / {after:.1}"),
    ]
}

/// What each rotation took, and what a watcher holds in kB.
struct Figures {
    last: Vec<f64>,
    meanwhile: Vec<f64>,
    cpu: Vec<f64>,
    fresh: f64,
    after: f64,
}

fn rotations(
    socket: &Path,
    pid: u32,
    connections: usize,
    streams: usize,
    mut rotate: impl FnMut(),
) -> Figures {
    let before = rss(pid);
    let mut crowd = Crowd::open(socket, connections, streams);
    crowd.hear();
    let per_watcher = |now: f64| (now - before) / (connections * streams) as f64;
    let fresh = per_watcher(rss(pid));
    let (mut last, mut meanwhile, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROTATIONS {
        let passer_by = PasserBy::start(socket.to_owned());
        let (start, used) = (Instant::now(), cpu_us(pid));
        rotate();
        crowd.hear();
        last.push(start.elapsed().as_secs_f64() * 1000.0);
        cpu.push((cpu_us(pid) - used) / (connections * streams) as f64);
        meanwhile.push(passer_by.longest().as_secs_f64() * 1000.0);
    }
    Figures { last, meanwhile, cpu, fresh, after: per_watcher(rss(pid)) }
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
        let open = |index| {
            let mut connection = Connection::open(socket).unwrap();
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

    /// Waits until each stream has had one more message: a token is never cut into more than one DATA frame here.
    fn hear(&mut self) {
        let mut missing = self.connections.len() * self.streams;
        let mut events = vec![EpollEvent::empty(); 1024];
        while missing > 0 {
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
            for event in &events[..count] {
                let connection = &mut self.connections[event.data() as usize];
                let heard = |part: crate::wire::Part<'_>| missing -= usize::from(!part.data.is_empty());
                connection.read(&mut self.scratch, heard).unwrap();
                connection.flush().unwrap();
            }
        }
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
