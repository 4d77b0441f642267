//! The calls of the host's operator. They answer root and whom `agent.admin` admits; all are audited.

use tonic::{Request, transport::Channel};

use super::{Agent, Error, MAX_LIST_MESSAGE};
use crate::pb::{self, admin_service_client::AdminServiceClient};

impl Agent {
    /// Refreshes the profile `name` now, past back-off, Retry-After and floor; returns its state when that is settled.
    pub async fn refresh(&self, name: &str) -> Result<pb::TokenStatus, Error> {
        let mut client = self.admin();
        let message = pb::RefreshTokenRequest { name: name.to_owned() };
        let response =
            self.call(message, |request| async move { client.refresh_token(request).await }).await?;
        response.token.ok_or(Error::BadAnswer("the answer to RefreshToken holds no state"))
    }

    /// Reads the configuration again, all or nothing. [`Error::ConfigFaults`] lists what is wrong with it.
    pub async fn reload(&self) -> Result<pb::ReloadResponse, Error> {
        let mut client = self.admin();
        let send = |request: Request<_>| async move { client.reload(request).await };
        match self.call(pb::ReloadRequest {}, send).await {
            Err(Error::InvalidRequest { lines }) => Err(Error::ConfigFaults { faults: lines }),
            other => other,
        }
    }

    /// Everything that the agent knows of itself, but no token and no secret.
    pub async fn status(&self) -> Result<pb::GetStatusResponse, Error> {
        let mut client = self.admin();
        self.call(pb::GetStatusRequest {}, |request| async move { client.get_status(request).await }).await
    }

    /// The metrics, as OpenMetrics text.
    pub async fn metrics(&self) -> Result<String, Error> {
        let mut client = self.admin();
        let send = |request: Request<_>| async move { client.get_metrics(request).await };
        Ok(self.call(pb::GetMetricsRequest {}, send).await?.text)
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_LIST_MESSAGE)
    }
}
