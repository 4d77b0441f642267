//! A secret that systemd hands over at start (systemd.exec(5), LoadCredential=). A rotation is a restart: systemd does
//! not refresh credentials on reload, so a credential never changes under a running agent.

use std::path::{Path, PathBuf};

use nix::{
    libc,
    sys::{
        statfs::fstatfs,
        statvfs::{FsFlags, fstatvfs},
    },
    unistd::geteuid,
};

use super::{MAX_FILE_BYTES, Nature, ReadSecret, Reading, SourceFault, parse};
use crate::{
    config::CredentialName,
    files::{self, Fault, Opened, Rule, Rules},
};

/// linux/magic.h; libc has no name for it.
const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;

/// A name in the credentials directory.
#[derive(Debug)]
pub struct CredentialSource {
    name: CredentialName,
    directory: Option<PathBuf>,
}

impl CredentialSource {
    /// The credential `name` in `directory`, which is what systemd set `$CREDENTIALS_DIRECTORY` to.
    pub const fn new(name: CredentialName, directory: Option<PathBuf>) -> Self {
        Self { name, directory }
    }

    fn fault(&self, why: impl Into<String>, remedy: impl Into<String>) -> SourceFault {
        let what = format!("cannot use the {}", self.describe());
        SourceFault { what, why: why.into(), remedy: remedy.into(), nature: Nature::Standing }
    }

    /// What [`files`] says, with `remedy` in place of its own: nobody but systemd writes a credential. What passes by
    /// itself keeps its own, which is about the host.
    fn of_file(&self, fault: Fault, remedy: impl Into<String>) -> SourceFault {
        match Nature::of(fault.rule) {
            Nature::Standing => self.fault(fault.why, remedy),
            nature @ Nature::Passing => SourceFault { nature, ..self.fault(fault.why, fault.remedy) },
        }
    }

    fn load_line(&self) -> String {
        format!(
            "`systemctl edit bloom-agent`, under [Service] write LoadCredential={}:/path/of/the/secret, then `systemctl \
             restart bloom-agent`",
            self.name
        )
    }
}

impl ReadSecret for CredentialSource {
    fn read(&self) -> Result<Reading, SourceFault> {
        let Some(directory) = self.directory.as_deref() else {
            return Err(self.fault(
                "$CREDENTIALS_DIRECTORY is not set, so systemd has handed nothing over",
                "run the agent as a systemd service with LoadCredential=, or name a file of its own user with \
                 client_secret.file",
            ));
        };
        if !directory.is_absolute() {
            return Err(self.fault(
                "$CREDENTIALS_DIRECTORY is not an absolute path, so it is not systemd's",
                "leave that variable to systemd",
            ));
        }
        let opened = files::open(&directory.join(self.name.as_str()), Rules::credential(geteuid()));
        let opened = opened.map_err(|fault| match fault.rule {
            Rule::Present => self.fault(
                format!("systemd has handed over no credential of that name: {}", fault.why),
                self.load_line(),
            ),
            _ => self.of_file(fault, format!("leave its making to systemd: {}", self.load_line())),
        })?;
        self.judge_mount(&opened, directory)?;
        let contents = opened.read(MAX_FILE_BYTES);
        let contents = contents
            .map_err(|fault| self.of_file(fault, "write the client secret into it, and nothing else"))?;
        parse(contents, &self.describe())
    }

    fn describe(&self) -> String {
        format!("credential {:?}", self.name.as_str())
    }
}

impl CredentialSource {
    /// systemd makes a ramfs (252) or a tmpfs without swap (257) for each service, and mounts it read-only. Anything else
    /// is a directory that somebody set the variable to: on a disk, or writable by the agent's own user.
    fn judge_mount(&self, opened: &Opened, directory: &Path) -> Result<(), SourceFault> {
        let failed = |errno: nix::errno::Errno| {
            let nature = Nature::of(Rule::FileSystem(errno));
            let why = format!("the system says: {}", errno.desc());
            SourceFault { nature, ..self.fault(why, "look at the kernel's log") }
        };
        let file_system = fstatfs(opened.descriptor()).map_err(failed)?.filesystem_type();
        let read_only = fstatvfs(opened.descriptor()).map_err(failed)?.flags().contains(FsFlags::ST_RDONLY);
        let in_memory = [RAMFS_MAGIC, libc::TMPFS_MAGIC].contains(&file_system.0);
        if in_memory && read_only {
            return Ok(());
        }
        let directory = files::fault::quoted(directory);
        let why = match (in_memory, read_only) {
            (false, _) => {
                format!("{directory} is not in memory, so it is not the directory that systemd makes")
            }
            (true, _) => {
                format!("{directory} is not mounted read-only, so it is not the directory that systemd makes")
            }
        };
        let remedy = "run the agent as a systemd service with LoadCredential=, or name a file of its own user with \
                      client_secret.file";
        Err(self.fault(why, remedy))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, chown},
    };

    use super::*;
    use crate::hardening::trial::{self, AGENT, STRANGER};

    const INSTEAD: &str = "run the agent as a systemd service with LoadCredential=, or name a file of its own user with \
                           client_secret.file";

    /// Fills a credentials directory.
    type Make = fn(&Path);

    fn bloom() -> CredentialName {
        CredentialName::parse("bloom").unwrap()
    }

    fn source(directory: &Path) -> CredentialSource {
        CredentialSource::new(bloom(), Some(directory.to_owned()))
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::File::open(path).unwrap().set_permissions(fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A credentials directory as `make` leaves it, mounted read-only, in a mount namespace of its own.
    fn with_mount(fs_type: &str, make: impl Fn(&Path) + Sync, test: impl Fn(&Path) + Sync) {
        let directory = tempfile::tempdir().unwrap();
        set_mode(directory.path(), 0o755);
        trial::with_mount(directory.path(), fs_type, || make(directory.path()), || test(directory.path()));
    }

    fn as_systemd_252(directory: &Path) {
        let file = directory.join("bloom");
        fs::write(&file, "s3cret\n").unwrap();
        chown(&file, Some(AGENT), Some(0)).unwrap();
        set_mode(&file, 0o400);
        chown(directory, Some(AGENT), Some(0)).unwrap();
        set_mode(directory, 0o500);
    }

    fn as_systemd_257(directory: &Path) {
        let file = directory.join("bloom");
        fs::write(&file, "s3cret\n").unwrap();
        set_mode(&file, 0o400);
        trial::set_acl(&file, 4, AGENT, 4);
        set_mode(directory, 0o500);
        trial::set_acl(directory, 5, AGENT, 5);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&file), mode(directory)), (0o440, 0o550));
    }

    #[test]
    fn a_credential_is_read_as_either_systemd_makes_it() {
        if !trial::is_root("a_credential_is_read_as_either_systemd_makes_it") {
            return;
        }
        let shapes: [(&str, Make); 2] = [("ramfs", as_systemd_252), ("tmpfs", as_systemd_257)];
        for (fs_type, make) in shapes {
            with_mount(fs_type, make, |directory| {
                let source = source(directory);
                assert_eq!(source.describe(), r#"credential "bloom""#);
                let reading = trial::as_user(AGENT, || source.read()).unwrap();
                assert_eq!(reading.secret.expose_secret(), "s3cret", "{fs_type}");
                // Whoever else looks for it is refused, at the latest by the kernel.
                let fault = trial::as_user(STRANGER, || source.read()).unwrap_err();
                let theirs = format!("its directory {directory:?} is owned by ");
                assert!(fault.why.starts_with(&theirs), "{fault}");
            });
        }
    }

    #[test]
    fn a_credential_of_a_root_service_is_roots() {
        if !trial::is_root("a_credential_of_a_root_service_is_roots") {
            return;
        }
        let make = |directory: &Path| {
            fs::write(directory.join("bloom"), "s3cret").unwrap();
            set_mode(&directory.join("bloom"), 0o400);
        };
        with_mount("tmpfs", make, |directory| {
            assert_eq!(source(directory).read().unwrap().secret.expose_secret(), "s3cret");
        });
    }

    #[test]
    fn what_systemd_would_not_make_is_refused() {
        if !trial::is_root("what_systemd_would_not_make_is_refused") {
            return;
        }
        let load = "leave its making to systemd: `systemctl edit bloom-agent`, under [Service] write \
                    LoadCredential=bloom:/path/of/the/secret, then `systemctl restart bloom-agent`";
        let cases: [(&str, Make, &str); 5] = [
            (
                "readable by others",
                |d| {
                    fs::write(d.join("bloom"), "s").unwrap();
                    set_mode(&d.join("bloom"), 0o444);
                },
                "its mode is 0444, and systemd's own are 0400 and 0440",
            ),
            (
                "writable by its owner",
                |d| {
                    fs::write(d.join("bloom"), "s").unwrap();
                    set_mode(&d.join("bloom"), 0o600);
                },
                "its mode is 0600, and systemd's own are 0400 and 0440",
            ),
            (
                "a stranger's",
                |d| {
                    fs::write(d.join("bloom"), "s").unwrap();
                    chown(d.join("bloom"), Some(STRANGER), None).unwrap();
                    set_mode(&d.join("bloom"), 0o400);
                },
                "it is owned by uid 1234, and the agent trusts root only",
            ),
            (
                "with two names",
                |d| {
                    fs::write(d.join("bloom"), "s").unwrap();
                    fs::hard_link(d.join("bloom"), d.join("other")).unwrap();
                    set_mode(&d.join("bloom"), 0o400);
                },
                "it has 2 names, and the others may lie where somebody else can reach them",
            ),
            (
                "a directory",
                |d| fs::create_dir(d.join("bloom")).unwrap(),
                "it is a directory, not a regular file",
            ),
        ];
        for (name, make, why) in cases {
            with_mount("tmpfs", make, |directory| {
                let fault = source(directory).read().unwrap_err();
                assert_eq!(
                    fault.to_string(),
                    format!("cannot use the credential \"bloom\"\n{why}\n{load}"),
                    "{name}"
                );
            });
        }
        let link =
            |directory: &Path| std::os::unix::fs::symlink("/etc/passwd", directory.join("bloom")).unwrap();
        with_mount("tmpfs", link, |directory| {
            let fault = source(directory).read().unwrap_err();
            let link = directory.join("bloom");
            assert_eq!(fault.why, format!("{link:?} is a symbolic link, and links are not followed to it"));
        });
        let long = |directory: &Path| {
            fs::write(directory.join("bloom"), vec![b'x'; MAX_FILE_BYTES + 1]).unwrap();
            set_mode(&directory.join("bloom"), 0o400);
        };
        with_mount("tmpfs", long, |directory| {
            let fault = source(directory).read().unwrap_err();
            assert_eq!(fault.why, "it is longer than 64 KiB");
            assert_eq!(fault.remedy, "write the client secret into it, and nothing else");
        });
    }

    #[test]
    fn a_directory_that_is_not_systemds_is_refused() {
        if !trial::is_root("a_directory_that_is_not_systemds_is_refused") {
            return;
        }
        let make = |directory: &Path| {
            fs::write(directory.join("bloom"), "s3cret").unwrap();
            set_mode(&directory.join("bloom"), 0o400);
        };
        let on_disk = tempfile::tempdir_in("/var/tmp").unwrap();
        make(on_disk.path());
        let fault = source(on_disk.path()).read().unwrap_err();
        let why =
            format!("{:?} is not in memory, so it is not the directory that systemd makes", on_disk.path());
        assert_eq!(fault.to_string(), format!("cannot use the credential \"bloom\"\n{why}\n{INSTEAD}"));
        let writable = tempfile::tempdir_in("/dev/shm").unwrap();
        make(writable.path());
        let fault = source(writable.path()).read().unwrap_err();
        let why = format!(
            "{:?} is not mounted read-only, so it is not the directory that systemd makes",
            writable.path()
        );
        assert_eq!((fault.why, fault.remedy), (why, INSTEAD.to_owned()));
    }

    #[test]
    fn a_credential_that_is_not_there_says_how_it_gets_there() {
        let fault = CredentialSource::new(bloom(), None).read().unwrap_err();
        assert_eq!(
            fault.to_string(),
            format!(
                "cannot use the credential \"bloom\"\n$CREDENTIALS_DIRECTORY is not set, so systemd has handed nothing \
                 over\n{INSTEAD}"
            )
        );
        let fault = source(Path::new("credentials")).read().unwrap_err();
        assert_eq!(fault.why, "$CREDENTIALS_DIRECTORY is not an absolute path, so it is not systemd's");
        assert_eq!(fault.remedy, "leave that variable to systemd");
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("bloom");
        let fault = source(directory.path()).read().unwrap_err();
        assert_eq!(
            fault.why,
            format!("systemd has handed over no credential of that name: {missing:?} does not exist")
        );
        assert_eq!(
            fault.remedy,
            "`systemctl edit bloom-agent`, under [Service] write LoadCredential=bloom:/path/of/the/secret, then \
             `systemctl restart bloom-agent`"
        );
    }
}
