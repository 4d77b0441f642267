//! TokenService: GetToken, WatchToken, ListTokens, ReportRejected.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use super::{
    Agent, Caller, LONGEST_WAIT, Replies,
    admission::{Admitted, judge},
    snapshot::Profile,
    status::Refusal,
};
use crate::{
    access::Verb,
    clock::Timestamp,
    failure::FailureKind,
    pb,
    refresh::{Answer, Demand, Health},
    reply::{message, texts, timestamp},
    server,
    store::{Closed, Left, NoToken, Phase},
    token::{Generation, Token},
};

/// The service.
pub struct Tokens(pub(super) Arc<Agent>);

#[tonic::async_trait]
impl pb::token_service_server::TokenService for Tokens {
    type WatchTokenStream = Replies<pb::WatchTokenResponse>;

    async fn get_token(
        &self,
        request: Request<pb::GetTokenRequest>,
    ) -> Result<Response<pb::GetTokenResponse>, Status> {
        let token = self.get(&request).await?;
        Ok(Response::new(pb::GetTokenResponse { token: Some(message(&token)) }))
    }

    async fn watch_token(
        &self,
        request: Request<pb::WatchTokenRequest>,
    ) -> Result<Response<Self::WatchTokenStream>, Status> {
        let tokens = self.watch(Caller::of(&request)?, &request.get_ref().name).await?;
        let replies =
            tokens.map(|token| token.map(|token| pb::WatchTokenResponse { token: Some(message(&token)) }));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        let tokens = self.list(&request).await?;
        Ok(Response::new(pb::ListTokensResponse { tokens }))
    }

    async fn report_rejected(
        &self,
        request: Request<pb::ReportRejectedRequest>,
    ) -> Result<Response<pb::ReportRejectedResponse>, Status> {
        Ok(Response::new(self.report(&request).await?))
    }
}

impl Tokens {
    async fn get(&self, request: &Request<pb::GetTokenRequest>) -> Result<Arc<Token>, Refusal> {
        let agent = &self.0;
        let caller = Caller::of(request)?;
        let asked = request.get_ref();
        let wanted = min_validity(asked.min_validity.as_ref())?;
        let deadline = agent.clock.now().boot + caller.patience;
        let give_up = tokio::time::sleep(caller.patience);
        tokio::pin!(give_up);
        let mut demanded = false;
        loop {
            let admitted = agent.admit(&caller, Verb::Get, &asked.name).await?;
            let profile = &admitted.profile;
            let now = agent.clock.now().boot;
            if let Some(token) = profile.reader.current(profile.identity, now) {
                let enough = token.life.expires().since(now) >= wanted;
                if enough || demanded {
                    agent.granted(&caller.connection, &admitted, Verb::Get, &token);
                    agent.remember(&caller.connection, &asked.name, &admitted);
                    return Ok(token);
                }
                // Valid, but for less: one refresh, then whatever is there. No error while a token is valid.
                demanded = true;
                tokio::select! {
                    _ = profile.settle(Demand::MinValidity(wanted), deadline) => {}
                    () = agent.until_draining() => {}
                    () = &mut give_up => {}
                }
                continue;
            }
            let waited = tokio::select! {
                biased;
                () = agent.until_draining() => return Err(Refusal::ShuttingDown),
                waited = profile.reader.wait(profile.identity, &*agent.clock, deadline) => waited,
                () = &mut give_up => return Err(agent.without_token(profile.reader.no_token(profile.identity))),
            };
            match waited {
                // A reload may have passed meanwhile: judge again, by the version in force.
                Ok(_) | Err(NoToken::Left(Left::Superseded)) => {}
                // The rotator is gone: a version of the config that says why is on its way.
                Err(NoToken::Left(Left::Closed(_))) => tokio::select! {
                    () = agent.until_changed(admitted.version) => {}
                    () = agent.until_draining() => return Err(Refusal::ShuttingDown),
                    () = &mut give_up => return Err(Refusal::Internal),
                },
                Err(none) => return Err(agent.without_token(none)),
            }
        }
    }

    pub(super) async fn watch(&self, caller: Caller, name: &str) -> Result<Replies<Arc<Token>>, Refusal> {
        let admitted = self.0.admit(&caller, Verb::Watch, name).await?;
        let permit = caller.watch()?;
        let name = admitted.profile.name.clone();
        let agent = Arc::clone(&self.0);
        let connection = caller.connection;
        Ok(Box::pin(async_stream::stream! {
            let _permit = permit;
            let mut config = agent.config.clone();
            let mut phase = agent.phase.clone();
            let mut last = None;
            let refusal = loop {
                if *phase.borrow_and_update() == server::Phase::Draining {
                    break Refusal::ShuttingDown;
                }
                let snapshot = Arc::clone(&config.borrow_and_update());
                if !snapshot.profiles.contains_key(&name) {
                    break Refusal::ProfileGone;
                }
                let settled =
                    agent.settle_unit(&snapshot, &connection, Verb::Watch, name.as_str(), LONGEST_WAIT).await;
                let admitted = match settled.and_then(|()| judge(&snapshot, &connection, Verb::Watch, name.as_str())) {
                    Ok(admitted) => admitted,
                    Err(refusal) => {
                        if matches!(refusal, Refusal::NotAllowed { .. }) {
                            agent.note_denial(&connection, Verb::Watch, name.as_str());
                        }
                        break refusal;
                    }
                };
                drop(snapshot);
                let Admitted { profile, rule, .. } = admitted;
                let told = agent.told(&connection, &profile.name);
                let mut reader = profile.reader.clone();
                // Whatever may take the permission away since the look at it. It is made once: a rotation finds most of
                // ten thousand who watch in cold memory, and should touch little of it.
                let (mut next_phase, mut next_config) = (phase.clone(), config.clone());
                let mut overtaken = pin!(async {
                    tokio::select! {
                        _ = next_phase.changed() => {}
                        _ = next_config.changed() => {}
                    }
                });
                // Until then the decision stands and only the token moves.
                loop {
                    let now = agent.clock.now().boot;
                    let token = reader.current_and_mark(profile.identity, now);
                    if let Some(token) = token.filter(|token| Some(token.generation) != last) {
                        // A token published after a swap is seen together with the swap: what was decided before it is
                        // no ground to give this one away.
                        if config.has_changed().unwrap_or(true) {
                            break;
                        }
                        last = Some(token.generation);
                        agent.grant(&told, &connection, Verb::Watch, &token, &rule);
                        yield Ok(token);
                        // The client may have taken its time: look at everything again.
                        if phase.has_changed().unwrap_or(true) || config.has_changed().unwrap_or(true) {
                            break;
                        }
                    }
                    tokio::select! {
                        // First what may take the permission away: a rotation seen at the same moment is of the new
                        // version's making, or not for this caller.
                        biased;
                        () = &mut overtaken => break,
                        rotated = reader.rotated() => if rotated == Err(Closed) {
                            // The rotator is gone: a version of the config that says why is on its way.
                            overtaken.await;
                            break;
                        },
                    }
                }
            };
            yield Err(refusal.into());
        }))
    }

    async fn list(&self, request: &Request<pb::ListTokensRequest>) -> Result<Vec<pb::TokenStatus>, Refusal> {
        let caller = Caller::of(request)?;
        let connection = &caller.connection;
        // Of all profiles: a list that leaves out what could not be judged would say that it may not be used.
        self.0.settle_unit(&self.0.snapshot(), connection, Verb::List, "", caller.patience).await?;
        let snapshot = self.0.snapshot();
        let names = snapshot.profiles.keys();
        let usable = names.filter_map(|name| judge(&snapshot, connection, Verb::List, name.as_str()).ok());
        Ok(usable.map(|admitted| self.0.state(&admitted.profile)).collect())
    }

    async fn report(
        &self,
        request: &Request<pb::ReportRejectedRequest>,
    ) -> Result<pb::ReportRejectedResponse, Refusal> {
        let agent = &self.0;
        let caller = Caller::of(request)?;
        let asked = request.get_ref();
        let admitted = agent.admit(&caller, Verb::Report, &asked.name).await?;
        let profile = &admitted.profile;
        let reported = Generation::from_u64(asked.generation);
        let snapshot = agent.snapshot();
        let peer = caller.connection.peer_in(snapshot.access.unit_slices());
        agent.audit.reported(peer, &profile.name, reported, admitted.rule.as_str());
        drop(snapshot);
        agent.control.denial_noted();
        let deadline = agent.clock.now().boot + caller.patience;
        let settled = tokio::select! {
            settled = timeout(caller.patience, profile.settle(Demand::Rejected(reported), deadline)) => settled.unwrap_or(Ok(())),
            () = agent.until_draining() => Ok(()),
        };
        if let Err(retry) = settled {
            let what = "rejected tokens were reported too often for this profile";
            return Err(Refusal::Limit { what, retry: retry.since(agent.clock.now().boot) });
        }
        // A reload may have taken the profile away from the caller meanwhile.
        let admitted = agent.decide(&caller, Verb::Report, profile.name.as_str()).await?;
        let profile = &admitted.profile;
        let current = profile.reader.current(profile.identity, agent.clock.now().boot);
        let generation = current.map_or(0, |token| token.generation.as_u64());
        Ok(pb::ReportRejectedResponse {
            generation,
            is_new: generation != 0 && generation != asked.generation,
        })
    }
}

impl Profile {
    /// Asks the rotator for a refresh, and waits until the attempt that it led to, if any, is settled; not for one that
    /// only starts after `deadline`. The error is the moment at which the budget of such refreshes has something left.
    pub(super) async fn settle(&self, demand: Demand, deadline: Timestamp) -> Result<(), Timestamp> {
        match self.rotator.demand(demand).await {
            Ok(Answer::Joined { starts, .. }) if starts > deadline => Ok(()),
            Ok(Answer::Joined { attempt, .. }) => {
                // Whatever ended the wait, the caller reads what is there now.
                let _left = self.reader.settled(self.identity, attempt).await;
                Ok(())
            }
            Ok(Answer::Exhausted { retry }) => Err(retry),
            Ok(Answer::Unneeded) | Err(Closed) => Ok(()),
        }
    }
}

impl Agent {
    /// What a caller is told for whom there is no token.
    fn without_token(&self, none: NoToken) -> Refusal {
        let now = self.clock.now().boot;
        // An attempt that is in flight ends soon.
        let retry = |next: Option<Timestamp>| next.map_or(Duration::from_secs(1), |next| next.since(now));
        match none {
            NoToken::Failed { failure, next } => {
                Refusal::Failed { kind: failure.0.kind, retry: retry(next), detail: None }
            }
            NoToken::Pending { next } => Refusal::Pending { retry: retry(next) },
            NoToken::Left(_) => Refusal::Pending { retry: retry(None) },
        }
    }

    pub(super) async fn until_draining(&self) {
        server::draining(self.phase.clone()).await;
    }

    async fn until_changed(&self, version: u64) {
        let mut config = self.config.clone();
        let _gone = config.wait_for(|snapshot| snapshot.version != version).await;
    }

    /// A profile's state, without its token.
    pub(super) fn state(&self, profile: &Profile) -> pb::TokenStatus {
        let now = self.clock.now();
        let token = profile.reader.current(profile.identity, now.boot);
        let attempts = profile.reader.attempts();
        // The rotator may not have heard of the newest config yet: then nothing is known of this identity.
        let failure = attempts.last_failure.as_ref().filter(|_| attempts.identity == profile.identity);
        let state = match profile.reader.health(profile.identity, now.boot) {
            Health::Pending => pb::TokenState::Pending,
            Health::Valid => pb::TokenState::Valid,
            Health::Degraded => pb::TokenState::Degraded,
            Health::Unavailable => pb::TokenState::Unavailable,
        };
        let next = match attempts.phase {
            Phase::InFlight => None,
            Phase::Idle { next } => Some(now.wall + next.since(now.boot)),
        };
        let scopes = token.as_ref().map_or(&profile.scopes, |token| &token.scopes);
        pb::TokenStatus {
            name: profile.name.as_str().to_owned(),
            state: state.into(),
            scopes: texts(scopes),
            audience: profile.audience.as_deref().unwrap_or_default().to_owned(),
            expires_at: token.as_ref().map(|token| timestamp(token.life.expires_wall())),
            next_refresh_at: next.map(timestamp),
            last_failure: failure.map_or(pb::FailureKind::Unspecified, |failure| kind(failure.0.kind)).into(),
            generation: token.map_or(0, |token| token.generation.as_u64()),
        }
    }
}

fn min_validity(asked: Option<&prost_types::Duration>) -> Result<Duration, Refusal> {
    let Some(asked) = asked else { return Ok(Duration::ZERO) };
    Duration::try_from(*asked)
        .map_err(|_| Refusal::BadField { field: "min_validity", right: "a duration from 0 s on" })
}

pub(super) fn kind(kind: FailureKind) -> pb::FailureKind {
    match kind {
        FailureKind::Unreachable => pb::FailureKind::ProviderUnreachable,
        FailureKind::ProviderError => pb::FailureKind::ProviderError,
        FailureKind::Refused => pb::FailureKind::ProviderRefused,
        FailureKind::SecretUnreadable => pb::FailureKind::SecretUnreadable,
    }
}
