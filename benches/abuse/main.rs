//! What hostile local users cost: the daemon's memory, its share of a core, and what another user notices of it.
//!
//! `cargo bench --profile quick --bench abuse` starts the daemon with an issuer of its own for each attack of the table
//! (`tests/it/abuse/attacks.rs`), wages it as one uid and calls GetToken as another, and prints one line of JSON and, at
//! the end, a table with a verdict for each budget. It takes some minutes and must be root, to be other users.
//! Behind `--`: `--only TEXT` takes the attacks whose name has it, `--rounds N` is how often quiet and attack take turns.
//!
//! Each attack is waged twice: over one connection, and over as many as `[limits]` let a uid have, each opened again as
//! soon as it is closed.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program that measures: it reads clocks and waits, what it prints is its purpose, and it says so by failing"
)]

#[path = "../../tests/it/abuse/attacks.rs"]
mod attacks;
mod base;
#[path = "../../tests/it/host.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod host;
mod hostile;
mod report;
mod victim;

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use attacks::{ATTACKS, Attack, Standing};
use base::{Base, Process};
use host::{Host, User, is_root};
use hostile::Hostile;
use report::Row;
use victim::Victim;

/// Who may have the token and behaves.
const VICTIM: u32 = 2002;
/// Who may have it and does not behave.
const HOLDER: u32 = 2003;
/// Who may connect.
const STRANGER: u32 = 2001;

/// `[limits]` connections.
const CONNECTIONS: u32 = 512;
/// How long an attack has before anything is asked of the daemon.
const FIRST: Duration = Duration::from_secs(1);
/// How long it is looked at then.
const WHILE: Duration = Duration::from_millis(1500);
/// How long the victim is looked at without it.
const QUIET: Duration = Duration::from_millis(750);
/// Rotations that the watches of an attack are told of.
const ROTATIONS: u32 = 60;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["victim", socket] => victim::be(Path::new(socket)),
        ["hostile", socket, attack, connections] => {
            hostile::be(Path::new(socket), attack.parse().unwrap(), connections.parse().unwrap());
        }
        options => measure(options),
    }
}

fn measure(options: &[&str]) {
    let (mut only, mut rounds) = ("", 3);
    for option in options.chunks(2) {
        match option {
            ["--only", text] => only = text,
            ["--rounds", number] => rounds = number.parse().unwrap(),
            _ => panic!("usage: [--only TEXT] [--rounds N]"),
        }
    }
    if !is_root("the measuring of hostile users") {
        return;
    }
    let chosen = ATTACKS.iter().enumerate().filter(|(_, attack)| attack.name.contains(only));
    let rows: Vec<Row> = chosen
        .map(|(index, attack)| {
            let row = against(index, attack, rounds);
            println!("{}", row.json());
            row
        })
        .collect();
    report::table(&rows);
}

/// One attack, on a daemon of its own.
/// What is measured, and the share of a core that the daemon took meanwhile.
fn share_of_core<T>(process: &Process, measure: impl FnOnce() -> T) -> (T, f64) {
    let (before, began) = (process.time(), Instant::now());
    let measured = measure();
    (measured, (process.time() - before).as_secs_f64() / began.elapsed().as_secs_f64())
}

fn against(index: usize, attack: &Attack, rounds: usize) -> Row {
    let host = Host::new("s3cret");
    host.config(
        &(host.agent_table("socket_mode = \"0666\"")
            + &host.profile("bloom", &format!("allow = [\"uid:{VICTIM}\", \"uid:{HOLDER}\"]"))),
    );
    let agent = host.run();
    let process = Process(agent.pid());
    let socket = host.path("agent.sock");
    let program = host.path("abuse");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    host.chmod("abuse", 0o755);

    let mut victim = Victim::start(&User::new(VICTIM, VICTIM, &[]), &program, &socket);
    // What is made once is made now.
    victim.measure(Duration::from_millis(300));
    let base = Base::of(&process);

    let uid = if attack.by == Standing::Holder { HOLDER } else { STRANGER };
    let user = User::new(uid, uid, &[]);
    let wage = |connections| Hostile::start(&user, &program, &socket, index, connections);
    let rotate = || {
        if attack.by == Standing::Holder {
            for _ in 0..ROTATIONS {
                assert!(host.cli(&["refresh", "bloom"]).status.success(), "{}", agent.log());
            }
        }
    };

    process.forget_peak();
    let one = wage(1);
    sleep(FIRST);
    rotate();
    let one_connection = process.peak().saturating_sub(base.memory);
    drop(one);
    let back_from_one = base.wait_for(&process);

    let mut row = Row::new(attack, one_connection, back_from_one);
    for _ in 0..rounds {
        let (calls, core) = share_of_core(&process, || victim.measure(QUIET));
        row.quiet.extend(calls);
        row.quiet_core.push(core);
        process.forget_peak();
        let hostile = wage(CONNECTIONS);
        sleep(FIRST);
        let (calls, core) = share_of_core(&process, || victim.measure(WHILE));
        row.attacked.extend(calls);
        row.core.push(core);
        rotate();
        row.peak = row.peak.max(process.peak().saturating_sub(base.memory));
        row.struck += hostile.stop();
        row.back = row.back.max(base.wait_for(&process));
    }
    row.stays = process.memory().saturating_sub(base.memory);
    let log = agent.log();
    row.log_lines = log.lines().filter(|line| line.contains(&format!("uid={uid}"))).count();
    row
}
