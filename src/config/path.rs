//! Paths and names of files in the config, judged as texts: whether they can be right, not whether they exist.

use std::path::PathBuf;

use super::{file::Item, report::Report};

/// The longest path of a Unix socket: `sun_path` less the closing NUL (unix(7)).
const MAX_SOCKET_BYTES: usize = 107;
/// The longest path (PATH_MAX less the closing NUL).
const MAX_PATH_BYTES: usize = 4095;

/// An absolute path to a file, in its plain form: links are not followed, so `..` could only mislead.
pub(super) fn file(item: &Item<'_, &str>, report: &mut Report) -> Option<PathBuf> {
    let text = item.value;
    let plain = text
        .strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
    let (wrong, right) = if !text.starts_with('/') {
        ("is not an absolute path", "write it from '/' on")
    } else if !plain || text.chars().any(char::is_control) {
        (
            "is not a plain path to a file",
            "write it without '.', '..', '//', a trailing '/' and control characters",
        )
    } else if text.len() > MAX_PATH_BYTES {
        ("is longer than the system allows", "use a shorter path")
    } else {
        return Some(text.into());
    };
    report.fault(&item.spot, wrong, right);
    None
}

/// `ca_file`, the agent's or a profile's.
pub(super) fn ca_file(item: &Item<'_, &str>, report: &mut Report) -> Option<PathBuf> {
    let path = file(item, report)?;
    report.ca_files.push(item.spot.written(path.clone()));
    Some(path)
}

/// Where the socket is. An abstract socket has no mode and no owner: everybody on the host, and in every container that
/// shares its network, could connect.
pub(super) fn socket(item: &Item<'_, &str>, report: &mut Report) -> Option<PathBuf> {
    if item.value.starts_with(['@', '\0']) {
        report.fault(
            &item.spot,
            "is an abstract socket, which no mode protects",
            "write a path, from '/' on",
        );
        return None;
    }
    let path = file(item, report)?;
    if item.value.len() > MAX_SOCKET_BYTES {
        report.fault(
            &item.spot,
            "is longer than 107 bytes, the most that a socket's path can have",
            "use a shorter path",
        );
        return None;
    }
    Some(path)
}

/// Mode bits of the socket. To connect takes the right to write (unix(7)), so a class that may only read, or execute,
/// is a mistake.
pub(super) fn mode(item: &Item<'_, &str>, report: &mut Report) -> Option<u32> {
    let digits = item.value.strip_prefix('0').filter(|rest| rest.len() == 3).unwrap_or(item.value);
    let octal = digits.len() == 3 && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let Some(mode) = u32::from_str_radix(digits, 8).ok().filter(|_| octal) else {
        report.fault(&item.spot, "is not a mode", "write four octal digits, as in \"0660\"");
        return None;
    };
    let usable = |class: u32| matches!(class, 0 | 2 | 6);
    if mode >> 6 != 6 || !usable((mode >> 3) & 7) || !usable(mode & 7) {
        let wrong = "gives a right that a socket does not have, or withholds the owner's";
        report.fault(
            &item.spot,
            wrong,
            "write \"0600\", \"0660\" or \"0666\": 6 for who may connect, 0 for who may not",
        );
        return None;
    }
    Some(mode)
}
