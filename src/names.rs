//! Names and ids of users and groups, as this host knows them (NSS: files, and whatever else nsswitch.conf names).
//!
//! Every function blocks for as long as a directory service takes and cannot be cancelled: the daemon calls them in
//! `spawn_blocking`, never on the way to an answer. Nothing here decides anything; see [`crate::access`].

use std::collections::BTreeSet;

use nix::{
    errno::Errno,
    unistd::{Gid, Group, Uid, User},
};

use crate::access::{Lookup, Name};

/// Looks up every name. What fails is told and left out of the directory, so that it matches nobody.
pub fn resolve(names: &BTreeSet<Name>) -> Lookup {
    let mut lookup = Lookup::default();
    for name in names {
        let found = match name {
            Name::User(user) => user_id(user),
            Name::Group(group) => group_id(group),
        };
        match found {
            Ok(Some(id)) => {
                if lookup.directory.insert(name.clone(), id).is_err() {
                    lookup.dynamic.insert(name.clone());
                }
            }
            Ok(None) => {
                lookup.unknown.insert(name.clone());
            }
            Err(errno) => {
                lookup.failed.insert(name.clone(), errno.desc().to_owned());
            }
        }
    }
    lookup
}

/// A user, with the group of its processes and by the name that its other groups are listed under; none if nobody has that
/// name.
pub fn user(name: &str) -> nix::Result<Option<User>> {
    absent(User::from_name(name))
}

/// The uid of a user; none if nobody has that name.
pub fn user_id(name: &str) -> nix::Result<Option<u32>> {
    absent(User::from_name(name)).map(|user| user.map(|user| user.uid.as_raw()))
}

/// The gid of a group; none if none has that name.
pub fn group_id(name: &str) -> nix::Result<Option<u32>> {
    absent(Group::from_name(name)).map(|group| group.map(|group| group.gid.as_raw()))
}

/// The name of a uid, for a message; none if it has none that can be found.
pub fn user_name(uid: u32) -> Option<String> {
    absent(User::from_uid(Uid::from_raw(uid))).ok().flatten().map(|user| user.name)
}

/// The name of a gid, for a message; none if it has none that can be found.
pub fn group_name(gid: u32) -> Option<String> {
    absent(Group::from_gid(Gid::from_raw(gid))).ok().flatten().map(|group| group.name)
}

/// "Not found" as some NSS modules say it (getpwnam(3), ERRORS: "0 or ENOENT or ESRCH or EBADF or EPERM").
fn absent<T>(found: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match found {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_an_invented_name_is_not() {
        let user = |name: &str| Name::User(name.into());
        let group = |name: &str| Name::Group(name.into());
        let names = [user("root"), group("root"), user("no-such-user-9f2"), group("no-such-group-9f2")];
        let lookup = resolve(&names.clone().into());
        assert_eq!(names.each_ref().map(|name| lookup.directory.id(name)), [Some(0), Some(0), None, None]);
        assert_eq!(lookup.unknown, [names[2].clone(), names[3].clone()].into());
        assert!(lookup.dynamic.is_empty() && lookup.failed.is_empty());
    }

    #[test]
    fn an_id_has_its_name_for_a_message() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(group_name(0).as_deref(), Some("root"));
        // The id that means "none" to the kernel belongs to nobody.
        assert_eq!(user_name(u32::MAX), None);
    }

    #[test]
    fn an_error_that_means_not_found_is_no_failure() {
        for errno in [Errno::ENOENT, Errno::ESRCH, Errno::EBADF, Errno::EPERM] {
            assert_eq!(absent::<u32>(Err(errno)), Ok(None));
        }
        assert_eq!(absent::<u32>(Err(Errno::EIO)), Err(Errno::EIO));
        assert_eq!(absent(Ok(Some(1))), Ok(Some(1)));
    }
}
