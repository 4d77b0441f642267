//! What of the program itself is in memory.
//!
//! A start runs through most of the program once: arguments, config, TLS, D-Bus. The kernel maps what runs and what lies around
//! it, and takes it away when it is short of memory; until then it counts as the agent's. It is let go when the start is over.
//! It is the file's, and what is needed again comes back from the page cache, at a microsecond for each 64 KiB.

#![allow(unsafe_code, reason = "advice on mappings is given by address")]

use std::{fs, io, num::NonZeroUsize, ptr::NonNull};

use nix::sys::mman::{MmapAdvise, madvise};

/// Lets go of the code of the program and its libraries that is mapped now.
pub fn release_code() -> io::Result<()> {
    // proc_pid_maps(5)
    for (start, end) in fs::read_to_string("/proc/self/maps")?.lines().filter_map(code) {
        let (Some(length), Some(start)) = (end.checked_sub(start.get()), NonNull::new(start.get() as *mut _))
        else {
            continue;
        };
        // SAFETY: the mapping is a file's, and nobody writes code: what is let go is read from the file again. Where there is
        // no such mapping any more the kernel says so, or lets another go of which the same is true.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }?;
    }
    Ok(())
}

/// Where a line's mapping begins and ends, if it is the code of a file. What is only read may have been written before, by the
/// dynamic linker.
fn code(line: &str) -> Option<(NonZeroUsize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (rights, _offset, _device, _inode, path) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if rights != "r-xp" || !path.starts_with('/') {
        return None;
    }
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((NonZeroUsize::new(address(start)?)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_a_file_is_let_go() {
        for (line, expected) in [
            (
                "55d0a000-55d0b000 r-xp 00001000 08:02 173521   /usr/bin/bloom-agent",
                Some((0x55d0_a000, 0x55d0_b000)),
            ),
            ("7f00-8f00 r-xp 00000000 08:02 9 /a name/with spaces", Some((0x7f00, 0x8f00))),
            ("7f00-8f00 r-xp 00000000 08:02 9 /usr/bin/bloom-agent (deleted)", Some((0x7f00, 0x8f00))),
            ("7f00-8f00 r--p 00000000 08:02 9 /usr/bin/bloom-agent", None),
            ("7f00-8f00 rw-p 00000000 08:02 9 /usr/bin/bloom-agent", None),
            ("7f00-8f00 rwxp 00000000 08:02 9 /usr/bin/bloom-agent", None),
            ("7f00-8f00 r-xs 00000000 08:02 9 /usr/bin/bloom-agent", None),
            ("7ffd2000-7ffd4000 r-xp 00000000 00:00 0 [vdso]", None),
            ("7f00-8f00 r-xp 00000000 00:00 0", None),
            ("0-8f00 r-xp 00000000 08:02 9 /zero", None),
            ("x-y r-xp 00000000 08:02 9 /no/address", None),
            ("", None),
        ] {
            let found = code(line).map(|(start, end)| (start.get(), end));
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn what_was_let_go_runs_as_before() {
        for _ in 0..10 {
            release_code().expect("let go");
            assert_eq!(code("1000-2000 r-xp 0 0 0 /x").map(|(start, _)| start.get()), Some(0x1000));
        }
    }
}
