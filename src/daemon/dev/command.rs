//! The command of `dev -- COMMAND`, and the signals that `dev` hears.
//!
//! As under ssh-agent(1), the command has what the caller handed down: descriptors, process group, umask, limits, ignored
//! signals. It gets nothing of ours but the name of the socket.

use std::{
    future::poll_fn,
    io::{self, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::ExitStatus,
    task::Poll,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::Command,
    signal::unix::{Signal as Heard, SignalKind, signal},
};

use super::{DevFault, Options};
use crate::{daemon::Fatal, hardening};

/// Whatever asks a program to end, and can be caught.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// The signals that would end us, but for those that the caller had ignored: nohup(1) is a word to the command too, and a
/// handler of ours would take it back.
pub(super) struct Ending(Vec<(Signal, Heard)>);

impl Ending {
    /// From here on none of them ends the process. Needs a runtime.
    pub(super) fn catch() -> io::Result<Self> {
        let heeded = ENDING.into_iter().filter(|&ending| !hardening::is_ignored(ending));
        let caught = heeded.map(|ending| Ok((ending, signal(SignalKind::from_raw(ending as i32))?)));
        caught.collect::<io::Result<_>>().map(Self)
    }

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let came = self.0.iter_mut().find_map(|(signal, heard)| {
                (heard.poll_recv(context) == Poll::Ready(Some(()))).then_some(*signal)
            });
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Runs the command to its end; returns its exit status, or 128 + n for signal n. A signal from the terminal is the
/// command's affair; one that is sent to us alone is passed on to it.
pub(super) async fn run(options: &Options, socket: &Path, ending: &mut Ending) -> Result<u8, DevFault> {
    let (program, arguments) = options.command.split_first().ok_or(Fatal::Lost("command"))?;
    let before = options.before.clone();
    let mut command = Command::new(program);
    command.args(arguments).env("BLOOM_AGENT_SOCK", socket).kill_on_drop(true);
    // SAFETY: `restore` makes system calls and nothing else, which is all that is allowed between fork and exec
    // (signal-safety(7)).
    #[allow(unsafe_code, reason = "pre_exec")]
    unsafe {
        command.pre_exec(move || before.restore());
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(why) => {
            // As env(1) does; the exit status says the same where stderr is closed.
            let _closed = writeln!(
                io::stderr(),
                "bloom-agent: cannot run {}\n{why}\ncorrect the command: a path, or a name that PATH has",
                program.display()
            );
            return Ok(if why.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    loop {
        let signal = tokio::select! {
            ended = child.wait() => {
                return ended.map(exit_status).map_err(|why| DevFault::System { what: "wait for the command", why, remedy: "start again" });
            }
            signal = ending.next() => signal,
        };
        // The terminal sends these to the command as well; and it is the command that decides.
        if matches!(signal, Signal::SIGINT | Signal::SIGQUIT) {
            continue;
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended in this instant.
            let _ended = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// What a shell says of a program that `signal` ended.
pub(super) fn ended_by(signal: Signal) -> u8 {
    exit_status(ExitStatus::from_raw(signal as i32))
}

fn exit_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
