//! The command line of `bloom-agent`: what it runs, its options and its help. It reads arguments and does nothing.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{config::duration, daemon::run::DEFAULT_CONFIG, dev_issuer::Dialect};

/// Holds the client secrets of this host's services and serves them OAuth2 access tokens, never the secrets.
#[derive(Debug, Parser)]
#[command(name = "bloom-agent", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Arguments {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// What it runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM; SIGHUP reloads the config
    Run {
        /// The config; *.toml in config.d beside it are read too
        #[arg(long, value_name = "PATH", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Read the config as `run` does, and print every fault
    ///
    /// Files are judged by who reads them: root's check is done as the user bloom-agent, where the host has it. Exit status
    /// 78 means faults, 69 that --connect failed.
    Check {
        /// The config; *.toml in config.d beside it are read too
        #[arg(long, value_name = "PATH", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// The user that the agent runs as; root can name any
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
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

/// `dev --dialect`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Manners {
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_lifetime_is_from_two_seconds_to_a_day() {
        for (text, seconds) in [("2s", 2), ("60s", 60), ("24h", 86_400)] {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "1s", "25h", "60", "-2s"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }
}
