//! `docs/faults.md`: the rows as a table for people, and the check that it is what the rows say.

use std::{fmt::Write as _, path::PathBuf};

use super::{
    row::{Made, Section},
    rows,
};

/// Says that the table is to be written anew.
const REWRITE: &str = "BLOOM_WRITE_DOCS";

const HEAD: &str = "\
# Faults of a provider, and what the agent does

Written from the rows that `cargo test --test it faults` plays (tests/it/faults). Do not edit:
`BLOOM_WRITE_DOCS=1 cargo test --test it faults::table` writes it anew.

Each fault meets the whole agent over real sockets and real TLS, while a token is valid. Whatever the fault is: the token
is served until its last nanosecond and never beyond, no call fails while it is valid, requests are made no more often than
the table says, no connection stays open, neither a secret nor a token is in log, status, metrics or an answer to a caller,
and the agent goes on by itself when the fault is over. A reason in capitals is what callers are told once no token is
valid any more.
";

/// The table as it must be.
fn table() -> String {
    let mut out = HEAD.to_owned();
    let (mut faults, mut forms, mut not_made) = (0, 0, Vec::new());
    for section in Section::ALL {
        let _ = write!(
            out,
            "\n## {}\n\n| fault | the provider | forms | the agent |\n|---|---|---|---|\n",
            section.title()
        );
        for row in rows(section) {
            faults += 1;
            let (count, agent) = match &row.made {
                Made::Cases(cases) => {
                    let mut words: Vec<String> = Vec::new();
                    for case in cases {
                        let said = case.expect.words();
                        if !words.contains(&said) {
                            words.push(said);
                        }
                    }
                    (cases.len(), words.join("; "))
                }
                Made::Story { agent, .. } => (1, (*agent).to_owned()),
                Made::Not(why) => {
                    not_made.push(row.name);
                    (0, format!("not made here: {why}"))
                }
            };
            forms += count;
            let _ = writeln!(out, "| {} | {} | {count} | {agent} |", row.name, row.server);
        }
    }
    let made = faults - not_made.len();
    let _ = write!(
        out,
        "\n{faults} faults: {made} are made, in {forms} forms; not made here: {}.\n",
        not_made.join(", ")
    );
    out
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md")
}

#[test]
fn the_table_in_the_docs_is_what_the_rows_say() {
    let table = table();
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(path(), &table).unwrap();
    }
    let found = std::fs::read_to_string(path()).unwrap_or_default();
    assert!(found == table, "docs/faults.md must read as follows ({REWRITE}=1 writes it):\n{table}");
}

#[test]
fn no_row_is_lost() {
    let counts = Section::ALL.map(|section| rows(section).len());
    assert_eq!(counts, [21, 13, 38, 20, 10], "rows of each section");
    let mut names: Vec<_> = Section::ALL.into_iter().flat_map(rows).map(|row| row.name).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "each has a name of its own");
}

#[test]
fn no_cell_breaks_the_table() {
    for line in table().lines().filter(|line| line.starts_with("| ")) {
        assert_eq!(line.matches('|').count(), 5, "{line}");
        assert!(line.is_ascii(), "{line}");
    }
}
