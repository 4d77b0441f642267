//! Who the caller is, as the agent's kernel sees it, with names where `/etc/passwd` and `/etc/group` have them.
//!
//! The files are read directly: the command is linked statically where it is packaged, and glibc's name service does not
//! work there. Names are for messages only, never for a decision.

use std::{fmt, fs::File, io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use nix::unistd::{getegid, geteuid, getgroups};

use crate::client::printable;

/// A passwd of many thousands of users; beyond that a name is not worth the time.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// `DynamicUser=` hands these out, and hands them on to other services: a rule must not name one.
const DYNAMIC_IDS: std::ops::RangeInclusive<u32> = 61_184..=65_519;
const OVERFLOW_ID: u32 = 65_534;

/// A number with its name, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    number: u32,
    name: Option<String>,
}

/// The process's effective user and its groups.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    user: Id,
    groups: Vec<Id>,
}

/// A socket's mode, owner and group.
#[derive(Clone, Debug)]
pub(super) struct Door {
    mode: u32,
    owner: Id,
    group: Id,
    /// Its group's id.
    pub(super) gid: u32,
    /// Who is in its group by `/etc/group`.
    pub(super) members: Vec<String>,
}

impl Caller {
    /// This process.
    pub(super) fn current() -> Self {
        let (passwd, group) = (read(Path::new("/etc/passwd")), read(Path::new("/etc/group")));
        let mut gids = vec![getegid().as_raw()];
        gids.extend(getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()));
        Self::new(geteuid().as_raw(), &gids, &passwd, &group)
    }

    fn new(uid: u32, gids: &[u32], passwd: &str, group: &str) -> Self {
        let mut groups: Vec<Id> = Vec::with_capacity(gids.len());
        for gid in gids {
            if !groups.iter().any(|known| known.number == *gid) {
                groups.push(Id::look_up(*gid, group));
            }
        }
        Self { user: Id::look_up(uid, passwd), groups }
    }

    /// The user's name.
    pub(super) fn name(&self) -> Option<&str> {
        self.user.name.as_deref()
    }

    /// Whether `gid` is among the process's groups.
    pub(super) fn has_group(&self, gid: u32) -> bool {
        self.groups.iter().any(|group| group.number == gid)
    }

    /// The selector that admits this user, or why there is none.
    pub(super) fn rule(&self) -> Result<String, &'static str> {
        match (self.user.number, self.name()) {
            (OVERFLOW_ID, _) => Err("no rule can admit uid 65534 (nobody): run as another user"),
            (uid, _) if DYNAMIC_IDS.contains(&uid) => Err(
                "this uid is one of systemd's dynamic ones: ask the operator for allow = [\"unit:NAME.service\"]",
            ),
            (_, Some(name)) => Ok(format!("user:{name}")),
            (uid, None) => Ok(format!("uid:{uid}")),
        }
    }
}

/// `uid 1000 (alice), groups 1000 (alice), 27 (sudo)`
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}, groups ", self.user)?;
        for (index, group) in self.groups.iter().enumerate() {
            write!(f, "{}{group}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Door {
    /// What the file system says of `socket`; nothing if a directory above it may not be searched.
    pub(super) fn of(socket: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(socket).ok()?;
        let group = read(Path::new("/etc/group"));
        Some(Self {
            mode: metadata.mode() & 0o7777,
            owner: Id::look_up(metadata.uid(), &read(Path::new("/etc/passwd"))),
            group: Id::look_up(metadata.gid(), &group),
            gid: metadata.gid(),
            members: members(metadata.gid(), &group),
        })
    }

    /// Its group, by name if it has one.
    pub(super) fn group_name(&self) -> String {
        self.group.name.clone().unwrap_or_else(|| self.gid.to_string())
    }
}

/// `mode 0660, owner 0 (root), group 990 (bloom-agent-users)`
impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mode {:04o}, owner {}, group {}", self.mode, self.owner, self.group)
    }
}

impl Id {
    fn look_up(number: u32, file: &str) -> Self {
        Self { number, name: entry(number, file).map(|(name, _)| name.to_owned()) }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} ({})", self.number, printable(name)),
            None => self.number.fmt(f),
        }
    }
}

/// The first line of `number`, as the C library would find it: the name, and what follows the number (passwd(5),
/// group(5)).
fn entry(number: u32, file: &str) -> Option<(&str, &str)> {
    file.lines().find_map(|line| {
        let mut fields = line.splitn(4, ':');
        let (name, _password, id, rest) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (!name.is_empty() && id.parse() == Ok(number)).then_some((name, rest))
    })
}

fn members(gid: u32, group: &str) -> Vec<String> {
    let listed = entry(gid, group).map_or("", |(_, members)| members);
    listed.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect()
}

/// Empty if it cannot be read: a message without names is still one.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nnonsense\n:x:1000:\nalice:x:1000:1000::/home/alice:/bin/sh\n";
    const GROUP: &str =
        "root:x:0:\nsudo:x:27:bob,alice\nalice:x:1000:\nbloom-agent-users:x:990:alice,carol\n";

    pub(crate) fn caller(uid: u32, gids: &[u32]) -> Caller {
        Caller::new(uid, gids, PASSWD, GROUP)
    }

    pub(crate) fn door(gid: u32) -> Door {
        Door {
            mode: 0o660,
            owner: Id::look_up(0, PASSWD),
            group: Id::look_up(gid, GROUP),
            gid,
            members: members(gid, GROUP),
        }
    }

    #[test]
    fn a_caller_is_named_by_numbers_and_names() {
        for (uid, gids, said) in [
            (1000, &[1000, 27, 1000][..], "uid 1000 (alice), groups 1000 (alice), 27 (sudo)"),
            (7, &[7], "uid 7, groups 7"),
            (0, &[0], "uid 0 (root), groups 0 (root)"),
        ] {
            assert_eq!(caller(uid, gids).to_string(), said);
        }
        assert_eq!(Caller::new(5, &[5], "\u{1b}x:x:5:5:", "").to_string(), "uid 5 (\\u{1b}x), groups 5");
    }

    #[test]
    fn the_rule_is_one_that_the_agent_would_take() {
        for (uid, rule) in [(1000, Ok("user:alice")), (7, Ok("uid:7")), (0, Ok("user:root"))] {
            assert_eq!(caller(uid, &[]).rule().as_deref(), rule.as_ref().map(|rule| *rule));
        }
        assert!(caller(65_534, &[]).rule().unwrap_err().contains("nobody"));
        for uid in [61_184, 65_519] {
            assert!(caller(uid, &[]).rule().unwrap_err().contains("unit:"), "{uid}");
        }
        assert!(caller(61_183, &[]).rule().is_ok() && caller(65_520, &[]).rule().is_ok());
    }

    #[test]
    fn a_door_tells_its_mode_and_its_group_s_members() {
        let door = door(990);
        assert_eq!(door.to_string(), "mode 0660, owner 0 (root), group 990 (bloom-agent-users)");
        assert_eq!(door.members, ["alice", "carol"]);
    }

    #[test]
    fn this_process_is_somebody() {
        let said = Caller::current().to_string();
        assert!(said.starts_with(&format!("uid {}", geteuid().as_raw())), "{said}");
        assert!(said.contains(&format!("groups {}", getegid().as_raw())), "{said}");
    }
}
