//! Reading a file that somebody may be writing: what is returned was the whole file at one moment.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    sys::{
        stat::{FileStat, fstat},
        uio::pread,
    },
};
use zeroize::Zeroizing;

use super::Contents;

/// Why there is nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// More than the most that was asked for.
    TooLong,
    /// It was another file after each reading than before.
    Restless,
    /// The file system's reason.
    Failed(Errno),
}

impl From<Errno> for Unread {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// Reads until size, mtime and inode are the same before and after, at most `attempts` times. `meanwhile` is called
/// between the two looks: where a test writes.
pub(super) fn read(
    file: &OwnedFd,
    max_bytes: usize,
    attempts: usize,
    mut meanwhile: impl FnMut(),
) -> Result<Contents, Unread> {
    for _ in 0..attempts {
        let before = fstat(file)?;
        let size = usize::try_from(before.st_size).map_err(|_| Unread::Failed(Errno::EOVERFLOW))?;
        if size > max_bytes {
            return Err(Unread::TooLong);
        }
        // One more than it should hold: a file that grew is noticed, and the buffer never moves.
        let mut bytes = Zeroizing::new(vec![0; size + 1]);
        let length = fill(file, &mut bytes)?;
        meanwhile();
        let after = fstat(file)?;
        if length == size && at_rest(&before, &after) {
            bytes.truncate(length);
            return Ok(Contents { bytes, stat: after });
        }
    }
    Err(Unread::Restless)
}

fn at_rest(before: &FileStat, after: &FileStat) -> bool {
    let look = |stat: &FileStat| (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    look(before) == look(after)
}

fn fill(file: &OwnedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        let offset = i64::try_from(length).map_err(|_| Errno::EOVERFLOW)?;
        match pread(file, rest, offset) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::fd::OwnedFd};

    use super::*;

    /// A file with `content`, open for reading, and for writing elsewhere.
    fn file(content: &[u8]) -> (OwnedFd, File) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        (File::open(file.path()).unwrap().into(), file.into_file())
    }

    #[test]
    fn a_file_at_rest_is_read_whole_whatever_its_length() {
        for length in [0, 1, 4096, 65_536] {
            let (reader, _writer) = file(&vec![b'x'; length]);
            let contents = read(&reader, 65_536, 1, || ()).unwrap();
            assert_eq!((contents.bytes.len(), contents.stat.st_size), (length, length as i64));
        }
    }

    #[test]
    fn a_file_that_grows_shrinks_or_is_rewritten_while_it_is_read_is_read_again() {
        type Write = fn(&mut File);
        let writes: [(&str, Write, &[u8]); 3] = [
            ("grows", |f| f.write_all(b"+").unwrap(), b"old+"),
            ("shrinks", |f| f.set_len(1).unwrap(), b"o"),
            ("is rewritten", |f| rewrite(f, b"new"), b"new"),
        ];
        for (name, write, expected) in writes {
            let (reader, mut writer) = file(b"old");
            let mut rounds = 0;
            let contents = read(&reader, 100, 2, || {
                if rounds == 0 {
                    write(&mut writer);
                }
                rounds += 1;
            });
            assert_eq!(contents.unwrap().bytes.as_slice(), expected, "{name}");
            assert_eq!(rounds, 2, "{name}");
        }
    }

    /// In place, same length; the mtime is set by hand because the kernel's may be as coarse as its tick.
    fn rewrite(file: &mut File, content: &[u8]) {
        std::os::unix::fs::FileExt::write_all_at(file, content, 0).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap() + std::time::Duration::from_secs(1);
        file.set_modified(modified).unwrap();
    }

    #[test]
    fn a_file_that_never_rests_is_given_up_after_the_attempts() {
        let (reader, mut writer) = file(b"old");
        let mut rounds = 0;
        let outcome = read(&reader, 100, 3, || {
            rounds += 1;
            rewrite(&mut writer, b"new");
        });
        assert_eq!((outcome.err(), rounds), (Some(Unread::Restless), 3));
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_at_all() {
        let (reader, _writer) = file(b"12345");
        assert_eq!(read(&reader, 4, 1, || panic!("read")).err(), Some(Unread::TooLong));
        assert_eq!(read(&reader, 5, 1, || ()).unwrap().bytes.as_slice(), b"12345");
    }

    #[test]
    fn a_failing_disk_is_its_own_reason() {
        let directory = tempfile::tempdir().unwrap();
        let reader: OwnedFd = File::open(directory.path()).unwrap().into();
        assert_eq!(read(&reader, 1 << 20, 1, || ()).err(), Some(Unread::Failed(Errno::EISDIR)));
    }
}
