//! User-space instructions per GetToken, counted by callgrind: the figure that no noise touches. A run of many requests less
//! a run of few leaves what one request costs.

use std::{fs, path::Path};

use crate::{
    agent::{Bench, PROFILE},
    servers::Server,
    wire::{Call, Connection},
};

const FEW: usize = 2_000;
const MANY: usize = 6_000;

pub(crate) fn measure() {
    let bench = Bench::new();
    let reply = {
        let agent = bench.start(&[]);
        let reply = bench.reply_file();
        agent.stop();
        reply
    };
    let agent = per_request(|out, requests| {
        let flags = callgrind(out);
        let agent = bench.start(&words(&flags));
        ask(&bench.socket(), requests);
        agent.stop();
    });
    let socket = bench.host.path("tonic.sock");
    let tonic = per_request(|out, requests| {
        let flags = callgrind(out);
        let server = Server::start(&words(&flags), "tonic", &socket, &reply);
        ask(&socket, requests);
        server.stop();
        fs::remove_file(&socket).unwrap();
    });
    println!(
        "instructions per GetToken: agent {agent}, bare tonic {tonic}, ratio {:.2}",
        agent as f64 / tonic as f64
    );
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

fn ask(socket: &Path, requests: usize) {
    let mut connection = Connection::open(socket).unwrap();
    let call = Call::get_token(PROFILE);
    for _ in 0..requests {
        connection.call(&call).unwrap();
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
