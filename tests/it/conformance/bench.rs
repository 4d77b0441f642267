//! A whole agent with one profile, whose provider answers what a row says; and what holds of every answer, whichever row
//! it is in.

use std::{cell::RefCell, collections::BTreeMap, ops::RangeInclusive, time::Duration};

use bloom_agent::{
    clock::Clock as _,
    config::{self, Kind, SourceFile},
    dev_issuer::{Fault, Recorded, Reply},
    failure::FailureKind,
    pb,
    refresh::schedule::FLOOR,
    store::Attempts,
};
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::support::{Agent, BLOOM, Client, SECRET, Setting, profile};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// The agent, a caller, and what must have come to light, or not, when the row is over.
pub(super) struct Bench {
    pub(super) agent: Agent,
    pub(super) client: Client,
    /// Failures that the log must tell of.
    told: RefCell<Vec<String>>,
    /// Failures by the label of their metric.
    failed: RefCell<BTreeMap<&'static str, u64>>,
    /// What must be nowhere.
    canaries: RefCell<Vec<String>>,
}

/// What an answer without a token must come to.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    kind: FailureKind,
    /// The label of the metric.
    outcome: &'static str,
    /// What callers see.
    shown: pb::FailureKind,
    /// When the agent asks again, after the first failure.
    pause: RangeInclusive<Duration>,
}

const TRANSIENT: RangeInclusive<Duration> = Duration::from_millis(100)..=SECOND;

/// The answer cannot be used, or says that it passes: full jitter under 1 s.
pub(super) const PASSING: Verdict = Verdict {
    kind: FailureKind::ProviderError,
    outcome: "provider_error",
    shown: pb::FailureKind::ProviderError,
    pause: TRANSIENT,
};
/// There is no whole answer: the same schedule.
pub(super) const UNREACHABLE: Verdict = Verdict {
    kind: FailureKind::Unreachable,
    outcome: "unreachable",
    shown: pb::FailureKind::ProviderUnreachable,
    pause: TRANSIENT,
};
/// 429: silence for 30 s, then as above from 30 s.
pub(super) const LIMITED: Verdict =
    Verdict { pause: Duration::from_secs(33)..=Duration::from_secs(60), ..PASSING };
/// Somebody has to mend something: 30 s.
pub(super) const REFUSED: Verdict = Verdict {
    kind: FailureKind::Refused,
    outcome: "refused",
    shown: pb::FailureKind::ProviderRefused,
    pause: Duration::from_secs(30)..=Duration::from_secs(30),
};

impl Verdict {
    /// The same after a Retry-After of so many seconds.
    pub(super) fn after(mut self, seconds: u64) -> Self {
        let asked = Duration::from_secs(seconds);
        self.pause = if self.kind == FailureKind::Refused {
            asked.max(*self.pause.start())..=asked.max(*self.pause.end())
        } else {
            asked + *TRANSIENT.start()..=asked + *TRANSIENT.end()
        };
        self
    }
}

impl Bench {
    /// With a token of an hour.
    pub(super) async fn new() -> Self {
        Self::with("").await
    }

    /// The same with further lines of the profile.
    pub(super) async fn with(lines: &str) -> Self {
        Self::start(Setting { tokens: profile(BLOOM, lines), ..Setting::default() }).await
    }

    /// The same; the first attempt must bring a token.
    pub(super) async fn start(setting: Setting) -> Self {
        let bench = Self::begin(setting).await;
        bench.client.get(BLOOM).await.expect("the first token");
        bench
    }

    /// Whatever the first attempt brings.
    pub(super) async fn begin(setting: Setting) -> Self {
        let agent = Agent::start_with(setting).await;
        let client = agent.client().await;
        Self {
            agent,
            client,
            told: RefCell::default(),
            failed: RefCell::default(),
            canaries: RefCell::new(vec![SECRET.to_owned()]),
        }
    }

    /// What must be in no log, no status and no metric.
    pub(super) fn hide(&self, canary: &str) {
        self.canaries.borrow_mut().push(canary.to_owned());
    }

    pub(super) async fn token(&self) -> pb::Token {
        self.client.get(BLOOM).await.expect("a token is there")
    }

    /// The newest request that the issuer got.
    pub(super) fn last_request(&self) -> Recorded {
        self.agent.issuer.requests().pop().expect("a request")
    }

    /// The next attempt is answered so, and brings another token.
    pub(super) async fn accepts(&self, what: &str, reply: Reply) -> pb::Token {
        self.agent.issuer.push_fault(Fault::reply(reply));
        let before = self.token().await;
        let attempts = self.agent.pass_an_attempt(BLOOM).await;
        let after = self.token().await;
        assert_eq!(attempts.consecutive_failures, 0, "{what}: {:?}", failure_text(&attempts));
        assert!(after.generation > before.generation, "{what}: it is a rotation");
        after
    }

    /// The next attempt is answered so, and comes to `verdict`; then the provider is well again. Returns the failure's line.
    pub(super) async fn rejects(&self, what: &str, fault: Fault, verdict: Verdict) -> String {
        self.agent.issuer.push_fault(fault);
        let text = self.fails(what, verdict, async {}).await;
        self.recovers(what).await;
        text
    }

    /// The same of a status with an empty body, or of any other reply.
    pub(super) async fn rejects_reply(&self, what: &str, reply: Reply, verdict: Verdict) -> String {
        self.rejects(what, Fault::reply(reply), verdict).await
    }

    /// The next attempt, during which `serve` is done, comes to `verdict`. Whatever is wrong, the token that is there stays
    /// there; the failure is counted, logged, shown to callers by its kind and to admins by its text, and there is a next
    /// attempt at the moment that its schedule says.
    pub(super) async fn fails(&self, what: &str, verdict: Verdict, serve: impl Future) -> String {
        let Verdict { kind, outcome, shown, pause } = verdict;
        let held = self.client.get(BLOOM).await.ok();
        let failures = self.agent.attempts(BLOOM).consecutive_failures;

        let (attempts, _) = tokio::join!(self.agent.pass_an_attempt(BLOOM), serve);

        let failure = attempts.last_failure.as_ref().unwrap_or_else(|| panic!("{what}: it was accepted"));
        let failure = &failure.0;
        assert_eq!(failure.kind, kind, "{what}: {}", failure.text);
        assert_eq!(attempts.consecutive_failures, failures + 1, "{what}");
        let wait = self.agent.next_attempt(BLOOM).await.since(self.agent.time.now().boot);
        // A share of a window is rounded to the nanosecond.
        assert!(
            failures > 0 || (*pause.start() - Duration::from_nanos(1)..=*pause.end()).contains(&wait),
            "{what}: asks again after {wait:?}, not {pause:?}: {}",
            failure.text
        );
        if let Some(held) = held {
            assert_eq!(
                self.client.get(BLOOM).await.ok(),
                Some(held),
                "{what}: the token that is there stays"
            );
        }
        let text = failure.text.to_string();
        let status = self.client.status().await.unwrap().profiles.remove(0);
        assert_eq!(status.token.unwrap().last_failure(), shown, "{what}: callers see the kind");
        assert_eq!(status.last_failure_text, text, "{what}: admins see the text");
        let is_line = text.bytes().all(|b| matches!(b, b' '..=b'~')) && text.matches(" / ").count() == 2;
        assert!(is_line, "{what}: what, why and what to do, in one line: {text}");
        self.told.borrow_mut().push(text.clone());
        *self.failed.borrow_mut().entry(outcome).or_default() += 1;
        text
    }

    /// The next attempt brings a token.
    pub(super) async fn recovers(&self, what: &str) {
        let attempts = self.agent.pass_an_attempt(BLOOM).await;
        assert_eq!(attempts.consecutive_failures, 0, "{what}: {:?}", failure_text(&attempts));
    }

    /// A line of the metrics; 0 where there is none.
    pub(super) async fn metric(&self, series: &str) -> u64 {
        let text = self.client.metrics().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// How often an answer was taken that departs from the RFC in this way.
    pub(super) async fn deviations(&self, kind: &str) -> u64 {
        let series = format!("bloom_agent_provider_deviations_total{{profile=\"{BLOOM}\",kind=\"{kind}\"}}");
        self.metric(&series).await
    }

    /// What an operator can see, without what only `GetToken` and `WatchToken` show.
    pub(super) async fn all_that_is_shown(&self) -> String {
        let status = self.client.status().await.unwrap();
        let (list, metrics) = (self.client.list().await, self.client.metrics().await.unwrap());
        format!("{}\n{status:?}\n{list:?}\n{metrics}", self.agent.log())
    }

    /// Looks once more at everything, and ends the agent.
    pub(super) async fn end(self) {
        let log = self.agent.log();
        for text in self.told.take() {
            assert!(log.contains(text.as_str()), "the log does not tell: {text}");
        }
        for (outcome, count) in self.failed.take() {
            let series = format!("bloom_agent_refreshes_total{{profile=\"{BLOOM}\",outcome=\"{outcome}\"}}");
            assert!(self.metric(&series).await >= count, "each failure is counted: {count} times {outcome}");
        }
        let shown = self.all_that_is_shown().await;
        for canary in self.canaries.take() {
            assert!(!shown.contains(canary.as_str()), "it got out: {canary}");
        }
        assert!(!log.contains("panic"), "{log}");
        assert_eq!(self.metric("bloom_agent_panics_total").await, 0);
        self.agent.stop().await;
    }
}

/// The last failure's line.
pub(super) fn failure_text(attempts: &Attempts) -> Option<String> {
    attempts.last_failure.as_ref().map(|failure| failure.0.text.to_string())
}

/// A good answer with these members in the place of its own, or beside them; a value is JSON, and empty takes the member
/// out. Each is of another token.
pub(super) fn answer(changes: &[(&str, &str)]) -> Reply {
    Reply::json(StatusCode::OK, body(changes))
}

/// The body of [`answer`].
pub(super) fn body(changes: &[(&str, &str)]) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let token = format!("\"conformance.{}\"", NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut members = vec![
        ("access_token", token.as_str()),
        ("token_type", "\"bearer\""),
        ("expires_in", "3600"),
        ("scope", "\"data-access:all\""),
    ];
    for change in changes {
        match members.iter_mut().find(|member| member.0 == change.0) {
            Some(member) => *member = *change,
            None => members.push(*change),
        }
    }
    let members = members.iter().filter(|(_, value)| !value.is_empty());
    let members: Vec<_> = members.map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// A JSON answer with another status.
pub(super) fn status(status: u16, body: &str) -> Reply {
    Reply::json(StatusCode::from_u16(status).unwrap(), body.to_owned())
}

/// An error answer (RFC 6749 §5.2).
pub(super) fn error(code: u16, error: &str) -> Reply {
    status(code, &format!("{{\"error\":\"{error}\"}}"))
}

/// The same with this header in the place of those of its name.
pub(super) fn with_header(mut reply: Reply, name: &str, value: &[u8]) -> Reply {
    reply.headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap());
    reply
}

/// The same without it.
pub(super) fn without_header(mut reply: Reply, name: HeaderName) -> Reply {
    reply.headers.remove(name);
    reply
}

/// A moment as a header has it.
pub(super) fn http_date(unix_seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(unix_seconds).unwrap());
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + since)
}

/// The parameters of a form, in their order.
pub(super) fn form(request: &Recorded) -> Vec<(String, String)> {
    url::form_urlencoded::parse(&request.body).into_owned().collect()
}

/// The Authorization header, decoded from Base64.
pub(super) fn basic(request: &Recorded) -> Option<String> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let header = request.headers.get(header::AUTHORIZATION)?.to_str().unwrap();
    let decoded = BASE64_STANDARD.decode(header.strip_prefix("Basic ").expect("Basic")).unwrap();
    Some(String::from_utf8(decoded).unwrap())
}

/// What is wrong with a profile of these lines; empty where nothing is. `lines` may hold `provider` and what it needs.
pub(super) fn faults_of(lines: &str) -> String {
    let has = |key: &str| lines.lines().any(|line| line.starts_with(key));
    let unless = |key: &str, line: &str| if has(key) { String::new() } else { format!("{line}\n") };
    let text = format!(
        "[tokens.a]\n{}{}{}{}{lines}\n",
        unless("provider", "provider = 'oauth2'"),
        unless("token_url", "token_url = 'https://id.example.com/token'"),
        unless("client_id", "client_id = 'id'"),
        unless("client_secret", "client_secret.file = '/s'"),
    );
    let source = SourceFile { name: "config.toml".into(), text, kind: Kind::Main };
    config::read(&[source]).err().map_or(String::new(), |problems| problems.to_string())
}

/// Fails unless these lines are one fault, of this key, that says so; the values are in no message.
pub(super) fn assert_fault(lines: &str, key: &str, says: &str) {
    let told = faults_of(lines);
    let is_told =
        told.lines().count() == 1 && told.contains(&format!("tokens.a.{key}")) && told.contains(says);
    assert!(is_told, "{lines}: {told:?} does not say {says:?} of {key}");
    assert!(!told.contains("c4n4ry"), "{told}");
}

/// The least time between two successful fetches.
pub(super) const LEAST: Duration = FLOOR;
