//! grpc.health.v1: "" is the agent, every other service name a profile.
//!
//! A profile that the caller may not use is unknown to it, real or invented alike.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

use super::{Agent, Caller, LONGEST_WAIT, Replies, admission::judge, snapshot::Snapshot, status::Refusal};
use crate::{
    access::Verb,
    server::{Connection, Phase},
    store::Closed,
};

/// The service.
pub struct Health(pub(super) Arc<Agent>);

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = Replies<HealthCheckResponse>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.check_one(&request).await?;
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(self.watch_one(&request).await?))
    }
}

impl Health {
    async fn check_one(&self, request: &Request<HealthCheckRequest>) -> Result<ServingStatus, Refusal> {
        let caller = Caller::of(request)?;
        let service = request.get_ref().service.as_str();
        match self.settle_unknown(&caller, service).await? {
            ServingStatus::ServiceUnknown => Err(Refusal::UnknownProfile(Vec::new())),
            status => Ok(status),
        }
    }

    /// The status; before one is unknown the names of the rules are looked up again, and the denial, if it is one, is audited.
    async fn settle_unknown(&self, caller: &Caller, service: &str) -> Result<ServingStatus, Refusal> {
        let (agent, connection) = (&self.0, &caller.connection);
        let health = async || {
            agent.settle_health(&agent.snapshot(), connection, service, caller.patience).await?;
            Ok(agent.health(&agent.snapshot(), connection, service))
        };
        let mut status = health().await?;
        if status == ServingStatus::ServiceUnknown {
            agent.control.look_names_up(caller.patience).await;
            status = health().await?;
        }
        if status == ServingStatus::ServiceUnknown {
            let snapshot = agent.snapshot();
            let peer = connection.peer_in(snapshot.access.unit_slices());
            if !snapshot.access.may_use_every(peer) {
                agent.note_denial(connection, Verb::Health, service);
            }
        }
        Ok(status)
    }

    async fn watch_one(
        &self,
        request: &Request<HealthCheckRequest>,
    ) -> Result<Replies<HealthCheckResponse>, Refusal> {
        let caller = Caller::of(request)?;
        let permit = caller.watch()?;
        let service = request.get_ref().service.clone();
        self.settle_unknown(&caller, &service).await?;
        let agent = Arc::clone(&self.0);
        let connection = caller.connection;
        Ok(Box::pin(async_stream::stream! {
            let _permit = permit;
            let mut config = agent.config.clone();
            let mut phase = agent.phase.clone();
            let mut last = None;
            loop {
                let stops = *phase.borrow_and_update() == Phase::Draining;
                let snapshot = Arc::clone(&config.borrow_and_update());
                let mut reader = snapshot.profiles.get(service.as_str()).map(|profile| profile.reader.clone());
                if let (Some(reader), Some(profile)) = (reader.as_mut(), snapshot.profiles.get(service.as_str())) {
                    reader.current_and_mark(profile.identity, agent.clock.now().boot);
                }
                if let Err(refusal) = agent.settle_health(&snapshot, &connection, &service, LONGEST_WAIT).await {
                    break yield Err(refusal.into());
                }
                let status = agent.health(&snapshot, &connection, &service);
                drop(snapshot);
                if last != Some(status) {
                    last = Some(status);
                    yield Ok(HealthCheckResponse { status: status.into() });
                }
                if stops {
                    break yield Err(Refusal::ShuttingDown.into());
                }
                tokio::select! {
                    _ = phase.changed() => {}
                    _ = config.changed() => {}
                    () = token_changes(reader) => {}
                }
            }
        }))
    }
}

/// Waits for the next token, or for the served one to be taken away.
async fn token_changes(reader: Option<crate::store::Reader>) {
    match reader {
        Some(mut reader) => {
            if reader.rotated().await == Err(Closed) {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

impl Agent {
    /// [`Agent::settle_unit`], but for the agent's own health, which is everybody's.
    async fn settle_health(
        &self,
        snapshot: &Snapshot,
        connection: &Connection,
        service: &str,
        patience: Duration,
    ) -> Result<(), Refusal> {
        if service.is_empty() {
            return Ok(());
        }
        self.settle_unit(snapshot, connection, Verb::Health, service, patience).await
    }

    fn health(&self, snapshot: &Snapshot, connection: &Connection, service: &str) -> ServingStatus {
        if service.is_empty() {
            return if self.is_stopping() { ServingStatus::NotServing } else { ServingStatus::Serving };
        }
        match judge(snapshot, connection, Verb::Health, service) {
            Err(_) => ServingStatus::ServiceUnknown,
            Ok(admitted) => {
                let profile = &admitted.profile;
                match profile.reader.current(profile.identity, self.clock.now().boot) {
                    Some(_) => ServingStatus::Serving,
                    None => ServingStatus::NotServing,
                }
            }
        }
    }
}
