//! Panics with a secret or a token in their message, in a handler and in a rotator: neither the log, nor what the caller is
//! told, nor anything that the process prints has it.

use std::{
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bloom_agent::{
    clock::{Clock, Now},
    log::{self, Panics},
    service::{Control, ReloadFault, Reloaded},
    timer::ManualTime,
};
use tonic::Code;

use super::{CLIENT_ID, Canary, Search};
use crate::{
    host::shown,
    support::{Agent, BLOOM, Setting, handmade::Handmade, soon},
};

/// A variable that makes the test binary, started anew, panic with this in the message.
const PANIC_WITH: &str = "BLOOM_AGENT_TEST_PANIC_IN_A_TASK_WITH";

/// What every handler asks for at some point, with a bug.
struct Panicking(String);

#[tonic::async_trait]
impl Control for Panicking {
    async fn reload(&self) -> Result<Reloaded, ReloadFault> {
        panic!("cannot reload with {}", self.0)
    }
    async fn look_names_up(&self, _patience: Duration) {}
    fn denial_noted(&self) {}
    fn degraded(&self) -> Vec<String> {
        panic!("the token is {}", self.0)
    }
}

/// A clock with a bug, from the time on at which it is told of it.
#[derive(Default)]
struct PanickingClock {
    time: OnceLock<ManualTime>,
    says: OnceLock<String>,
}

impl Clock for PanickingClock {
    fn now(&self) -> Now {
        if let Some(says) = self.says.get() {
            panic!("the secret is {says}");
        }
        self.time.get().unwrap().now()
    }
}

/// Calls of which each meets the bug; what the caller is told of it.
async fn in_a_handler(canary: &str) -> String {
    let agent = Handmade::with(0, Arc::new(Panicking(canary.to_owned())));
    let client = agent.client().await;
    let mut admin = client.admin.clone();
    let mut told = String::new();
    for status in [
        admin.reload(bloom_agent::pb::ReloadRequest {}).await.expect_err("a panic"),
        client.status().await.expect_err("a panic"),
        admin.get_metrics(bloom_agent::pb::GetMetricsRequest {}).await.expect_err("a panic"),
    ] {
        assert_eq!(status.code(), Code::Internal);
        told.push_str(&format!("{status} {status:?} {:?}\n", String::from_utf8_lossy(status.details())));
    }
    drop((client, admin));
    agent.end().await;
    told
}

/// A rotator that is lost to it, and what the agent logs and answers meanwhile.
async fn in_a_rotator(canary: &str) -> String {
    let clock = Arc::new(PanickingClock::default());
    let bug = Arc::clone(&clock);
    let make = move |time: ManualTime| -> Arc<dyn Clock> {
        clock.time.set(time).unwrap();
        clock
    };
    let agent = Agent::start_with(Setting { clock: Box::new(make), ..Setting::default() }).await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    bug.says.set(canary.to_owned()).unwrap();
    agent.time.advance_to(agent.next_attempt(BLOOM).await);
    let lost = async {
        while !agent.log().contains("rotator was lost") {
            tokio::task::yield_now().await;
        }
    };
    soon("the rotator is lost", lost).await;
    let status = client.status().await.unwrap();
    let told = format!("{}{status:?}{:?}", agent.log(), client.list().await);
    agent.stop().await;
    told
}

#[test]
fn no_panic_of_a_handler_or_a_rotator_tells_what_was_worked_on() {
    if let Ok(canary) = std::env::var(PANIC_WITH) {
        let panics = Panics::default();
        log::withhold_panic_messages("bloom-agent");
        let config = log::LogConfig { level: tracing::Level::TRACE, ..log::LogConfig::default() };
        let log = log::init(config, Arc::new(bloom_agent::clock::SystemClock), log::stderr()).unwrap();
        log::install_panic_hook(panics.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        println!("{}", runtime.block_on(in_a_handler(&canary)));
        println!("{}", runtime.block_on(in_a_rotator(&canary)));
        assert_eq!(panics.count(), 4);
        drop(log);
        return;
    }
    let canary = Canary::plain("what was worked on");
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "leaks::panics::no_panic_of_a_handler_or_a_rotator_tells_what_was_worked_on",
            "--exact",
            "--nocapture",
        ])
        .env(PANIC_WITH, &canary.text)
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    let whole = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&whole);
    let places = text.matches("panicked: this is a fault in bloom-agent").count();
    assert_eq!(places, 4, "{text}");
    assert!(text.contains("rotator was lost") && text.contains("the agent made a mistake"), "{text}");
    Search::new(CLIENT_ID, [&canary]).assert_none_in("what the process printed and answered", &whole);
}
