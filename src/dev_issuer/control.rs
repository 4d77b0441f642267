//! What the server remembers, and the handle by which a test watches and disturbs it.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Dialect, Options,
    answer::{self, Refusal, Reply, judge, new_token},
    fault::{Change, Fault},
    request::TokenRequest,
};

/// How many requests are remembered: the newest. All are counted.
pub const MAX_RECORDED: usize = 1000;
/// How many tokens are known again: after that, the oldest are forgotten all at once.
const MAX_TOKENS: usize = 100_000;

/// One request as it came. It holds a secret and does not print.
#[derive(Clone)]
pub struct Recorded {
    /// The method.
    pub method: Method,
    /// The request target: path and query.
    pub target: String,
    /// The headers, in order.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("method", &self.method).finish_non_exhaustive()
    }
}

/// Whether the server is there at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outage {
    /// It is.
    #[default]
    Up,
    /// Connections are reset, new and old ones; nothing is recorded.
    Refuse,
    /// Requests are taken and recorded, and answered when it is up again.
    Hang,
}

/// What one server shares with its connections and its controls.
pub(super) struct State {
    dialect: Dialect,
    book: Mutex<Book>,
    /// Requests that came.
    arrived: watch::Sender<u64>,
    /// Calls of release.
    released: watch::Sender<u64>,
    outage: watch::Sender<Outage>,
    stop: CancellationToken,
}

struct Book {
    options: Options,
    recorded: VecDeque<Recorded>,
    faults: VecDeque<Fault>,
    rule: Option<Fault>,
    tokens: HashSet<String>,
    last_token: Option<String>,
    granted: u64,
}

/// Whether a request uses up a fault: only token requests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spend {
    OneFault,
    Nothing,
}

/// Waits for the next release.
pub(super) struct Release(watch::Receiver<u64>);

impl Release {
    pub(super) async fn wait(&mut self) {
        // The server is gone: nobody reads the answer either.
        let _gone = self.0.changed().await;
    }
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        let book = Book {
            recorded: VecDeque::new(),
            faults: VecDeque::new(),
            rule: None,
            tokens: HashSet::new(),
            last_token: None,
            granted: 0,
            options,
        };
        Self {
            dialect: book.options.dialect,
            book: Mutex::new(book),
            arrived: watch::Sender::default(),
            released: watch::Sender::default(),
            outage: watch::Sender::default(),
            stop: CancellationToken::new(),
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(super) fn outage(&self) -> Outage {
        *self.outage.borrow()
    }

    /// Waits while it hangs.
    pub(super) async fn up_again(&self) {
        // The sender is ours: no other end than the state that is waited for.
        let mut outage = self.outage.subscribe();
        let _up = outage.wait_for(|outage| *outage != Outage::Hang).await;
    }

    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    pub(super) fn release(&self) -> Release {
        Release(self.released.subscribe())
    }

    /// Remembers the request, counts it, and says what is to happen to it.
    pub(super) fn record(&self, request: Recorded, spend: Spend) -> Option<Fault> {
        let mut book = self.book();
        if book.recorded.len() == MAX_RECORDED {
            book.recorded.pop_front();
        }
        book.recorded.push_back(request);
        let fault = match spend {
            Spend::OneFault => book.faults.pop_front().or_else(|| book.rule.clone()),
            Spend::Nothing => None,
        };
        drop(book);
        self.arrived.send_modify(|count| *count += 1);
        fault
    }

    pub(super) fn answer(&self, headers: &HeaderMap, body: &[u8], change: Change) -> Reply {
        let request = TokenRequest::read(self.dialect, headers, body).map_err(Refusal::Unreadable);
        let mut book = self.book();
        let judged = request.and_then(|request| judge(&book.options, &request));
        match judged {
            Err(refusal) => answer::refused(self.dialect, &refusal),
            Ok(scopes) => {
                let lifetime = match change {
                    Change::Lifetime(lifetime) => lifetime,
                    Change::None | Change::SameToken => book.options.lifetime,
                };
                let again = book.last_token.clone().filter(|_| matches!(change, Change::SameToken));
                let token = again.unwrap_or_else(|| book.mint());
                book.granted += 1;
                answer::granted(self.dialect, &token, &scopes, lifetime.as_secs())
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("dialect", &self.dialect).finish_non_exhaustive()
    }
}

impl Book {
    fn mint(&mut self) -> String {
        if self.tokens.len() >= MAX_TOKENS {
            self.tokens.clear();
        }
        let token = new_token();
        self.tokens.insert(token.clone());
        self.last_token = Some(token.clone());
        token
    }
}

/// The handle. Clones are the same one; they may outlive the server.
#[derive(Clone, Debug)]
pub struct Control(Arc<State>);

impl Control {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// The newest requests, at most [`MAX_RECORDED`], the oldest first. Those to other paths are among them.
    pub fn requests(&self) -> Vec<Recorded> {
        self.0.book().recorded.iter().cloned().collect()
    }

    /// How many requests came, to any path, whatever was answered.
    pub fn request_count(&self) -> u64 {
        *self.0.arrived.borrow()
    }

    /// Waits until that many requests have come. Their answers may still be under way.
    pub async fn wait_for_request(&self, count: u64) {
        // The sender lives as long as this handle: no other end than the count.
        let mut arrived = self.0.arrived.subscribe();
        let _reached = arrived.wait_for(|arrived| *arrived >= count).await;
    }

    /// How many tokens it granted.
    pub fn granted_count(&self) -> u64 {
        self.0.book().granted
    }

    /// Whether it made this token and has not taken it back.
    pub fn is_live(&self, token: &str) -> bool {
        self.0.book().tokens.contains(token)
    }

    /// Takes a token back, as an operator at the provider can: the API would answer 401 to it from now on.
    pub fn revoke(&self, token: &str) {
        self.0.book().tokens.remove(token);
    }

    /// Makes a live token, for an answer that a test writes itself.
    pub fn mint(&self) -> String {
        self.0.book().mint()
    }

    /// What happens to the next token request that has no fault yet.
    pub fn push_fault(&self, fault: Fault) {
        self.0.book().faults.push_back(fault);
    }

    /// What happens to every token request for which nothing was pushed.
    pub fn set_rule(&self, rule: Option<Fault>) {
        self.0.book().rule = rule;
    }

    /// Lets everything go that is held or stalled now.
    pub fn release(&self) {
        self.0.released.send_modify(|count| *count += 1);
    }

    /// Takes the server down, or brings it back.
    pub fn set_outage(&self, outage: Outage) {
        self.0.outage.send_replace(outage);
    }

    /// `expires_in` from now on, in whole seconds.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.0.book().options.lifetime = lifetime;
    }

    /// The secrets that are accepted from now on.
    pub fn set_secrets<S: Into<String>>(&self, secrets: impl IntoIterator<Item = S>) {
        self.0.book().options.secrets = secrets.into_iter().map(Into::into).collect();
    }

    /// Ends the server and its connections.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }
}
