//! What must be true of whatever a stranger sends: a property of bytes for each way in.
//!
//! Compiled for tests and for cargo-fuzz (`--cfg fuzzing`), never into the programs. A property panics where it does not
//! hold. `fuzz/` has one target for each and the corpora; the tests below replay those with the stable compiler, so that what
//! was found once is found again by everybody. A target is one line there and one in [`TARGETS`].
//!
//! The properties stand beside the code they are about, in files of this name: they see what is private there. What they
//! compare with is written another way, or by somebody else (`serde_json`'s tree, `jiff`, `fluke-hpack`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property panics where it does not hold"
)]

mod socket;

use crate::{access, config, log, oauth2, server, stored, units};

/// A property of any bytes.
pub type Property = fn(&[u8]);

/// The targets by name: that of the program in `fuzz/`, and of the folder of its corpus.
pub const TARGETS: [(&str, Property); 13] = [
    ("token-response", oauth2::fuzzing::token_response),
    ("error-response", oauth2::fuzzing::error_response),
    ("retry-after", oauth2::fuzzing::retry_after),
    ("endpoint", oauth2::fuzzing::endpoint),
    ("config", config::fuzzing::config),
    ("selector", access::fuzzing::selector),
    ("credential-address", access::fuzzing::credential_address),
    ("cgroup-path", units::fuzzing::cgroup_path),
    ("authority", server::fuzzing::authority),
    ("grpc-timeout", server::fuzzing::grpc_timeout),
    ("stored-record", stored::fuzzing::stored_record),
    ("log-line", log::fuzzing::log_line),
    ("socket", socket::socket),
];

/// Runs the property of that name.
pub fn run(target: &str, data: &[u8]) {
    let (_, property) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of that name");
    property(data);
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        panic::{AssertUnwindSafe, catch_unwind},
        path::Path,
    };

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

    use super::*;

    /// `fuzz/` is not in the published package.
    fn repository() -> Option<&'static Path> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let there = root.join("fuzz").is_dir();
        if !there {
            eprintln!("SKIPPED: fuzz/ is not here, only in the repository");
        }
        there.then_some(root)
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let Some(root) = repository() else { return };
        let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            assert!(
                manifest.contains(&format!("name = \"{name}\"")),
                "{name} has no program in fuzz/Cargo.toml"
            );
            let program = fs::read_to_string(root.join(format!("fuzz/targets/{name}.rs"))).unwrap();
            assert!(program.contains(&format!("\"{name}\"")), "fuzz/targets/{name}.rs runs another target");
            assert!(root.join("fuzz/corpus").join(name).is_dir(), "{name} has no corpus");
        }
        for (folder, suffix) in [("targets", ".rs"), ("corpus", "")] {
            let entries = fs::read_dir(root.join("fuzz").join(folder)).unwrap();
            assert_eq!(entries.count(), TARGETS.len(), "fuzz/{folder} has one *{suffix} too many");
        }
    }

    /// The files of a target's corpus by name, in order.
    fn corpus(root: &Path, target: &str) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(root.join("fuzz/corpus").join(target)).unwrap();
        let read = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap())
        };
        let mut files: Vec<_> = entries.map(read).collect();
        files.sort();
        assert!(files.len() > 4, "the corpus of {target} is hardly one");
        files
    }

    fn holds(property: Property, data: &[u8]) -> bool {
        catch_unwind(AssertUnwindSafe(|| property(data))).is_ok()
    }

    #[test]
    fn every_property_holds_for_its_corpus() {
        let Some(root) = repository() else { return };
        let mut failed = Vec::new();
        for (target, property) in TARGETS {
            for (file, bytes) in corpus(root, target) {
                if !holds(property, &bytes) {
                    failed.push(format!("fuzz/corpus/{target}/{file}"));
                }
            }
            assert!(holds(property, b""), "{target}: nothing at all");
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    /// What libFuzzer does without its eyes: a few changes to each file. `FUZZ_ROUNDS=1000` makes more of them, and
    /// `FUZZ_TARGET=socket` of one target only.
    #[test]
    fn every_property_holds_near_its_corpus() {
        let Some(root) = repository() else { return };
        let rounds = std::env::var("FUZZ_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
        let only = std::env::var("FUZZ_TARGET").ok();
        for (target, property) in
            TARGETS.into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
        {
            let files = corpus(root, target);
            for (number, (file, bytes)) in files.iter().enumerate() {
                for round in 0..rounds {
                    let mut random = StdRng::seed_from_u64((round << 16) + number as u64);
                    let (_, other) = files.choose(&mut random).unwrap();
                    let changed = changed(bytes, other, &mut random);
                    let shown = String::from_utf8_lossy(&changed);
                    assert!(
                        holds(property, &changed),
                        "{target}, near {file}, round {round}: {shown:?} {changed:?}"
                    );
                }
            }
        }
    }

    /// One to eight changes: a bit, a byte, a piece taken out, doubled, or brought in from another file.
    fn changed(bytes: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let piece = |random: &mut StdRng, length: usize| {
            let from = random.random_range(0..=length);
            from..random.random_range(from..=length.min(from + 64))
        };
        for _ in 0..random.random_range(1..=8) {
            let at = random.random_range(0..=bytes.len());
            match random.random_range(0..6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
                1 if at < bytes.len() => bytes[at] = random.random(),
                2 => bytes.insert(at, random.random()),
                3 => drop(bytes.drain(piece(random, bytes.len()))),
                4 => {
                    let copy = bytes[piece(random, bytes.len())].to_vec();
                    bytes.splice(at..at, copy);
                }
                _ => {
                    let copy = other[piece(random, other.len())].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
        bytes
    }
}
