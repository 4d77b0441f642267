//! Memory that passes from one process to the next: a memfd that nobody can change any more (memfd_create(2)).
//!
//! What comes back is taken only if it is what we give: memory and no file, sealed against every change, our own user's,
//! and no longer than it may be. So it cannot shrink under a reader, nor be written by whoever else has it.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    libc,
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::{SFlag, fstat},
    },
    unistd::geteuid,
};
use zeroize::Zeroizing;

/// Linux 6.3: never executable, for good. Not in nix's flags.
const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);

/// Why a descriptor is not what [`seal`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsealed {
    /// A pipe, a socket, a device.
    #[error("it is not memory")]
    NotMemory,
    /// A file, or a memfd that somebody could still change.
    #[error("it is not sealed")]
    NotSealed,
    /// Made by another user.
    #[error("it belongs to uid {0}, and not to the agent's own user")]
    Owner(u32),
    /// Longer than the caller takes.
    #[error("it is longer than it may be")]
    TooLarge,
    /// The kernel does not give it.
    #[error("it cannot be read: {}", .0.desc())]
    System(Errno),
}

/// A sealed copy of `bytes`. The caller's own buffer is the caller's to wipe.
pub fn seal(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = match memfd_create(c"bloom-agent", flags | MFD_NOEXEC_SEAL) {
        // Before 6.3 the kernel does not know the flag.
        Err(Errno::EINVAL) => memfd_create(c"bloom-agent", flags),
        other => other,
    }?;
    let mut file = File::from(memory);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals()))?;
    Ok(file.into())
}

/// What a sealed memfd holds, at most `at_most` bytes.
pub fn open(memory: OwnedFd, at_most: usize) -> Result<Zeroizing<Vec<u8>>, Unsealed> {
    let stat = fstat(memory.as_fd()).map_err(Unsealed::System)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Unsealed::NotMemory);
    }
    // Only shared memory has seals; a file of any other kind says EINVAL.
    let found = match fcntl(&memory, FcntlArg::F_GET_SEALS) {
        Ok(found) => SealFlag::from_bits_retain(found),
        Err(Errno::EINVAL) => return Err(Unsealed::NotSealed),
        Err(errno) => return Err(Unsealed::System(errno)),
    };
    if !found.contains(seals()) {
        return Err(Unsealed::NotSealed);
    }
    if stat.st_uid != geteuid().as_raw() {
        return Err(Unsealed::Owner(stat.st_uid));
    }
    // Sealed, so it stays as long as it is now.
    let length = usize::try_from(stat.st_size).ok().filter(|length| *length <= at_most);
    let mut bytes = Zeroizing::new(vec![0; length.ok_or(Unsealed::TooLarge)?]);
    // From the start, wherever the offset is: it is shared with every other process that has this file open.
    let read = File::from(memory).read_exact_at(&mut bytes, 0);
    read.map_err(|error| Unsealed::System(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
    Ok(bytes)
}

/// Its content and its length are fixed, and so are the seals.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom};

    use super::*;

    const MOST: usize = 1024;

    /// A memfd with these bytes and seals.
    fn memory(bytes: &[u8], seals: SealFlag) -> OwnedFd {
        let memory = memfd_create(c"test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let mut file = File::from(memory);
        file.write_all(bytes).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        file.into()
    }

    #[test]
    fn what_is_sealed_comes_back_and_cannot_be_changed() {
        for bytes in [&b""[..], b"some bytes", &[7; MOST]] {
            let sealed = seal(bytes).unwrap();
            let mut file = File::from(sealed.try_clone().unwrap());
            assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
            let length = file.metadata().unwrap().len();
            assert!(file.set_len(length + 1).is_err() && (length == 0 || file.set_len(length - 1).is_err()));
            assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).is_err());
            // Whoever had it before has left the offset somewhere.
            file.seek(SeekFrom::End(0)).unwrap();
            assert_eq!(open(sealed, MOST).unwrap().as_slice(), bytes);
        }
    }

    #[test]
    fn it_can_never_be_executed_where_the_kernel_knows_that_seal() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = File::from(seal(b"#!/bin/sh\n").unwrap());
        if memfd_create(c"test", MFdFlags::MFD_CLOEXEC | MFD_NOEXEC_SEAL).is_err() {
            return;
        }
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o111, 0);
        let executable = std::fs::Permissions::from_mode(0o700);
        assert_eq!(file.set_permissions(executable).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn what_we_do_not_make_is_refused() {
        for missing in seals().iter() {
            // Without F_SEAL_WRITE and the like, somebody could still change it.
            let lacking = memory(b"x", seals() - missing);
            assert_eq!(open(lacking, MOST).unwrap_err(), Unsealed::NotSealed, "{missing:?}");
        }
        let too_long = memory(&[0; MOST + 1], seals());
        assert_eq!(open(too_long, MOST).unwrap_err(), Unsealed::TooLarge);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(open(file.into(), MOST).unwrap_err(), Unsealed::NotSealed);
        let shared = tempfile::tempfile_in("/dev/shm").unwrap();
        assert_eq!(open(shared.into(), MOST).unwrap_err(), Unsealed::NotSealed);
        let (reader, _writer) = io::pipe().unwrap();
        assert_eq!(open(reader.into(), MOST).unwrap_err(), Unsealed::NotMemory);
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(open(socket.into(), MOST).unwrap_err(), Unsealed::NotMemory);
    }

    #[test]
    fn another_users_is_refused() {
        use crate::hardening::trial;
        if !trial::is_root("another_users_is_refused") {
            return;
        }
        let theirs = trial::as_user(trial::STRANGER, || seal(b"x")).unwrap();
        assert_eq!(open(theirs, MOST).unwrap_err(), Unsealed::Owner(trial::STRANGER));
    }
}
