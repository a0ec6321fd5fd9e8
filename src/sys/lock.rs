//! Locks on files that end with the process that holds them, even if it is killed.
//!
//! They belong to the open file (`F_OFD_SETLK`), not to the process: a forked child shares them, closing some
//! other descriptor of the same file does not lose them, and they exclude the classic locks of other programs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::FcntlArg;

use super::file;
use super::read_text;
use super::{Context, Errno, Error, Result};

/// Who else may hold a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Every other process that asks for a shared lock.
    Shared,
    /// No other process.
    Exclusive,
}

/// A file that exists while its lock is held, by one process alone or by several together.
///
/// Made, locked and removed exactly as systemd does with its own lock files, so that both can use one file.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    file: File,
    hold: Hold,
    released: bool,
}

impl LockFile {
    /// Makes the file and locks it exclusively; `None` if another process holds it. The directory must exist.
    pub fn try_take(path: &Path) -> Result<Option<Self>> {
        Self::try_take_as(path, Hold::Exclusive)
    }

    /// Makes and locks the file; `None` if another process holds it in a way that excludes ours. The directory must
    /// exist.
    pub fn try_take_as(path: &Path, hold: Hold) -> Result<Option<Self>> {
        // A process that releases a shared file holds it exclusively for a moment, which is no reason to refuse others.
        let mut tries = if hold == Hold::Shared { 50 } else { 1 };
        loop {
            let flags = libc::O_NOFOLLOW | libc::O_NOCTTY;
            let file = open(OpenOptions::new().read(true), path, flags)?;
            if !try_lock(&file, Change::Take(hold), path)? {
                tries -= 1;
                if tries == 0 {
                    return Ok(None);
                }
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            // The holder before us may have removed the file after we opened it: then we locked a file that
            // no other process will ever find.
            let stat = file.metadata().call(|| format!("fstat('{}')", path.display()))?;
            if stat.nlink() > 0 {
                return Ok(Some(Self { path: path.to_owned(), file, hold, released: false }));
            }
        }
    }

    /// Removes the file, then unlocks it: in this order no process can lock a file that is about to go. A file that
    /// others hold, too, stays until the last of them releases it.
    pub fn release(mut self) -> Result<()> {
        self.released = true;
        if !self.is_last()? {
            return Ok(());
        }
        file::remove(&self.path)
    }

    /// Whether no other process holds the file; if so, none can from now on. If not, it is no longer ours.
    fn is_last(&self) -> Result<bool> {
        if self.hold == Hold::Exclusive || try_lock(&self.file, Change::Take(Hold::Exclusive), &self.path)? {
            return Ok(true);
        }
        // Two that let go at the same time are in each other's way; the second to try without its own hold is not.
        try_lock(&self.file, Change::LetGo, &self.path)?;
        let last = try_lock(&self.file, Change::Take(Hold::Exclusive), &self.path)?;
        Ok(last && self.file.metadata().is_ok_and(|stat| stat.nlink() > 0))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if !self.released && self.is_last().unwrap_or(false) {
            // A file left behind is harmless: it is not locked, and the next holder takes it as it is.
            let _ = file::remove(&self.path);
        }
    }
}

/// Locks a file that stays, and asks again for up to `patience`; the lock ends when the file is closed.
pub fn wait(path: &Path, patience: Duration) -> Result<File> {
    let file = open(&mut OpenOptions::new(), path, libc::O_NOFOLLOW | libc::O_NOCTTY)?;
    let end = Instant::now() + patience;
    while !try_lock(&file, Change::Take(Hold::Exclusive), path)? {
        if Instant::now() >= end {
            return Err(Error {
                call: format!("waiting for the lock on '{}'", path.display()),
                errno: Errno::ETIMEDOUT,
            });
        }
        // Polled, because a blocking wait could be ended only by a signal.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(file)
}

/// The process that has one of these lock files open, as in "process 4711, systemd-nspawn".
///
/// The kernel does not report who holds such a lock, so this looks through the descriptors of every process; it
/// is for error messages only.
pub fn find_holder(files: impl IntoIterator<Item = PathBuf>) -> Option<String> {
    let identity = |stat: std::fs::Metadata| (stat.dev(), stat.ino());
    let files: Vec<_> = files.into_iter().filter_map(|file| file::metadata(file).ok()).map(identity).collect();
    let holds_one = |process: &Path| {
        let fds = file::list(process.join("fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| file::metadata(fd.path()).ok()).any(|stat| files.contains(&identity(stat)))
    };
    for process in file::list("/proc").ok()?.flatten() {
        let pid = process.file_name().into_string().unwrap_or_default();
        if pid.bytes().all(|b| b.is_ascii_digit()) && holds_one(&process.path()) {
            let program = read_text(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {pid}, {}", program.trim_end().escape_debug()));
        }
    }
    None
}

fn open(options: &mut OpenOptions, path: &Path, flags: i32) -> Result<File> {
    let opened = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path);
    opened.call(|| format!("open('{}')", path.display()))
}

/// What becomes of our hold of a file.
#[derive(Debug, Clone, Copy)]
enum Change {
    Take(Hold),
    LetGo,
}

fn try_lock(file: &File, change: Change, path: &Path) -> Result<bool> {
    let kind = match change {
        Change::Take(Hold::Shared) => libc::F_RDLCK,
        Change::Take(Hold::Exclusive) => libc::F_WRLCK,
        Change::LetGo => libc::F_UNLCK,
    };
    #[expect(clippy::cast_possible_truncation, reason = "the constants are below 4")]
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match nix::fcntl::fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(Error { call: format!("fcntl('{}', F_OFD_SETLK)", path.display()), errno }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_has_one_holder_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = LockFile::try_take(&path).unwrap().unwrap();
        assert!(LockFile::try_take(&path).unwrap().is_none());
        held.release().unwrap();
        assert!(!path.exists());
        drop(LockFile::try_take(&path).unwrap().unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_shared_lock_keeps_exclusive_ones_out_and_goes_with_its_last_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = LockFile::try_take_as(&path, Hold::Shared).unwrap().unwrap();
        let second = LockFile::try_take_as(&path, Hold::Shared).unwrap().unwrap();
        assert!(LockFile::try_take(&path).unwrap().is_none());
        first.release().unwrap();
        assert!(path.exists());
        assert!(LockFile::try_take(&path).unwrap().is_none());
        drop(second);
        assert!(!path.exists());
        let alone = LockFile::try_take(&path).unwrap().unwrap();
        assert!(LockFile::try_take_as(&path, Hold::Shared).unwrap().is_none());
        alone.release().unwrap();
    }

    #[test]
    fn holders_that_come_and_go_at_once_neither_hinder_one_another_nor_leave_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let together = std::sync::Barrier::new(3);
        let work = || {
            let held = LockFile::try_take_as(&path, Hold::Shared).unwrap().expect("others only share it");
            together.wait();
            held.release().unwrap();
        };
        for _ in 0..300 {
            std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(work))));
            assert!(!path.exists());
        }
    }

    #[test]
    fn waiting_for_a_lock_ends_with_a_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = wait(&path, Duration::ZERO).unwrap();
        let error = wait(&path, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.errno, Errno::ETIMEDOUT);
        drop(held);
        assert!(wait(&path, Duration::ZERO).is_ok());
    }
}
