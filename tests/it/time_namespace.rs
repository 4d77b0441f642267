//! A token that is taken over by an agent whose clock since boot reads differently: what a suspend between two processes
//! looks like. A time namespace gives the second one another CLOCK_BOOTTIME (time_namespaces(7)); the machine's is not touched.

use std::{
    collections::BTreeMap,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixDatagram, process::CommandExt as _},
    },
    path::Path,
    process::Command,
    time::Duration,
};

use bloom_agent::clock::SystemClock;
use nix::{
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};

use crate::{
    host::{Agent, Host, is_root, on_this_thread, printed, shown},
    invariants::{Aftermath, Given, OTHER},
};

/// The part of a service manager that keeps descriptors.
struct Manager(UnixDatagram);

impl Manager {
    /// Reads until a descriptor is kept whose name ends like that, and returns it with its name.
    fn kept(&self, ending: &str) -> (String, OwnedFd) {
        let mut kept = BTreeMap::new();
        loop {
            if let Some(name) = kept.keys().find(|name: &&String| name.ends_with(ending)).cloned() {
                return kept.remove_entry(&name).unwrap();
            }
            let mut text = [0; 4096];
            let mut buffers = [IoSliceMut::new(&mut text)];
            let mut space = nix::cmsg_space!(RawFd);
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(self.0.as_raw_fd(), &mut buffers, Some(&mut space), flags).unwrap();
            let descriptor = received.cmsgs().unwrap().find_map(|message| match message {
                // SAFETY: the kernel has just made it for us, and nobody else knows it.
                #[allow(unsafe_code, reason = "received descriptors are numbers")]
                ControlMessageOwned::ScmRights(numbers) => {
                    Some(unsafe { OwnedFd::from_raw_fd(*numbers.first()?) })
                }
                _ => None,
            });
            let length = received.bytes;
            let text = std::str::from_utf8(&text[..length]).unwrap();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            if let (Some(descriptor), Some(name), true) = (descriptor, name, text.contains("FDSTORE=1")) {
                kept.insert(name.to_owned(), descriptor);
            }
        }
    }
}

/// The agent, with that descriptor as number 3 and a clock since boot that reads so much more.
#[allow(unsafe_code, reason = "a descriptor for the child under a number of its own")]
fn successor(host: &Host, notify: &Path, name: &str, kept: &OwnedFd, offset: i64) -> Agent {
    let mut command = Command::new("unshare");
    command.args(["--time", "--boottime", &offset.to_string(), "--fork", "--kill-child", "sh", "-c"]);
    command.arg("LISTEN_PID=$$ exec \"$0\" run --config \"$1\"");
    command.arg(host.program("bloom-agent")).arg(host.path("config.toml"));
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name).env("NOTIFY_SOCKET", notify);
    let kept = kept.try_clone().unwrap();
    let pass = move || {
        // SAFETY: two system calls on numbers; what was number 3 in the child is needed by nobody there. Where it is number
        // 3 already, dup2(2) leaves its flag.
        let answers = unsafe { [libc::dup2(kept.as_raw_fd(), 3), libc::fcntl(3, libc::F_SETFD, 0)] };
        if answers == [3, 0] { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: `pass` makes system calls only.
    unsafe { command.pre_exec(pass) };
    let agent = Agent::spawn(command);
    agent.wait_for_log("serving");
    agent
}

#[test]
fn a_token_that_is_taken_over_is_as_old_as_the_clock_since_boot_says() {
    if !is_root("a time namespace") {
        return;
    }
    if !Path::new("/proc/self/ns/time").exists() {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: this kernel has no time namespaces\n"),
        );
        return;
    }
    const SECRET: &str = "C4N4RY-of-the-client";
    let host = Host::new(SECRET);
    host.issuer.control.set_lifetime(Duration::from_secs(3_600));
    let rules = format!("allow = [\"uid:{OTHER}\"]");
    host.config(&(host.agent_table("socket_mode = \"0666\"") + &host.profile("bloom", &rules)));
    let notify = host.path("notify");
    let manager = Manager(UnixDatagram::bind(&notify).unwrap());
    manager.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = host.daemon(&["run"]);
    command.env("NOTIFY_SOCKET", &notify);
    let agent = Agent::spawn(command);
    let printed_json = |output: std::process::Output| -> serde_json::Value {
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", shown(&output)))
    };
    let token = || printed_json(host.cli(&["token", "bloom", "--wait", "60s", "--format", "json"]));
    let first = token();
    let generation = first["generation"].as_str().unwrap();
    let (name, kept) = manager.kept(&format!(".{generation}"));
    agent.stop();

    for (what, offset, requests) in [
        ("the same clock", 0, 0),
        ("ten minutes of suspend", 600, 0),
        ("two hours of suspend", 7_200, 1),
        ("a clock that has gone back, as no clock of this boot can", -600, 1),
    ] {
        let before = host.issuer.control.request_count();
        let agent = successor(&host, &notify, &name, &kept, offset);
        let now = token();
        assert_eq!(host.issuer.control.request_count() - before, requests, "{what}\n{}", agent.log());
        assert_eq!(now["generation"] == first["generation"], requests == 0, "{what}");
        assert!(host.issuer.control.is_live(now["accessToken"].as_str().unwrap()), "{what}: {now}");
        let aftermath = Aftermath {
            socket: &host.path("agent.sock"),
            issuer: &host.issuer.control,
            profile: "bloom",
            clock: &SystemClock,
            log: agent.log(),
            secrets: &[SECRET],
            given: &Given::default(),
            most_requests: before + requests,
            process: None,
        };
        on_this_thread(aftermath.all_is_well());
        drop(agent);
        assert!(!printed(&host.cli(&["list"])).contains("bloom"), "{what}: it still runs");
    }
}
