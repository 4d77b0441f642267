//! A provider with every fault that a network, TLS, HTTP, an answer or a provider's own day can have, and the agent before
//! it: the whole of it, with real sockets and real TLS.
//!
//! The faults are rows of a table; a row says what the server does and what the agent must do, and `docs/faults.md` is
//! written from the same rows. After each fault, whatever it is: the token that was there was served until its last
//! nanosecond and not beyond, nothing was sent more often than the refresh rules say, no connection is left, no secret
//! and no token is in anything that the agent says of itself, and it goes on by itself once the fault is over.
//!
//! `BLOOM_AGENT_FAULT=part-of-a-name cargo test --test it faults` plays some rows only.

mod behaviour;
mod http;
mod names;
mod network;
mod payload;
mod pki;
mod process;
mod row;
mod script;
mod server;
mod story;
mod table;
mod tls;

use row::{Made, Row, Section};
use story::Method;

/// The rows of a section, in the order of the table.
fn rows(section: Section) -> Vec<Row> {
    match section {
        Section::Network => network::rows(),
        Section::Tls => tls::rows(),
        Section::Http => http::rows(),
        Section::Payload => payload::rows(),
        Section::Behaviour => behaviour::rows(),
    }
}

/// Plays every `of`th row of a section, from the `part`th on: so that the sections share the machine evenly. All that fails
/// is told, not the first alone.
fn play(section: Section, part: usize, of: usize) {
    let only = std::env::var("BLOOM_AGENT_FAULT").unwrap_or_default();
    let rows = rows(section);
    let mut failed = Vec::new();
    for row in rows.iter().skip(part).step_by(of).filter(|row| row.name.contains(&only)) {
        match &row.made {
            Made::Cases(cases) => {
                // Both ways of saying the secret are gone through.
                let method = if row.name.len() % 2 == 0 { Method::Post } else { Method::Basic };
                failed.extend(alone(row.name, || story::play(row.name, method, cases)));
            }
            Made::Story { tell, .. } => failed.extend(alone(row.name, tell)),
            // It is in the table, with the reason.
            Made::Not(_) => {}
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

/// A story on a thread and with clocks of its own; why it failed, if it did.
fn alone<T: Future<Output = ()>>(what: &str, story: impl FnOnce() -> T + Send) -> Option<String> {
    let tell = || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(story());
    };
    let told = std::thread::scope(|scope| scope.spawn(tell).join());
    told.err().map(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        format!("{what}: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked"))
    })
}

#[test]
fn every_fault_of_the_network_is_lived_through() {
    play(Section::Network, 0, 1);
}

#[test]
fn every_fault_of_tls_is_lived_through() {
    play(Section::Tls, 0, 1);
}

#[test]
fn every_fault_of_http_is_lived_through() {
    play(Section::Http, 0, 2);
}

#[test]
fn every_other_fault_of_http_is_lived_through() {
    play(Section::Http, 1, 2);
}

#[test]
fn every_fault_of_an_answer_is_lived_through() {
    play(Section::Payload, 0, 2);
}

#[test]
fn every_other_fault_of_an_answer_is_lived_through() {
    play(Section::Payload, 1, 2);
}

#[test]
fn every_way_that_a_provider_behaves_is_lived_through() {
    play(Section::Behaviour, 0, 1);
}
