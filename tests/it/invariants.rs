//! What holds after every fault, whatever it was: one question, asked at the end of each story.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use bloom_agent::{
    clock::{Clock, WallTime},
    dev_issuer::Control,
};
use nix::unistd::{Pid, geteuid};
use tokio::time::timeout;
use tonic::Code;

use crate::support::{Agent, BLOOM, Client, HANG, SECRET, as_uid, refusal};

/// A uid that no story lets do anything.
pub(crate) const STRANGER: u32 = 4_999;
/// The uid that every story of a process lets have the profile, beside root.
pub(crate) const OTHER: u32 = 4_998;

/// Every token that callers were given meanwhile.
#[derive(Default)]
pub(crate) struct Given(Mutex<BTreeSet<String>>);

impl Given {
    pub(crate) fn note(&self, token: &bloom_agent::pb::Token) {
        self.0.lock().unwrap().insert(token.access_token.clone());
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// What a process takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    pub(crate) descriptors: usize,
    pub(crate) resident_kib: u64,
    pub(crate) threads: u64,
}

impl Footprint {
    pub(crate) fn of(pid: Pid) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            resident_kib: number("VmRSS:"),
            threads: number("Threads:"),
        }
    }
}

/// What each of a process's descriptors is.
fn open_files(pid: Pid) -> Vec<PathBuf> {
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // One may be closed while they are listed.
    listed.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
}

/// More than any story has a right to cost for good: memory that the allocator keeps, in a debug build.
const KEPT_KIB: u64 = 8 * 1024;

/// An agent, after a fault.
pub(crate) struct Aftermath<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) issuer: &'a Control,
    pub(crate) profile: &'a str,
    /// The one that its tokens' lives are told by.
    pub(crate) clock: &'a dyn Clock,
    /// All that it has written.
    pub(crate) log: String,
    /// The secrets that it was ever given.
    pub(crate) secrets: &'a [&'a str],
    /// What callers got.
    pub(crate) given: &'a Given,
    /// How many requests the provider may have seen at the most.
    pub(crate) most_requests: u64,
    /// Its process, and what that took before the fault.
    pub(crate) process: Option<(Pid, Footprint)>,
}

/// The same of an agent in this process.
pub(crate) async fn all_is_well(agent: &Agent, given: &Given, most_requests: u64) {
    let aftermath = Aftermath {
        socket: agent.socket(),
        issuer: &agent.issuer,
        profile: BLOOM,
        clock: &agent.time,
        log: agent.log(),
        secrets: &[SECRET],
        given,
        most_requests,
        process: None,
    };
    aftermath.all_is_well().await;
}

impl Aftermath<'_> {
    /// No panic; no expired token served; no token to a stranger; no failed call while there is a token; the provider's
    /// requests within budget; memory and descriptors back; other uids served; no canary; and a new token, without a restart.
    pub(crate) async fn all_is_well(&self) {
        let log = &self.log;
        let client = self.client().await;
        let metrics = client.metrics().await.unwrap();
        assert!(metrics.contains("bloom_agent_panics_total 0\n"), "{metrics}\n{log}");
        assert!(!log.contains("panicked"), "{log}");
        let requests = self.issuer.request_count();
        assert!(requests <= self.most_requests, "{requests} of {} requests\n{log}", self.most_requests);

        // Recovery, and whether what was there before has gone for it.
        let before = client.get(self.profile).await;
        let fresh = client.refresh(self.profile).await.unwrap_or_else(|status| panic!("{status:?}\n{log}"));
        let token = self.get(&client).await;
        assert_eq!(token.generation, fresh.generation);
        assert!(before.is_err() || before.is_ok_and(|old| old.generation != token.generation), "{log}");
        for _ in 0..20 {
            let again = self.client().await;
            assert_eq!(self.get(&again).await, token, "{log}");
        }
        if geteuid().is_root() {
            let stranger = self.client_of(STRANGER).await;
            for name in [self.profile, "invented", ""] {
                let refused = stranger.get(name).await.expect_err("a stranger");
                let denied = (Code::PermissionDenied, "NOT_ALLOWED".to_owned(), false);
                assert_eq!(refusal(&refused), denied, "{log}");
            }
            assert!(stranger.list().await.is_empty());
        }
        if self.process.is_some() && geteuid().is_root() {
            assert_eq!(self.get(&self.client_of(OTHER).await).await, token, "{log}");
        }
        // Whatever anybody was given, the provider has made.
        let given: Vec<_> = self.given.0.lock().unwrap().iter().cloned().collect();
        assert!(given.iter().all(|token| self.issuer.is_live(token)), "a token of nobody's\n{log}");

        let status = format!("{:?}", client.status().await.unwrap());
        let told = [log.as_str(), &client.metrics().await.unwrap(), &status];
        for canary in
            self.secrets.iter().copied().chain(given.iter().map(String::as_str)).chain([&*token.access_token])
        {
            assert!(told.iter().all(|text| !text.contains(canary)), "a secret or a token is told\n{log}");
        }
        drop(client);
        if let Some((pid, before)) = self.process {
            let is_back = timeout(HANG - Duration::from_secs(10), self.until_back(pid, before)).await.is_ok();
            assert!(is_back, "{before:?} and now {:?}\n{log}", open_files(pid));
            let after = Footprint::of(pid);
            assert!(after.resident_kib <= before.resident_kib + KEPT_KIB, "{before:?}, {after:?}\n{log}");
        }
    }

    async fn until_back(&self, pid: Pid, before: Footprint) {
        // No call meanwhile: a connection is a descriptor, or two.
        while Footprint::of(pid).descriptors > before.descriptors {
            tokio::task::yield_now().await;
        }
    }

    /// The token that is there; a valid one.
    async fn get(&self, client: &Client) -> bloom_agent::pb::Token {
        let token =
            client.get(self.profile).await.unwrap_or_else(|status| panic!("{status:?}\n{}", self.log));
        self.given.note(&token);
        let expires = token.expires_at.unwrap();
        let expires =
            WallTime::from_unix_millis(expires.seconds * 1000 + i64::from(expires.nanos) / 1_000_000);
        assert!(expires > self.clock.now().wall, "expired\n{}", self.log);
        assert!(self.issuer.is_live(&token.access_token), "not a token of the provider's\n{}", self.log);
        token
    }

    async fn client(&self) -> Client {
        Client::over(std::os::unix::net::UnixStream::connect(self.socket).unwrap()).await
    }

    async fn client_of(&self, uid: u32) -> Client {
        let connect = || std::os::unix::net::UnixStream::connect(self.socket).unwrap();
        Client::over(as_uid(uid, uid, &[], connect)).await
    }
}
