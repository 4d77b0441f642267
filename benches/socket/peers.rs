//! Agents that people know, to compare with: oidc-agent with an issuer of its own, and ssh-agent with a key.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use tempfile::TempDir;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

/// The name of the one account.
pub(crate) const ACCOUNT: &str = "bench";

/// What a program is called and told, where it is installed.
pub(crate) fn is_installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    found.status.success()
}

/// oidc-agent with an account whose token it holds.
pub(crate) struct OidcAgent {
    directory: TempDir,
    pid: u32,
}

impl OidcAgent {
    pub(crate) fn start() -> Option<Self> {
        if !is_installed("oidc-agent") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let issuer = issuer(directory.path());
        let mut agent = Self { directory, pid: 0 };
        let told = agent.command("oidc-agent").arg("--json").arg("-a").arg(agent.socket()).output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        agent.pid = number(&told["dpid"]).or(number(&told["pid"])).unwrap_or_else(|| panic!("{told}"));
        let made = agent
            .command("oidc-gen")
            .arg(ACCOUNT)
            .arg(format!("--iss={issuer}"))
            .args(["--client-id=bench", "--client-secret=a-secret", "--scope=openid", "--rt=a-refresh-token"])
            .args(["--redirect-uri=http://localhost:8080", "--flow=refresh", "--pw-env", "--prompt=none"])
            .arg("--confirm-default")
            .arg(format!("--cert-path={}", agent.directory.path().join("ca.pem").display()))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", words(&made));
        let token = agent.token().output().unwrap();
        assert!(token.status.success() && token.stdout.len() > 1_000, "{}", words(&token));
        Some(agent)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("OIDC_CONFIG_DIR", self.directory.path()).env("OIDC_SOCK", self.socket());
        command.env("OIDC_ENCRYPTION_PW", "a-password").stdin(Stdio::null());
        command
    }

    /// The command that prints the token.
    pub(crate) fn token(&self) -> Command {
        let mut command = self.command("oidc-token");
        command.arg(ACCOUNT);
        command
    }

    /// Its processes: it is two.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).chain([self.pid]).collect()
    }
}

impl Drop for OidcAgent {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid.try_into().unwrap());
        let _ended = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
}

fn number(value: &serde_json::Value) -> Option<u32> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())?.try_into().ok()
}

fn words(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// An OpenID provider that gives everybody a token of a day, behind TLS; it leaves its certificate in `directory`.
fn issuer(directory: &Path) -> String {
    let certified =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    fs::write(directory.join("ca.pem"), certified.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(config));
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let issuer = url.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let stream = StreamOwned::new(connection, stream.unwrap());
            // Who breaks off asks again.
            let _broken_off = answer(stream, &issuer);
        }
    });
    url
}

fn answer(stream: impl std::io::Read + std::io::Write, issuer: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    let body = if first.contains("well-known") {
        serde_json::json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "scopes_supported": ["openid"],
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        })
    } else {
        serde_json::json!({
            "access_token": "a".repeat(1_000),
            "token_type": "Bearer",
            "expires_in": 86_400,
            "refresh_token": "a-refresh-token",
            "scope": "openid",
        })
    };
    let (body, stream) = (body.to_string(), stream.get_mut());
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}

/// ssh-agent with one key.
pub(crate) struct SshAgent {
    directory: TempDir,
    child: Child,
}

impl SshAgent {
    pub(crate) fn start() -> Option<Self> {
        if !is_installed("ssh-agent") || !is_installed("ssh-add") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let child = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let agent = Self { directory, child: child.unwrap() };
        while !socket.exists() {
            std::thread::yield_now();
        }
        let key = agent.directory.path().join("key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        let added = agent.command().arg("-q").arg(&key).status().unwrap();
        assert!(added.success());
        Some(agent)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("ssh-add");
        command.env("SSH_AUTH_SOCK", self.directory.path().join("agent.sock"));
        command
    }

    /// The command that lists its keys.
    pub(crate) fn list(&self) -> Command {
        let mut command = self.command();
        command.arg("-l");
        command
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
