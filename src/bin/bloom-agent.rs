//! The daemon: `run`, `check` and `dev`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use bloom_agent::{
    arguments::{Arguments, Command},
    daemon::{
        Fatal,
        check::{CheckFault, Checked, Connect, act_for, check},
        dev::{self, DevFault},
        profile::Workshop,
        run::{RunFault, run},
    },
    exit::Exit,
    hardening, log,
    token::ProfileName,
    wiping::WipingAllocator,
};
use clap::Parser as _;

/// What is freed is wiped first: secrets and tokens pass through buffers of libraries that do not know what they hold.
#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator::new(std::alloc::System);

fn main() -> ExitCode {
    // First, with no branch before it: from here on no core file, no ptrace by the same user, no descriptor for a child.
    let hardened = hardening::apply();
    log::withhold_panic_messages("bloom-agent");
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(usage) => {
            // Help and version are answers, not errors. Who does not read them does not miss them.
            let _unread = usage.print();
            return if usage.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    match arguments.command {
        Command::Run { config } => {
            hardening::forget_trust_variables();
            let starter = Starter::of_this_process();
            let ended = run(&config, hardened.degraded).map(|()| Exit::Done);
            end(ended.map_err(Problem::from).map_err(|problem| problem.told_to(starter)))
        }
        Command::Check { config, user, connect } => {
            hardening::forget_trust_variables();
            end(checked(&config, user.as_deref(), connect))
        }
        Command::Dev { lifetime, dialect, command } => {
            let options =
                dev::Options { lifetime, dialect: dialect.into(), command, before: hardened.before };
            match dev::dev(options) {
                Ok(code) => ExitCode::from(code),
                Err(fault) => end(Err(Problem::from(fault))),
            }
        }
    }
}

fn checked(config: &std::path::Path, user: Option<&str>, connect: Option<String>) -> Result<Exit, Problem> {
    let connect = match connect.as_deref() {
        None => Connect::No,
        Some("") => Connect::All,
        Some(name) => Connect::One(ProfileName::parse(name).map_err(|fault| Problem {
            exit: Exit::Usage,
            text: format!("--connect cannot be done\nthe name {fault}\nsee the names by `bloom-agent check`"),
        })?),
    };
    let acting = act_for(user).map_err(|fault| Problem { exit: Exit::System, text: fault.to_string() })?;
    if let Some(user) = acting {
        // Whoever does not read it sees whose files are meant in the faults themselves.
        let _unread = writeln!(io::stderr(), "note: checked as the user {user}; --user names another");
    }
    let workshop =
        Arc::new(Workshop::for_check(std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)));
    let done = check(config, &connect, &workshop, &mut io::stdout(), &mut io::stderr())?;
    Ok(match done {
        Checked::Good => Exit::Done,
        Checked::Faults => Exit::Config,
        Checked::Unreachable => Exit::Unreachable,
    })
}

/// What is printed, and how the program ends.
struct Problem {
    exit: Exit,
    text: String,
}

/// Who started the daemon.
#[derive(Clone, Copy)]
enum Starter {
    Systemd,
    Another,
}

impl Starter {
    /// To be asked before the daemon takes the variables.
    fn of_this_process() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_some() { Self::Systemd } else { Self::Another }
    }
}

impl Problem {
    /// After this exit status systemd does not start the service again (RestartPreventExitStatus=), and the callers who
    /// wait have the socket's unit fail with it (trigger-limit-hit): mending the config is not enough.
    fn told_to(mut self, starter: Starter) -> Self {
        if let (Starter::Systemd, Exit::Config | Exit::Usage) = (starter, self.exit) {
            self.text.push_str(
                "\nonce it is mended: systemctl reset-failed bloom-agent.socket bloom-agent.service; \
                 systemctl start bloom-agent.socket bloom-agent.service",
            );
        }
        self
    }
}

impl From<RunFault> for Problem {
    fn from(fault: RunFault) -> Self {
        match fault {
            RunFault::Daemon(Fatal::Config(faults)) => {
                let count = faults.as_slice().len();
                let what = format!("the config has {count} fault{}", if count == 1 { "" } else { "s" });
                let text = format!(
                    "{what}\n{faults}\nnothing is served; mend it, and try it with `bloom-agent check`"
                );
                Self { exit: Exit::Config, text }
            }
            RunFault::Daemon(Fatal::Lost(_)) => Self { exit: Exit::Internal, text: fault.to_string() },
            RunFault::Daemon(Fatal::System { .. })
            | RunFault::Activation(_)
            | RunFault::Bind(_)
            | RunFault::Group { .. }
            | RunFault::System { .. } => Self { exit: Exit::System, text: fault.to_string() },
        }
    }
}

impl From<CheckFault> for Problem {
    fn from(fault: CheckFault) -> Self {
        let text = fault.to_string();
        match fault {
            CheckFault::Run(fault) => fault.into(),
            CheckFault::UnknownProfile(_) => Self { exit: Exit::Usage, text },
            // A reader who has seen enough is no failure; anything else is the system's.
            CheckFault::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Self { exit: Exit::Done, text: String::new() }
            }
            CheckFault::Output(_) => Self { exit: Exit::System, text },
        }
    }
}

impl From<DevFault> for Problem {
    fn from(fault: DevFault) -> Self {
        let text = fault.to_string();
        match fault {
            DevFault::Run(fault) => fault.into(),
            DevFault::System { .. } => Self { exit: Exit::System, text },
        }
    }
}

fn end(result: Result<Exit, Problem>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(problem) => {
            if !problem.text.is_empty() {
                // A closed stderr leaves the exit status, which says the same.
                let _closed = writeln!(io::stderr(), "bloom-agent: {}", problem.text);
            }
            problem.exit.into()
        }
    }
}
