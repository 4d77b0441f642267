//! Names of users and groups, and the ids they were found to have.
//!
//! Pure: [`crate::names`] asks the system. A name that is not in a [`Directory`] matches nobody, and neither does one
//! whose id is systemd's to hand on: a [`Directory`] cannot hold such an id.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
};

/// The ids that systemd gives to `DynamicUser=` services, and to others after them (systemd's UIDS-GIDS.md).
pub const DYNAMIC_IDS: RangeInclusive<u32> = 61_184..=65_519;

/// A name that a rule uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// Of a user.
    User(Box<str>),
    /// Of a group.
    Group(Box<str>),
}

/// `user "billing"`, for a log line.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user {name:?}"),
            Self::Group(name) => write!(f, "group {name:?}"),
        }
    }
}

/// An id of [`DYNAMIC_IDS`], which stands for nobody in particular.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("has one of systemd's dynamic ids (61184 to 65519), which are handed on to other services")]
pub struct IsDynamic;

/// Names resolved to ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    ids: BTreeMap<Name, u32>,
}

impl Directory {
    /// Notes that `name` has `id`.
    pub fn insert(&mut self, name: Name, id: u32) -> Result<(), IsDynamic> {
        if DYNAMIC_IDS.contains(&id) {
            return Err(IsDynamic);
        }
        self.ids.insert(name, id);
        Ok(())
    }

    /// The id of `name`, if it has one.
    pub fn id(&self, name: &Name) -> Option<u32> {
        self.ids.get(name).copied()
    }
}

/// What looking names up has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// The names that have an id which rules can be made from.
    pub directory: Directory,
    /// The names that nobody has.
    pub unknown: BTreeSet<Name>,
    /// The names whose id is one of [`DYNAMIC_IDS`].
    pub dynamic: BTreeSet<Name>,
    /// The names that could not be looked up, and the system's reason (an error of NSS, never a text of ours).
    pub failed: BTreeMap<Name, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_id_never_gets_into_a_directory() {
        let mut directory = Directory::default();
        let user = |name: &str| Name::User(name.into());
        for (id, expected) in [
            (61_183, Ok(())),
            (61_184, Err(IsDynamic)),
            (65_000, Err(IsDynamic)),
            (65_519, Err(IsDynamic)),
            (65_520, Ok(())),
        ] {
            let name = user(&id.to_string());
            assert_eq!(directory.insert(name.clone(), id), expected, "{id}");
            assert_eq!(directory.id(&name), expected.ok().map(|()| id));
        }
    }

    #[test]
    fn a_user_and_a_group_of_one_name_are_two() {
        let mut directory = Directory::default();
        directory.insert(Name::User("www".into()), 33).unwrap();
        assert_eq!(directory.id(&Name::Group("www".into())), None);
        directory.insert(Name::Group("www".into()), 34).unwrap();
        assert_eq!(directory.id(&Name::User("www".into())), Some(33));
    }
}
