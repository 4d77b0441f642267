//! The hostile user's process.

use std::{
    io::Read as _,
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::task::JoinSet;

use crate::{
    attacks::{ATTACKS, strike},
    host::User,
};

pub(crate) struct Hostile(Child);

impl Hostile {
    pub(crate) fn start(user: &User, program: &Path, socket: &Path, attack: usize, connections: u32) -> Self {
        let mut command = user.command(program);
        command.arg("hostile").arg(socket).arg(attack.to_string()).arg(connections.to_string());
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Ends it; how often a connection was opened.
    pub(crate) fn stop(mut self) -> u64 {
        drop(self.0.stdin.take());
        let mut struck = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut struck).unwrap();
        struck.trim().parse().unwrap()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // SIGKILL, in the middle of whatever it does.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Wages the attack over so many connections, each opened again as soon as it is closed, until stdin is closed.
pub(crate) fn be(socket: &Path, attack: usize, connections: u32) {
    static STRUCK: AtomicU64 = AtomicU64::new(0);
    std::thread::spawn(|| {
        let _until_closed = std::io::stdin().read_to_end(&mut Vec::new());
        println!("{}", STRUCK.load(Relaxed));
        // Not in order: as a process that is killed.
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let attack = &ATTACKS[attack];
        let socket: Arc<Path> = socket.into();
        let mut strikes = JoinSet::new();
        for _ in 0..connections {
            let socket = Arc::clone(&socket);
            strikes.spawn(async move {
                loop {
                    strike(&socket, attack).await;
                    STRUCK.fetch_add(1, Relaxed);
                    // Where connect(2) fails at once the others have a turn too.
                    tokio::task::yield_now().await;
                }
            });
        }
        strikes.join_next().await;
    });
}
