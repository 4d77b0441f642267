use std::{
    fs::{self, File, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        net::UnixListener,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::stat::Mode,
};
use tempfile::TempDir;

use super::*;
use crate::hardening::trial::{self, AGENT, STRANGER};

const LIMIT: usize = 100;

/// A directory that everybody may enter, below a sticky one.
fn stage() -> TempDir {
    let stage = tempfile::tempdir().unwrap();
    set_mode(stage.path(), 0o755);
    stage
}

fn set_mode(path: &Path, mode: u32) {
    File::open(path).unwrap().set_permissions(Permissions::from_mode(mode)).unwrap();
}

fn make(path: &Path, owner: u32, mode: u32) -> PathBuf {
    fs::write(path, "content").unwrap();
    set_mode(path, mode);
    chown(path, Some(owner), Some(owner)).unwrap();
    path.to_owned()
}

fn make_directory(path: &Path, owner: u32, mode: u32) -> PathBuf {
    fs::create_dir(path).unwrap();
    set_mode(path, mode);
    chown(path, Some(owner), Some(owner)).unwrap();
    path.to_owned()
}

fn read_as_agent(path: &Path, rules: fn(Uid) -> Rules) -> Result<Vec<u8>, Fault> {
    trial::as_user(AGENT, || {
        read(path, rules(Uid::from_raw(AGENT)), LIMIT).map(|contents| contents.bytes.to_vec())
    })
}

/// What a test makes in its directory, and the path that it asks for.
type Make = fn(&Path) -> PathBuf;

#[test]
fn a_secret_is_read_where_only_the_agent_and_root_can_change_it() {
    if !trial::is_root("a_secret_is_read_where_only_the_agent_and_root_can_change_it") {
        return;
    }
    let cases: [(&str, Make); 6] = [
        ("its own, 0600", |d| make(&d.join("s"), AGENT, 0o600)),
        ("its own, 0400", |d| make(&d.join("s"), AGENT, 0o400)),
        ("in a directory of its own", |d| {
            make(&make_directory(&d.join("d"), AGENT, 0o700).join("s"), AGENT, 0o600)
        }),
        ("in a sticky directory", |d| make(&make_directory(&d.join("d"), 0, 0o1777).join("s"), AGENT, 0o600)),
        ("in a directory that it may enter but not list", |d| {
            make(&make_directory(&d.join("d"), 0, 0o711).join("s"), AGENT, 0o600)
        }),
        ("by way of ..", |d| {
            make_directory(&d.join("d"), AGENT, 0o700);
            make(&d.join("s"), AGENT, 0o600);
            d.join("d/../s")
        }),
    ];
    for (name, make) in cases {
        let stage = stage();
        assert_eq!(read_as_agent(&make(stage.path()), Rules::secret).unwrap(), b"content", "{name}");
    }
}

/// In the expected texts, `$D` is the test's directory and `$P` the path.
fn check(rules: fn(Uid) -> Rules, noun: &str, cases: &[(&str, Make, Rule, &str, &str)]) {
    for (name, make, rule, why, remedy) in cases {
        let stage = stage();
        let path = make(stage.path());
        let fault = read_as_agent(&path, rules).unwrap_err();
        let fill = |text: &str| {
            text.replace("$P", path.to_str().unwrap()).replace("$D", stage.path().to_str().unwrap())
        };
        assert_eq!(fault.rule, *rule, "{name}");
        assert_eq!(
            fault.to_string(),
            format!("cannot use the {noun} \"{}\"\n{}\n{}", path.display(), fill(why), fill(remedy)),
            "{name}"
        );
        assert_eq!(fault.path, path);
    }
}

#[test]
fn a_credential_is_read_with_the_modes_that_systemd_gives_and_no_other() {
    if !trial::is_root("a_credential_is_read_with_the_modes_that_systemd_gives_and_no_other") {
        return;
    }
    for mode in [0o400, 0o440] {
        let stage = stage();
        let path = make(&stage.path().join("c"), AGENT, mode);
        assert_eq!(read_as_agent(&path, Rules::credential).unwrap(), b"content", "{mode:o}");
    }
    check(
        Rules::credential,
        "credential",
        &[
            (
                "its owner may write it",
                |d| make(&d.join("c"), AGENT, 0o600),
                Rule::Mode,
                "its mode is 0600, and systemd's own are 0400 and 0440",
                "run: chmod 0400 $P",
            ),
            (
                "its group may run it",
                |d| make(&d.join("c"), AGENT, 0o450),
                Rule::Mode,
                "its mode is 0450, and systemd's own are 0400 and 0440",
                "run: chmod 0400 $P",
            ),
            (
                "anybody may read it",
                |d| make(&d.join("c"), AGENT, 0o444),
                Rule::Mode,
                "its mode is 0444, and systemd's own are 0400 and 0440",
                "run: chmod 0400 $P",
            ),
            (
                "a stranger's",
                |d| make(&d.join("c"), STRANGER, 0o444),
                Rule::Owner,
                "it is owned by uid 1234, and the agent trusts root and uid 4242 only",
                "run: chown root $P && chmod 0400 $P",
            ),
        ],
    );
}

#[test]
fn a_secret_that_breaks_a_rule_is_refused_with_the_rule_and_what_mends_it() {
    if !trial::is_root("a_secret_that_breaks_a_rule_is_refused_with_the_rule_and_what_mends_it") {
        return;
    }
    check(
        Rules::secret,
        "secret file",
        &[
            (
                "not there",
                |d| d.join("s"),
                Rule::Present,
                r#""$P" does not exist"#,
                "make it, and write the client secret into it: install -m 600 -o 4242 /dev/null $P",
            ),
            (
                "below a file",
                |d| make(&d.join("f"), AGENT, 0o600).join("s"),
                Rule::Present,
                r#""$D/f" is not a directory"#,
                "name a file that is there",
            ),
            (
                "readable by its group",
                |d| make(&d.join("s"), AGENT, 0o640),
                Rule::Mode,
                "its mode 0640 lets others at it; it may have nothing for group and others",
                "run: chmod 600 $P",
            ),
            (
                "writable by others",
                |d| make(&d.join("s"), AGENT, 0o602),
                Rule::Mode,
                "its mode 0602 lets others at it; it may have nothing for group and others",
                "run: chmod 600 $P",
            ),
            (
                "not readable by its owner",
                |d| make(&d.join("s"), AGENT, 0o200),
                Rule::Readable { owner: Uid::from_raw(AGENT) },
                "it is owned by uid 4242, mode 0200, and the agent runs as uid 4242, who may not read it",
                "run: chmod 600 $P",
            ),
            (
                "a stranger's, readable",
                |d| make(&d.join("s"), STRANGER, 0o644),
                Rule::Owner,
                "it is owned by uid 1234, and the agent runs as uid 4242",
                "run: chown 4242 $P && chmod 600 $P",
            ),
            (
                "a stranger's, unreadable",
                |d| make(&d.join("s"), STRANGER, 0o600),
                Rule::Owner,
                "it is owned by uid 1234, and the agent runs as uid 4242",
                "run: chown 4242 $P",
            ),
            (
                "root's, readable",
                |d| make(&d.join("s"), 0, 0o644),
                Rule::Owner,
                "it is owned by root, and the agent runs as uid 4242",
                "run: chown 4242 $P && chmod 600 $P",
            ),
            (
                "root's, unreadable",
                |d| make(&d.join("s"), 0, 0o600),
                Rule::Readable { owner: Uid::from_raw(0) },
                "it is owned by root, mode 0600, and the agent runs as uid 4242, who may not read it",
                "run: chown 4242 $P && chmod 600 $P",
            ),
            (
                "two names",
                |d| {
                    let path = make(&d.join("s"), AGENT, 0o600);
                    fs::hard_link(&path, d.join("other")).unwrap();
                    path
                },
                Rule::OneName,
                "it has 2 names, and the others may lie where somebody else can reach them",
                "give it an inode of its own: cp -p $P $P.new && mv $P.new $P",
            ),
            (
                "an ACL that grants",
                |d| {
                    let path = make(&d.join("s"), AGENT, 0o600);
                    trial::set_acl(&path, 6, STRANGER, 4);
                    path
                },
                Rule::NoAcl,
                "it has an access control list, which can let others read it",
                "run: setfacl -b $P && chmod 600 $P",
            ),
            (
                "an ACL that is masked",
                |d| {
                    let path = make(&d.join("s"), AGENT, 0o600);
                    trial::set_acl(&path, 6, STRANGER, 4);
                    set_mode(&path, 0o600);
                    path
                },
                Rule::NoAcl,
                "it has an access control list, which can let others read it",
                "run: setfacl -b $P && chmod 600 $P",
            ),
            (
                "a link",
                |d| {
                    symlink(make(&d.join("real"), AGENT, 0o600), d.join("s")).unwrap();
                    d.join("s")
                },
                Rule::Links,
                r#""$P" is a symbolic link, and links are not followed to it"#,
                "write the path without links, as this prints it: realpath $P",
            ),
            (
                "in a directory that is a link",
                |d| {
                    make(&make_directory(&d.join("real"), AGENT, 0o700).join("s"), AGENT, 0o600);
                    symlink("real", d.join("d")).unwrap();
                    d.join("d/s")
                },
                Rule::Links,
                r#""$D/d" is a symbolic link, and links are not followed to it"#,
                "write the path without links, as this prints it: realpath $P",
            ),
            (
                "a directory",
                |d| make_directory(&d.join("s"), AGENT, 0o700),
                Rule::Regular,
                "it is a directory, not a regular file",
                "name a regular file",
            ),
            (
                "the root directory",
                |_| "/".into(),
                Rule::Regular,
                "it names a directory",
                "name a regular file",
            ),
            (
                "a FIFO that nobody writes",
                |d| {
                    nix::unistd::mkfifo(&d.join("s"), Mode::from_bits_truncate(0o600)).unwrap();
                    chown(d.join("s"), Some(AGENT), None).unwrap();
                    d.join("s")
                },
                Rule::Regular,
                "it is a FIFO, not a regular file",
                "name a regular file",
            ),
            (
                "a socket",
                |d| {
                    drop(UnixListener::bind(d.join("s")).unwrap());
                    d.join("s")
                },
                Rule::Regular,
                "it is a socket, not a regular file",
                "name a regular file",
            ),
            (
                "a device",
                |_| "/dev/zero".into(),
                Rule::Regular,
                "it is a device, not a regular file",
                "name a regular file",
            ),
            (
                "in a directory that its group can write",
                |d| make(&make_directory(&d.join("d"), AGENT, 0o775).join("s"), AGENT, 0o600),
                Rule::Directories,
                r#"its directory "$D/d" can be written by its group (mode 0775), so another file could be put there"#,
                "run: chmod g-w $D/d",
            ),
            (
                "in a directory that everybody can write",
                |d| make(&make_directory(&d.join("d"), 0, 0o757).join("s"), AGENT, 0o600),
                Rule::Directories,
                r#"its directory "$D/d" can be written by everybody (mode 0757), so another file could be put there"#,
                "run: chmod o-w $D/d",
            ),
            (
                "two levels below a directory that everybody can write",
                |d| {
                    let inner =
                        make_directory(&make_directory(&d.join("d"), 0, 0o777).join("e"), AGENT, 0o700);
                    make(&inner.join("s"), AGENT, 0o600)
                },
                Rule::Directories,
                "its directory \"$D/d\" can be written by its group and by everybody (mode 0777), so another file \
                 could be put there",
                "run: chmod go-w $D/d",
            ),
            (
                "in a stranger's directory",
                |d| make(&make_directory(&d.join("d"), STRANGER, 0o755).join("s"), AGENT, 0o600),
                Rule::Directories,
                r#"its directory "$D/d" is owned by uid 1234, who can put another file there"#,
                "run: chown 4242 $D/d",
            ),
            (
                "a stranger's directory in a sticky one",
                |d| {
                    let sticky = make_directory(&d.join("d"), 0, 0o1777);
                    make(&make_directory(&sticky.join("e"), STRANGER, 0o755).join("s"), AGENT, 0o600)
                },
                Rule::Directories,
                r#"its directory "$D/d/e" is owned by uid 1234, who can put another file there"#,
                "run: chown 4242 $D/d/e",
            ),
            (
                "a stranger's file in a sticky directory",
                |d| make(&make_directory(&d.join("d"), 0, 0o1777).join("s"), STRANGER, 0o600),
                Rule::Owner,
                "it is owned by uid 1234, and the agent runs as uid 4242",
                "run: chown 4242 $P",
            ),
            (
                "in a directory that the agent may not enter",
                |d| make(&make_directory(&d.join("d"), AGENT, 0o600).join("s"), AGENT, 0o600),
                Rule::Readable { owner: Uid::from_raw(AGENT) },
                "its directory \"$D/d\" is owned by uid 4242, mode 0600, and the agent runs as uid 4242, who may not \
                 enter it",
                "run: chmod u+x $D/d",
            ),
            (
                "too long",
                |d| {
                    let path = make(&d.join("s"), AGENT, 0o600);
                    fs::write(&path, [b'x'; LIMIT + 1]).unwrap();
                    path
                },
                Rule::Size,
                "it is longer than 0 KiB",
                "see whether it is the secret file that you mean",
            ),
            (
                "a name that no file system has",
                |d| d.join("s".repeat(256)),
                Rule::FileSystem(Errno::ENAMETOOLONG),
                "the system says: File name too long",
                "look at the path and at the kernel's log; this shows each step: namei -l $P",
            ),
        ],
    );
}

#[test]
fn a_root_agent_takes_roots_files_only() {
    if !trial::is_root("a_root_agent_takes_roots_files_only") {
        return;
    }
    let stage = stage();
    let root = Uid::from_raw(0);
    assert!(read(&make(&stage.path().join("own"), 0, 0o600), Rules::secret(root), LIMIT).is_ok());
    let fault =
        read(&make(&stage.path().join("agents"), AGENT, 0o600), Rules::secret(root), LIMIT).unwrap_err();
    assert_eq!(fault.why, "it is owned by uid 4242, and the agent runs as root");
    let fault =
        read(&make(&stage.path().join("c.toml"), AGENT, 0o644), Rules::config(root), LIMIT).unwrap_err();
    assert_eq!(fault.why, "it is owned by uid 4242, and the agent trusts root only");
    assert_eq!(fault.remedy, format!("run: chown root {}", stage.path().join("c.toml").display()));
}

#[test]
fn a_config_file_is_roots_or_the_agents_and_links_that_nobody_else_can_turn_lead_to_it() {
    if !trial::is_root("a_config_file_is_roots_or_the_agents_and_links_that_nobody_else_can_turn_lead_to_it")
    {
        return;
    }
    let cases: [(&str, Make); 6] = [
        ("root's", |d| make(&d.join("c"), 0, 0o644)),
        ("the agent's", |d| make(&d.join("c"), AGENT, 0o600)),
        ("two names", |d| {
            fs::hard_link(make(&d.join("c"), 0, 0o644), d.join("other")).unwrap();
            d.join("c")
        }),
        ("an absolute link", |d| {
            symlink(make(&d.join("real"), 0, 0o644), d.join("c")).unwrap();
            d.join("c")
        }),
        ("relative links, and a directory that is one", |d| {
            make(&make_directory(&d.join("store"), 0, 0o755).join("1.toml"), 0, 0o644);
            symlink("1.toml", d.join("store/current")).unwrap();
            symlink("./store/../store", d.join("etc")).unwrap();
            symlink("etc/current", d.join("c")).unwrap();
            d.join("c")
        }),
        ("the agent's link in a sticky directory", |d| {
            make(&d.join("real"), 0, 0o644);
            let link = make_directory(&d.join("d"), 0, 0o1777).join("c");
            symlink("../real", &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(AGENT), None).unwrap();
            link
        }),
    ];
    for (name, make) in cases {
        let stage = stage();
        assert_eq!(read_as_agent(&make(stage.path()), Rules::config).unwrap(), b"content", "{name}");
    }
}

#[test]
fn a_config_file_that_others_can_change_is_refused() {
    if !trial::is_root("a_config_file_that_others_can_change_is_refused") {
        return;
    }
    check(
        Rules::config,
        "config file",
        &[
            (
                "not there",
                |d| d.join("c"),
                Rule::Present,
                r#""$P" does not exist"#,
                "write it, or name another with --config",
            ),
            (
                "a link that leads nowhere",
                |d| {
                    symlink("gone", d.join("c")).unwrap();
                    d.join("c")
                },
                Rule::Present,
                r#""$D/gone" does not exist"#,
                "write it, or name another with --config",
            ),
            (
                "writable by its group",
                |d| make(&d.join("c"), 0, 0o664),
                Rule::Mode,
                "its mode 0664 lets others write it",
                "run: chmod go-w $P",
            ),
            (
                "writable through an ACL",
                |d| {
                    let path = make(&d.join("c"), 0, 0o644);
                    trial::set_acl(&path, 6, AGENT, 6);
                    path
                },
                Rule::Mode,
                "its mode 0660 lets others write it",
                "run: chmod go-w $P",
            ),
            (
                "a stranger's",
                |d| make(&d.join("c"), STRANGER, 0o666),
                Rule::Owner,
                "it is owned by uid 1234, and the agent trusts root and uid 4242 only",
                "run: chown root $P && chmod go-w $P",
            ),
            (
                "by a link, a stranger's",
                |d| {
                    symlink(make(&d.join("real"), STRANGER, 0o644), d.join("c")).unwrap();
                    d.join("c")
                },
                Rule::Owner,
                "it is owned by uid 1234, and the agent trusts root and uid 4242 only",
                "run: chown root $D/real",
            ),
            (
                "root's alone",
                |d| make(&d.join("c"), 0, 0o600),
                Rule::Readable { owner: Uid::from_raw(0) },
                "it is owned by root, mode 0600, and the agent runs as uid 4242, who may not read it",
                "run: chgrp 4242 $P && chmod 640 $P",
            ),
            (
                "its own, and it may only write it",
                |d| make(&d.join("c"), AGENT, 0o200),
                Rule::Readable { owner: Uid::from_raw(AGENT) },
                "it is owned by uid 4242, mode 0200, and the agent runs as uid 4242, who may not read it",
                "run: chmod 644 $P",
            ),
            (
                "in root's own directory",
                |d| make(&make_directory(&d.join("d"), 0, 0o700).join("c"), 0, 0o644),
                Rule::Readable { owner: Uid::from_raw(0) },
                "its directory \"$D/d\" is owned by root, mode 0700, and the agent runs as uid 4242, who may not \
                 enter it",
                "run: chmod a+x $D/d",
            ),
            (
                "a stranger's link in a sticky directory",
                |d| {
                    make(&d.join("real"), 0, 0o644);
                    let link = make_directory(&d.join("d"), 0, 0o1777).join("c");
                    symlink("../real", &link).unwrap();
                    std::os::unix::fs::lchown(&link, Some(STRANGER), None).unwrap();
                    link
                },
                Rule::Links,
                "the symbolic link \"$P\" is owned by uid 1234, who can make it lead elsewhere",
                "run: chown -h root $P",
            ),
            (
                "a link through a directory that others can write",
                |d| {
                    make(&make_directory(&d.join("d"), 0, 0o777).join("real"), 0, 0o644);
                    symlink("d/real", d.join("c")).unwrap();
                    d.join("c")
                },
                Rule::Directories,
                "its directory \"$D/d\" can be written by its group and by everybody (mode 0777), so another file \
                 could be put there",
                "run: chmod go-w $D/d",
            ),
            (
                "a circle of links",
                |d| {
                    symlink("b", d.join("a")).unwrap();
                    symlink("a", d.join("b")).unwrap();
                    d.join("a")
                },
                Rule::FileSystem(Errno::ELOOP),
                "the system says: Too many symbolic links encountered",
                "untie the circle of symbolic links on the way to $P",
            ),
        ],
    );
    let missing = read(Path::new("/nowhere"), Rules::ca_file(Uid::from_raw(AGENT)), LIMIT).unwrap_err();
    assert_eq!(missing.what, "cannot use the CA file \"/nowhere\"");
    assert_eq!(missing.remedy, "name a file that is there");
    let asked = Asked { rules: Rules::config(Uid::from_raw(AGENT)), path: Path::new("/x") };
    assert_eq!(asked.failed(Errno::EMFILE).remedy, "raise LimitNOFILE= of the unit");
}

#[test]
fn a_kernel_or_filter_without_openat2_follows_no_link_either() {
    if !trial::is_root("a_kernel_or_filter_without_openat2_follows_no_link_either") {
        return;
    }
    let stage = stage();
    let file = make(&stage.path().join("s"), 0, 0o600);
    let link = stage.path().join("link");
    symlink(&file, &link).unwrap();
    let rules = Rules::secret(Uid::from_raw(0));
    for errno in [Errno::ENOSYS, Errno::EPERM] {
        trial::without_call(libc::SYS_openat2, errno, || {
            let refused = nix::fcntl::openat2(AT_FDCWD, "/", nix::fcntl::OpenHow::new().flags(OFlag::O_PATH));
            assert_eq!(refused.unwrap_err(), errno);
            assert_eq!(read(&file, rules, LIMIT).unwrap().bytes.as_slice(), b"content");
            assert_eq!(read(&link, rules, LIMIT).err().unwrap().rule, Rule::Links);
            // What the last open says of a link that came after the look.
            let directory = File::open(stage.path()).unwrap();
            assert_eq!(step(&directory, "link".as_ref(), READ).unwrap_err(), Errno::ELOOP);
        });
    }
}

#[test]
fn what_was_checked_is_what_is_read_though_the_name_goes_to_another_file() {
    if !trial::is_root("what_was_checked_is_what_is_read_though_the_name_goes_to_another_file") {
        return;
    }
    let stage = stage();
    let path = make(&stage.path().join("s"), AGENT, 0o600);
    let others = make(&stage.path().join("others"), STRANGER, 0o666);
    fs::write(&others, "planted").unwrap();
    let opened = open(&path, Rules::secret(Uid::from_raw(AGENT))).unwrap();
    fs::rename(&others, &path).unwrap();
    assert_eq!(opened.read(LIMIT).unwrap().bytes.as_slice(), b"content");
    assert_eq!(open(&path, Rules::secret(Uid::from_raw(AGENT))).unwrap_err().rule, Rule::Owner);
}

#[test]
fn a_name_that_changes_hands_all_the_time_gives_the_right_file_or_none() {
    if !trial::is_root("a_name_that_changes_hands_all_the_time_gives_the_right_file_or_none") {
        return;
    }
    let stage = stage();
    let path = make(&stage.path().join("s"), 0, 0o600);
    let planted = make(&stage.path().join("planted"), 0, 0o600);
    fs::write(&planted, "planted").unwrap();
    let link = stage.path().join("link");
    symlink(&planted, &link).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &path, AT_FDCWD, &link, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
        });
        for _ in 0..2000 {
            match read(&path, Rules::secret(Uid::from_raw(0)), LIMIT) {
                Ok(contents) => assert_eq!(contents.bytes.as_slice(), b"content"),
                Err(fault) => assert!(matches!(fault.rule, Rule::Links | Rule::AtRest), "{fault}"),
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_file_that_is_always_being_written_says_how_to_replace_it() {
    let path = Path::new("/etc/s");
    let fault = unsettled(&Asked { rules: Rules::secret(Uid::from_raw(0)), path });
    assert_eq!(fault.why, "it was being written each time it was read");
    assert_eq!(
        fault.remedy,
        "write the new content beside it, then rename it into place: mv /etc/s.new /etc/s"
    );
}

#[test]
fn a_denial_that_owner_and_mode_do_not_explain_points_at_the_security_modules() {
    let stage = tempfile::tempdir().unwrap();
    let path = stage.path().join("s");
    fs::write(&path, "").unwrap();
    set_mode(&path, 0o600);
    let asked = Asked { rules: Rules::secret(nix::unistd::geteuid()), path: &path };
    let fault = unreadable(&asked, &walk(&asked).unwrap());
    assert_eq!(
        fault.remedy,
        "look for a denial by a security module (SELinux, AppArmor) in the kernel's log"
    );
}

mod config_set {
    use super::*;

    fn set(main: &Path) -> (Vec<(PathBuf, String)>, Vec<Fault>) {
        let set = read_config_set(main, nix::unistd::geteuid());
        (set.texts.into_iter().map(|text| (text.path, text.text.to_string())).collect(), set.faults)
    }

    fn write(path: PathBuf, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(&path, content).unwrap();
        set_mode(&path, 0o644);
        path
    }

    #[test]
    fn the_main_file_comes_first_and_then_config_d_in_order() {
        let stage = stage();
        let main = write(stage.path().join("config.toml"), "main");
        assert_eq!(set(&main), (vec![(main.clone(), "main".into())], vec![]), "config.d need not be there");
        let directory = stage.path().join("config.d");
        fs::create_dir(&directory).unwrap();
        set_mode(&directory, 0o755);
        for name in ["b.toml", "a.toml", "10-x.toml", "é.toml"] {
            write(directory.join(name), name);
        }
        for name in [
            ".hidden.toml",
            ".#lock.toml",
            "a.toml~",
            "a.toml.dpkg-new",
            "a.toml.bak",
            "README",
            "atoml",
            ".toml",
        ] {
            write(directory.join(name), b"\xff not ours");
        }
        let (texts, faults) = set(&main);
        assert_eq!(faults, []);
        let names =
            ["10-x.toml", "a.toml", "b.toml", "é.toml"].map(|name| (directory.join(name), name.to_owned()));
        assert_eq!(texts, [vec![(main, "main".to_owned())], names.to_vec()].concat());
    }

    #[test]
    fn every_fault_of_every_file_is_there_and_what_is_sound_too() {
        let stage = stage();
        let directory = stage.path().join("config.d");
        fs::create_dir(&directory).unwrap();
        set_mode(&directory, 0o755);
        let sound = write(directory.join("b.toml"), "sound");
        let open_to_all = write(directory.join("a.toml"), "x");
        set_mode(&open_to_all, 0o666);
        write(directory.join("c.toml"), b"ok = 1\n# caf\xe9\n");
        write(directory.join("d.toml"), vec![b'#'; MAX_CONFIG_BYTES + 1]);
        fs::create_dir(directory.join("e.toml")).unwrap();
        let (texts, faults) = set(&stage.path().join("config.toml"));
        assert_eq!(texts, [(sound, "sound".to_owned())]);
        let seen: Vec<_> = faults.iter().map(|f| (f.rule, f.why.as_str(), f.remedy.as_str())).collect();
        let missing = format!("{:?} does not exist", stage.path().join("config.toml"));
        let chmod = format!("run: chmod go-w {}", open_to_all.display());
        assert_eq!(
            seen,
            [
                (Rule::Present, missing.as_str(), "write it, or name another with --config"),
                (Rule::Mode, "its mode 0666 lets others write it", chmod.as_str()),
                (Rule::Text, "line 2 is not UTF-8 text", "save it as UTF-8"),
                (Rule::Size, "it is longer than 1024 KiB", "see whether it is the config file that you mean"),
                (Rule::Regular, "it is a directory, not a regular file", "name a regular file"),
            ]
        );
    }

    #[test]
    fn a_config_d_that_cannot_be_trusted_or_listed_is_a_fault() {
        let stage = stage();
        let main = write(stage.path().join("config.toml"), "main");
        let directory = write(stage.path().join("config.d"), "a file");
        let fault = |main: &Path| set(main).1.remove(0);
        let what = format!("cannot use the config directory {directory:?}");
        assert_eq!(
            fault(&main).to_string(),
            format!("{what}\nit is not a directory\nmake it a directory, or take it away")
        );
        fs::remove_file(&directory).unwrap();
        symlink(&directory, &directory).unwrap();
        assert_eq!(
            fault(&main).rule,
            Rule::FileSystem(Errno::ELOOP),
            "what leads nowhere is there all the same"
        );
        fs::remove_file(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        set_mode(&directory, 0o777);
        assert_eq!(
            fault(&main).to_string(),
            format!(
                "{what}\nits directory {directory:?} can be written by its group and by everybody (mode 0777), so \
                 another file could be put there\nrun: chmod go-w {}",
                directory.display()
            )
        );
        if !trial::is_root("a_config_d_that_cannot_be_trusted_or_listed_is_a_fault") {
            return;
        }
        set_mode(&directory, 0o711);
        assert_eq!(
            trial::as_user(AGENT, || fault(&main)).to_string(),
            format!(
                "{what}\nthe agent runs as uid 4242, who may not list it\nrun: chmod a+rx {}",
                directory.display()
            )
        );
    }
}

#[test]
fn as_many_links_are_followed_as_the_kernel_follows_and_no_more() {
    let stage = stage();
    let rules = Rules::config(nix::unistd::geteuid());
    fs::write(stage.path().join("0"), "content").unwrap();
    for link in 1..=41 {
        symlink((link - 1).to_string(), stage.path().join(link.to_string())).unwrap();
    }
    let by = |links: u32| {
        let path = stage.path().join(links.to_string());
        read(&path, rules, LIMIT).map(|contents| contents.bytes.to_vec()).map_err(|fault| fault.rule)
    };
    assert_eq!(by(40).unwrap(), fs::read(stage.path().join("40")).unwrap());
    assert_eq!(by(41).unwrap_err(), Rule::FileSystem(Errno::ELOOP));
    assert_eq!(fs::read(stage.path().join("41")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
}

/// A walk never ends on a link; where it would, the link is called one.
#[test]
fn what_is_no_regular_file_is_called_what_it_is() {
    let stage = stage();
    let [directory, link, fifo, socket] = ["d", "l", "f", "s"].map(|name| stage.path().join(name));
    fs::create_dir(&directory).unwrap();
    symlink("d", &link).unwrap();
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR).unwrap();
    let _listens = UnixListener::bind(&socket).unwrap();
    for (path, what) in [
        (&*directory, "a directory"),
        (&*link, "a symbolic link"),
        (&*fifo, "a FIFO"),
        (&*socket, "a socket"),
        (Path::new("/dev/null"), "a device"),
    ] {
        let asked = Asked { rules: Rules::secret(Uid::from_raw(AGENT)), path };
        let fault = judge_kind(&asked, &nix::sys::stat::lstat(path).unwrap()).unwrap_err();
        assert!(fault.to_string().contains(&format!("it is {what}, not a regular file")), "{fault}");
    }
}

#[test]
fn of_contents_no_more_than_their_length_is_printed() {
    let stage = stage();
    let path = stage.path().join("file");
    fs::write(&path, "canary").unwrap();
    let stat = nix::sys::stat::lstat(&path).unwrap();
    let printed = format!("{:?}", Contents { bytes: fs::read(&path).unwrap().into(), stat });
    assert!(printed.starts_with("Contents { bytes: 6") && !printed.contains("canary"), "{printed}");
}
