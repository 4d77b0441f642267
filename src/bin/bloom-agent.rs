//! The daemon: `run`, `check` and `dev`.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use bloom_agent::{
    config::duration,
    daemon::{
        Fatal,
        check::{CheckFault, Checked, Connect, check},
        dev::{self, DevFault},
        profile::Workshop,
        run::{DEFAULT_CONFIG, RunFault, run},
    },
    dev_issuer::Dialect,
    exit::Exit,
    hardening, log,
    token::ProfileName,
    wiping::WipingAllocator,
};
use clap::{Parser, Subcommand, ValueEnum};

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
        Command::Check { config, connect } => {
            hardening::forget_trust_variables();
            end(checked(&config, connect))
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

/// Holds the client secrets of this host's services and serves them OAuth2 access tokens, never the secrets.
#[derive(Parser)]
#[command(name = "bloom-agent", version, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM; SIGHUP reloads the config
    Run {
        /// The config; *.toml in config.d beside it are read too
        #[arg(long, value_name = "PATH", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Read the config as `run` does, and print every fault
    ///
    /// Run it as the user that the agent runs as, since files are judged by who reads them:
    /// `sudo -u bloom-agent bloom-agent check`. Exit status 78 means faults, 69 that --connect failed.
    Check {
        /// The config; *.toml in config.d beside it are read too
        #[arg(long, value_name = "PATH", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Also go the way to the providers (look-up, proxy, TLS, endpoint), without credentials and without a token
        #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
        connect: Option<String>,
    },
    /// Run an agent with an issuer of its own: no config, no root, no network
    ///
    /// It serves one profile, `bloom`, to your own user, and prints how to reach it and a line per rotation. With a
    /// command after `--`, it runs that with BLOOM_AGENT_SOCK set, and ends with it and with its exit status.
    Dev {
        /// How long a token lives, from 2s to 24h
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = lifetime)]
        lifetime: Duration,
        /// Whose manners the issuer has
        #[arg(long, value_enum, default_value_t)]
        dialect: Manners,
        /// A command to run, and its arguments
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Manners {
    /// Ory Hydra: forms only
    #[default]
    Hydra,
    /// Auth0: forms and JSON
    Auth0,
}

impl From<Manners> for Dialect {
    fn from(manners: Manners) -> Self {
        match manners {
            Manners::Hydra => Self::Hydra,
            Manners::Auth0 => Self::Auth0,
        }
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let right = || "write a time from 2s to 24h, as in 60s".to_owned();
    let time = duration::parse(text).map_err(|_| right())?;
    let fits = (Duration::from_secs(2)..=Duration::from_secs(86_400)).contains(&time);
    fits.then_some(time).ok_or_else(right)
}

fn checked(config: &std::path::Path, connect: Option<String>) -> Result<Exit, Problem> {
    let connect = match connect.as_deref() {
        None => Connect::No,
        Some("") => Connect::All,
        Some(name) => Connect::One(ProfileName::parse(name).map_err(|fault| Problem {
            exit: Exit::Usage,
            text: format!("--connect cannot be done\nthe name {fault}\nsee the names by `bloom-agent check`"),
        })?),
    };
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
