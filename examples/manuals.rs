//! Writes what the package ships beside the programs, from their command lines: man pages and shell completions.
//!
//! `cargo run --example manuals -- DIRECTORY`. The options come from clap; the sections that no command line holds
//! (files, signals, how a secret is rotated …) from `man/*.roff`; bloom-agent.toml(5) is written by hand.

use std::{
    env, fs,
    io::{self, Error, ErrorKind},
    path::{Path, PathBuf},
};

use bloom_agent::{arguments::Arguments, cli::args::CommandLine};
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// A program and what its page says that its command line does not.
struct Page {
    command: Command,
    section: &'static str,
    /// The line that whatis(1) prints.
    purpose: &'static str,
    /// Between the synopsis and the commands.
    description: &'static str,
    /// After the commands.
    rest: &'static str,
}

fn main() -> io::Result<()> {
    let directory = env::args_os().nth(1).map(PathBuf::from);
    let directory =
        directory.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "usage: manuals DIRECTORY"))?;
    fs::create_dir_all(&directory)?;
    let pages = [
        Page {
            command: Arguments::command(),
            section: "8",
            purpose: "hold client secrets and serve OAuth2 access tokens to local services",
            description: include_str!("../man/bloom-agent.8.description.roff"),
            rest: include_str!("../man/bloom-agent.8.rest.roff"),
        },
        Page {
            command: CommandLine::command(),
            section: "1",
            purpose: "get OAuth2 access tokens from the agent of this host",
            description: include_str!("../man/bloom-agent-cli.1.description.roff"),
            rest: include_str!("../man/bloom-agent-cli.1.rest.roff"),
        },
    ];
    for page in pages {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let name = page.command.get_name().to_owned();
            generate_to(shell, &mut page.command.clone(), name, &directory)?;
        }
        write(&page, &directory)?;
    }
    let config = include_str!("../man/bloom-agent.toml.5").replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    fs::write(directory.join("bloom-agent.toml.5"), config)
}

fn write(page: &Page, directory: &Path) -> io::Result<()> {
    let name = page.command.get_name().to_owned();
    let mut whole = page.command.clone().about(page.purpose).disable_help_subcommand(true);
    whole.build();

    let man = Man::new(whole.clone()).section(page.section).manual("bloom-agent");
    let mut text = rendered(|roff| man.render_title(roff))?;
    text += &rendered(|roff| man.render_name_section(roff))?;
    text += ".SH SYNOPSIS\n";
    for command in whole.get_subcommands() {
        text += &format!(".B {name} {}\n", escaped(command.get_name()));
        text += &format!("{}\n.br\n", escaped(&usage(command)));
    }
    text += page.description;
    text += ".SH COMMANDS\n";
    for command in whole.get_subcommands() {
        text += &commands(command)?;
    }
    if whole.get_arguments().any(clap::Arg::is_global_set) {
        let own = hidden(whole.clone(), |id| id == "help" || id == "version");
        text += ".SH OPTIONS\n";
        text += &without_headings(&rendered(|roff| Man::new(own.clone()).render_options_section(roff))?);
    }
    text += page.rest;
    fs::write(directory.join(format!("{name}.{}", page.section)), text)
}

/// One subcommand: what it does, its options, and its examples as they stand in its help.
fn commands(command: &Command) -> io::Result<String> {
    let globals: Vec<_> = command.get_arguments().filter(|argument| argument.is_global_set()).collect();
    let globals: Vec<String> = globals.iter().map(|argument| argument.get_id().to_string()).collect();
    let own = hidden(command.clone(), |id| id == "help" || globals.iter().any(|global| global == id));
    let after = own.get_after_long_help().or_else(|| own.get_after_help()).map(ToString::to_string);
    let man = Man::new(own.clone());
    let mut text = format!(".SS \"{} {}\"\n", escaped(own.get_name()), escaped(&usage(&own)));
    text += &without_headings(&rendered(|roff| man.render_description_section(roff))?);
    if own.get_arguments().any(|argument| !argument.is_hide_set()) {
        text += &without_headings(&rendered(|roff| man.render_options_section(roff))?);
    }
    if let Some(after) = after {
        text += ".PP\n.nf\n";
        for line in after.lines() {
            // A dot at the start of a line would be a request.
            text += &format!("\\&{}\n", escaped(line));
        }
        text += ".fi\n";
    }
    Ok(text)
}

/// What follows the subcommand's name on its command line.
fn usage(command: &Command) -> String {
    let text = command.clone().render_usage().to_string();
    let name = format!(" {} ", command.get_name());
    text.split_once(&name).map(|(_, rest)| rest.trim().to_owned()).unwrap_or_default()
}

fn hidden(command: Command, which: impl Fn(&str) -> bool) -> Command {
    command.mut_args(|argument| {
        let hide = which(argument.get_id().as_str());
        if hide { argument.hide(true) } else { argument }
    })
}

fn rendered(render: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<String> {
    let mut roff = Vec::new();
    render(&mut roff)?;
    String::from_utf8(roff).map_err(Error::other)
}

/// The text of a section that becomes part of another one.
fn without_headings(roff: &str) -> String {
    let kept = roff.lines().filter(|line| {
        !line.starts_with(".SH ") && !line.contains(".ds Aq") && *line != ".ie \\n(.g .ds Aq \\(aq"
    });
    kept.fold(String::new(), |text, line| text + line + "\n")
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga")
}
