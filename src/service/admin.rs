//! AdminService: the operator's calls. Every one is audited; none returns a token or a secret.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{Agent, Caller, ReloadFault, snapshot::Profile, status::Refusal};
use crate::{audit::AdminCall, metrics::Serving, pb, refresh::Demand, reply::timestamp, store::Phase};

/// The service.
pub struct Admin(pub(super) Arc<Agent>);

#[tonic::async_trait]
impl pb::admin_service_server::AdminService for Admin {
    async fn refresh_token(
        &self,
        request: Request<pb::RefreshTokenRequest>,
    ) -> Result<Response<pb::RefreshTokenResponse>, Status> {
        let token = self.refresh(&request).await?;
        Ok(Response::new(pb::RefreshTokenResponse { token: Some(token) }))
    }

    async fn reload(
        &self,
        request: Request<pb::ReloadRequest>,
    ) -> Result<Response<pb::ReloadResponse>, Status> {
        Ok(Response::new(self.reload_config(&request).await?))
    }

    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        Ok(Response::new(self.status(&request).await?))
    }

    async fn get_metrics(
        &self,
        request: Request<pb::GetMetricsRequest>,
    ) -> Result<Response<pb::GetMetricsResponse>, Status> {
        Ok(Response::new(self.metrics(&request).await?))
    }
}

impl Admin {
    async fn refresh(&self, request: &Request<pb::RefreshTokenRequest>) -> Result<pb::TokenStatus, Refusal> {
        let agent = &self.0;
        let caller = Caller::of(request)?;
        let asked = request.get_ref().name.as_str();
        let known = agent.snapshot().profiles.get(asked).map(|profile| profile.name.clone());
        agent.admit_admin(&caller, AdminCall::RefreshToken, known.as_ref()).await?;
        let snapshot = agent.snapshot();
        let unknown = || Refusal::UnknownProfile(snapshot.profiles.keys().cloned().collect());
        let profile = snapshot.profiles.get(asked).ok_or_else(unknown)?;
        let deadline = agent.clock.now().boot + caller.patience;
        let settled = tokio::select! {
            settled = timeout(caller.patience, profile.settle(Demand::Operator, deadline)) => settled.is_ok(),
            () = agent.until_draining() => return Err(Refusal::ShuttingDown),
        };
        if !settled {
            return Err(Refusal::Pending { retry: Duration::from_secs(1) });
        }
        match profile.reader.attempts().last_failure {
            Some(failure) => {
                let retry = next_attempt(agent, profile);
                Err(Refusal::Failed { kind: failure.0.kind, retry, detail: Some(failure.0.text.clone()) })
            }
            None => Ok(agent.state(profile)),
        }
    }

    async fn reload_config(
        &self,
        request: &Request<pb::ReloadRequest>,
    ) -> Result<pb::ReloadResponse, Refusal> {
        let caller = Caller::of(request)?;
        self.0.admit_admin(&caller, AdminCall::Reload, None).await?;
        let reloaded = tokio::select! {
            reloaded = timeout(caller.patience, self.0.control.reload()) => {
                reloaded.map_err(|_| Refusal::Pending { retry: Duration::from_secs(1) })?
            }
            () = self.0.until_draining() => return Err(Refusal::ShuttingDown),
        };
        match reloaded {
            Ok(done) => Ok(pb::ReloadResponse {
                added: done.added,
                replaced: done.replaced,
                removed: done.removed,
                warnings: done.warnings,
            }),
            Err(ReloadFault::Config(faults)) => Err(Refusal::BadConfig(faults)),
            Err(ReloadFault::Stopping) => Err(Refusal::ShuttingDown),
        }
    }

    async fn status(
        &self,
        request: &Request<pb::GetStatusRequest>,
    ) -> Result<pb::GetStatusResponse, Refusal> {
        let agent = &self.0;
        let caller = Caller::of(request)?;
        agent.admit_admin(&caller, AdminCall::GetStatus, None).await?;
        let snapshot = agent.snapshot();
        let open = agent.book.census().open;
        Ok(pb::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(timestamp(agent.started.wall)),
            configured_at: Some(timestamp(snapshot.configured_at)),
            profiles: snapshot.profiles.values().map(|profile| describe(agent, profile)).collect(),
            connections: open.connections,
            watches: open.watches,
            degraded: agent.control.degraded(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            unit_lookup: match agent.units.way() {
                _ if !snapshot.access.names_units() => "not needed",
                Some(way) => way.as_str(),
                None => "bus, not asked yet",
            }
            .to_owned(),
            confinement: agent.control.confinement(),
        })
    }

    async fn metrics(
        &self,
        request: &Request<pb::GetMetricsRequest>,
    ) -> Result<pb::GetMetricsResponse, Refusal> {
        let agent = &self.0;
        let caller = Caller::of(request)?;
        agent.admit_admin(&caller, AdminCall::GetMetrics, None).await?;
        for profile in agent.snapshot().profiles.values() {
            // An expired token's time stays, so that an alert on it keeps firing; a withdrawn one's goes.
            let attempts = profile.reader.attempts();
            let expires = attempts.expires.filter(|_| attempts.identity == profile.identity);
            agent.metrics.profile(&profile.name).token_expires(expires);
        }
        let census = agent.book.census();
        agent.metrics.serving(Serving {
            connections: census.open.connections.into(),
            watches: census.open.watches.into(),
            refused: census.refused,
            cut: census.cut,
        });
        if census.starved {
            agent.metrics.degrade("descriptors");
        } else {
            agent.metrics.restore("descriptors");
        }
        // Asking sets the gauges of what may come and go.
        let _words = agent.control.degraded();
        Ok(pb::GetMetricsResponse { text: agent.metrics.text() })
    }
}

fn describe(agent: &Agent, profile: &Profile) -> pb::ProfileStatus {
    let attempts = profile.reader.attempts();
    let failure = attempts.last_failure.as_deref();
    let token = profile.reader.current(profile.identity, agent.clock.now().boot);
    pb::ProfileStatus {
        token: Some(agent.state(profile)),
        token_url: profile.token_url.as_ref().to_owned(),
        secret_source: profile.secret_source.as_ref().to_owned(),
        last_failure_text: failure.map(|(failure, _)| failure.text.as_ref().to_owned()).unwrap_or_default(),
        last_failure_at: failure.map(|(_, at)| timestamp(at.wall)),
        requests: attempts.requests,
        consecutive_failures: attempts.consecutive_failures,
        assumed_lifetime: token.is_some_and(|token| token.life.source == crate::token::LifeSource::Assumed),
        allow: profile.allow.iter().map(|line| line.as_ref().to_owned()).collect(),
    }
}

fn next_attempt(agent: &Agent, profile: &Profile) -> Duration {
    match profile.reader.attempts().phase {
        Phase::InFlight => Duration::from_secs(1),
        Phase::Idle { next } => next.since(agent.clock.now().boot),
    }
}

#[cfg(test)]
mod tests {
    use crate::{failure::FailureKind, pb};

    #[test]
    fn every_failure_has_a_name_in_the_api() {
        let table = [
            (FailureKind::Unreachable, pb::FailureKind::ProviderUnreachable),
            (FailureKind::ProviderError, pb::FailureKind::ProviderError),
            (FailureKind::Refused, pb::FailureKind::ProviderRefused),
            (FailureKind::SecretUnreadable, pb::FailureKind::SecretUnreadable),
        ];
        for (ours, theirs) in table {
            assert_eq!(crate::service::token::kind(ours), theirs);
        }
    }
}
