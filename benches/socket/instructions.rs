//! User-space instructions per GetToken, counted by callgrind: the figure that no noise touches. Each server is started under
//! it, and is counted only while it answers: a start gathers entropy, which takes as long as the machine's clock has it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use crate::{
    agent::{Bench, PROFILE},
    report::Report,
    servers::Server,
    wire::{Call, Connection, Scratch},
};

/// Before anything is counted: the first calls on a connection cost more.
const WARM: usize = 500;
const COUNTED: usize = 5_000;
/// Between two calls while callgrind is told something.
const BETWEEN: Duration = Duration::from_millis(20);

/// What it was when last looked at, and a little: a call that has become dearer than this has to say why. The ratio holds
/// over compilers and profiles, for both servers are built by the same.
const HELD: f64 = 0.82;

pub(crate) fn measure(report: &mut Report) {
    let bench = Bench::new();
    let reply = {
        let agent = bench.start(&[]);
        let reply = bench.reply_file();
        agent.stop();
        reply
    };
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("counted");
    let flags = callgrind(&out);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let of_agent = |call: &Call| {
        let agent = bench.start(&flags);
        let count = per_request(agent.pid().as_raw(), &bench.socket(), call, &out);
        agent.stop();
        count
    };
    let routed = of_agent(&Call::get_token_by_the_router(PROFILE));
    let agent = of_agent(&Call::get_token(PROFILE));
    let tonic = {
        let socket = bench.host.path("tonic.sock");
        let server = Server::start(&flags, "tonic", &socket, &reply);
        let pid = server.pid().try_into().unwrap();
        let count = per_request(pid, &socket, &Call::get_token(PROFILE), &out);
        server.stop();
        count
    };
    let mut rows = Vec::new();
    for (subject, count) in [("bare tonic", tonic), ("agent, by its router", routed), ("agent", agent)] {
        report.figure("instructions", subject, "per GetToken", "instructions", &[count as f64]);
        rows.push(vec![subject.to_owned(), count.to_string(), format!("{:.3}", count as f64 / tonic as f64)]);
    }
    report.table("User-space instructions per GetToken", &["server", "instructions", "x tonic"], &rows);
    let ratio = agent as f64 / tonic as f64;
    assert!(ratio <= HELD, "{agent} is {ratio:.3} of {tonic}: it was at most {HELD}");
}

fn callgrind(out: &Path) -> Vec<String> {
    ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("--callgrind-out-file={}", out.display())])
        .collect()
}

/// What one call costs the server with that pid, which writes its figures where `out` says.
fn per_request(pid: i32, socket: &Path, call: &Call, out: &Path) -> u64 {
    let mut connection = Connection::open(socket).unwrap();
    let mut scratch = Scratch::new();
    let mut ask = |requests| {
        for _ in 0..requests {
            connection.call(call, &mut scratch).unwrap();
        }
    };
    ask(WARM);
    control(pid, "--instr=on", &mut ask);
    ask(WARM);
    control(pid, "--zero", &mut ask);
    ask(COUNTED);
    control(pid, "--dump", &mut ask);
    let dumped = out.with_extension("1");
    let count = total(&fs::read_to_string(&dumped).expect("callgrind wrote its figures"));
    if let Ok(directory) = std::env::var("BENCH_KEEP_CALLGRIND") {
        fs::copy(&dumped, Path::new(&directory).join(format!("{pid}.out"))).unwrap();
    }
    fs::remove_file(dumped).unwrap();
    let each = count / COUNTED as u64;
    assert!(each > 10_000, "{each} is no count of a call: what callgrind was told did not reach it");
    each
}

/// Has callgrind do something. It looks for orders while the program runs, so a call is made now and then: a program that
/// sleeps would have to be told by ptrace(2), which the agent forbids to all but root. They are a few in thousands.
fn control(pid: i32, order: &str, ask: &mut dyn FnMut(usize)) {
    let mut command = Command::new("callgrind_control");
    let mut told = command.args([order, &pid.to_string()]).stdout(Stdio::null()).spawn().unwrap();
    let status = loop {
        match told.try_wait().unwrap() {
            Some(status) => break status,
            None => ask(1),
        }
        sleep(BETWEEN);
    };
    assert!(status.success(), "callgrind_control {order}");
}

/// The instructions of all of it.
fn total(figures: &str) -> u64 {
    let line =
        figures.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    line.expect("a total").trim().parse().expect("a number")
}
