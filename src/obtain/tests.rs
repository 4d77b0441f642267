//! Attempts with scripted sources against a scripted provider on the loopback.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    join,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use zeroize::Zeroizing;

use super::*;
use crate::{
    clock::{Now, Timestamp, WallTime},
    http::Transport,
    oauth2::{AuthMethod, BodyFormat, Deviation, Endpoint, ScopeRule},
    source::{Reading, Stamp},
    token::{LifeSource, Scope},
};

/// A source whose content a test sets; each setting has a stamp of its own.
#[derive(Default)]
struct Scripted {
    content: Mutex<Option<(String, u64)>>,
    reads: AtomicU64,
}

impl Scripted {
    fn holding(text: &str) -> Arc<Self> {
        let source = Arc::new(Self::default());
        source.set(text);
        source
    }

    fn set(&self, text: &str) {
        let mut content = self.content.lock().unwrap();
        let number = content.as_ref().map_or(0, |(_, number)| number + 1);
        *content = Some((text.to_owned(), number));
    }

    fn remove(&self) {
        *self.content.lock().unwrap() = None;
    }
}

impl ReadSecret for Scripted {
    fn read(&self) -> Result<Reading, SourceFault> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        match &*self.content.lock().unwrap() {
            Some((text, _)) if text == "PANIC" => panic!("a source that panics"),
            Some((text, _)) if text == "BUSY" => Err(SourceFault {
                what: "cannot read file \"/s\"".to_owned(),
                why: "the system says: Too many open files".to_owned(),
                remedy: "raise LimitNOFILE= of the unit".to_owned(),
                nature: Nature::Passing,
            }),
            Some((text, number)) => Ok(Reading {
                secret: Secret::parse(Zeroizing::new(text.as_bytes().to_vec())).unwrap(),
                stamp: Stamp::numbered(*number),
            }),
            None => Err(SourceFault {
                what: "cannot read file \"/s\"".to_owned(),
                why: "it is readable by others (mode 0644)".to_owned(),
                remedy: "chmod 0600 /s".to_owned(),
                nature: Nature::Standing,
            }),
        }
    }

    fn describe(&self) -> String {
        "a script".to_owned()
    }
}

/// Each look at it is a second later.
#[derive(Default)]
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn now(&self) -> Now {
        let seconds = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        Now {
            boot: Timestamp::from_boot(Duration::from_secs(seconds)),
            wall: WallTime::from_unix_millis(i64::try_from(seconds * 1000).unwrap()),
        }
    }
}

struct Bench {
    listener: TcpListener,
    obtain: ProviderObtain,
}

impl Bench {
    async fn new(current: &Arc<Scripted>, next: Option<&Arc<Scripted>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client {
            endpoint: Endpoint::loopback(listener.local_addr().unwrap(), "/token").unwrap(),
            client_id: "id".into(),
            auth_method: AuthMethod::ClientSecretPost,
            body: BodyFormat::Form,
            audience: None,
            resource: Vec::new(),
            scopes: vec![Scope::parse("a").unwrap()],
            extra: Vec::new(),
        };
        let ca = rcgen::generate_simple_self_signed(["x.example".to_owned()]).unwrap().cert.pem();
        let transport = Transport { ca_file: Some(ca.into_bytes().into()), proxy: None };
        let obtain = ProviderObtain::new(ProviderParts {
            profile: ProfileName::parse("bloom").unwrap(),
            client,
            secret: Arc::clone(current) as Arc<dyn ReadSecret>,
            secret_next: next.map(|next| Arc::clone(next) as Arc<dyn ReadSecret>),
            readings: Readings::default(),
            rules: Rules { assumed_lifetime: Duration::from_secs(1234), scope: ScopeRule::Report },
            http: Arc::new(HttpClient::new(&transport).unwrap()),
            clock: Arc::new(Ticking::default()),
            keep: Arc::new(Bytes::copy_from_slice),
            deviates: Arc::new(|_| ()),
        });
        Self { listener, obtain }
    }

    /// One attempt, with an answer for each request that it is to make; returns the secrets that they carried.
    async fn attempt(&self, answers: &[&str]) -> (Outcome, Vec<String>) {
        let serve = async {
            let mut secrets = Vec::new();
            for answer in answers {
                let mut stream = self.listener.accept().await.unwrap().0;
                secrets.push(secret_of(&mut stream).await);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            secrets
        };
        let (outcome, secrets) = join!(self.obtain.obtain(), serve);
        // Long enough for the reactor to see what is in the backlog already.
        let more = timeout(Duration::from_millis(1), self.listener.accept()).await;
        assert!(more.is_err(), "a request too many");
        (outcome, secrets)
    }
}

/// Reads a request and returns its client_secret.
async fn secret_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(bytes).unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let parameters: Vec<_> = url::form_urlencoded::parse(&body).into_owned().collect();
    parameters.into_iter().find(|(name, _)| name == "client_secret").unwrap().1
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncache-control: no-store\r\n{headers}\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn granted() -> String {
    answer(200, "", r#"{"access_token":"tok","token_type":"Bearer","expires_in":3600}"#)
}

fn refused() -> String {
    answer(401, "", r#"{"error":"invalid_client"}"#)
}

fn failure(outcome: Outcome) -> (Failure, u32) {
    (outcome.result.unwrap_err(), outcome.requests)
}

#[tokio::test]
async fn a_life_starts_when_the_request_does() {
    let bench = Bench::new(&Scripted::holding("s1"), None).await;
    let (outcome, secrets) = bench.attempt(&[&granted()]).await;
    assert_eq!((outcome.requests, secrets), (1, vec!["s1".to_owned()]));
    let obtained = outcome.result.unwrap();
    assert_eq!(obtained.access_token.expose_secret(), "tok");
    assert_eq!(obtained.scopes, [Scope::parse("a").unwrap()]);
    // The clock was read for the first time before the request, for the second time after the answer.
    assert_eq!(obtained.life.requested.boot, Timestamp::from_boot(Duration::from_secs(1)));
    assert_eq!(obtained.life.expires(), Timestamp::from_boot(Duration::from_secs(3601)));
    assert_eq!(obtained.life.source, LifeSource::Provider);
}

#[tokio::test]
async fn a_token_without_a_life_gets_the_assumed_one_and_it_is_noted() {
    let bench = Bench::new(&Scripted::holding("s1"), None).await;
    let silent = answer(200, "", r#"{"access_token":"tok","token_type":"Bearer"}"#);
    let life = bench.attempt(&[&silent]).await.0.result.unwrap().life;
    assert_eq!((life.length.as_secs(), life.source), (1234, LifeSource::Assumed));
    assert_eq!(bench.obtain.deviations().iter().collect::<Vec<_>>(), [Deviation::AssumedLifetime]);
}

#[tokio::test]
async fn the_secret_is_read_anew_for_each_request() {
    let source = Scripted::holding("s1");
    let bench = Bench::new(&source, None).await;
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s1"]);
    source.set("s2");
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s2"]);
    assert_eq!(source.reads.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_refused_secret_is_followed_by_the_other_at_once() {
    let (current, next) = (Scripted::holding("s1"), Scripted::holding("s2"));
    let bench = Bench::new(&current, Some(&next)).await;
    let (outcome, secrets) = bench.attempt(&[&refused(), &granted()]).await;
    assert!(outcome.result.is_ok());
    assert_eq!((outcome.requests, secrets), (2, vec!["s1".to_owned(), "s2".to_owned()]));
}

#[tokio::test]
async fn the_secret_that_last_worked_goes_first_until_a_source_changes() {
    let (current, next) = (Scripted::holding("s1"), Scripted::holding("s2"));
    let bench = Bench::new(&current, Some(&next)).await;
    bench.attempt(&[&refused(), &granted()]).await;
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s2"]);
    // A passing fault changes nothing.
    bench.attempt(&[&answer(503, "", "")]).await;
    assert_eq!(bench.attempt(&[&refused(), &granted()]).await.1, ["s2", "s1"]);
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s1"]);
    bench.attempt(&[&refused(), &granted()]).await;
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s2"]);

    current.set("s3");
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s3"]);
    bench.attempt(&[&refused(), &granted()]).await;
    next.set("s4");
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s3"]);
}

#[tokio::test]
async fn however_often_a_secret_is_refused_its_mark_is_one() {
    let source = Scripted::holding("s1");
    let bench = Bench::new(&source, None).await;
    let first = bench.attempt(&[&refused()]).await.0.refused;
    assert!(first.is_some());
    assert_eq!(bench.attempt(&[&refused()]).await.0.refused, first);
    let other = Bench::new(&source, None).await;
    assert_ne!(other.attempt(&[&refused()]).await.0.refused, first, "another process has another key");
}

#[tokio::test]
async fn the_end_of_a_rotation_needs_no_token_without_a_secret() {
    let (current, next) = (Scripted::holding("old"), Scripted::holding("new"));
    let bench = Bench::new(&current, Some(&next)).await;
    bench.attempt(&[&refused(), &granted()]).await;
    current.remove();
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["new"]);
    current.set("new");
    next.remove();
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["new"]);
}

#[tokio::test]
async fn two_refused_secrets_are_one_failure() {
    let bench = Bench::new(&Scripted::holding("s1"), Some(&Scripted::holding("s2"))).await;
    let (outcome, secrets) = bench.attempt(&[&refused(), &refused()]).await;
    let (failure, requests) = failure(outcome);
    assert_eq!((requests, secrets.len()), (2, 2));
    assert_eq!((failure.kind, failure.schedule), (FailureKind::Refused, Schedule::Refusal));
    assert!(
        failure.text.ends_with("(client_secret and client_secret_next were both refused)"),
        "{}",
        failure.text
    );
}

#[tokio::test]
async fn the_outcome_of_the_other_secret_is_the_outcome() {
    let bench = Bench::new(&Scripted::holding("s1"), Some(&Scripted::holding("s2"))).await;
    let (failure, requests) = failure(bench.attempt(&[&refused(), &answer(503, "", "")]).await.0);
    assert_eq!((failure.schedule, requests), (Schedule::Transient, 2));
}

#[tokio::test]
async fn the_same_secret_twice_is_no_other() {
    let bench = Bench::new(&Scripted::holding("s1"), Some(&Scripted::holding("s1"))).await;
    assert_eq!(failure(bench.attempt(&[&refused()]).await.0).1, 1);
}

#[tokio::test]
async fn only_refused_credentials_are_the_others_chance() {
    let bench = Bench::new(&Scripted::holding("s1"), Some(&Scripted::holding("s2"))).await;
    for refusal in [
        answer(400, "", r#"{"error":"invalid_grant"}"#),
        answer(400, "", r#"{"error":"invalid_scope"}"#),
        answer(403, "", ""),
        answer(307, "location: http://127.0.0.1:1/\r\n", ""),
        answer(500, "", ""),
        answer(429, "", ""),
    ] {
        assert_eq!(bench.attempt(&[&refusal]).await.1, ["s1"], "{refusal}");
    }
}

#[tokio::test]
async fn a_provider_that_wants_quiet_gets_it_before_the_other_secret() {
    for refusal in [
        answer(401, "retry-after: 60\r\n", r#"{"error":"invalid_client"}"#),
        answer(429, "", r#"{"error":"invalid_client"}"#),
    ] {
        let bench = Bench::new(&Scripted::holding("s1"), Some(&Scripted::holding("s2"))).await;
        assert_eq!(bench.attempt(&[&refusal]).await.1, ["s1"], "{refusal}");
        assert_eq!(bench.attempt(&[&granted()]).await.1, ["s2"], "{refusal}");
    }
}

#[tokio::test]
async fn another_secret_that_does_not_read_is_mentioned() {
    let next = Scripted::holding("s2");
    next.remove();
    let bench = Bench::new(&Scripted::holding("s1"), Some(&next)).await;
    let (failure, requests) = failure(bench.attempt(&[&refused()]).await.0);
    assert_eq!(requests, 1);
    assert!(failure.text.ends_with("(client_secret_next cannot be read)"), "{}", failure.text);
}

#[tokio::test]
async fn a_secret_that_does_not_read_is_replaced_by_the_other() {
    let current = Scripted::holding("s1");
    current.remove();
    let bench = Bench::new(&current, Some(&Scripted::holding("s2"))).await;
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s2"]);
    current.set("s1");
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s1"]);
}

#[tokio::test]
async fn without_a_secret_nothing_is_sent() {
    let source = Scripted::holding("s1");
    let bench = Bench::new(&source, None).await;
    source.remove();
    let (failure_text, requests) = failure(bench.attempt(&[]).await.0);
    assert_eq!(requests, 0);
    assert_eq!(
        (failure_text.kind, failure_text.schedule),
        (FailureKind::SecretUnreadable, Schedule::Refusal)
    );
    assert_eq!(
        &*failure_text.text,
        "cannot read file \"/s\" / it is readable by others (mode 0644) / chmod 0600 /s"
    );
}

#[tokio::test]
async fn what_passes_by_itself_is_tried_again_soon_and_what_is_to_be_mended_is_not() {
    // Nothing stands for a source that is not there.
    for (current, next, schedule, told) in [
        ("BUSY", None, Schedule::Transient, "Too many"),
        ("PANIC", None, Schedule::Transient, "broke off"),
        ("", None, Schedule::Refusal, "mode 0644"),
        ("", Some(""), Schedule::Refusal, "mode 0644"),
        ("", Some("BUSY"), Schedule::Transient, "mode 0644"),
        ("BUSY", Some(""), Schedule::Transient, "Too many"),
    ] {
        let source = |text: &str| {
            let source = Scripted::holding(text);
            if text.is_empty() {
                source.remove();
            }
            source
        };
        let bench = Bench::new(&source(current), next.map(source).as_ref()).await;
        let (failure, requests) = failure(bench.attempt(&[]).await.0);
        assert_eq!(
            (failure.kind, failure.schedule, requests),
            (FailureKind::SecretUnreadable, schedule, 0),
            "{current} {next:?}"
        );
        assert!(failure.text.contains(told), "{}", failure.text);
    }
    let bench = Bench::new(&Scripted::holding("BUSY"), Some(&Scripted::holding("s2"))).await;
    assert_eq!(bench.attempt(&[&granted()]).await.1, ["s2"], "half a rotation is enough");
}

#[tokio::test]
async fn a_request_without_an_answer_counts_and_one_that_was_not_sent_does_not() {
    let bench = Bench::new(&Scripted::holding("s1"), Some(&Scripted::holding("s2"))).await;
    let (gone, requests) = failure(bench.attempt(&[""]).await.0);
    assert_eq!((gone.kind, gone.schedule, requests), (FailureKind::Unreachable, Schedule::Transient, 1));

    let Bench { listener, obtain } = bench;
    drop(listener);
    let (refused, requests) = failure(obtain.obtain().await);
    assert_eq!(
        (refused.kind, refused.schedule, requests),
        (FailureKind::Unreachable, Schedule::Transient, 0)
    );
}

#[tokio::test]
async fn a_reflected_secret_is_in_no_text() {
    let bench = Bench::new(&Scripted::holding("canary 1"), Some(&Scripted::holding("canary+2"))).await;
    let reflect = |status, secret: &str| {
        let body = format!(
            r#"{{"error":"invalid_client","error_description":"{secret} is wrong for id:{secret}"}}"#
        );
        answer(status, "", &body)
    };
    for (first, second) in [("canary 1", "canary+2"), ("canary+1", "canary%2B2")] {
        let (failure, _) = failure(bench.attempt(&[&reflect(401, first), &reflect(400, second)]).await.0);
        assert!(
            failure.text.contains("*** is wrong") && !failure.text.contains("canary"),
            "{}",
            failure.text
        );
    }
}
