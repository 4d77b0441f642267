//! The gRPC handlers: who is asking, may they, and what is the answer.
//!
//! They read tokens and ask rotators; they hold no secret, make no request and change no token. Everything a handler
//! needs is in [`Agent`]; what only the daemon can do (reload, look names up) is behind [`Control`].
//!
//! - [`status`]: the one table from errors to gRPC statuses.
//! - [`snapshot`]: one version of the config.
//! - [`admission`]: may this caller do this, in this version.
//! - [`front`]: the common calls, answered before the router.
//! - [`token`], [`admin`], [`health`]: the services.

pub mod admin;
pub mod admission;
pub mod front;
pub mod health;
pub mod snapshot;
pub mod status;
pub mod token;

use std::{pin::Pin, sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Status, service::Routes};

use crate::{
    audit::Audit,
    clock::{Clock, Now},
    limits::Exceeded,
    metrics::Metrics,
    pb,
    server::{AtOnce, Book, Connection, Faults, Phase, WatchPermit, deadline_of},
    units::Units,
};
use front::{Front, GetToken};
use snapshot::Snapshot;
use status::Refusal;

/// The longest that any unary call waits; the deadline of a caller who sets none.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The longest request message, in bytes. A request is a name and two numbers; tonic's default of 4 MiB, times the calls
/// that a uid may have open, is more memory than any host has.
const MAX_REQUEST: usize = 4 * 1024;

/// A stream of replies.
pub(crate) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What only the daemon can do.
#[tonic::async_trait]
pub trait Control: Send + Sync {
    /// Reads the config again, all or nothing.
    async fn reload(&self) -> Result<Reloaded, ReloadFault>;

    /// Looks up the users and groups of the rules again, unless that was done less than 10 s ago; joins a look-up that is
    /// under way. Returns when a version of the config that has them is in force; after `patience`, and after 2 s, at the
    /// latest, whatever the directory service does.
    async fn look_names_up(&self, patience: Duration);

    /// A denial or a report was audited: its repetitions are counted, and somebody has to see to it that the count is told.
    fn denial_noted(&self);

    /// What the agent must do without on this host, in words.
    fn degraded(&self) -> Vec<String>;

    /// What the agent has taken from its own process, in words; empty where nothing was asked for.
    fn confinement(&self) -> String {
        String::new()
    }
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// New profiles.
    pub added: Vec<String>,
    /// Profiles whose token was withdrawn, because its identity changed.
    pub replaced: Vec<String>,
    /// Profiles that are gone.
    pub removed: Vec<String>,
    /// What works but is probably not meant.
    pub warnings: Vec<String>,
}

/// Why a reload changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReloadFault {
    /// The config's faults, one per line.
    #[error("{0}")]
    Config(String),
    /// The agent is stopping.
    #[error("the agent is shutting down")]
    Stopping,
}

/// What the handlers share.
pub struct Agent {
    /// The config in force.
    pub config: watch::Receiver<Arc<Snapshot>>,
    /// Whether the agent drains.
    pub phase: watch::Receiver<Phase>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who got what.
    pub audit: Arc<Audit>,
    /// How many and how often.
    pub metrics: Arc<Metrics>,
    /// What is open, and how much may be.
    pub book: Arc<Book>,
    /// Which service a caller is in.
    pub units: Arc<Units>,
    /// The daemon.
    pub control: Arc<dyn Control>,
    /// When the agent started.
    pub started: Now,
}

impl Agent {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.config.borrow())
    }

    fn is_stopping(&self) -> bool {
        *self.phase.borrow() == Phase::Draining
    }

    /// The answers that the server gives by itself.
    pub fn faults() -> Arc<dyn Faults> {
        struct Table;
        impl Faults for Table {
            fn exceeded(&self, _limit: Exceeded) -> Status {
                let what = "too many calls are open for this uid ([limits] calls)";
                Refusal::Limit { what, retry: Duration::from_secs(1) }.into()
            }
            fn panicked(&self) -> Status {
                Refusal::Internal.into()
            }
        }
        Arc::new(Table)
    }
}

/// All services of the socket.
pub fn services(agent: &Arc<Agent>) -> Result<Front, tonic_reflection::server::Error> {
    Ok(Front::new(routes(agent)?, Arc::clone(agent)))
}

/// What is asked before them.
pub fn at_once(agent: &Arc<Agent>) -> Arc<dyn AtOnce> {
    Arc::new(GetToken(Arc::clone(agent)))
}

/// The same without what answers before the router.
pub fn routes(agent: &Arc<Agent>) -> Result<Routes, tonic_reflection::server::Error> {
    use tonic_reflection::server::Builder;
    let described = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let tokens = pb::token_service_server::TokenServiceServer::new(token::Tokens(Arc::clone(agent)));
    let admin = pb::admin_service_server::AdminServiceServer::new(admin::Admin(Arc::clone(agent)));
    let health = tonic_health::pb::health_server::HealthServer::new(health::Health(Arc::clone(agent)));
    let mut routes = Routes::builder();
    routes
        .add_service(tokens.max_decoding_message_size(MAX_REQUEST))
        .add_service(admin.max_decoding_message_size(MAX_REQUEST))
        .add_service(health.max_decoding_message_size(MAX_REQUEST))
        .add_service(described().build_v1()?.max_decoding_message_size(MAX_REQUEST))
        .add_service(described().build_v1alpha()?.max_decoding_message_size(MAX_REQUEST));
    Ok(routes.routes().prepare())
}

/// Who calls, and how long they wait for the answer.
struct Caller {
    connection: Arc<Connection>,
    patience: Duration,
}

impl Caller {
    /// The server puts the connection into every request; a request without one is our own mistake, and is admitted to
    /// nothing.
    fn of<T>(request: &Request<T>) -> Result<Self, Refusal> {
        let connection = request.extensions().get::<Arc<Connection>>().cloned().ok_or(Refusal::Internal)?;
        Ok(Self::new(connection, request.metadata().as_ref()))
    }

    fn new(connection: Arc<Connection>, headers: &HeaderMap) -> Self {
        let patience = deadline_of(headers).map_or(LONGEST_WAIT, answer_by).min(LONGEST_WAIT);
        Self { connection, patience }
    }

    /// A place among the uid's watches.
    fn watch(&self) -> Result<WatchPermit, Refusal> {
        self.connection.watch().map_err(|_| Refusal::Limit {
            what: "too many watches are open for this uid ([limits] watches)",
            retry: Duration::from_secs(10),
        })
    }
}

/// A little before the caller's deadline: an answer that comes with it is not read.
fn answer_by(deadline: Duration) -> Duration {
    deadline - (deadline / 10).min(Duration::from_millis(50))
}
