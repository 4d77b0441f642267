//! The property of a cgroup's path: what it says of the process that is in there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property panics where it does not hold"
)]

use super::path::{Step, below, placement, step};
use crate::access::{SliceName, UnitName};

/// Two paths, parted by a line break: a cgroup's, and the root of a container's manager.
pub(crate) fn cgroup_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, root) = text.split_once('\n').unwrap_or((text, "/"));
    let placed = placement(path);
    let names: Vec<&str> = path.strip_prefix('/').map_or(Vec::new(), |path| path.split('/').collect());

    // Once more, in one look: the first service, and before it nothing but slices, each within the one before.
    let plain = |name: &str| name.strip_prefix('_').unwrap_or(name).to_owned();
    let at = names.iter().position(|name| plain(name).ends_with(".service"));
    let wanted = at.filter(|at| *at > 0).and_then(|at| {
        let unit = plain(names[at]);
        let mut around = String::new();
        for name in &names[..at] {
            let stem = plain(name).strip_suffix(".slice")?.to_owned();
            let own = if around.is_empty() { &stem[..] } else { stem.strip_prefix(&format!("{around}-"))? };
            if own.is_empty() || own.contains('-') || stem == "user" {
                return None;
            }
            around = stem;
        }
        Some((unit, format!("{around}.slice")))
    });
    match &placed {
        Some(placed) => {
            let found = (placed.unit.as_str().to_owned(), placed.slice.to_string());
            assert_eq!(Some(found), wanted, "{path}");
            assert!(!placed.slice.is_of_users(), "a user's unit has any name: {path}");
            assert!(placed.unit_within(std::slice::from_ref(&placed.slice)).is_some());
            for inner in ["/x.service", "/init.scope", "/system.slice/other.service", "/"] {
                let inner = format!("{path}{inner}");
                // What is below a service is its own; after the last name more of the same name may stand.
                if at.is_some_and(|at| at + 1 < names.len()) || inner.starts_with(&format!("{path}/")) {
                    assert_eq!(placement(&inner).as_ref(), Some(placed), "{inner}");
                }
            }
        }
        None => {
            if let Some((unit, slice)) = wanted {
                let is_one = UnitName::parse(&unit).is_ok() && SliceName::parse(&slice).is_ok();
                assert!(!is_one, "{path} is in {unit}, which is a service");
            }
        }
    }
    for name in names {
        match step(name) {
            Step::Slice => assert!(!SliceName::parse(&plain(name)).unwrap().is_of_users()),
            Step::Service => assert!(name.ends_with(".service")),
            Step::Other => {}
        }
    }

    match below(root, path) {
        Some(rest) => {
            assert!(rest.starts_with('/') && path.ends_with(rest));
            assert_eq!(format!("{}{rest}", root.strip_suffix('/').unwrap_or(root)), path);
        }
        None => assert!(root != "/" || !path.starts_with('/'), "everything is below the root"),
    }
}
