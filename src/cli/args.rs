//! The command line of `bloom-agent-cli`: its verbs, its options and its help. It reads arguments and does nothing.
//!
//! No example of ours puts a token on a command line: every local user can read it there (`/proc/PID/cmdline`).

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::token::ProfileName;

/// Get OAuth2 access tokens from the bloom-agent of this host.
#[derive(Debug, Parser)]
#[command(name = "bloom-agent-cli", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct CommandLine {
    /// The agent's socket [default: $BLOOM_AGENT_SOCK, else the first that exists of
    /// /run/bloom-agent/agent.sock and $XDG_RUNTIME_DIR/bloom-agent/agent.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  bloom-agent-cli list
  bloom-agent-cli token --format header | curl -H @- https://api.example.com/

Exit codes: 0 done, 64 usage or unknown profile, 69 the agent is not reachable,
70 internal error, 71 the system refuses, 75 no token right now (try later),
77 not allowed, 78 the configuration has faults.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the current token
    #[command(after_help = TOKEN_HELP)]
    Token(TokenArgs),
    /// Print a line now and at each rotation, or run a command with each token
    #[command(after_help = WATCH_HELP)]
    Watch(WatchArgs),
    /// Show the profiles you may use, without their tokens
    #[command(after_help = "Example:\n  bloom-agent-cli list --json | jq -r '.tokens[].name'")]
    List(Printing),
    /// Show everything the agent knows of itself (admins only)
    #[command(after_help = "Example:\n  sudo bloom-agent-cli status")]
    Status(Printing),
    /// Fetch a new token now, past back-off and Retry-After (admins only)
    #[command(after_help = "Example:\n  sudo bloom-agent-cli refresh bloom")]
    Refresh(RefreshArgs),
    /// Make the agent read its configuration again, all or nothing (admins only)
    #[command(after_help = "Example:\n  sudo bloom-agent-cli reload")]
    Reload(Printing),
    /// Say that an API answered 401 to a token, so that the agent fetches another one
    #[command(after_help = REPORT_HELP)]
    ReportRejected(ReportArgs),
    /// Run a command with the token in its environment
    #[command(after_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// Print the agent's metrics as OpenMetrics text (admins only)
    #[command(after_help = METRICS_HELP)]
    Metrics,
}

/// How a token is printed; always one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The token and nothing else
    #[default]
    Raw,
    /// Authorization: Bearer TOKEN
    Header,
    /// The API's Token as JSON
    Json,
    /// BLOOM_TOKEN=TOKEN
    Env,
}

/// How a table is printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Printing {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The profile; not needed if you may use exactly one
    #[arg(value_parser = profile)]
    pub name: Option<ProfileName>,
    /// Refresh a token that is valid for less than this, as far as the agent's budget permits
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub min_validity: Option<Duration>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, hide_possible_values = false)]
    pub format: Format,
    /// Try again until then while the agent is not reachable or has no token [10s if no duration follows]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "10s", value_parser = duration)]
    pub wait: Option<Duration>,
}

const TOKEN_HELP: &str = "\
Examples:
  bloom-agent-cli token bloom --format header | curl -H @- https://api.example.com/
  curl -H @<(bloom-agent-cli token bloom --format header) https://api.example.com/

Do not put a token on a command line: every local user can read it there.
A DURATION is a number and ms, s, m, h or d: 90s, 5m, 1h.";

/// `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The profile; not needed if you may use exactly one
    #[arg(value_parser = profile)]
    pub name: Option<ProfileName>,
    /// Print an object a line instead of name, generation and expiry
    #[arg(long, conflicts_with_all = ["format", "exec"])]
    pub json: bool,
    /// Print the token itself, so
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Run CMD with each token on its standard input; the last option, no shell
    #[arg(long, value_names = ["CMD", "ARG"], num_args = 1.., allow_hyphen_values = true)]
    pub exec: Vec<OsString>,
}

const WATCH_HELP: &str = "\
Examples:
  bloom-agent-cli watch bloom
  bloom-agent-cli watch bloom --exec /usr/local/bin/new-token --verbose

With --exec, CMD runs now and at each rotation, one run at a time; the newest
token wins. It reads one line from its standard input: the token, or what
--format makes of it. BLOOM_TOKEN_NAME, BLOOM_TOKEN_GENERATION and
BLOOM_TOKEN_EXPIRES_AT are in its environment.";

/// `refresh`.
#[derive(Debug, Args)]
pub struct RefreshArgs {
    /// The profile
    #[arg(value_parser = profile)]
    pub name: ProfileName,
    /// How to print its state.
    #[command(flatten)]
    pub printing: Printing,
}

/// `report-rejected`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The profile
    #[arg(value_parser = profile)]
    pub name: ProfileName,
    /// The refused token's generation, as `token --format json` prints it [default: the current one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub generation: Option<u64>,
    /// How to print the outcome.
    #[command(flatten)]
    pub printing: Printing,
}

const REPORT_HELP: &str = "\
Example:
  bloom-agent-cli token bloom --format json > token.json     (and the API says 401)
  bloom-agent-cli report-rejected bloom --generation \"$(jq -r .generation token.json)\"

Without --generation the current token is reported. That can hit a token that
is already new: another caller may have reported the refused one before you.
The old token is served until the new one is there.";

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The profile; not needed if you may use exactly one
    #[arg(value_parser = profile)]
    pub name: Option<ProfileName>,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

const EXEC_HELP: &str = "\
Example:
  bloom-agent-cli exec bloom -- ./import-accounts --since yesterday

Waits up to 30 s for a token, sets BLOOM_TOKEN and becomes CMD. Exits 126 if
CMD cannot be run and 127 if it is not found, as env(1) does.

Who can read an environment: root, every process of the same user
(/proc/PID/environ), whatever CMD starts, and often crash reports and logs.
The token in it is never renewed: a long run outlives it. Where you can,
ask for a token when you need it, or use `watch`.";

const METRICS_HELP: &str = "\
Example, for node_exporter's textfile collector:
  bloom-agent-cli metrics > bloom.prom.new && mv bloom.prom.new bloom.prom";

/// Lets `--wait NAME` mean what it says. A profile's name begins with a letter and a duration with a digit, so the
/// option's value, which may be left out, is never in doubt; clap would take the name for it.
pub fn settle_wait(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut settled: Vec<OsString> = args.into_iter().collect();
    let ours = settled.iter().position(|arg| arg == "--" || arg == "--exec").unwrap_or(settled.len());
    for index in 0..ours {
        let followed_by_digit = settled
            .get(index + 1)
            .is_some_and(|next| next.as_encoded_bytes().first().is_some_and(u8::is_ascii_digit));
        match settled.get_mut(index) {
            Some(arg) if arg == "--wait" && !followed_by_digit => *arg = "--wait=10s".into(),
            _ => {}
        }
    }
    settled
}

fn profile(text: &str) -> Result<ProfileName, String> {
    ProfileName::parse(text).map_err(|problem| format!("it {problem}"))
}

/// A whole number and a unit.
fn duration(text: &str) -> Result<Duration, &'static str> {
    const WRONG: &str = "it is not a duration: a number and ms, s, m, h or d, such as 90s, 5m, 1h";
    /// Ten years: whatever waits or lives longer is a slip of the keyboard.
    const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);
    let digits = text.find(|char: char| !char.is_ascii_digit()).ok_or(WRONG)?;
    let (number, unit) = text.split_at_checked(digits).ok_or(WRONG)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(WRONG),
    };
    let number: u64 = number.parse().map_err(|_| WRONG)?;
    let duration = Duration::from_millis(number.checked_mul(millis).ok_or("it is too long")?);
    if duration > LONGEST { Err("it is too long") } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        let args = line.split_whitespace().map(OsString::from);
        CommandLine::try_parse_from(settle_wait(std::iter::once("bloom-agent-cli".into()).chain(args)))
    }

    #[test]
    fn the_tree_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn what_the_contract_writes_is_understood() {
        for line in [
            "token",
            "token bloom --min-validity 5m --format header --wait",
            "token bloom --wait 10s",
            "token --wait bloom",
            "--socket /a token",
            "token --socket /a bloom",
            "watch --json",
            "watch bloom --format raw",
            "list --json",
            "status --json",
            "refresh bloom",
            "reload",
            "report-rejected bloom --generation 1795356300999",
            "exec -- true",
            "exec bloom -- env -i sh -c x",
            "metrics",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_nobody_can_mean_is_refused() {
        for (line, kind) in [
            ("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("tokens", ErrorKind::InvalidSubcommand),
            ("token Bloom", ErrorKind::ValueValidation),
            ("token a b", ErrorKind::UnknownArgument),
            ("token --format xml", ErrorKind::InvalidValue),
            ("token --min-validity 5", ErrorKind::ValueValidation),
            ("token --wait 10", ErrorKind::ValueValidation),
            ("refresh", ErrorKind::MissingRequiredArgument),
            ("report-rejected", ErrorKind::MissingRequiredArgument),
            ("report-rejected bloom --generation x", ErrorKind::ValueValidation),
            ("report-rejected bloom --generation 0", ErrorKind::ValueValidation),
            ("exec bloom", ErrorKind::MissingRequiredArgument),
            ("exec bloom true", ErrorKind::UnknownArgument),
            ("exec --", ErrorKind::MissingRequiredArgument),
            ("watch --json --format raw", ErrorKind::ArgumentConflict),
            ("watch --json --exec true", ErrorKind::ArgumentConflict),
            ("watch --exec", ErrorKind::InvalidValue),
            ("metrics --json", ErrorKind::UnknownArgument),
        ] {
            match parse(line) {
                Ok(parsed) => panic!("{line}: {parsed:?}"),
                Err(error) => assert_eq!(error.kind(), kind, "{line}: {error}"),
            }
        }
    }

    #[test]
    fn a_wait_without_a_duration_is_ten_seconds_and_takes_no_name() {
        for (line, name, wait) in [
            ("token", None, None),
            ("token --wait", None, Some(10)),
            ("token --wait bloom", Some("bloom"), Some(10)),
            ("token bloom --wait", Some("bloom"), Some(10)),
            ("token --wait 3s bloom", Some("bloom"), Some(3)),
            ("token --wait=4s bloom", Some("bloom"), Some(4)),
            ("token --wait --format raw", None, Some(10)),
        ] {
            let Verb::Token(args) = parse(line).unwrap().verb else { panic!("{line}") };
            assert_eq!(args.name.as_ref().map(ProfileName::as_str), name, "{line}");
            assert_eq!(args.wait, wait.map(Duration::from_secs), "{line}");
        }
    }

    #[test]
    fn everything_after_exec_belongs_to_the_command() {
        let line = "watch bloom --format env --exec cmd --json -x -- --wait --exec --help --socket";
        let Verb::Watch(args) = parse(line).unwrap().verb else { panic!() };
        assert_eq!(args.exec, ["cmd", "--json", "-x", "--", "--wait", "--exec", "--help", "--socket"]);
        assert_eq!((args.json, args.format), (false, Some(Format::Env)));
        let Verb::Exec(args) = parse("exec -- cmd --wait -- --help").unwrap().verb else { panic!() };
        assert_eq!(
            (args.name, args.command),
            (None, ["cmd", "--wait", "--", "--help"].map(OsString::from).to_vec())
        );
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, millis) in [("0s", 0), ("250ms", 250), ("90s", 90_000), ("5m", 300_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for text in [
            "",
            "5",
            "s",
            "5 m",
            "-5s",
            "1.5h",
            "5M",
            "1h30m",
            "99999999999999999999s",
            "184467440737095517d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_verb_s_help_has_an_example() {
        let mut root = CommandLine::command();
        root.build();
        for verb in root.get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Example"), "{help}");
            assert!(help.contains("bloom-agent-cli"), "{help}");
        }
    }
}
