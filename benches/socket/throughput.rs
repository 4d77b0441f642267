//! Many requests at a time: so many connections, so many requests in flight on each. The server has one CPU, the client the
//! other.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::{
    agent::{Bench, PROFILE, pid},
    plot::{Line, svg},
    process::{cpu_us, on, pin},
    report::{Report, median, quantile},
    servers::Server,
    wire::{Call, Connection, Scratch},
};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(700);

/// A server beside the agent: what it is called, its role, and its CPUs.
type Peer = (&'static str, &'static str, &'static str);

const BARE_TONIC: Peer = ("bare tonic", "tonic", "0");
/// The client keeps one of the CPUs: two workers have at most what it leaves of that.
const TWO_WORKERS: Peer = ("bare tonic, two workers on both CPUs", "tonic on two threads", "0,1");

/// The two loads of the goals: one client that pipelines, and many that wait.
pub(crate) fn measure(report: &mut Report) {
    compare(report, "throughput", &[BARE_TONIC], &[(1, 64), (64, 1)], ROUNDS);
}

/// All the others: how throughput and latency change with connections and depth. The agent has one event loop, as bare
/// tonic has here; what a second worker would be worth is tonic's to show.
pub(crate) fn scale(report: &mut Report) {
    const DEPTHS: [usize; 3] = [1, 16, 64];
    /// Behind its peers.
    const AGENT: usize = 2;
    let loads: Vec<_> = [1, 16, 64, 256].into_iter().flat_map(|k| DEPTHS.map(|w| (k, w))).collect();
    let rates = compare(report, "scaling", &[BARE_TONIC, TWO_WORKERS], &loads, 3);
    let of = |depth, server: usize| -> Vec<(f64, f64)> {
        let at_depth = loads.iter().zip(&rates).filter(|((_, w), _)| *w == depth);
        at_depth.map(|((k, _), rates)| (*k as f64, rates[server])).collect()
    };
    let lines = [
        ("agent, 16 in flight", "#0b6", of(16, AGENT)),
        ("bare tonic, 16", "#888", of(16, 0)),
        ("agent, 1 in flight", "#06b", of(1, AGENT)),
        ("bare tonic, 1", "#bbb", of(1, 0)),
    ];
    let lines = lines.each_ref().map(|(name, color, points)| Line { name, color, points });
    let title =
        "GetToken on one CPU: the agent with everything on, and an echo by tonic with nothing behind it";
    let picture = svg(title, "connections", "calls/s", &lines);
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/throughput.svg"), picture).unwrap();
}

struct Subject {
    name: &'static str,
    load: Load,
    pid: u32,
    rps: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
}

/// The rates of the peers and, last, of the agent at each load.
fn compare(
    report: &mut Report,
    name: &str,
    peers: &[Peer],
    loads: &[(usize, usize)],
    rounds: usize,
) -> Vec<Vec<f64>> {
    let bench = Bench::without_limits();
    let agent = bench.start(&on("0"));
    let reply = bench.reply_file();
    let start = |(number, &(name, role, cpus)): (usize, &Peer)| {
        let socket = bench.host.path(&format!("peer-{number}.sock"));
        let server = Server::start(&on(cpus), role, &socket, &reply);
        (name, socket, server)
    };
    let peers: Vec<_> = peers.iter().enumerate().map(start).collect();
    let mut servers: Vec<_> =
        peers.iter().map(|(name, socket, server)| (*name, socket.clone(), server.pid())).collect();
    servers.push(("agent", bench.socket(), pid(&agent)));
    pin(1);
    let (mut rows, mut rates) = (Vec::new(), Vec::new());
    for &(k, w) in loads {
        let subject = |(name, socket, pid): &(&'static str, PathBuf, u32)| {
            let load = Load::new(socket, k, w);
            Subject { name, load, pid: *pid, rps: Vec::new(), p99: Vec::new(), cpu: Vec::new() }
        };
        let mut subjects: Vec<_> = servers.iter().map(subject).collect();
        for _ in 0..rounds {
            for subject in &mut subjects {
                let before = cpu_us(subject.pid);
                let (took, seconds) = subject.load.run(ROUND);
                subject.cpu.push((cpu_us(subject.pid) - before) / took.len() as f64);
                subject.rps.push(took.len() as f64 / seconds);
                subject.p99.push(quantile(&took, 0.99));
            }
        }
        let floor = median(&subjects[0].rps);
        rates.push(subjects.iter().map(|subject| median(&subject.rps)).collect());
        for Subject { name: subject, rps, p99, cpu, .. } in &subjects {
            let case = format!("{subject}, k={k} w={w}");
            let rps = report.figure(name, &case, "throughput", "calls/s", rps);
            let p99 = report.figure(name, &case, "p99", "us", p99);
            let cpu = report.figure(name, &case, "CPU of the server", "us/call", cpu);
            rows.push(vec![
                k.to_string(),
                w.to_string(),
                (*subject).to_owned(),
                format!("{rps:.0}"),
                format!("{:.2}", rps / floor),
                format!("{p99:.0}"),
                format!("{cpu:.2}"),
            ]);
        }
    }
    let heads =
        ["connections", "in flight on each", "server", "calls/s", "x tonic", "p99 us", "server CPU us/call"];
    report.table("Many calls at a time, a server of one event loop on one CPU", &heads, &rows);
    rates
}

/// Connections with calls in flight.
pub(crate) struct Load {
    connections: Vec<(Connection, Vec<Instant>)>,
    epoll: Epoll,
    depth: usize,
    call: Call,
    scratch: Scratch,
}

impl Load {
    pub(crate) fn new(socket: &Path, connections: usize, depth: usize) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let open = |index| {
            let connection = Connection::open(socket).unwrap();
            epoll.add(&connection, EpollEvent::new(EpollFlags::EPOLLIN, index)).unwrap();
            (connection, Vec::new())
        };
        let connections = (0..connections as u64).map(open).collect();
        Self { connections, epoll, depth, call: Call::get_token(PROFILE), scratch: Scratch::new() }
    }

    /// How many calls there have been.
    pub(crate) fn asked(&self) -> usize {
        self.connections.iter().map(|(connection, _)| connection.asked() as usize).sum()
    }

    /// Keeps them busy for that long; what each call took in microseconds, and how long it all took in seconds.
    pub(crate) fn run(&mut self, time: Duration) -> (Vec<f64>, f64) {
        let Self { connections, epoll, depth, call, scratch } = self;
        let start = Instant::now();
        for (connection, asked) in connections.iter_mut() {
            asked.resize(connection.asked() as usize, start);
            for _ in 0..*depth {
                connection.ask(call);
                asked.push(Instant::now());
            }
            connection.flush().unwrap();
        }
        let mut in_flight = connections.len() * *depth;
        let mut took = Vec::new();
        let mut events = vec![EpollEvent::empty(); 256];
        while in_flight > 0 {
            let count = epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
            let now = Instant::now();
            let goes_on = now - start < time;
            for event in &events[..count] {
                let (connection, asked) = &mut connections[event.data() as usize];
                let mut answered = 0;
                connection
                    .read(scratch, |part| {
                        if part.ends {
                            answered += 1;
                            took.push((now - asked[part.number as usize]).as_nanos() as f64 / 1000.0);
                        }
                    })
                    .unwrap();
                in_flight -= answered;
                if goes_on {
                    for _ in 0..answered {
                        connection.ask(call);
                        asked.push(now);
                    }
                    in_flight += answered;
                }
                connection.flush().unwrap();
            }
        }
        (took, start.elapsed().as_secs_f64())
    }
}
