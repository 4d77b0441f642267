//! The provider and the operator's secrets: what an attempt meets. Answers are HTTP's, and are read by the agent's own
//! reader; what they mean by the contract is written down beside each ([`Told`]), for the law.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    task::Poll,
    time::{Duration, UNIX_EPOCH},
};

use ::http::{HeaderMap, HeaderValue, header};
use bloom_agent::{
    clock::{Clock as _, Now},
    failure::{Failure, FailureKind, Schedule},
    oauth2::{Answer, AuthMethod, BodyEnd, BodyFormat, Client, Endpoint, Rules, ScopeRule, read},
    obtain::{Attempt, Obtain, Obtained, Outcome},
    rotator::{Changed, Changes},
    secret::Secret,
    stored::Mark,
    token::{Life, LifeSource},
};

use super::{DAY, HOUR, MINUTE, SECOND, dice::Dice, host::Host};

/// How the provider does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weather {
    Fair,
    /// Every answer is this one.
    Outage(Bad),
    /// So many of a hundred are bad, in any way.
    BrownOut(u64),
    /// So many of a hundred are 503.
    Random503(u64),
    /// Seven seconds up, seven seconds down.
    Flapping,
    /// One token a minute, 429 for the rest.
    OneAMinute,
    /// One request a minute, the refused ones counted, 429 for the rest.
    OneRequestAMinute,
    /// Answers take seconds, some too many.
    Slow,
}

/// An answer that brings no token.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bad {
    Refused,
    NoSuchHost,
    Reset,
    TimeOut,
    CutShort,
    Status(u16),
    Limited,
    NotJson,
    ErrorIn200,
    SlowDown,
    Redirect,
    InvalidClient,
    AccessDenied,
    InvalidScope,
    Forbidden,
    /// A fault of our own.
    Panic,
}

/// Those that a brown-out is made of, and outages.
pub(crate) const BAD: [Bad; 18] = [
    Bad::Refused,
    Bad::NoSuchHost,
    Bad::Reset,
    Bad::TimeOut,
    Bad::CutShort,
    Bad::Status(500),
    Bad::Status(502),
    Bad::Status(503),
    Bad::Status(504),
    Bad::Status(599),
    Bad::Status(408),
    Bad::Limited,
    Bad::NotJson,
    Bad::ErrorIn200,
    Bad::SlowDown,
    Bad::Redirect,
    Bad::InvalidScope,
    Bad::Forbidden,
];

/// What an answer means by the contract.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    /// A token: which, from when on it counts for the provider, and for how long.
    Token { serial: u64, minted: Duration, life: Life },
    /// None, and for how long the provider asked for silence.
    Failed(Schedule, Option<Duration>),
    /// We fell over it.
    Panicked,
    /// Nobody waited for it.
    Dropped,
}

/// What the provider saw.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    Started(Now),
    /// `changed` is whether the secrets are others by now than the attempt read.
    Ended {
        told: Told,
        took: Duration,
        requests: u32,
        changed: bool,
    },
}

/// The provider, and the secrets of the host. Clones are the same.
#[derive(Clone)]
pub(crate) struct Provider {
    book: Arc<Mutex<Book>>,
    host: Host,
    client: Arc<Client>,
}

pub(crate) struct Book {
    dice: Dice,
    pub(crate) weather: Weather,
    /// Until then (real).
    pub(crate) until: Duration,
    /// From when on (real) an attempt would bring a token, as far as is known.
    pub(crate) well_since: Duration,
    /// The life of the next token, in seconds.
    pub(crate) length: u64,
    pub(crate) caches: bool,
    issued: Option<(u64, Duration, u64)>,
    serial: u64,
    last_granted: Duration,
    last_asked: Duration,
    pub(crate) secrets: Secrets,
    /// When the answer to the request in flight comes.
    pub(crate) ends: Option<Duration>,
    /// Its connection did not outlive a sleep of the host.
    pub(crate) broken: bool,
    pub(crate) seen: Vec<Seen>,
    pub(crate) injected: BTreeMap<&'static str, u64>,
}

/// `client_secret` and `client_secret_next`, as numbers, and what the provider takes.
pub(crate) struct Secrets {
    /// None cannot be read; the second is none where there is no such key.
    pub(crate) files: [Option<u64>; 2],
    pub(crate) stamps: [u64; 2],
    /// What the last attempt read.
    pub(crate) read: Option<[u64; 2]>,
    preferred: (usize, [u64; 2]),
    /// From when on (real) the provider takes which, and until when.
    working: BTreeMap<u64, (Duration, Duration)>,
    newest: u64,
    /// Of what is in the files: a keyed digest, so it is not made for each attempt.
    mark: Option<Mark>,
}

impl Secrets {
    pub(crate) fn write(&mut self, file: usize, secret: Option<u64>) {
        self.files[file] = secret;
        self.stamps[file] += 1;
        self.mark = None;
    }

    /// A new secret, which the provider takes from then on.
    pub(crate) fn make(&mut self, from: Duration) -> u64 {
        self.newest += 1;
        self.working.insert(self.newest, (from, Duration::MAX));
        if let Some(old) = self.newest.checked_sub(4) {
            self.working.remove(&old);
        }
        self.newest
    }

    pub(crate) fn revoke(&mut self, secret: u64, at: Duration) {
        if let Some((_, until)) = self.working.get_mut(&secret) {
            *until = at.min(*until);
        }
    }

    fn takes(&self, secret: u64, at: Duration) -> bool {
        self.working.get(&secret).is_some_and(|(from, until)| (*from..*until).contains(&at))
    }

    fn texts(&self) -> [Option<Vec<u8>>; 2] {
        self.files.map(|file| file.map(|secret| format!("secret-{secret}").into_bytes()))
    }

    pub(crate) fn fit(&self, mark: &Mark) -> bool {
        let texts = self.texts();
        mark.fits(&[texts[0].as_deref(), texts[1].as_deref()])
    }

    fn mark(&mut self) -> Mark {
        if let Some(mark) = self.mark {
            return mark;
        }
        let texts = self.texts();
        let mark = Mark::of([7; 16], &[texts[0].as_deref(), texts[1].as_deref()]);
        self.mark = Some(mark);
        mark
    }
}

/// One exchange, before it is read.
struct Reply {
    took: Duration,
    requests: u32,
    refuses_the_secret: bool,
    what: What,
}

enum What {
    Token { serial: u64, minted: Duration, length: u64 },
    Http { status: u16, headers: HeaderMap, body: String, end: BodyEnd, schedule: Schedule, wish: Wish },
    Transport,
    Unreadable,
    Panic,
}

/// How long the provider asks us to wait.
#[derive(Clone, Copy)]
enum Wish {
    None,
    Seconds(u64),
    /// Until a Unix time by this host's clock: the answer has no Date.
    ByOurClock(u64),
}

impl Provider {
    pub(crate) fn new(seed: u64, host: Host, length: u64) -> Self {
        let mut secrets = Secrets {
            files: [Some(1), None],
            stamps: [0; 2],
            read: None,
            preferred: (0, [0; 2]),
            working: BTreeMap::new(),
            newest: 0,
            mark: None,
        };
        secrets.make(Duration::ZERO);
        let book = Book {
            dice: Dice(seed),
            weather: Weather::Fair,
            until: Duration::ZERO,
            well_since: Duration::ZERO,
            length,
            caches: false,
            issued: None,
            serial: 0,
            last_granted: Duration::ZERO,
            last_asked: Duration::ZERO,
            secrets,
            ends: None,
            broken: false,
            seen: Vec::new(),
            injected: BTreeMap::new(),
        };
        let client = Client {
            endpoint: Endpoint::parse("https://id.example.com/oauth2/token").unwrap(),
            client_id: "client".into(),
            auth_method: AuthMethod::default(),
            body: BodyFormat::default(),
            audience: None,
            resource: Vec::new(),
            scopes: Vec::new(),
            extra: Vec::new(),
        };
        Self { book: Arc::new(Mutex::new(book)), host, client: Arc::new(client) }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        // A panic of ours is one of the faults, and the provider does not mind.
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn begin(&self) -> Flight {
        let (now, real) = (self.host.now(), self.host.real());
        let unix = self.host.true_unix();
        let book = &mut *self.book();
        book.seen.push(Seen::Started(now));
        let (reply, mark) = book.attempt(real, unix);
        (book.ends, book.broken) = (Some(real + reply.took), false);
        let took = reply.took;
        Flight {
            provider: self.clone(),
            requested: now,
            ends: real + took,
            requests: reply.requests,
            took,
            reply: Some(reply),
            mark,
        }
    }
}

impl Book {
    pub(crate) fn note(&mut self, what: &'static str) {
        *self.injected.entry(what).or_default() += 1;
    }

    /// All that was granted is forgotten: the next token is another.
    pub(crate) fn forget_issued(&mut self) {
        self.issued = None;
    }

    /// The secrets are read, one is tried, and, where that is refused, the other.
    fn attempt(&mut self, real: Duration, unix: u64) -> (Reply, Mark) {
        let (files, stamps) = (self.secrets.files, self.secrets.stamps);
        self.secrets.read = Some(stamps);
        let mark = self.secrets.mark();
        let first = if self.secrets.preferred.1 == stamps { self.secrets.preferred.0 } else { 0 };
        let order = [first, 1 - first].map(|which| files[which].map(|secret| (which, secret)));
        let mut readable = order.into_iter().flatten();
        let Some((which, secret)) = readable.next() else {
            self.note("secret file unreadable");
            let (took, what) = (Duration::from_micros(50), What::Unreadable);
            return (Reply { took, requests: 0, refuses_the_secret: false, what }, mark);
        };
        let reply = self.exchange(real, unix, secret);
        if let What::Token { .. } = reply.what {
            self.secrets.preferred = (which, stamps);
        }
        let quiet = matches!(reply.what, What::Http { wish: Wish::Seconds(1..) | Wish::ByOurClock(_), .. });
        let other = readable.next().filter(|(_, other)| *other != secret);
        let Some((other, secret)) = other.filter(|_| reply.refuses_the_secret && !quiet) else {
            return (reply, mark);
        };
        let second = self.exchange(real + reply.took, unix, secret);
        if let What::Token { .. } = second.what {
            self.secrets.preferred = (other, stamps);
            self.note("the other secret is taken");
        }
        let took = reply.took + second.took;
        (Reply { took, requests: reply.requests + second.requests, ..second }, mark)
    }

    fn exchange(&mut self, real: Duration, unix: u64, secret: u64) -> Reply {
        if real >= self.until {
            self.weather = Weather::Fair;
        }
        let asked_before = std::mem::replace(&mut self.last_asked, real);
        let bad = match self.weather {
            Weather::Fair | Weather::Slow => None,
            Weather::Outage(bad) => Some(bad),
            Weather::BrownOut(share) => self.dice.percent(share).then(|| self.dice.pick(&BAD)),
            Weather::Random503(share) => self.dice.percent(share).then_some(Bad::Status(503)),
            Weather::Flapping => (real.as_secs() / 7).is_multiple_of(2).then_some(Bad::Status(502)),
            Weather::OneAMinute => (real < self.last_granted + MINUTE).then_some(Bad::Limited),
            Weather::OneRequestAMinute => (real < asked_before + MINUTE).then_some(Bad::Limited),
        };
        if let Some(bad) = bad {
            return self.refuse(bad, unix);
        }
        if !self.secrets.takes(secret, real) {
            self.note("secret refused");
            let bad = self.dice.pick(&[Bad::InvalidClient, Bad::AccessDenied]);
            return self.refuse(bad, unix);
        }
        let took = match self.weather {
            Weather::Slow => self.dice.between(SECOND, 12 * SECOND),
            _ if self.dice.percent(2) => self.dice.between(SECOND, 9 * SECOND),
            _ => self.dice.between(Duration::from_millis(20), SECOND),
        };
        if took > 10 * SECOND {
            return self.refuse(Bad::TimeOut, unix);
        }
        if took > SECOND {
            self.note("slow answer");
        }
        let minted = real + took / 2;
        self.last_granted = minted;
        let cached = self
            .issued
            .filter(|(_, at, length)| self.caches && *at + Duration::from_secs(*length) > minted + SECOND);
        let (serial, length) = match cached {
            Some((serial, at, length)) => {
                self.note("same token again");
                // Whole seconds, rounded down, as providers do.
                (serial, (at + Duration::from_secs(length) - minted).as_secs())
            }
            None => {
                self.serial += 1;
                self.issued = Some((self.serial, minted, self.length));
                (self.serial, self.length)
            }
        };
        if length < 30 {
            self.note("life under 30 s");
        }
        let what = What::Token { serial, minted, length };
        Reply { took, requests: 1, refuses_the_secret: false, what }
    }

    fn refuse(&mut self, bad: Bad, unix: u64) -> Reply {
        use Schedule::{RateLimited, Refusal, Transient};
        let quick = self.dice.between(Duration::from_millis(1), SECOND);
        let reply = |took, requests, what| Reply { took, requests, refuses_the_secret: false, what };
        let (name, status, body, schedule) = match bad {
            Bad::Refused => {
                self.note("connection refused");
                return reply(quick / 100, 0, What::Transport);
            }
            Bad::NoSuchHost => {
                self.note("no such host");
                return reply(quick, 0, What::Transport);
            }
            Bad::Reset => {
                self.note("connection reset after the request");
                // A token may have been minted.
                self.serial += 1;
                return reply(quick, 1, What::Transport);
            }
            Bad::TimeOut => {
                self.note("time-out of 10 s");
                return reply(10 * SECOND, 1, What::Transport);
            }
            Bad::Panic => {
                self.note("panic of our own");
                return reply(quick, 1, What::Panic);
            }
            Bad::CutShort => ("body cut short", 200, "{\"access_token\":\"t", Transient),
            Bad::Status(408) => ("408", 408, "", Transient),
            Bad::Status(status) => {
                let body = if status == 502 { "<html>Bad Gateway</html>" } else { "" };
                let name = match status {
                    500 => "500",
                    502 => "502 with HTML",
                    503 => "503",
                    504 => "504",
                    _ => "599",
                };
                (name, status, body, Transient)
            }
            Bad::Limited => ("429", 429, "{\"error\":\"access_denied\"}", RateLimited),
            Bad::NotJson => ("200 without JSON", 200, "<html>Sign in to this network</html>", Transient),
            Bad::ErrorIn200 => {
                ("200 with an error", 200, "{\"error\":\"server_error\",\"access_token\":\"x\"}", Transient)
            }
            Bad::SlowDown => ("400 slow_down", 400, "{\"error\":\"slow_down\"}", Transient),
            Bad::Redirect => ("302", 302, "", Refusal),
            Bad::InvalidClient => ("401 invalid_client", 401, "{\"error\":\"invalid_client\"}", Refusal),
            Bad::AccessDenied => ("401 access_denied", 401, "{\"error\":\"access_denied\"}", Refusal),
            Bad::InvalidScope => ("400 invalid_scope", 400, "{\"error\":\"invalid_scope\"}", Refusal),
            Bad::Forbidden => ("403", 403, "", Refusal),
        };
        self.note(name);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // A 200 that cannot be read is no answer to take a wish from.
        let readable = !matches!(bad, Bad::CutShort | Bad::NotJson);
        let may_wish = readable && (matches!(status, 429 | 503) || self.dice.percent(5));
        let wish = if may_wish && self.dice.percent(60) {
            self.wish(status, unix, &mut headers)
        } else {
            Wish::None
        };
        let cut = matches!(bad, Bad::CutShort);
        let end = if cut { BodyEnd::Broken("the connection was closed".into()) } else { BodyEnd::Whole };
        Reply {
            took: quick,
            requests: 1,
            refuses_the_secret: status == 401,
            what: What::Http { status, headers, body: body.into(), end, schedule, wish },
        }
    }

    /// Retry-After in all its forms, and what it comes to.
    fn wish(&mut self, status: u16, unix: u64, headers: &mut HeaderMap) -> Wish {
        let seconds =
            self.dice.pick(&[0, 1, 5, 30, 120, 300, 900, 3_600, 3_601, 86_400, 1_000_000_000_000_000_000]);
        let soon = self.dice.below(5_000);
        let date = |at: u64| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at));
        let (name, values, wish): (_, Vec<String>, _) = match self.dice.below(8) {
            0 | 1 => ("Retry-After in seconds", vec![seconds.to_string()], Wish::Seconds(seconds)),
            2 => ("two Retry-After", vec!["7".into(), seconds.to_string()], Wish::Seconds(seconds.max(7))),
            3 => {
                let garbage = self.dice.pick(&["-5", "soon", "1e3", "", "1.5", "+5"]);
                ("Retry-After that is garbage", vec![garbage.into()], Wish::None)
            }
            4 => {
                headers.insert(header::DATE, HeaderValue::try_from(date(unix)).unwrap());
                ("Retry-After as a date", vec![date(unix + soon)], Wish::Seconds(soon))
            }
            5 => {
                headers.insert(header::DATE, HeaderValue::try_from(date(unix)).unwrap());
                ("Retry-After in the past", vec![date(unix - soon)], Wish::None)
            }
            6 => {
                ("Retry-After as a date without Date", vec![date(unix + soon)], Wish::ByOurClock(unix + soon))
            }
            _ if status == 429 => {
                headers.insert("x-ratelimit-reset", HeaderValue::from(soon));
                ("X-RateLimit-Reset", Vec::new(), Wish::Seconds(soon))
            }
            _ => ("Retry-After in seconds", vec![seconds.to_string()], Wish::Seconds(seconds)),
        };
        self.note(name);
        for value in values {
            headers.append(header::RETRY_AFTER, HeaderValue::try_from(value).unwrap());
        }
        wish
    }
}

/// The request in flight.
struct Flight {
    provider: Provider,
    requested: Now,
    ends: Duration,
    took: Duration,
    requests: u32,
    reply: Option<Reply>,
    mark: Mark,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.reply.is_some() {
            let (took, requests) = (self.took, self.requests);
            let mut book = self.provider.book();
            book.ends = None;
            book.seen.push(Seen::Ended { told: Told::Dropped, took, requests, changed: false });
        }
    }
}

impl Flight {
    fn finish(mut self) -> Outcome {
        let Some(mut reply) = self.reply.take() else { unreachable!("a flight ends once") };
        if std::mem::take(&mut self.provider.book().broken) {
            reply.what = What::Transport;
        }
        let now = self.provider.host.now();
        let (told, result) = self.read(reply, now);
        let mut book = self.provider.book();
        book.ends = None;
        let (took, requests) = (self.provider.host.real() + self.took - self.ends, self.requests);
        let changed = book.secrets.read.is_some_and(|read| read != book.secrets.stamps);
        book.seen.push(Seen::Ended { told, took, requests, changed });
        drop(book);
        let Some(result) = result else { std::panic::resume_unwind(Box::new("a fault of our own")) };
        let is_refused = result.as_ref().is_err_and(|failure| failure.schedule == Schedule::Refusal);
        Outcome { result, requests, refused: is_refused.then_some(self.mark) }
    }

    fn read(&self, reply: Reply, now: Now) -> (Told, Option<Result<Obtained, Failure>>) {
        let failure =
            |kind, schedule| Failure { kind, schedule, retry_after: None, code: None, text: "x".into() };
        match reply.what {
            What::Panic => (Told::Panicked, None),
            What::Transport => {
                let failure = failure(FailureKind::Unreachable, Schedule::Transient);
                (Told::Failed(Schedule::Transient, None), Some(Err(failure)))
            }
            What::Unreadable => {
                let failure = failure(FailureKind::SecretUnreadable, Schedule::Refusal);
                (Told::Failed(Schedule::Refusal, None), Some(Err(failure)))
            }
            What::Token { serial, minted, length } => {
                let body = format!(
                    "{{\"access_token\":\"t{serial}\",\"token_type\":\"Bearer\",\"expires_in\":{length}}}"
                );
                let mut headers = HeaderMap::new();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                let length = Duration::from_secs(length).min(30 * DAY);
                let life = Life { requested: self.requested, length, source: LifeSource::Provider };
                let result = self.judge(200, &headers, &body, &BodyEnd::Whole, now);
                (Told::Token { serial, minted, life }, Some(result))
            }
            What::Http { status, headers, body, end, schedule, wish } => {
                let result = self.judge(status, &headers, &body, &end, now);
                let asked = match wish {
                    Wish::None => None,
                    Wish::Seconds(seconds) => Some(Duration::from_secs(seconds)),
                    Wish::ByOurClock(unix) => {
                        let left = unix as i64 * 1_000 - now.wall.unix_millis().max(0);
                        Some(Duration::from_millis(left.max(0).unsigned_abs()))
                    }
                };
                let asked = asked.filter(|asked| !asked.is_zero()).map(|asked| asked.min(HOUR));
                (Told::Failed(schedule, asked), Some(result))
            }
        }
    }

    /// The agent's own reader.
    fn judge(
        &self,
        status: u16,
        headers: &HeaderMap,
        body: &str,
        end: &BodyEnd,
        now: Now,
    ) -> Result<Obtained, Failure> {
        let client = &*self.provider.client;
        let rules = Rules { assumed_lifetime: HOUR, scope: ScopeRule::Report };
        let answer = Answer { status, headers, body: body.as_bytes(), end };
        read(&answer, client, &rules, now.wall, &bytes::Bytes::copy_from_slice)
            .map(|grant| {
                let life = Life { requested: self.requested, length: grant.length, source: grant.source };
                Obtained { access_token: grant.access_token, scopes: grant.scopes, life }
            })
            .map_err(|rejection| {
                let secret = Secret::parse(b"secret-1".to_vec().into()).unwrap();
                rejection.into_failure(client, &secret)
            })
    }
}

impl Obtain for Provider {
    fn obtain(&self) -> Attempt<'_> {
        let provider = self.clone();
        Box::pin(async move {
            let flight = provider.begin();
            std::future::poll_fn(|_| {
                if provider.host.real() >= flight.ends { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            flight.finish()
        })
    }
}

impl Changes for Provider {
    fn changed(&self) -> Changed<'_> {
        Box::pin(std::future::poll_fn(|_| {
            let secrets = &self.book().secrets;
            if secrets.read.is_some_and(|read| read != secrets.stamps) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }))
    }

    fn changed_since(&self, mark: Mark) -> Changed<'_> {
        let mut book = self.book();
        // Of this process nothing has been read: what is there now is what later changes are measured by.
        let fits = book.secrets.fit(&mark);
        book.secrets.read = if fits { Some(book.secrets.stamps) } else { Some([u64::MAX; 2]) };
        drop(book);
        self.changed()
    }
}
