//! An agent that says what a test wrote down: the generated services behind tonic's own server, on a Unix socket in a
//! fresh directory. It has no rules; it is for tests of what callers see.

#![allow(clippy::unwrap_used, reason = "a test's own scaffold: a failure here is the test's failure")]

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bloom_agent::pb::{
    self,
    admin_service_server::{AdminService, AdminServiceServer},
    token_service_server::{TokenService, TokenServiceServer},
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    runtime::Runtime,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_stream::wrappers::{UnboundedReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// 2026-11-22T14:05:00Z
pub(crate) const EXPIRY: i64 = 1_795_356_300;

/// What the agent answers. Of a list one answer is given after the other, the last one for ever.
pub(crate) struct Answers {
    pub(crate) token: Vec<Result<pb::Token, Status>>,
    pub(crate) list: Result<Vec<pb::TokenStatus>, Status>,
    pub(crate) report: Result<pb::ReportRejectedResponse, Status>,
    pub(crate) refresh: Result<pb::TokenStatus, Status>,
    pub(crate) reload: Result<pb::ReloadResponse, Status>,
    pub(crate) status: Result<pb::GetStatusResponse, Status>,
    pub(crate) metrics: Result<String, Status>,
}

/// One valid token and an admin for a caller.
impl Default for Answers {
    fn default() -> Self {
        Self {
            token: vec![Ok(token("t-7", 7))],
            list: Ok(vec![status_of("bloom", pb::TokenState::Valid)]),
            report: Ok(pb::ReportRejectedResponse { generation: 8, is_new: true }),
            refresh: Ok(status_of("bloom", pb::TokenState::Valid)),
            reload: Ok(pb::ReloadResponse::default()),
            status: Ok(pb::GetStatusResponse { version: "0.1.0".to_owned(), pid: 812, ..Default::default() }),
            metrics: Ok("# EOF\n".to_owned()),
        }
    }
}

/// Sends what one opened watch gets; dropping it ends that watch without a word.
pub(crate) type WatchScript = UnboundedSender<Result<pb::WatchTokenResponse, Status>>;
type WatchAnswer = UnboundedReceiver<Result<pb::WatchTokenResponse, Status>>;

struct Script {
    answers: Mutex<Answers>,
    watches: Mutex<VecDeque<WatchAnswer>>,
    seen: Mutex<Vec<String>>,
}

/// A running fake. Dropping it ends it; [`FakeAgent::end`] leaves its directory to a successor.
pub(crate) struct FakeAgent {
    script: Arc<Script>,
    dir: TempDir,
    _runtime: Runtime,
}

impl FakeAgent {
    pub(crate) fn start(answers: Answers) -> Self {
        // Others must be able to reach it: what keeps them out is the socket's mode alone.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        Self::start_in(tempfile::Builder::new().permissions(open).tempdir().unwrap(), answers)
    }

    pub(crate) fn start_in(dir: TempDir, answers: Answers) -> Self {
        let script = Arc::new(Script {
            answers: Mutex::new(answers),
            watches: Mutex::default(),
            seen: Mutex::default(),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _context = runtime.enter();
            UnixListener::bind(socket_in(dir.path())).unwrap()
        };
        let server = tonic::transport::Server::builder()
            .add_service(TokenServiceServer::from_arc(Arc::clone(&script)))
            .add_service(AdminServiceServer::from_arc(Arc::clone(&script)))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(async { server.await.unwrap() });
        Self { script, dir, _runtime: runtime }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.dir.path())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Answers the next opening of a watch; without one it is refused.
    pub(crate) fn expect_watch(&self) -> WatchScript {
        let (sender, receiver) = unbounded_channel();
        self.script.watches.lock().unwrap().push_back(receiver);
        sender
    }

    /// The calls so far, in words.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.script.seen.lock().unwrap().clone()
    }

    /// Ends it as a crash does; the socket's file goes.
    pub(crate) fn end(self) -> TempDir {
        let Self { dir, _runtime: runtime, .. } = self;
        runtime.shutdown_timeout(Duration::from_secs(5));
        std::fs::remove_file(socket_in(dir.path())).unwrap();
        dir
    }
}

impl Script {
    fn note<T>(&self, call: &str, request: &Request<T>) {
        let timeout = request.metadata().get("grpc-timeout").map_or("none", |value| value.to_str().unwrap());
        self.seen.lock().unwrap().push(format!("{call} timeout={timeout}"));
    }
}

#[tonic::async_trait]
impl TokenService for Script {
    async fn get_token(
        &self,
        request: Request<pb::GetTokenRequest>,
    ) -> Result<Response<pb::GetTokenResponse>, Status> {
        let message = request.get_ref();
        let validity = message.min_validity.map_or(0, |validity| validity.seconds);
        self.note(&format!("GetToken \"{}\" min_validity={validity}", message.name), &request);
        let answers = &mut self.answers.lock().unwrap().token;
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        Ok(Response::new(pb::GetTokenResponse { token: Some(answer?) }))
    }

    type WatchTokenStream = UnboundedReceiverStream<Result<pb::WatchTokenResponse, Status>>;

    async fn watch_token(
        &self,
        request: Request<pb::WatchTokenRequest>,
    ) -> Result<Response<Self::WatchTokenStream>, Status> {
        self.note(&format!("WatchToken \"{}\"", request.get_ref().name), &request);
        let next = self.watches.lock().unwrap().pop_front();
        match next {
            Some(watch) => Ok(Response::new(UnboundedReceiverStream::new(watch))),
            None => Err(denied()),
        }
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        self.note("ListTokens", &request);
        let tokens = self.answers.lock().unwrap().list.clone()?;
        Ok(Response::new(pb::ListTokensResponse { tokens }))
    }

    async fn report_rejected(
        &self,
        request: Request<pb::ReportRejectedRequest>,
    ) -> Result<Response<pb::ReportRejectedResponse>, Status> {
        let message = request.get_ref();
        self.note(&format!("ReportRejected \"{}\" {}", message.name, message.generation), &request);
        self.answers.lock().unwrap().report.clone().map(Response::new)
    }
}

#[tonic::async_trait]
impl AdminService for Script {
    async fn refresh_token(
        &self,
        request: Request<pb::RefreshTokenRequest>,
    ) -> Result<Response<pb::RefreshTokenResponse>, Status> {
        self.note(&format!("RefreshToken \"{}\"", request.get_ref().name), &request);
        let token = self.answers.lock().unwrap().refresh.clone()?;
        Ok(Response::new(pb::RefreshTokenResponse { token: Some(token) }))
    }

    async fn reload(
        &self,
        request: Request<pb::ReloadRequest>,
    ) -> Result<Response<pb::ReloadResponse>, Status> {
        self.note("Reload", &request);
        self.answers.lock().unwrap().reload.clone().map(Response::new)
    }

    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        self.note("GetStatus", &request);
        self.answers.lock().unwrap().status.clone().map(Response::new)
    }

    async fn get_metrics(
        &self,
        request: Request<pb::GetMetricsRequest>,
    ) -> Result<Response<pb::GetMetricsResponse>, Status> {
        self.note("GetMetrics", &request);
        let text = self.answers.lock().unwrap().metrics.clone()?;
        Ok(Response::new(pb::GetMetricsResponse { text }))
    }
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("agent.sock")
}

/// A token of profile `bloom`, good for an hour until [`EXPIRY`].
pub(crate) fn token(access_token: &str, generation: u64) -> pb::Token {
    let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
    pb::Token {
        name: "bloom".to_owned(),
        access_token: access_token.to_owned(),
        token_type: "Bearer".to_owned(),
        scopes: vec!["data-access:all".to_owned()],
        audience: "dev-api".to_owned(),
        obtained_at: at(EXPIRY - 3600, 5_000_000),
        expires_at: at(EXPIRY, 0),
        generation,
    }
}

/// A rotation, as a watch sends it.
pub(crate) fn rotation(access_token: &str, generation: u64) -> Result<pb::WatchTokenResponse, Status> {
    Ok(pb::WatchTokenResponse { token: Some(token(access_token, generation)) })
}

/// The state of a profile; generation 7.
pub(crate) fn status_of(name: &str, state: pb::TokenState) -> pb::TokenStatus {
    pb::TokenStatus { name: name.to_owned(), state: state.into(), generation: 7, ..Default::default() }
}

/// An error as the agent sends it.
pub(crate) fn failure(code: tonic::Code, reason: &str, text: &str, profiles: &str) -> Status {
    let mut metadata = HashMap::new();
    if !profiles.is_empty() {
        metadata.insert("profiles".to_owned(), profiles.to_owned());
    }
    let mut details = ErrorDetails::with_error_info(reason, "bloom.agent", metadata);
    if code == tonic::Code::Unavailable || code == tonic::Code::ResourceExhausted {
        details.set_retry_info(Some(Duration::from_secs(12)));
    }
    Status::with_error_details(code, text, details)
}

/// Not allowed.
pub(crate) fn denied() -> Status {
    failure(tonic::Code::PermissionDenied, "NOT_ALLOWED", "not allowed", "")
}
