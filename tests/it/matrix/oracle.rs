//! Who may do what, written down a second time: from the contract's sentences, and from nothing of the agent's. It shares no
//! code and no types with it. Rules are data here, and text only for the config.

use std::fmt;

/// A caller, as the kernel has it.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

impl Who {
    fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// The users that the agent's host has, with the group that each would log in with.
pub(super) const USERS: [(&str, u32, u32); 6] = [
    ("root", 0, 0),
    ("it-owner", 1234, 1234),
    // Who runs as one of these need not have the group that a login would give.
    ("it-alice", 2001, 3001),
    ("it-alias", 2001, 3002),
    ("it-bob", 2002, 2002),
    ("it-admin", 2006, 2006),
];
/// The groups, with members that a login would give it to.
pub(super) const GROUPS: [(&str, u32, &str); 5] = [
    ("root", 0, ""),
    ("it-callers", 3001, "it-bob"),
    ("it-ops", 3002, "it-alice,it-bob"),
    ("it-admins", 3004, "it-alice"),
    ("nogroup", 65_534, ""),
];

/// One condition of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) enum Term {
    Uid(u32),
    Gid(u32),
    User(&'static str),
    Group(&'static str),
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Gid(gid) => write!(f, "gid:{gid}"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
        }
    }
}

impl Term {
    fn holds(self, who: &Who) -> bool {
        match self {
            Self::Uid(uid) => who.uid == uid,
            Self::Gid(gid) => who.is_in(gid),
            // "An unknown name matches nobody."
            Self::User(name) => USERS.iter().any(|(known, uid, _)| *known == name && *uid == who.uid),
            Self::Group(name) => GROUPS.iter().any(|(known, gid, _)| *known == name && who.is_in(*gid)),
        }
    }
}

/// "`&` means both."
pub(super) type Line = &'static [Term];

/// As a line of the config.
pub(super) fn written(line: Line) -> String {
    line.iter().map(ToString::to_string).collect::<Vec<_>>().join(" & ")
}

/// "Any line admits."
fn admits(lines: &[Line], who: &Who) -> bool {
    lines.iter().any(|line| line.iter().all(|term| term.holds(who)))
}

/// What differs between the agents.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// Who it runs as, with the gid of the same number.
    pub(super) runs_as: u32,
    /// `root = "by-rule"`.
    pub(super) root_by_rule: bool,
    /// `socket_mode`.
    pub(super) socket_mode: u32,
    /// The group that the socket has in the end.
    pub(super) socket_gid: u32,
}

/// Whether the socket's mode lets somebody connect, which takes the right to write (unix(7)).
pub(super) fn may_connect(setting: &Setting, who: &Who) -> bool {
    let class = if who.uid == setting.runs_as {
        6
    } else if who.is_in(setting.socket_gid) {
        3
    } else {
        0
    };
    // The processes of uid 0 have all capabilities here.
    who.uid == 0 || setting.socket_mode >> class & 2 == 2
}

/// Whether the profile with these rules serves somebody; without `allow` there are none.
pub(super) fn may_use(setting: &Setting, allow: Option<&[Line]>, who: &Who) -> bool {
    match who.uid {
        // "Uid 65534 matches no rule at all, not even by its groups."
        65_534 => false,
        // "Root is admitted unless root = by-rule": then by a rule, which "no allow" is not.
        0 if !setting.root_by_rule => true,
        0 => allow.is_some_and(|lines| admits(lines, who)),
        // "A profile without allow serves root and the agent's own user."
        uid => allow.map_or(uid == setting.runs_as, |lines| admits(lines, who)),
    }
}

/// "AdminService (root and `admin`)"; under by-rule it "stays root's".
pub(super) fn may_administer(admin: &[Line], who: &Who) -> bool {
    who.uid != 65_534 && (who.uid == 0 || admits(admin, who))
}
