//! Unsafe code is listed: `docs/unsafe.md` says where each piece is and why it is sound, in the words of the sources.
//!
//! `BLOOM_WRITE_DOCS=1 cargo test --test it unsafe_code` writes the page anew; what changed in it is then read by somebody.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

const HEAD: &str = "\
# Unsafe code

The crate denies `unsafe_code` (Cargo.toml). What is let in is listed here, as the sources say it: the reason of the
exception, and for each piece why it is sound. A test holds this page and the sources together
(tests/it/unsafe_code.rs). Tests have unsafe code of their own, by the same rule; it is in no program and not listed.
";

/// One `unsafe` keyword that begins something.
struct Piece {
    line: usize,
    what: String,
    safety: Option<String>,
}

struct File {
    path: PathBuf,
    /// The reasons of its exceptions, each with its line.
    reasons: Vec<(usize, String)>,
    /// Exceptions without one.
    silent: Vec<usize>,
    pieces: Vec<Piece>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

/// Reads a file as it is written: an attribute, a comment and the code below it.
fn read(path: &Path) -> File {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut file = File { path: path.to_owned(), reasons: vec![], silent: vec![], pieces: vec![] };
    for (at, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap();
        let trimmed = line.trim_start();
        let lets_in =
            ["#[allow(", "#[expect(", "#![allow(", "#![expect("].iter().any(|way| trimmed.starts_with(way));
        if lets_in {
            let attribute = lines[at..].iter().take(6).copied().collect::<Vec<_>>().join("\n");
            let attribute = attribute.split(")]").next().unwrap();
            if attribute.contains("unsafe_code") {
                match attribute.split_once("reason = \"").and_then(|(_, rest)| rest.split('"').next()) {
                    Some(reason) => file.reasons.push((at + 1, reason.to_owned())),
                    None => file.silent.push(at + 1),
                }
            }
        }
        for (column, _) in code.match_indices("unsafe") {
            let rest = &code[column + "unsafe".len()..];
            let begins = [" {", " impl", " fn", " extern"].iter().any(|next| rest.starts_with(next));
            let is_word = !code[..column].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '`');
            if begins && is_word {
                file.pieces.push(Piece {
                    line: at + 1,
                    what: of(&lines, at, rest),
                    safety: safety(&lines, at),
                });
            }
        }
    }
    file
}

/// What it is: an impl or a function by its name, a block by the function that it stands in.
fn of(lines: &[&str], at: usize, rest: &str) -> String {
    let named = |text: &str| text.split(['(', '{']).next().unwrap().trim().to_owned();
    if !rest.starts_with(" {") {
        return named(rest);
    }
    let function = lines[..at].iter().rev().find_map(|line| {
        let (before, name) = line.split_once("fn ")?;
        before.chars().all(|c| c.is_alphanumeric() || " ()_".contains(c)).then(|| named(name))
    });
    function.map_or_else(String::new, |name| format!("in {}", name.split('<').next().unwrap()))
}

/// The comment that begins with SAFETY, at most a statement before, and of no other piece.
fn safety(lines: &[&str], at: usize) -> Option<String> {
    let begins = |line: &str| line.trim_start().starts_with("// SAFETY:");
    let is_piece = |line: &str| line.split("//").next().is_some_and(|code| code.contains("unsafe "));
    let near = (at.saturating_sub(12)..at).rev().take_while(|n| !is_piece(lines[*n]));
    let start = near.into_iter().find(|n| begins(lines[*n]))?;
    let comment = lines[start..at].iter().map(|line| line.trim_start());
    let words: Vec<_> = comment
        .take_while(|line| line.starts_with("//"))
        .map(|line| line.trim_start_matches('/').trim())
        .collect();
    Some(words.join(" ").trim_start_matches("SAFETY:").trim().to_owned())
}

/// The line from which on a file is tests, which stand last in it or are files of their own.
fn tests_from(path: &Path) -> usize {
    let stem = path.file_stem().unwrap();
    if ["tests", "trial", "simulation", "fuzzing"].iter().any(|name| stem == *name) {
        return 0;
    }
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let begins = |at: &usize| {
        let module = || lines[*at..].iter().find(|line| line.contains("mod "));
        lines[*at] == "#[cfg(test)]" && module().is_some_and(|module| module.ends_with('{'))
    };
    (0..lines.len()).find(begins).unwrap_or(usize::MAX)
}

#[test]
fn every_exception_has_a_reason_and_every_piece_says_why_it_is_sound() {
    let mut files = Vec::new();
    for folder in ["src", "tests", "examples"] {
        collect(&root().join(folder), &mut files);
    }
    let mut wrong = Vec::new();
    for file in files.iter().map(|path| read(path)) {
        let path = file.path.strip_prefix(root()).unwrap().display().to_string();
        wrong.extend(
            file.silent.iter().map(|line| format!("{path}:{line}: lets unsafe code in and gives no reason")),
        );
        if file.reasons.is_empty() && file.silent.is_empty() && !file.pieces.is_empty() {
            // An exception of the file around it; the compiler sees to it that there is one.
            continue;
        }
        let silent =
            file.pieces.iter().filter(|piece| piece.safety.is_none() && !piece.what.starts_with("fn"));
        wrong.extend(silent.map(|piece| format!("{path}:{}: no SAFETY: comment above it", piece.line)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"deny\""), "the crate lets unsafe code in everywhere");
}

#[test]
fn the_page_lists_all_of_it() {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    let mut page = HEAD.to_owned();
    for file in files.iter().map(|path| read(path)) {
        let tests = tests_from(&file.path);
        let pieces: Vec<_> = file.pieces.iter().filter(|piece| piece.line < tests).collect();
        if pieces.is_empty() {
            continue;
        }
        let path = file.path.strip_prefix(root()).unwrap().display();
        let _ = write!(page, "\n## {path}\n\n");
        let mut reasons: Vec<&str> = Vec::new();
        for (_, reason) in file.reasons.iter().filter(|(line, _)| *line < tests) {
            if !reasons.contains(&reason.as_str()) {
                reasons.push(reason);
            }
        }
        let _ = write!(page, "Let in: {}.\n\n", reasons.join("; "));
        for piece in pieces {
            let safety = piece.safety.as_deref().unwrap_or("its callers promise what it asks for.");
            let _ = writeln!(page, "- `{}`: {safety}", piece.what);
        }
    }
    let path = root().join("docs/unsafe.md");
    if std::env::var_os("BLOOM_WRITE_DOCS").is_some_and(|value| value == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        written, page,
        "docs/unsafe.md is behind: BLOOM_WRITE_DOCS=1 cargo test --test it unsafe_code"
    );
}
