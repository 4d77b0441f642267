//! A crash of the daemon: no core file, whatever limit and signal there are.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
};

use nix::{
    sys::{
        resource::{Resource, getrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::{CLIENT_ID, Canary, Search, token_of};
use crate::host::{Agent, Host, is_root, shown};

/// Lifts the limit of core files of a process, as anybody may who could also raise LimitCORE=.
fn lift_limit(pid: Pid) {
    let lifted =
        Command::new("prlimit").args(["--core=unlimited:", "--pid"]).arg(pid.to_string()).output().unwrap();
    assert!(lifted.status.success(), "{}", shown(&lifted));
}

#[test]
fn a_crash_leaves_no_core_file_though_the_limit_is_lifted() {
    // Who is not root may not lift it for a process that is not dumpable.
    if !is_root("a_crash_leaves_no_core_file_though_the_limit_is_lifted") {
        return;
    }
    for signal in [Signal::SIGABRT, Signal::SIGSEGV] {
        let secret = Canary::plain("the secret");
        let host = Host::new(&secret.text);
        fs::create_dir(host.path("here")).unwrap();
        host.config(&(host.agent_table("") + &host.profile("bloom", "")));
        let mut command = host.daemon(&["run"]);
        command.current_dir(host.path("here"));
        let mut agent = Agent::spawn(command);
        agent.wait_for_log("serving");
        let token = token_of(&host, "the token");
        lift_limit(agent.pid());
        // Rust's own handler of SIGSEGV takes the first one for a stack that has overflowed, and steps aside for the next.
        let stat = format!("/proc/{}/stat", agent.pid());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            agent.signal(signal);
            std::thread::yield_now();
        }
        let (status, out, log) = agent.wait();
        assert_eq!(status.signal(), Some(signal as i32), "{log}");
        assert!(!status.core_dumped(), "{signal}: the kernel says that it has written a core");
        assert_eq!(fs::read_dir(host.path("here")).unwrap().count(), 0, "{signal}");
        let search = Search::new(CLIENT_ID, [&secret, &token]);
        search.assert_none_in("the log", log + &out);
        host.assert_only_holds(&search, &["secret"]);

        // Of another program the same leaves one, so the test can fail; unless this machine writes none at all.
        let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        if hard > 0 && !pattern.trim().is_empty() && !pattern.starts_with('|') {
            let mut cat =
                Command::new("cat").current_dir(host.path("here")).stdin(Stdio::piped()).spawn().unwrap();
            let pid = Pid::from_raw(cat.id().cast_signed());
            lift_limit(pid);
            kill(pid, signal).unwrap();
            assert!(
                cat.wait().unwrap().core_dumped(),
                "{signal}: `cat` left no core, with the pattern {pattern}"
            );
        }
    }
}
