//! Where the agent listens, and how to get through its door.

use std::{
    env,
    ffi::OsString,
    fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Uri;
use tower_service::Service;

use super::Error;

/// Names the socket, above every default.
const VARIABLE: &str = "BLOOM_AGENT_SOCK";
const SYSTEM_SOCKET: &str = "/run/bloom-agent/agent.sock";
const USER_SOCKET: &str = "bloom-agent/agent.sock";

/// How long a full queue of connections is waited for.
const QUEUE_PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// The path of the agent's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(PathBuf);

impl SocketPath {
    /// This one and no other.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The first that is set or exists of `explicit`, `$BLOOM_AGENT_SOCK`, `/run/bloom-agent/agent.sock` and
    /// `$XDG_RUNTIME_DIR/bloom-agent/agent.sock`. One that is set is taken, whether it exists or not: whoever set it
    /// means that agent and no other. An empty variable is not set.
    pub fn discover(explicit: Option<PathBuf>) -> Result<Self, Error> {
        first(explicit, |name| env::var_os(name), may_exist)
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

fn first(
    explicit: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<OsString>,
    exists: impl Fn(&Path) -> bool,
) -> Result<SocketPath, Error> {
    let variable = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(set) = explicit.or_else(|| variable(VARIABLE)) {
        return Ok(SocketPath(set));
    }
    let mut candidates = vec![PathBuf::from(SYSTEM_SOCKET)];
    // The base directory specification wants a relative path there to be ignored.
    candidates
        .extend(variable("XDG_RUNTIME_DIR").filter(|dir| dir.is_absolute()).map(|dir| dir.join(USER_SOCKET)));
    match candidates.iter().find(|candidate| exists(candidate)) {
        Some(found) => Ok(SocketPath(found.clone())),
        None => Err(Error::NotRunning { sockets: candidates, source: io::ErrorKind::NotFound.into() }),
    }
}

/// A socket in a directory that we may not search is there for all we know, and connecting says what is the matter.
fn may_exist(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

/// What tonic calls for each new connection.
#[derive(Clone)]
pub(super) struct Connector {
    path: Arc<Path>,
}

impl Connector {
    pub(super) fn new(path: Arc<Path>) -> Self {
        Self { path }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = Arc::clone(&self.path);
        Box::pin(async move {
            tokio::time::timeout(QUEUE_PATIENCE, connect(&path))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into()))
                .map(TokioIo::new)
        })
    }
}

/// A blocking connect(2) would wait for room in the listener's queue; ours gets EAGAIN (unix(7)), and waits here.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let mut pause = FIRST_PAUSE;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(rand::random_range(pause / 2..=pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            settled => return settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (
        &'static str,
        Option<&'static str>,
        &'static [(&'static str, &'static str)],
        &'static [&'static str],
        &'static str,
    );

    const SYSTEM: &str = SYSTEM_SOCKET;
    const XDG: (&str, &str) = ("XDG_RUNTIME_DIR", "/run/user/7");
    const USER: &str = "/run/user/7/bloom-agent/agent.sock";

    const TABLE: &[Row] = &[
        ("an explicit path beats everything", Some("/a"), &[(VARIABLE, "/b"), XDG], &[SYSTEM, USER], "/a"),
        ("an explicit path need not exist", Some("/a"), &[], &[], "/a"),
        ("the variable beats what exists", None, &[(VARIABLE, "/b"), XDG], &[SYSTEM, USER], "/b"),
        ("the variable's socket need not exist", None, &[(VARIABLE, "/b")], &[SYSTEM], "/b"),
        ("an empty variable is not set", None, &[(VARIABLE, "")], &[SYSTEM], SYSTEM),
        ("the system's agent beats the user's", None, &[XDG], &[SYSTEM, USER], SYSTEM),
        ("the user's agent comes last", None, &[XDG], &[USER], USER),
    ];

    fn look(explicit: Option<&str>, set: &[(&str, &str)], exist: &[&str]) -> Result<SocketPath, Error> {
        first(
            explicit.map(PathBuf::from),
            |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()),
            |path| exist.iter().any(|there| Path::new(there) == path),
        )
    }

    #[test]
    fn the_first_that_is_set_or_exists_is_taken() {
        for (sentence, explicit, set, exist, expected) in TABLE {
            assert_eq!(look(*explicit, set, exist).unwrap(), SocketPath::new(*expected), "{sentence}");
        }
    }

    #[test]
    fn without_any_the_error_names_the_places() {
        let Err(Error::NotRunning { sockets, source }) = look(None, &[XDG], &[]) else { panic!("found one") };
        assert_eq!(sockets, [PathBuf::from(SYSTEM), PathBuf::from(USER)]);
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
        let Err(Error::NotRunning { sockets, .. }) =
            look(None, &[("XDG_RUNTIME_DIR", "run")], &["run/bloom-agent/agent.sock"])
        else {
            panic!("took a relative XDG_RUNTIME_DIR")
        };
        assert_eq!(sockets, [PathBuf::from(SYSTEM)]);
    }
}
