//! How the agent behaves as a client of OAuth 2.0: one row for each case, and one test for each row.
//!
//! A row looks from outside wherever that shows it: a whole agent in this process, a provider that answers what the row
//! says, a caller on the socket. `docs/conformance.md` is written from the rows, and a test holds it to be so.

mod bench;
mod errors;
mod lifecycle;
mod other_methods;
mod request_form;
mod successful_response;
mod tls_and_network;
mod tls_server;

use std::{fmt::Write as _, fs, path::Path};

/// One case.
struct Row {
    /// What the agent does, in words.
    what: &'static str,
    /// The section that asks for it, or "policy": our own choice.
    source: &'static str,
    standing: Standing,
}

/// Whether a case is shown.
enum Standing {
    /// By the test of this name in the chapter's module.
    Checked(&'static str),
    /// The agent does not have what the case is about, and the config refuses these lines of a profile.
    NotApplicable(&'static [&'static str]),
}

/// The cases of one subject.
struct Chapter {
    title: &'static str,
    module: &'static str,
    rows: &'static [Row],
}

/// A chapter's rows, and a test for each: `name => what, source;` has its check in the function `name`.
macro_rules! rows {
    ($($check:ident => $what:literal, $source:literal;)*) => {
        pub(super) const ROWS: &[$crate::conformance::Row] = &[$(
            $crate::conformance::Row {
                what: $what,
                source: $source,
                standing: $crate::conformance::Standing::Checked(stringify!($check)),
            }
        ),*];

        mod rows {
            $(
                #[tokio::test]
                async fn $check() {
                    super::$check().await;
                }
            )*
        }
    };
}
use rows;

const CHAPTERS: [Chapter; 6] = [
    Chapter { title: "The request", module: "request_form", rows: request_form::ROWS },
    Chapter {
        title: "The successful answer",
        module: "successful_response",
        rows: successful_response::ROWS,
    },
    Chapter { title: "Errors and statuses", module: "errors", rows: errors::ROWS },
    Chapter { title: "TLS and network", module: "tls_and_network", rows: tls_and_network::ROWS },
    Chapter {
        title: "Discovery, and other methods of authentication",
        module: "other_methods",
        rows: other_methods::ROWS,
    },
    Chapter { title: "Timing and lifecycle", module: "lifecycle", rows: lifecycle::ROWS },
];

/// How many rows are checked, and how many are not applicable.
fn counts() -> (usize, usize) {
    let rows = || CHAPTERS.iter().flat_map(|chapter| chapter.rows);
    let checked = rows().filter(|row| matches!(row.standing, Standing::Checked(_))).count();
    (checked, rows().count() - checked)
}

/// `docs/conformance.md`.
fn page() -> String {
    let (checked, other) = counts();
    let mut page = format!(
        "# Conformance\n\n\
         How bloom-agent behaves as an OAuth 2.0 client, case by case: {} cases, {checked} checked, {other} not applicable.\n\n\
         Each case is a row of `tests/it/conformance/` and a test of its own: `cargo test --test it conformance`. The \
         source is the section that asks for it, or \"policy\": our own choice. A case is not applicable where the agent \
         does not have what it is about; the configuration refuses its keys. This page is written from the rows: \
         `BLOOM_WRITE_DOCS=1 cargo test --test it conformance`.\n",
        checked + other
    );
    for Chapter { title, module, rows } in CHAPTERS {
        write!(page, "\n## {title}\n\n| Case | Source | Shown by |\n|---|---|---|\n").unwrap();
        for row in rows {
            let standing = match row.standing {
                Standing::Checked(test) => format!("`{module}::{test}`"),
                Standing::NotApplicable(_) => "not applicable".to_owned(),
            };
            writeln!(page, "| {} | {} | {standing} |", row.what, row.source).unwrap();
        }
    }
    page
}

#[test]
fn every_case_has_its_row_and_none_is_forgotten() {
    assert_eq!(counts(), (77, 8), "checked and not applicable");
    let mut seen = std::collections::BTreeSet::new();
    for row in CHAPTERS.iter().flat_map(|chapter| chapter.rows) {
        assert!(seen.insert(row.what), "twice: {}", row.what);
        let is_source = row.source == "policy" || row.source.starts_with("RFC ");
        assert!(
            is_source && !row.what.contains('|') && !row.what.ends_with('.'),
            "{}: {}",
            row.what,
            row.source
        );
        if let Standing::NotApplicable(lines) = row.standing {
            assert!(!lines.is_empty(), "{}: what does the config refuse?", row.what);
        }
    }
}

#[test]
fn the_page_says_what_the_rows_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    let page = page();
    if std::env::var_os("BLOOM_WRITE_DOCS").is_some_and(|value| value == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/conformance.md is not what the rows of tests/it/conformance say / a row was changed / \
         run `BLOOM_WRITE_DOCS=1 cargo test --test it conformance` and commit the page"
    );
}
