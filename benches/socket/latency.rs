//! One request after the other, on one connection. Client and server share one CPU: on two, the time that a sleeping CPU
//! takes to wake hides what the server does.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Instant,
};

use crate::{
    agent::{Bench, PROFILE},
    process::{on, pin},
    report::{Report, median, quantile},
    servers::{RAW_REQUEST, Server},
    wire::{Call, Connection, Scratch},
};

const ROUNDS: usize = 9;
const CALLS: usize = 5_000;

/// One call and its answer.
type Caller = Box<dyn FnMut()>;

pub(crate) fn measure(report: &mut Report) {
    let bench = Bench::new();
    let cpu = on("0");
    let _agent = bench.start(&cpu);
    let reply = bench.reply_file();
    let (raw, tonic) = (bench.host.path("raw.sock"), bench.host.path("tonic.sock"));
    let _raw = Server::start(&cpu, "raw", &raw, &reply);
    let _tonic = Server::start(&cpu, "tonic", &tonic, &reply);
    pin(0);

    let mut floor = UnixStream::connect(&raw).unwrap();
    let (request, mut answer) = ([0; RAW_REQUEST], vec![0; bench.reply().len()]);
    let subjects: [(&str, Caller); 3] = [
        (
            "raw socket",
            Box::new(move || {
                floor.write_all(&request).unwrap();
                floor.read_exact(&mut answer).unwrap();
            }),
        ),
        ("bare tonic", caller(&tonic)),
        ("agent", caller(&bench.socket())),
    ];
    let mut subjects = subjects.map(|(name, call)| (name, call, Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        for (_, call, p50, p99) in &mut subjects {
            let took = timed(call);
            p50.push(median(&took));
            p99.push(quantile(&took, 0.99));
        }
    }
    let floor = median(&subjects[0].2);
    let mut rows = Vec::new();
    for (name, _, p50, p99) in &subjects {
        let (p50, p99) = (
            report.figure("latency", name, "p50", "us", p50),
            report.figure("latency", name, "p99", "us", p99),
        );
        rows.push(vec![
            (*name).to_owned(),
            format!("{p50:.1}"),
            format!("{:.2}", p50 / floor),
            format!("{p99:.1}"),
            format!("{:.2}", p99 / p50),
        ]);
    }
    let heads = ["server", "p50 us", "x raw", "p99 us", "p99 / p50"];
    report.table("One call after the other, client and server on one CPU", &heads, &rows);
}

fn caller(socket: &Path) -> Caller {
    let mut connection = Connection::open(socket).unwrap();
    let (call, mut scratch) = (Call::get_token(PROFILE), Scratch::new());
    Box::new(move || {
        connection.call(&call, &mut scratch).unwrap();
    })
}

/// What each call took, in microseconds.
fn timed(call: &mut Caller) -> Vec<f64> {
    // The first ones find cold caches.
    for _ in 0..CALLS / 10 {
        call();
    }
    let once = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_nanos() as f64 / 1000.0
    };
    (0..CALLS).map(once).collect()
}
