//! Another user, who calls GetToken all the while.

use std::{
    io::{BufRead as _, BufReader, Write as _, stdin, stdout},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use bloom_agent::pb::{GetTokenRequest, token_service_client::TokenServiceClient};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::host::{User, connect};

/// Often enough for a p99, and seldom enough to leave the daemon alone.
const EVERY: Duration = Duration::from_millis(2);

pub(crate) struct Victim {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Victim {
    pub(crate) fn start(user: &User, program: &Path, socket: &Path) -> Self {
        let mut command = user.command(program);
        let mut child =
            command.arg("victim").arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, orders, answers }
    }

    /// How long each call took.
    pub(crate) fn measure(&mut self, during: Duration) -> Vec<Duration> {
        writeln!(self.orders, "{}", during.as_millis()).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.split_whitespace().map(|nanos| Duration::from_nanos(nanos.parse().unwrap())).collect()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The process of the victim. A call that fails ends it: nobody else's attack is a reason for that.
pub(crate) fn be(socket: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = runtime.block_on(async { TokenServiceClient::new(connect(socket).await) });
    for line in stdin().lines() {
        let during = Duration::from_millis(line.unwrap().parse().unwrap());
        let latencies = runtime.block_on(async {
            let end = Instant::now() + during;
            let mut every = interval(EVERY);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut latencies = Vec::new();
            while Instant::now() < end {
                every.tick().await;
                let asked = GetTokenRequest { name: "bloom".to_owned(), min_validity: None };
                let began = Instant::now();
                client.get_token(asked).await.unwrap();
                latencies.push(began.elapsed().as_nanos().to_string());
            }
            latencies
        });
        println!("{}", latencies.join(" "));
        stdout().flush().unwrap();
    }
}
