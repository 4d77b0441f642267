//! Asking a provider: reads the secret, sends the request, reads the answer, and forgets the secret.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tracing::{info, warn};

use super::{
    Attempt, Obtain, Obtained, Outcome,
    turn::{Other, Secrets, Turn, Which},
};
use crate::{
    clock::Clock,
    failure::{Failure, FailureKind, Schedule},
    http::{HttpClient, Reached},
    oauth2::{self, Client, Credentials, Deviation, Deviations, Rules, words::line},
    secret::Secret,
    source::{Gated, Nature, ReadSecret, Readings, SourceFault},
    stored::Mark,
    token::{Life, ProfileName},
};

/// Copies a token to the memory where it stays.
pub type Keep = Arc<dyn Fn(&[u8]) -> Bytes + Send + Sync>;

/// Hears of a deviation, each time.
pub type Deviates = Arc<dyn Fn(Deviation) + Send + Sync>;

/// What a [`ProviderObtain`] is made of.
pub struct ProviderParts {
    /// Whose token it is, for the log.
    pub profile: ProfileName,
    /// Everything of the request but the secret.
    pub client: Client,
    /// `client_secret`.
    pub secret: Arc<dyn ReadSecret>,
    /// `client_secret_next`.
    pub secret_next: Option<Arc<dyn ReadSecret>>,
    /// Who else reads secrets in this process: together they block a few threads and no more.
    pub readings: Readings,
    /// How an answer is read.
    pub rules: Rules,
    /// The way there. Profiles with equal transports can share one.
    pub http: Arc<HttpClient>,
    /// What a life is counted on.
    pub clock: Arc<dyn Clock>,
    /// Where tokens stay.
    pub keep: Keep,
    /// Told of each answer that was taken although it departs from the RFC.
    pub deviates: Deviates,
}

/// Gets tokens of one profile from its provider.
pub struct ProviderObtain {
    profile: ProfileName,
    client: Client,
    secrets: Secrets,
    rules: Rules,
    http: Arc<HttpClient>,
    clock: Arc<dyn Clock>,
    keep: Keep,
    deviates: Deviates,
    deviations: Mutex<Deviations>,
    /// Of all marks: under a new one each time, enough marks of one secret would confirm a guess of it.
    key: [u8; 16],
}

/// How one exchange ended. A refusal of the credentials may be another secret's chance.
struct Exchange {
    result: Result<Obtained, (Credentials, Failure)>,
    requests: u32,
}

impl Obtain for ProviderObtain {
    fn obtain(&self) -> Attempt<'_> {
        Box::pin(self.attempt())
    }
}

impl ProviderObtain {
    /// Puts the parts together. Nothing is read or sent.
    pub fn new(parts: ProviderParts) -> Self {
        let gated = |source| Gated::new(source, parts.readings.clone());
        Self {
            profile: parts.profile,
            client: parts.client,
            secrets: Secrets::new(gated(parts.secret), parts.secret_next.map(gated)),
            rules: parts.rules,
            http: parts.http,
            clock: parts.clock,
            keep: parts.keep,
            deviates: parts.deviates,
            deviations: Mutex::default(),
            key: rand::random(),
        }
    }

    /// What was unusual in the answers so far.
    pub fn deviations(&self) -> Deviations {
        *self.deviations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends at the first sign that a source of the secrets holds something else than the last attempt found. A hint: see
    /// [`Gated::changed`].
    pub async fn secret_changed(&self) {
        self.secrets.changed().await;
    }

    /// The same, against what a process before this one was refused with.
    pub async fn secret_changed_since(&self, mark: Mark) {
        if self.secrets.fit(&mark).await {
            self.secrets.changed().await;
        }
    }

    async fn attempt(&self) -> Outcome {
        let (mark, turn) = self.secrets.begin(self.key).await;
        let (result, requests) = match turn {
            Ok(turn) => self.take(turn).await,
            Err(fault) => (Err(unreadable(&fault)), 0),
        };
        let is_refused = result.as_ref().is_err_and(|failure| failure.schedule == Schedule::Refusal);
        Outcome { result, requests, refused: is_refused.then_some(mark) }
    }

    /// What a turn brings, and the requests that it takes.
    async fn take(&self, turn: Turn) -> (Result<Obtained, Failure>, u32) {
        let (reading, first, other, stamps) = turn.into_parts();
        if let (Which::Next, Other::Unreadable(which, fault)) = (first, &other) {
            let text = line(&fault.what, &fault.why, &fault.remedy);
            warn!(profile = %self.profile, "{} is used: {} cannot be read: {text}", first.key(), which.key());
        }
        let exchange = self.exchange(&reading.secret).await;
        drop(reading);
        let requests = exchange.requests;
        let failure = match exchange.result {
            Ok(obtained) => {
                self.secrets.prefer(first, stamps);
                return (Ok(obtained), requests);
            }
            Err((Credentials::NotJudged, failure)) => return (Err(failure), requests),
            Err((Credentials::Refused, failure)) => failure,
        };
        let other = match other {
            Other::Secret(which) => which,
            Other::None => return (Err(failure), requests),
            Other::Unreadable(which, _) => {
                let failure = noted(failure, &format!("{} cannot be read", which.key()));
                return (Err(failure), requests);
            }
        };
        if failure.retry_after.is_some() || failure.schedule == Schedule::RateLimited {
            // The provider wants quiet first; then it is the other one's turn.
            self.secrets.prefer(other, stamps);
            return (Err(failure), requests);
        }
        let Ok(reading) = self.secrets.read(other).await else {
            return (Err(failure), requests);
        };
        let exchange = self.exchange(&reading.secret).await;
        let result = exchange.result.map_err(|(credentials, failure)| match credentials {
            Credentials::Refused => noted(failure, "client_secret and client_secret_next were both refused"),
            Credentials::NotJudged => failure,
        });
        if result.is_ok() {
            info!(profile = %self.profile, "the provider refused {} and takes {}", first.key(), other.key());
            self.secrets.prefer(other, stamps);
        }
        (result, requests + exchange.requests)
    }

    /// One request with `secret`, and what came of it.
    async fn exchange(&self, secret: &Secret) -> Exchange {
        let request = oauth2::encode(&self.client, secret);
        let requested = self.clock.now();
        let answered = match self.http.post(&self.client.endpoint, request).await {
            Ok(answered) => answered,
            Err(fault) => {
                let requests = u32::from(fault.reached() == Reached::Perhaps);
                let failure = fault.into_failure(&self.client.endpoint);
                return Exchange { result: Err((Credentials::NotJudged, failure)), requests };
            }
        };
        let wall = self.clock.now().wall;
        let result = oauth2::read(&answered.as_answer(), &self.client, &self.rules, wall, &*self.keep)
            .map(|grant| {
                self.note(grant.deviations);
                let life = Life { requested, length: grant.length, source: grant.source };
                Obtained { access_token: grant.access_token, scopes: grant.scopes, life }
            })
            .map_err(|rejection| (rejection.credentials, rejection.into_failure(&self.client, secret)));
        Exchange { result, requests: 1 }
    }

    /// Tells of each, and logs what was not seen before.
    fn note(&self, deviations: Deviations) {
        deviations.iter().for_each(|deviation| (self.deviates)(deviation));
        let new = self.deviations.lock().unwrap_or_else(PoisonError::into_inner).extend(deviations);
        for deviation in new.iter() {
            if deviation.concerns_the_operator() {
                warn!(profile = %self.profile, deviation = deviation.label(), "{}", deviation.text());
            } else {
                info!(profile = %self.profile, deviation = deviation.label(), "{}", deviation.text());
            }
        }
    }
}

fn unreadable(fault: &SourceFault) -> Failure {
    Failure {
        kind: FailureKind::SecretUnreadable,
        schedule: match fault.nature {
            Nature::Standing => Schedule::Refusal,
            Nature::Passing => Schedule::Transient,
        },
        retry_after: None,
        code: None,
        text: line(&fault.what, &fault.why, &fault.remedy),
    }
}

fn noted(mut failure: Failure, note: &str) -> Failure {
    failure.text = format!("{} ({note})", failure.text).into();
    failure
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
