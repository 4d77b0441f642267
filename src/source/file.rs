//! A secret in a file of the agent's own user. Replacing the file is a rotation.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use nix::unistd::{Uid, geteuid};

use super::{MAX_FILE_BYTES, Nature, ReadSecret, Reading, SourceFault, Stamp, Watch, parse, watch};
use crate::{
    config::CredentialName,
    files::{self, Fault, Rule, Rules},
};

/// A path, and who the agent is.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    agent: Option<Uid>,
    /// Said in the log, once: that it cannot be watched.
    said_unwatched: Arc<AtomicBool>,
}

impl FileSource {
    /// The file at `path`, which has to belong to the user that this process runs as.
    pub fn new(path: PathBuf) -> Self {
        Self { path, agent: None, said_unwatched: Arc::default() }
    }

    /// Judges the file for an agent that runs as `agent`, whoever this process is.
    #[must_use]
    pub fn for_agent(self, agent: Uid) -> Self {
        Self { agent: Some(agent), ..self }
    }
}

impl ReadSecret for FileSource {
    fn read(&self) -> Result<Reading, SourceFault> {
        let agent = self.agent.unwrap_or_else(geteuid);
        let contents = files::read(&self.path, Rules::secret(agent), MAX_FILE_BYTES);
        parse(contents.map_err(|fault| in_our_words(fault, agent))?, &self.describe())
    }

    fn describe(&self) -> String {
        format!("file {}", files::fault::quoted(&self.path))
    }

    fn glance(&self) -> Option<Stamp> {
        watch::glance(&self.path)
    }

    fn watch(&self) -> Option<Watch> {
        Watch::start(&self.path, &self.said_unwatched)
    }
}

/// A file that is root's for good reason stays root's: systemd can hand it over. Everything else can be mended where it
/// is.
fn in_our_words(fault: Fault, agent: Uid) -> SourceFault {
    let nature = Nature::of(fault.rule);
    let remedy = match fault.rule {
        Rule::Readable { owner } if owner.is_root() && !agent.is_root() => hand_over(&fault.path),
        _ => fault.remedy,
    };
    SourceFault { what: fault.what, why: fault.why, remedy, nature }
}

fn hand_over(path: &Path) -> String {
    let name = path.file_name().and_then(|name| CredentialName::parse(name.to_str()?).ok());
    let name = name.as_ref().map_or("client-secret", CredentialName::as_str);
    // systemd expands % in a path (systemd.unit(5), specifiers), and takes the rest of the line as it is.
    let unit_path = path.to_string_lossy().replace('%', "%%");
    if unit_path.chars().any(char::is_control) || path.to_str().is_none() {
        return "give it a path without control characters, and let systemd hand it over with LoadCredential=".to_owned();
    }
    format!(
        "leave it root's and let systemd hand it over: `systemctl edit bloom-agent`, under [Service] write \
         LoadCredential={name}:{unit_path} and in the config client_secret.credential = \"{name}\", then \
         `systemctl restart bloom-agent`"
    )
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, chown},
    };

    use super::*;
    use crate::{
        hardening::trial::{self, AGENT},
        source::Source,
    };

    #[test]
    fn the_secret_of_a_file_of_ones_own_is_read_anew_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::File::open(&path).unwrap().set_permissions(Permissions::from_mode(0o600)).unwrap();
        };
        let source = Source::file(&path);
        assert_eq!(source.describe(), format!("file {path:?}"));
        assert_eq!(source.glance(), None);
        write("first\n");
        let first = source.read().unwrap();
        assert_eq!(first.secret.expose_secret(), "first");
        assert_eq!(source.glance(), Some(first.stamp));
        write("the second\n");
        let second = source.read().unwrap();
        assert_eq!(second.secret.expose_secret(), "the second");
        assert_ne!(first.stamp, second.stamp);
        assert!(!format!("{source:?} {second:?}").contains("the second"));
    }

    #[test]
    fn a_file_that_stays_roots_is_handed_over_by_systemd() {
        if !trial::is_root("a_file_that_stays_roots_is_handed_over_by_systemd") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::File::open(directory.path()).unwrap().set_permissions(Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("100%");
        fs::write(&path, "s").unwrap();
        let file = fs::File::open(&path).unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        let source = Source::file(&path);
        let lines = |name: &str, path: &Path| {
            format!(
                "leave it root's and let systemd hand it over: `systemctl edit bloom-agent`, under [Service] write \
                 LoadCredential={name}:{} and in the config client_secret.credential = \"{name}\", then `systemctl \
                 restart bloom-agent`",
                path.display()
            )
        };
        let fault = trial::as_user(AGENT, || source.read().unwrap_err());
        assert_eq!(fault.what, format!("cannot use the secret file {path:?}"));
        assert_eq!(
            fault.why,
            format!("it is owned by root, mode 0600, and the agent runs as uid {AGENT}, who may not read it")
        );
        assert_eq!(fault.remedy, lines("client-secret", &directory.path().join("100%%")));

        // The same where the directory is what root keeps to itself; its file cannot be looked at.
        let keep = directory.path().join("secrets");
        fs::create_dir(&keep).unwrap();
        fs::File::open(&keep).unwrap().set_permissions(Permissions::from_mode(0o700)).unwrap();
        let inner = Source::file(keep.join("bloom"));
        let fault = trial::as_user(AGENT, || inner.read().unwrap_err());
        assert_eq!(
            fault.why,
            format!(
                "its directory {keep:?} is owned by root, mode 0700, and the agent runs as uid {AGENT}, who may not \
                 enter it"
            )
        );
        assert_eq!(fault.remedy, lines("bloom", &keep.join("bloom")));

        // One that the agent can read is to be mended where it is.
        file.set_permissions(Permissions::from_mode(0o644)).unwrap();
        let fault = trial::as_user(AGENT, || source.read().unwrap_err());
        let word = files::shell_word(&path);
        assert_eq!(fault.remedy, format!("run: chown {AGENT} {word} && chmod 600 {word}"));

        // And root's own check judges for the agent.
        chown(&path, Some(AGENT), None).unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        assert!(
            source.read().unwrap_err().why.starts_with("it is owned by uid 4242, and the agent runs as root")
        );
        assert!(FileSource::new(path.clone()).for_agent(Uid::from_raw(AGENT)).read().is_ok());
        assert!(trial::as_user(AGENT, || source.read()).is_ok());
    }

    #[test]
    fn a_process_without_a_free_descriptor_has_a_passing_fault() {
        let name = "source::file::tests::a_process_without_a_free_descriptor_has_a_passing_fault";
        trial::in_own_process(name, || {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("secret");
            fs::write(&path, "s").unwrap();
            fs::File::open(&path).unwrap().set_permissions(Permissions::from_mode(0o644)).unwrap();
            let source = Source::file(&path);
            assert_eq!(source.read().unwrap_err().nature, Nature::Standing, "its mode");
            let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
            nix::sys::resource::setrlimit(limit, 64, 64).unwrap();
            let mut taken = Vec::new();
            while let Ok(one) = fs::File::open("/dev/null") {
                taken.push(one);
            }
            let fault = source.read().unwrap_err();
            drop(taken);
            assert_eq!((fault.nature, &*fault.remedy), (Nature::Passing, "raise LimitNOFILE= of the unit"));
        });
    }

    #[test]
    fn a_path_that_no_unit_file_can_hold_is_not_put_into_one() {
        assert_eq!(
            hand_over(Path::new("/a\nb")),
            "give it a path without control characters, and let systemd hand it over with LoadCredential="
        );
    }
}
