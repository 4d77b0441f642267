//! From a cgroup's path to the service and the slice that it belongs to. Pure.
//!
//! systemd lays its tree out as slices, each in the one that its name begins with, and in them units
//! (systemd.slice(5), src/basic/cgroup-util.c). What lies below a unit is the unit's own business: a container or a
//! delegated manager can make a `loans.service` of its own there, and never becomes another unit by it. The same holds
//! for the users' managers, whose part of the tree has no units for us at all.

use crate::access::{Placement, SliceName, UnitName};

/// What the path of a cgroup is within its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A slice that units may lie in.
    Slice,
    /// A service: all below belongs to it.
    Service,
    /// Anything else: no service is in there, whatever its name.
    Other,
}

/// Where the processes of the cgroup at `path` belong. The path begins with `/`, at the root of the manager's tree.
pub(super) fn placement(path: &str) -> Option<Placement> {
    let mut slice = None;
    for name in path.strip_prefix('/')?.split('/') {
        match step(name) {
            Step::Slice => {
                let inner = SliceName::parse(unescaped(name)).ok()?;
                if !inner.is_child_of(slice.as_ref()) {
                    return None;
                }
                slice = Some(inner);
            }
            Step::Service => {
                return Some(Placement { unit: UnitName::parse(unescaped(name)).ok()?, slice: slice? });
            }
            Step::Other => return None,
        }
    }
    None
}

/// What a directory in a slice is, by its name.
pub(super) fn step(name: &str) -> Step {
    let name = unescaped(name);
    if name.ends_with(".service") {
        Step::Service
    } else if SliceName::parse_allowed(name).is_ok() {
        Step::Slice
    } else {
        Step::Other
    }
}

/// `path`, which begins at the root of the whole hierarchy, from the root of a manager that has `root` of it: that of a
/// container which sees more than its own tree. None if it lies elsewhere.
pub(super) fn below<'a>(root: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.strip_suffix('/').unwrap_or(root))?;
    rest.starts_with('/').then_some(rest)
}

/// A name that the kernel could take for one of its own files has a `_` before it (`cg_escape`): `_cpu.service`.
fn unescaped(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_first_service_below_slices() {
        type Case = (&'static str, &'static str, Option<(&'static str, &'static str)>);
        let cases: &[Case] = &[
            ("a service", "/system.slice/loans.service", Some(("loans.service", "system.slice"))),
            (
                "an instance in a slice of its template",
                "/system.slice/system-loans.slice/loans@eu.service",
                Some(("loans@eu.service", "system-loans.slice")),
            ),
            (
                "below a service all belongs to it",
                "/system.slice/loans.service/sub/other.service",
                Some(("loans.service", "system.slice")),
            ),
            (
                "a container's own tree",
                "/machine.slice/systemd-nspawn@a.service/payload/system.slice/loans.service",
                Some(("systemd-nspawn@a.service", "machine.slice")),
            ),
            (
                "a sub-cgroup whose name is no text of ours",
                "/system.slice/docker.service/kubepods/besteffort/pod 1",
                Some(("docker.service", "system.slice")),
            ),
            (
                "an escaped instance",
                "/system.slice/system-systemd\\x2dfsck.slice/systemd-fsck@dev-disk-by\\x2duuid-1.service",
                Some(("systemd-fsck@dev-disk-by\\x2duuid-1.service", "system-systemd\\x2dfsck.slice")),
            ),
            (
                "a name that the kernel would take for its own",
                "/system.slice/_cpu.service",
                Some(("cpu.service", "system.slice")),
            ),
            (
                "a name that begins with an underscore",
                "/system.slice/__cpu.service",
                Some(("_cpu.service", "system.slice")),
            ),
            (
                "a user's own manager",
                "/user.slice/user-1000.slice/user@1000.service/app.slice/bloom.service",
                None,
            ),
            ("the user's manager itself", "/user.slice/user-1000.slice/user@1000.service/init.scope", None),
            ("the user's manager as a service", "/user.slice/user-1000.slice/user@1000.service", None),
            ("an escaped slice of the users", "/_user.slice/loans.service", None),
            ("a slice of the users elsewhere", "/user-1000.slice/loans.service", None),
            ("a session", "/user.slice/user-1000.slice/session-3.scope", None),
            ("a container in a scope", "/system.slice/docker-1f.scope/system.slice/loans.service", None),
            ("a slice that lies where it does not belong", "/system.slice/app.slice/loans.service", None),
            ("a slice in a foreign one", "/app.slice/system.slice/loans.service", None),
            ("a slice too deep", "/system.slice/system-a-b.slice/loans.service", None),
            ("a slice below none", "/system-a.slice/loans.service", None),
            ("the root slice", "/loans.service", None),
            ("no unit", "/system.slice", None),
            ("the root", "/", None),
            ("nothing", "", None),
            ("no slash before it", "system.slice/loans.service", None),
            ("an empty step", "/system.slice//loans.service", None),
            ("steps upwards", "/system.slice/../loans.service", None),
            ("above the root", "/../system.slice/loans.service", None),
            ("a template", "/system.slice/loans@.service", None),
            ("a name that no unit has", "/system.slice/lo ans.service", None),
            ("no name", "/system.slice/.service", None),
            ("a mount", "/system.slice/boot.mount", None),
            ("the first process", "/init.scope", None),
        ];
        for (what, path, expected) in cases {
            let found = placement(path);
            let found = found.as_ref().map(|found| (found.unit.as_str(), found.slice.to_string()));
            assert_eq!(found, expected.map(|(unit, slice)| (unit, slice.to_owned())), "{what}: {path}");
        }
    }

    #[test]
    fn a_manager_in_a_container_has_a_root_of_its_own() {
        let cases = [
            ("", "/system.slice/a.service", Some("/system.slice/a.service")),
            ("/", "/system.slice/a.service", Some("/system.slice/a.service")),
            ("/m.slice/c.scope", "/m.slice/c.scope/system.slice/a.service", Some("/system.slice/a.service")),
            ("/m.slice/c.scope", "/m.slice/c.scope", None),
            ("/m.slice/c.scope", "/m.slice/c.scopes/system.slice/a.service", None),
            ("/m.slice/c.scope", "/system.slice/a.service", None),
            ("", "", None),
        ];
        for (root, path, expected) in cases {
            assert_eq!(below(root, path), expected, "{path} below {root}");
        }
    }
}
