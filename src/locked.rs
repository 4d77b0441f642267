//! Pages for tokens: never in swap, never in a core file, not in a forked child, wiped before they are given back.
//!
//! Each token has a mapping of its own between two guard pages. Where the host refuses to lock it (RLIMIT_MEMLOCK, a
//! filter), the token is kept all the same: an agent without tokens protects nobody. It is said in the log once, and
//! [`LockedPages::is_degraded`] says it for as long as it is so.
//!
//! memfd_secret(2) is not used: it may be off, it blocks hibernation, and systemd's filters do not know it.

#![allow(
    unsafe_code,
    reason = "mappings are raw memory; `Pages` owns one from mmap to munmap and lends only its bytes"
)]

use std::{
    num::NonZeroUsize,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    libc::c_void,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, mprotect, munmap},
    unistd::{SysconfVar, sysconf},
};
use zeroize::{Zeroize as _, Zeroizing};

/// Gives out protected copies, and knows how many of them lack some of the protection. Clones share that count.
#[derive(Clone, Debug, Default)]
pub struct LockedPages(Arc<Book>);

#[derive(Debug, Default)]
struct Book {
    exposed: AtomicUsize,
    said: AtomicBool,
}

impl LockedPages {
    /// A copy of `bytes`, in pages of its own. The caller's own buffer is the caller's to wipe.
    pub fn copy(&self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        match Pages::holding(bytes) {
            Ok((pages, lacking)) => {
                let exposed = lacking.map(|errno| self.report(errno));
                Bytes::from_owner(Held { pages, _exposed: exposed })
            }
            Err(errno) => {
                // No mapping at all (ENOMEM, vm.max_map_count): the heap, wiped on drop.
                let exposed = self.report(errno);
                Bytes::from_owner(Held { pages: Zeroizing::new(bytes.to_vec()), _exposed: Some(exposed) })
            }
        }
    }

    /// Whether a token is held right now that could reach the swap, a core file or a child.
    pub fn is_degraded(&self) -> bool {
        self.0.exposed.load(Ordering::Relaxed) > 0
    }

    fn report(&self, errno: Errno) -> Exposed {
        self.0.exposed.fetch_add(1, Ordering::Relaxed);
        if !self.0.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error = errno.desc(),
                "a token lies in memory that could be swapped out, dumped or inherited; raise LimitMEMLOCK= of the \
                 unit (8M is enough)"
            );
        }
        Exposed(Arc::clone(&self.0))
    }
}

/// One token that lacks some protection; counted for as long as it lives.
struct Exposed(Arc<Book>);

impl Drop for Exposed {
    fn drop(&mut self) {
        self.0.exposed.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a [`Bytes`] owns. Fields drop in order: wiped first, then no longer counted.
struct Held<P> {
    pages: P,
    _exposed: Option<Exposed>,
}

impl<P: AsRef<[u8]>> AsRef<[u8]> for Held<P> {
    fn as_ref(&self) -> &[u8] {
        self.pages.as_ref()
    }
}

/// A private anonymous mapping: guard page, pages, guard page. Not `Debug`: it holds a token.
struct Pages {
    map: NonNull<c_void>,
    map_len: NonZeroUsize,
    data: NonNull<u8>,
    len: usize,
}

// SAFETY: `Pages` owns its mapping alone, and nothing writes to it between `holding` and `drop`.
unsafe impl Send for Pages {}
// SAFETY: as above; a `&Pages` gives out `&[u8]` and no more.
unsafe impl Sync for Pages {}

impl Pages {
    /// A mapping that holds `bytes`, and the first protection that the host refused to it.
    fn holding(bytes: &[u8]) -> Result<(Self, Option<Errno>), Errno> {
        let page =
            sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096);
        let inner = bytes.len().checked_next_multiple_of(page).ok_or(Errno::ENOMEM)?;
        let map_len = inner.checked_add(2 * page).and_then(NonZeroUsize::new).ok_or(Errno::ENOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let map = unsafe { mmap_anonymous(None, map_len, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
        // SAFETY: `page` < `map_len`: inside the mapping.
        let data = unsafe { map.cast::<u8>().add(page) };
        let mut pages = Self { map, map_len, data, len: 0 };
        let start = data.cast();
        // SAFETY: `start` and `inner` are whole pages of our own mapping, and nobody has a reference into it yet.
        let protections = unsafe {
            mprotect(start, inner, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
            // Before the copy: there is no moment at which the token could be swapped out, dumped or inherited.
            [
                mlock(start, inner),
                madvise(start, inner, MmapAdvise::MADV_DONTDUMP),
                madvise(start, inner, MmapAdvise::MADV_WIPEONFORK),
            ]
        };
        // SAFETY: at least `bytes.len()` writable bytes, in a mapping that `bytes` cannot lie in.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.as_ptr(), bytes.len()) };
        pages.len = bytes.len();
        Ok((pages, protections.into_iter().find_map(Result::err)))
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes were written by `holding`, and stay mapped and unchanged for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours until the munmap below, its first `len` bytes are writable, and `&mut self` says
        // that nobody reads them any more.
        unsafe {
            std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len).zeroize();
            // Unlocks too (munmap(2)); it can fail only for an address that is no mapping's.
            let _ = munmap(self.map, self.map_len.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::{
        sys::{
            resource::{Resource, setrlimit},
            wait::{WaitStatus, waitpid},
        },
        unistd::{ForkResult, fork},
    };

    use super::*;
    use crate::hardening::trial;

    /// The smaps entry of the mapping that `bytes` lies in, if there is one (proc_pid_smaps(5)).
    fn mapping_of(address: usize) -> Option<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut entry: Option<String> = None;
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let bounds = range.and_then(|(a, b)| {
                Some((usize::from_str_radix(a, 16).ok()?, usize::from_str_radix(b, 16).ok()?))
            });
            match (bounds, &mut entry) {
                (Some(_), Some(_)) => break,
                (Some((from, to)), None) if (from..to).contains(&address) => {
                    entry = Some(format!("{line}\n"));
                }
                (None, Some(text)) => text.extend([line, "\n"]),
                _ => {}
            }
        }
        entry
    }

    fn flags(entry: &str) -> Vec<&str> {
        entry.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap().split_whitespace().collect()
    }

    #[test]
    fn a_copy_is_locked_left_out_of_dumps_wiped_on_fork_and_fenced() {
        let pages = LockedPages::default();
        for len in [1, 4096, 32 * 1024] {
            let copy = pages.copy(&vec![b'x'; len]);
            assert_eq!(copy, vec![b'x'; len]);
            let entry = mapping_of(copy.as_ptr() as usize).unwrap();
            let flags = flags(&entry);
            // lo: locked, dd: do not dump, wf: wipe on fork.
            assert!(["lo", "dd", "wf"].iter().all(|flag| flags.contains(flag)), "{entry}");
            for guard in [copy.as_ptr() as usize - 1, copy.as_ptr() as usize + len.next_multiple_of(4096)] {
                assert!(mapping_of(guard).unwrap().lines().next().unwrap().contains(" ---p "));
            }
        }
        assert!(!pages.is_degraded());
        assert!(pages.copy(b"").is_empty());
    }

    #[test]
    fn the_last_clone_gives_the_pages_back() {
        trial::in_own_process("locked::tests::the_last_clone_gives_the_pages_back", || {
            let copy = LockedPages::default().copy(b"canary");
            let address = copy.as_ptr() as usize;
            let slice = copy.slice(1..3);
            drop(copy);
            assert!(mapping_of(address).is_some());
            assert_eq!(slice, b"an"[..]);
            drop(slice);
            assert_eq!(mapping_of(address), None);
        });
    }

    #[test]
    fn a_forked_child_reads_zeroes() {
        let copy = LockedPages::default().copy(b"canary");
        // SAFETY: the child reads memory and calls _exit: both are async-signal-safe.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let status = i32::from(copy.iter().any(|byte| *byte != 0));
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(status) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
                assert_eq!(copy, b"canary"[..]);
            }
        }
    }

    #[test]
    fn a_host_that_refuses_to_lock_still_gets_its_token_and_a_report_that_ends_with_it() {
        trial::in_own_process(
            "locked::tests::a_host_that_refuses_to_lock_still_gets_its_token_and_a_report_that_ends_with_it",
            || {
                setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).unwrap();
                trial::as_nobody(|| {
                    let log = trial::Log::start();
                    let pages = LockedPages::default();
                    let copy = pages.copy(b"canary");
                    assert_eq!(copy, b"canary"[..]);
                    let entry = mapping_of(copy.as_ptr() as usize).unwrap();
                    assert!(!flags(&entry).contains(&"lo") && flags(&entry).contains(&"wf"), "{entry}");
                    let (clone, second) = (copy.clone(), pages.clone().copy(b"x"));
                    drop(copy);
                    assert!(pages.is_degraded());
                    drop((clone, second));
                    assert!(!pages.is_degraded(), "the gauge says what is so, not what was so");
                    let text = log.text();
                    assert_eq!(text.lines().count(), 1, "said once: {text}");
                    let warning = "a token lies in memory that could be swapped out, dumped or inherited; raise \
                                   LimitMEMLOCK= of the unit (8M is enough) error=";
                    assert!(text.contains(warning) && !text.contains("canary"), "{text}");
                });
            },
        );
    }
}
