//! User-space instructions per GetToken, counted by callgrind: the figure that no noise touches. A run of many requests less
//! a run of few leaves what one request costs.

use std::{fs, path::Path};

use crate::{
    agent::{Bench, PROFILE},
    report::Report,
    servers::Server,
    wire::{Call, Connection, Scratch},
};

/// Far enough apart that what differs between two starts (the gathering of entropy) is no matter.
const FEW: usize = 2_000;
const MANY: usize = 20_000;

/// What it was when last looked at, and a little: a call that has become dearer than this has to say why. The ratio holds
/// over compilers and profiles, for both servers are built by the same.
const HELD: f64 = 0.86;

pub(crate) fn measure(report: &mut Report) {
    let bench = Bench::new();
    let reply = {
        let agent = bench.start(&[]);
        let reply = bench.reply_file();
        agent.stop();
        reply
    };
    let of_agent = |call: &Call| {
        per_request(|out, requests| {
            let flags = callgrind(out);
            let agent = bench.start(&words(&flags));
            ask(&bench.socket(), call, requests);
            agent.stop();
        })
    };
    let routed = of_agent(&Call::get_token_by_the_router(PROFILE));
    let agent = of_agent(&Call::get_token(PROFILE));
    let socket = bench.host.path("tonic.sock");
    let tonic = per_request(|out, requests| {
        let flags = callgrind(out);
        let server = Server::start(&words(&flags), "tonic", &socket, &reply);
        ask(&socket, &Call::get_token(PROFILE), requests);
        server.stop();
        fs::remove_file(&socket).unwrap();
    });
    let mut rows = Vec::new();
    for (subject, count) in [("bare tonic", tonic), ("agent, by its router", routed), ("agent", agent)] {
        report.figure("instructions", subject, "per GetToken", "instructions", &[count as f64]);
        rows.push(vec![subject.to_owned(), count.to_string(), format!("{:.3}", count as f64 / tonic as f64)]);
    }
    report.table("User-space instructions per GetToken", &["server", "instructions", "x tonic"], &rows);
    let ratio = agent as f64 / tonic as f64;
    assert!(ratio <= HELD, "{agent} is {ratio:.3} of {tonic}: it was at most {HELD}");
}

fn words(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

fn callgrind(out: &Path) -> Vec<String> {
    ["valgrind", "-q", "--tool=callgrind"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("--callgrind-out-file={}", out.display())])
        .collect()
}

fn ask(socket: &Path, call: &Call, requests: usize) {
    let mut connection = Connection::open(socket).unwrap();
    let mut scratch = Scratch::new();
    for _ in 0..requests {
        connection.call(call, &mut scratch).unwrap();
    }
}

fn per_request(mut run: impl FnMut(&Path, usize)) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let mut count = |requests| {
        let out = directory.path().join(format!("{requests}.out"));
        run(&out, requests);
        total(&fs::read_to_string(&out).expect("callgrind wrote its figures"))
    };
    let (few, many) = (count(FEW), count(MANY));
    if let Ok(keep) = std::env::var("BENCH_KEEP_CALLGRIND") {
        fs::copy(directory.path().join(format!("{MANY}.out")), keep).unwrap();
    }
    (many - few) / (MANY - FEW) as u64
}

/// The instructions of all of it.
fn total(figures: &str) -> u64 {
    let line =
        figures.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    line.expect("a total").trim().parse().expect("a number")
}
