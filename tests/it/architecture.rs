//! The house rules that a compiler does not hold: which module may name which, who reads a clock, what may not print.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Every top-level module and its layer; the picture in `src/lib.rs` says the same.
const LAYERS: [(u8, &[&str]); 5] = [
    (0, &["secret", "token", "failure", "clock", "pb"]),
    (1, &["oauth2", "refresh", "access", "limits", "config", "stored", "reply"]),
    (
        2,
        &[
            "http",
            "source",
            "files",
            "names",
            "peer",
            "units",
            "timer",
            "locked",
            "sealed",
            "hardening",
            "wall",
            "wiping",
            "resident",
            "log",
            "audit",
            "metrics",
            "systemd",
            "dev_issuer",
        ],
    ),
    (3, &["daemon", "server", "service", "credential", "rotator", "obtain", "store"]),
    (4, &["client", "cli", "arguments", "exit", "fuzzing"]),
];

/// The part that talks to strangers cannot name the part that holds secrets.
const STRANGERS: [&str; 3] = ["service", "server", "credential"];
const SECRET_HOLDERS: [&str; 4] = ["secret", "source", "http", "obtain"];

/// Inside L3 there is an order too: what is composed never names what composes it.
const NEVER: [(&str, &[&str]); 7] = [
    ("store", &["rotator", "service", "server", "credential", "daemon"]),
    ("obtain", &["rotator", "service", "server", "credential", "daemon", "store"]),
    ("rotator", &["service", "server", "credential", "daemon"]),
    ("server", &["daemon", "service", "credential"]),
    ("service", &["daemon", "credential"]),
    ("credential", &["daemon"]),
    ("config", &["daemon"]),
];

struct Source {
    module: String,
    path: PathBuf,
    /// Without its tests and its comments: what ships.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(found.len() > 30, "the sources were not found");
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root).unwrap();
            let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
            let module = first.strip_suffix(".rs").unwrap_or(first).to_owned();
            let is_test = first == "fuzzing"
                || relative
                    .file_stem()
                    .is_some_and(|stem| ["tests", "fuzzing"].into_iter().any(|name| stem == name));
            if !is_test {
                found.push(Source { module, code: shipped(&fs::read_to_string(&path).unwrap()), path });
            }
        }
    }
}

/// Cuts the tests, which stand last in a file, and the comments.
fn shipped(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
    text.lines().map(|line| line.find("//").map_or(line, |at| &line[..at])).collect::<Vec<_>>().join("\n")
}

/// The modules that `code` names as `crate::x`, alone or in a `use crate::{…}` list.
fn named(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and `other_crate::` are not ours.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            let mut taking = true;
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        names.push(std::mem::take(&mut word));
                        taking = true;
                    }
                    ':' if depth == 0 => taking = false,
                    c if depth == 0 && taking && (c.is_alphanumeric() || c == '_') => word.push(c),
                    _ => {}
                }
            }
            names.push(word);
        } else {
            names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn layers() -> BTreeMap<&'static str, u8> {
    LAYERS.iter().flat_map(|(layer, modules)| modules.iter().map(move |module| (*module, *layer))).collect()
}

#[test]
fn every_module_has_a_layer_and_the_map_names_it() {
    let layers = layers();
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let (docs, code): (Vec<_>, Vec<_>) = map.lines().partition(|line| line.starts_with("//!"));
    let docs = docs.join("\n");
    let mut declared = 0;
    for module in code.iter().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
        declared += 1;
        assert!(layers.contains_key(module), "{module} has no layer in tests/it/architecture.rs");
        assert!(docs.contains(module), "{module} is not on the map in src/lib.rs");
    }
    assert_eq!(declared, layers.len(), "a module has a layer and does not exist");
}

#[test]
fn arrows_only_point_down() {
    let layers = layers();
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(own) = layers.get(source.module.as_str()) else { continue };
        for name in named(&source.code) {
            if let Some(other) = layers.get(name.as_str())
                && other > own
            {
                wrong.push(format!(
                    "{}: {} (L{own}) names {name} (L{other})",
                    source.path.display(),
                    source.module
                ));
            }
            let barred = NEVER
                .iter()
                .any(|(module, never)| *module == source.module && never.contains(&name.as_str()));
            if barred {
                wrong.push(format!("{}: {} names {name}", source.path.display(), source.module));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_talks_to_strangers_does_not_name_what_holds_secrets() {
    for source in sources().iter().filter(|source| STRANGERS.contains(&source.module.as_str())) {
        for name in named(&source.code) {
            assert!(!SECRET_HOLDERS.contains(&name.as_str()), "{} names {name}", source.path.display());
        }
    }
}

#[test]
fn words_and_rules_are_pure() {
    let layers = layers();
    const IMPURE: [&str; 12] = [
        "tokio",
        "async ",
        ".await",
        "std::fs",
        "File::open",
        "std::net::Tcp",
        "std::os::unix::net",
        "SystemClock",
        "clock_gettime",
        "Instant::now",
        "SystemTime::now",
        "std::env",
    ];
    for source in sources() {
        let pure = layers.get(source.module.as_str()).is_some_and(|layer| *layer <= 1);
        // `clock` reads the clocks; `pb` is generated, and its services are async.
        if !pure || ["clock", "pb"].contains(&source.module.as_str()) {
            continue;
        }
        for word in IMPURE {
            assert!(!source.code.contains(word), "{} contains {word:?}", source.path.display());
        }
    }
}

#[test]
fn only_clock_reads_a_clock() {
    const READS: [&str; 4] = ["Instant::now", "SystemTime::now", "clock_gettime", "Timestamp::now"];
    for source in sources().iter().filter(|source| source.module != "clock") {
        for word in READS {
            // tokio's own timers count on a monotonic clock of theirs; nothing that is served depends on it.
            let code = source.code.replace("tokio::time::Instant::now", "");
            assert!(!code.contains(word), "{} reads a clock: {word}", source.path.display());
        }
    }
}

#[test]
fn only_a_rotator_publishes() {
    for source in sources() {
        let may = ["store", "rotator", "daemon"].contains(&source.module.as_str());
        assert!(may || !source.code.contains("Publisher"), "{} names a Publisher", source.path.display());
        let calls = [".publish(", ".prolong(", ".withdraw("];
        let publishes = calls.iter().any(|call| source.code.contains(call));
        assert!(!publishes || source.module == "rotator", "{} publishes", source.path.display());
    }
}

#[test]
fn no_type_that_holds_a_secret_or_a_token_derives_debug() {
    // A field of one of these types, in a type that derives Debug, is safe only because theirs is written by hand.
    const BY_HAND: [(&str, &str); 3] = [("secret", "Secret"), ("token", "AccessToken"), ("pb", "Token")];
    for (module, name) in BY_HAND {
        let all = sources();
        let code = &all.iter().find(|source| source.module == module).unwrap().code;
        assert!(
            code.contains(&format!("impl fmt::Debug for {name} ")),
            "{module}::{name} has no Debug of its own"
        );
    }
    for source in sources() {
        for (at, _) in source.code.match_indices("derive(") {
            let rest = &source.code[at..];
            let Some(end) = rest.find(")]") else { continue };
            if !rest[..end].contains("Debug") {
                continue;
            }
            let body = rest[end..].split("\n}").next().unwrap();
            for raw in ["Zeroizing<", "SecretString", "SecretSlice"] {
                assert!(
                    !body.contains(raw),
                    "{}: a type that derives Debug holds a {raw}",
                    source.path.display()
                );
            }
        }
    }
}

#[test]
fn secrets_are_exposed_where_a_request_is_built_or_a_reply_encoded_and_nowhere_else() {
    const MAY: [&str; 10] =
        ["secret", "token", "oauth2", "stored", "reply", "obtain", "service", "credential", "client", "cli"];
    for source in sources() {
        let may = MAY.contains(&source.module.as_str());
        assert!(may || !source.code.contains("expose_secret"), "{} exposes a secret", source.path.display());
    }
}
