//! A host of its own for tests of the shipped programs: an issuer behind TLS, a directory with config and secrets,
//! `bloom-agent run` as a process, and callers of any uid.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use bloom_agent::dev_issuer::{Control, DevIssuer, Dialect, Options};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

/// The one client of the issuer.
pub(crate) const CLIENT_ID: &str = "host-client";
/// Long enough for anything on a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the test can be other users. Says loudly when not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: {test} needs root, to be other users\n"),
        );
    }
    root
}

/// An issuer behind TLS, on a thread of its own.
pub(crate) struct TlsIssuer {
    pub(crate) control: Control,
    pub(crate) token_url: String,
    pub(crate) ca_pem: String,
    thread: Option<JoinHandle<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl TlsIssuer {
    pub(crate) fn start(dialect: Dialect, secret: &str) -> Self {
        let mut options = Options::new(dialect, CLIENT_ID, secret);
        options.audiences = Vec::new();
        let issuer = DevIssuer::new(options);
        let control = issuer.control();
        let certified =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let ca_pem = certified.cert.pem();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let token_url = format!("https://{}{}", listener.local_addr().unwrap(), dialect.token_path());
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let acceptor = TlsAcceptor::from(Arc::new(config));
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    let accepted = tokio::select! {
                        _ = &mut stopped => return,
                        accepted = listener.accept() => accepted.unwrap().0,
                    };
                    // Else the answer waits behind TLS's session tickets for a delayed acknowledgement, 40 ms.
                    accepted.set_nodelay(true).unwrap();
                    let (acceptor, issuer) = (acceptor.clone(), issuer.clone());
                    connections.spawn(async move {
                        // A client that breaks the handshake off is one of the things that are tested.
                        if let Ok(stream) = acceptor.accept(accepted).await {
                            issuer.serve_connection(stream).await;
                        }
                    });
                }
            });
        });
        Self { control, token_url, ca_pem, thread: Some(thread), stop: Some(stop) }
    }
}

impl Drop for TlsIssuer {
    fn drop(&mut self) {
        self.control.stop();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// The directory and the issuer. Every uid may enter the directory; what is in it has modes of its own.
pub(crate) struct Host {
    pub(crate) issuer: TlsIssuer,
    directory: TempDir,
}

impl Host {
    pub(crate) fn new(secret: &str) -> Self {
        Self::with_dialect(Dialect::Hydra, secret)
    }

    pub(crate) fn with_dialect(dialect: Dialect, secret: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("bloom-agent-it-").tempdir().unwrap();
        let host = Self { issuer: TlsIssuer::start(dialect, secret), directory };
        host.chmod(".", 0o755);
        host.write("ca.pem", &host.issuer.ca_pem.clone(), 0o644);
        host.write("secret", secret, 0o600);
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file with exactly this mode, whatever the umask.
    pub(crate) fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        self.chmod(name, mode);
    }

    /// The same with bytes that need not be text.
    pub(crate) fn write_bytes(&self, name: &str, bytes: &[u8], mode: u32) {
        fs::write(self.path(name), bytes).unwrap();
        self.chmod(name, mode);
    }

    /// The directory that everything of this host is in.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    #[allow(clippy::disallowed_methods, reason = "a directory of the test's own")]
    pub(crate) fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// `[agent]` with the socket in the directory and further lines. Who runs the tests is an admin, root or not.
    pub(crate) fn agent_table(&self, lines: &str) -> String {
        // The packaged group is root's default, and need not exist on a machine that only runs the tests.
        let own = nix::unistd::geteuid();
        let lines = match (own.is_root(), lines) {
            (true, lines) if !lines.contains("socket_group") => format!("socket_group = \"root\"\n{lines}"),
            (false, lines) if !lines.contains("admin = ") => format!("admin = [\"uid:{own}\"]\n{lines}"),
            (_, lines) => lines.to_owned(),
        };
        format!(
            "[agent]\nsocket = {:?}\nca_file = {:?}\n{lines}\n",
            self.path("agent.sock"),
            self.path("ca.pem")
        )
    }

    /// `[agent]` as an agent of any user can have it: no group is given.
    pub(crate) fn plain_agent_table(&self, lines: &str) -> String {
        format!(
            "[agent]\nsocket = {:?}\nca_file = {:?}\n{lines}\n",
            self.path("agent.sock"),
            self.path("ca.pem")
        )
    }

    /// Gives what is there to a user, as `chown` does.
    pub(crate) fn give(&self, name: &str, uid: u32) {
        std::os::unix::fs::chown(self.path(name), Some(uid), Some(uid)).unwrap();
    }

    /// `[tokens.NAME]` at the issuer, with the secret of the file `secret` and further lines.
    pub(crate) fn profile(&self, name: &str, lines: &str) -> String {
        format!(
            "[tokens.{name}]\nprovider = \"oauth2\"\ntoken_url = {:?}\nclient_id = \"{CLIENT_ID}\"\n\
             client_secret.file = {:?}\n{lines}\n",
            self.issuer.token_url,
            self.path("secret")
        )
    }

    /// Writes the config.
    pub(crate) fn config(&self, text: &str) {
        self.write("config.toml", text, 0o644);
    }

    /// A copy of a shipped program that every uid may run: the build directory may be closed to them.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let built = match name {
            "bloom-agent" => env!("CARGO_BIN_EXE_bloom-agent"),
            "bloom-agent-cli" => env!("CARGO_BIN_EXE_bloom-agent-cli"),
            other => panic!("no program {other}"),
        };
        let copy = self.path(name);
        if !copy.exists() {
            // By another process: a file that a fork of ours holds open for writing cannot be run (ETXTBSY), and other tests
            // fork all the time.
            let copied = Command::new("install").args(["-m", "0755", built]).arg(&copy).status().unwrap();
            assert!(copied.success());
        }
        copy
    }

    /// Starts `bloom-agent run` and waits until it serves.
    pub(crate) fn run(&self) -> Agent {
        let agent = self.start();
        agent.wait_for_log("serving");
        agent
    }

    /// The same where there is a journal: a mount namespace of the agent's own, in which the test listens at its socket.
    /// [`Agent::log`] has the entries, as they are sent. Needs root.
    pub(crate) fn run_in_journal(&self) -> Agent {
        fs::create_dir(self.path("journal")).unwrap();
        let journal = UnixDatagram::bind(self.path("journal/socket")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(
            "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
             mount --bind \"$0\" /run/systemd/journal && exec \"$@\"",
        );
        command.arg(self.path("journal")).arg(self.program("bloom-agent"));
        command.args(["run", "--config"]).arg(self.path("config.toml"));
        let agent = Agent::spawn_with(command, Some((journal, self.path("journal/socket"))));
        agent.wait_for_log("serving");
        agent
    }

    /// Starts `bloom-agent run`, as the test's own user.
    pub(crate) fn start(&self) -> Agent {
        Agent::spawn(self.daemon(&["run"]))
    }

    /// Starts `bloom-agent run` as another user, who gets the directory and the secret.
    pub(crate) fn start_as(&self, user: &User) -> Agent {
        self.give(".", user.uid);
        self.give("secret", user.uid);
        let mut command = user.command(&self.program("bloom-agent"));
        command.arg("run").arg("--config").arg(self.path("config.toml"));
        Agent::spawn(command)
    }

    /// `bloom-agent ARGS --config` of this host, not yet started.
    pub(crate) fn daemon(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program("bloom-agent"));
        command.args(arguments).arg("--config").arg(self.path("config.toml"));
        command
    }

    /// `bloom-agent-cli` on this host's socket, not yet started.
    pub(crate) fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program("bloom-agent-cli"));
        command.arg("--socket").arg(self.path("agent.sock")).args(arguments);
        command
    }

    /// Runs the agent where it is expected to end by itself; what it wrote is returned.
    pub(crate) fn run_to_its_end(&self) -> Output {
        self.daemon(&["run"]).stdin(Stdio::null()).output().unwrap()
    }

    /// `bloom-agent check`, as the test's own user.
    pub(crate) fn check(&self) -> Output {
        let mut command = Command::new(self.program("bloom-agent"));
        command.args(check_as_ourselves()).arg("--config").arg(self.path("config.toml")).output().unwrap()
    }

    /// A channel to the agent, for what the CLI has no words for.
    pub(crate) async fn channel(&self) -> tonic::transport::Channel {
        let address = format!("unix://{}", self.path("agent.sock").display());
        tonic::transport::Endpoint::from_shared(address).unwrap().connect().await.unwrap()
    }

    /// `bloom-agent-cli ARGS` as a user, on the host's socket.
    pub(crate) fn cli_as(&self, user: &User, arguments: &[&str]) -> Output {
        let mut command = user.command(&self.program("bloom-agent-cli"));
        command.arg("--socket").arg(self.path("agent.sock")).args(arguments).output().unwrap()
    }

    /// The same as the test's own user.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.program("bloom-agent-cli"));
        command.arg("--socket").arg(self.path("agent.sock")).args(arguments).output().unwrap()
    }
}

/// `check` as the test's own user: root's would be done as the packaged user, on a machine that has it.
pub(crate) fn check_as_ourselves() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() { &["check", "--user", "root"] } else { &["check"] }
}

/// Whom a caller is: ids that need not exist on the machine.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl User {
    pub(crate) fn new(uid: u32, gid: u32, groups: &[u32]) -> Self {
        Self { uid, gid, groups: groups.to_vec() }
    }

    /// A command in the user's name. setpriv(1) sets supplementary groups, which std's Command cannot.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
        if self.groups.is_empty() {
            command.arg("--clear-groups");
        } else {
            let groups: Vec<_> = self.groups.iter().map(ToString::to_string).collect();
            command.arg(format!("--groups={}", groups.join(",")));
        }
        command.arg("--").arg(program);
        command
    }

    /// Does something on a thread that is this user to the kernel: what it connects to sees these ids. Credentials are a
    /// thread's in Linux; the C library's wrappers would change all threads, so the bare system calls are made.
    #[allow(unsafe_code, reason = "credentials of one thread have no wrapper")]
    pub(crate) fn act<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        let become_user = || {
            let (uid, gid) = (self.uid, self.gid);
            // SAFETY: the pointer is `groups.len()` readable gid_t; the others take numbers only.
            let answers = unsafe {
                [
                    nix::libc::syscall(nix::libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()),
                    nix::libc::syscall(nix::libc::SYS_setresgid, gid, gid, gid),
                    nix::libc::syscall(nix::libc::SYS_setresuid, uid, uid, uid),
                ]
            };
            assert_eq!(answers, [0, 0, 0], "{self:?}");
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_user();
                deed()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// A gRPC channel to a socket; the connection is that of the thread that polls it.
pub(crate) async fn connect(socket: &Path) -> tonic::transport::Channel {
    let target = format!("unix:{}", socket.display());
    tonic::transport::Endpoint::from_shared(target).unwrap().connect().await.unwrap()
}

/// Runs a future to its end on this thread, with nothing on any other.
pub(crate) fn on_this_thread<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("it hangs") })
}

/// A running program, its output collected. Dropping it kills it.
pub(crate) struct Agent {
    child: Child,
    log: Arc<Mutex<String>>,
    lines: Mutex<Receiver<String>>,
    out: Option<JoinHandle<String>>,
    reader: Option<JoinHandle<()>>,
    /// Who reads its journal, and the socket at which that is told to end.
    journal: Option<(JoinHandle<()>, PathBuf)>,
}

impl Agent {
    pub(crate) fn spawn(command: Command) -> Self {
        Self::spawn_with(command, None)
    }

    /// With the socket of its journal, and where that is.
    fn spawn_with(mut command: Command, journal: Option<(UnixDatagram, PathBuf)>) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let journal = journal.map(|(socket, path)| (hear(socket, &log, sender.clone()), path));
        let collected = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines() {
                let line = line.unwrap();
                collected.lock().unwrap().push_str(&format!("{line}\n"));
                // Nobody may be waiting any more.
                let _unheard = sender.send(line);
            }
        });
        let mut stdout = child.stdout.take().unwrap();
        let out = std::thread::spawn(move || {
            let mut text = Vec::new();
            stdout.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, log, lines: Mutex::new(lines), out: Some(out), reader: Some(reader), journal }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// All that it has written to stderr so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of stderr, not waited for before, that holds `text`; returns it.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        let lines = self.lines.lock().unwrap();
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(text) => return line,
                Ok(_) => {}
                Err(error) => panic!("no line with {text:?} ({error}); it wrote:\n{}", self.log()),
            }
        }
    }

    /// Waits until `text` is somewhere in stderr, be it in a line that was waited for before.
    pub(crate) fn wait_until_logged(&self, text: &str) {
        let lines = self.lines.lock().unwrap();
        while !self.log().contains(text) {
            if let Err(error) = lines.recv_timeout(PATIENCE) {
                panic!("no line with {text:?} ({error}); it wrote:\n{}", self.log());
            }
        }
    }

    /// Tells it to stop and waits for the end; returns the status and all of stdout.
    pub(crate) fn stop(mut self) -> (ExitStatus, String, String) {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits for the end; returns the status, stdout and stderr.
    pub(crate) fn wait(&mut self) -> (ExitStatus, String, String) {
        let status = self.child.wait().unwrap();
        let out = self.out.take().unwrap().join().unwrap();
        self.reader.take().unwrap().join().unwrap();
        if let Some((reader, path)) = self.journal.take() {
            // After all that the agent has sent.
            UnixDatagram::unbound().unwrap().send_to(b"", path).unwrap();
            reader.join().unwrap();
        }
        (status, out, self.log())
    }
}

/// Takes what comes to a journal for lines of the agent's log, until it is told to end by a datagram of no length.
fn hear(journal: UnixDatagram, log: &Arc<Mutex<String>>, sender: Sender<String>) -> JoinHandle<()> {
    let collected = Arc::clone(log);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 256 * 1024];
        loop {
            let length = journal.recv(&mut bytes).unwrap();
            if length == 0 {
                return;
            }
            let entry = String::from_utf8_lossy(&bytes[..length]).into_owned();
            collected.lock().unwrap().push_str(&format!("{entry}\n"));
            // Nobody may be waiting any more.
            let _unheard = sender.send(entry);
        }
    })
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last = log.lines().rev().take(20).collect::<Vec<_>>();
            eprintln!("the agent's last words:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A running program whose standard output is read line by line as it comes. Dropping it kills it.
pub(crate) struct Printing {
    child: Child,
    lines: Receiver<String>,
    err: Option<JoinHandle<String>>,
}

impl Printing {
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines() {
                // Nobody may be reading any more.
                let _unheard = sender.send(line.unwrap());
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let err = std::thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, lines, err: Some(err) }
    }

    /// The next line; fails the test if none comes.
    pub(crate) fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => {
                let _ended = self.child.kill();
                panic!("no line ({error}); its messages:\n{}", self.err.take().unwrap().join().unwrap());
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the end; returns the status, the lines not read yet, and stderr.
    pub(crate) fn wait(&mut self) -> (ExitStatus, Vec<String>, String) {
        let status = self.child.wait().unwrap();
        let err = self.err.take().unwrap().join().unwrap();
        (status, self.lines.iter().collect(), err)
    }
}

impl Drop for Printing {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What a program wrote to its standard error.
pub(crate) fn messages(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a program wrote to its standard output, without the last newline.
pub(crate) fn printed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.strip_suffix('\n').map(ToOwned::to_owned).unwrap_or(text)
}

/// What a program printed, for an assertion's message.
pub(crate) fn shown(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
