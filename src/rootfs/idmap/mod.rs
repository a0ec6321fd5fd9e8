//! Finds a block of host ids for a machine and keeps every other machine off it.
//!
//! A block is held by an exclusive lock on a file named after its first id. The place, the lock and the order
//! of checks are those of systemd-nspawn (seen in 252 and 257), so its machines and ours share a host. The
//! lock lives in a descriptor and ends with the process, however that ends.
//!
//! A picked block is remembered and, while no other process has taken it, used again without looking at the user
//! database. Nothing here touches a file of a tree.

mod users;

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use users::HostIds;

use crate::spec::{ID_RANGE_SIZE, IdRange, Layout, MachineName, UserMode};
use crate::sys::file;
use crate::sys::lock::{self, LockFile};
use crate::sys::{self, Context, Errno};

/// The first and the last block that may be picked; systemd sets these ids aside for containers.
const FIRST_BLOCK: u32 = 0x0008_0000;
const LAST_BLOCK: u32 = 0x6FFF_0000;
const BLOCKS: u32 = (LAST_BLOCK - FIRST_BLOCK) / ID_RANGE_SIZE + 1;

/// How many blocks are tried before we report that none is free; far more than a host has machines.
const TRIES: usize = 4096;

/// How many blocks one configured range may span: each one costs an open file.
const MOST_BLOCKS: u64 = 256;

/// Held by every program that adds users while it looks for a free id (`lckpwdf(3)`), which waits as long.
const PASSWD_LOCK: &str = "/etc/.pwd.lock";
const PASSWD_PATIENCE: Duration = Duration::from_secs(15);

/// Why a machine gets no ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdMapError {
    /// Another machine holds ids of the configured range.
    Taken {
        /// The configured range.
        range: IdRange,
        /// The process that holds the lock, when it can be seen.
        holder: Option<String>,
    },
    /// The configured range is larger than one machine can lock.
    TooLarge(IdRange),
    /// No block is free.
    NoneFree,
    /// A lock file could not be made or locked.
    Lock(sys::Error),
    /// The user database could not be locked or read.
    Users(sys::Error),
    /// The remembered range could not be read or written.
    Remember(sys::Error),
}

impl fmt::Display for IdMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |range: &IdRange| format!("{}..{}", range.shift, u64::from(range.shift) + u64::from(range.size));
        match self {
            Self::Taken { range, holder } => {
                write!(f, "id range {} is in use by another machine", show(range))?;
                holder.iter().try_for_each(|holder| write!(f, " ({holder})"))
            }
            Self::TooLarge(range) => {
                let most = MOST_BLOCKS * u64::from(ID_RANGE_SIZE);
                write!(f, "id range {} is too large: a machine can hold {most} ids", show(range))
            }
            Self::NoneFree => write!(f, "no block of {ID_RANGE_SIZE} ids is free: tried {TRIES}"),
            Self::Lock(_) => f.write_str("cannot lock an id range"),
            Self::Users(_) => f.write_str("cannot look for ids that no user has"),
            Self::Remember(_) => f.write_str("cannot remember the id range"),
        }
    }
}

impl std::error::Error for IdMapError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lock(error) | Self::Users(error) | Self::Remember(error) => Some(error),
            Self::Taken { .. } | Self::TooLarge(_) | Self::NoneFree => None,
        }
    }
}

/// Host ids that belong to one machine until this is released or dropped.
#[derive(Debug)]
pub struct IdRangeLock {
    range: IdRange,
    /// One for each block that the range touches; none for the host's own ids.
    locks: Vec<LockFile>,
}

impl IdRangeLock {
    /// The ids.
    pub fn range(&self) -> IdRange {
        self.range
    }

    /// Gives the ids back.
    pub fn release(self) -> Result<(), IdMapError> {
        let results: Vec<_> = self.locks.into_iter().map(LockFile::release).collect();
        results.into_iter().collect::<sys::Result<()>>().map_err(IdMapError::Lock)
    }

    /// Locks every block that `range` touches; `None` if one is held by another process.
    fn try_take(layout: &Layout, range: IdRange) -> Result<Option<Self>, IdMapError> {
        let mut locks = Vec::new();
        for block in blocks(range) {
            match try_lock(layout, block).map_err(IdMapError::Lock)? {
                Some(lock) => locks.push(lock),
                None => return Ok(None),
            }
        }
        Ok(Some(Self { range, locks }))
    }
}

/// Gives a machine its host ids: the configured range, or else the remembered one, or else a free one.
///
/// # Errors
/// [`IdMapError::Taken`] only for a configured range; another remembered range is replaced by a free one.
pub fn acquire(layout: &Layout, name: &MachineName, mode: UserMode) -> Result<IdRangeLock, IdMapError> {
    match mode {
        UserMode::Auto => {
            if let Some(range) = remembered(layout, name)?
                && let Some(lock) = IdRangeLock::try_take(layout, range)?
            {
                return Ok(lock);
            }
            let lock = pick(layout, name)?;
            remember(layout, name, lock.range)?;
            Ok(lock)
        }
        UserMode::Range(range) if blocks(range).count() as u64 > MOST_BLOCKS => Err(IdMapError::TooLarge(range)),
        UserMode::Range(range) => IdRangeLock::try_take(layout, range)?.ok_or_else(|| IdMapError::Taken {
            range,
            holder: lock::find_holder(blocks(range).map(|block| lock_path(layout, block))),
        }),
        // The host's own ids cannot be kept from other machines.
        UserMode::Identity | UserMode::Host => {
            Ok(IdRangeLock { range: IdRange { shift: 0, size: ID_RANGE_SIZE }, locks: Vec::new() })
        }
    }
}

/// Removes the lock files that a killed supervisor of this machine left, unless another process holds them again.
pub fn reap(layout: &Layout, name: &MachineName, mode: UserMode) -> Result<(), IdMapError> {
    let range = match mode {
        // Killed before it was remembered, it is most likely the first choice.
        UserMode::Auto => remembered(layout, name)?
            .or_else(|| candidates(name).next().map(|shift| IdRange { shift, size: ID_RANGE_SIZE })),
        UserMode::Range(range) => Some(range),
        UserMode::Identity | UserMode::Host => None,
    };
    for block in range.into_iter().flat_map(blocks) {
        let path = lock_path(layout, block);
        if path.exists()
            && let Some(lock) = LockFile::try_take(&path).map_err(IdMapError::Lock)?
        {
            lock.release().map_err(IdMapError::Lock)?;
        }
    }
    Ok(())
}

/// Takes the first candidate that no machine and no user has.
fn pick(layout: &Layout, name: &MachineName) -> Result<IdRangeLock, IdMapError> {
    let _no_new_users = match lock::wait(Path::new(PASSWD_LOCK), PASSWD_PATIENCE) {
        Ok(file) => Some(file),
        // No process can add a user to a read-only /etc either.
        Err(e) if e.errno == Errno::EROFS => None,
        Err(e) => return Err(IdMapError::Users(e)),
    };
    let host_ids = HostIds::read().map_err(IdMapError::Users)?;
    for shift in candidates(name).take(TRIES) {
        let range = IdRange { shift, size: ID_RANGE_SIZE };
        let Some(lock) = IdRangeLock::try_take(layout, range)? else { continue };
        if !host_ids.hold(range).map_err(IdMapError::Users)? {
            return Ok(lock);
        }
        lock.release()?;
    }
    Err(IdMapError::NoneFree)
}

/// Every block that may be picked, beginning at one that follows from the name.
fn candidates(name: &MachineName) -> impl Iterator<Item = u32> {
    // FNV-1a: ranges on disk depend on it, so it must be the same in every build of ours.
    let hash = name
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let start = u32::try_from((hash ^ (hash >> 32)) % u64::from(BLOCKS)).unwrap_or(0);
    (0..BLOCKS).map(move |step| FIRST_BLOCK + (start + step) % BLOCKS * ID_RANGE_SIZE)
}

/// First ids of the aligned blocks that `range` touches.
fn blocks(range: IdRange) -> impl Iterator<Item = u32> {
    let last = range.shift.saturating_add(range.size.saturating_sub(1));
    (range.shift / ID_RANGE_SIZE..=last / ID_RANGE_SIZE).map(|block| block * ID_RANGE_SIZE)
}

fn lock_path(layout: &Layout, block: u32) -> PathBuf {
    layout.uid_locks().join(block.to_string())
}

fn try_lock(layout: &Layout, block: u32) -> sys::Result<Option<LockFile>> {
    let path = lock_path(layout, block);
    match LockFile::try_take(&path) {
        Err(e) if e.errno == Errno::ENOENT => {
            make_dir(&layout.uid_locks(), 0o755)?;
            LockFile::try_take(&path)
        }
        result => result,
    }
}

fn make_dir(dir: &Path, mode: u32) -> sys::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(dir).call(|| format!("mkdir('{}')", dir.display()))
}

fn memory_path(layout: &Layout, name: &MachineName) -> PathBuf {
    layout.state_dir(name).join("uid-range")
}

/// The range the machine had last time; one that we would not pick is as good as none.
fn remembered(layout: &Layout, name: &MachineName) -> Result<Option<IdRange>, IdMapError> {
    let path = memory_path(layout, name);
    let mut text = [0; 64];
    let length = match File::open(&path) {
        Ok(mut file) => file.read(&mut text).call(|| format!("read('{}')", path.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e).call(|| format!("open('{}')", path.display())),
    };
    Ok(parse_range(&text[..length.map_err(IdMapError::Remember)?]))
}

fn parse_range(text: &[u8]) -> Option<IdRange> {
    let (shift, size) = std::str::from_utf8(text).ok()?.trim_end().split_once(' ')?;
    let range = IdRange { shift: shift.parse().ok()?, size: size.parse().ok()? };
    let picked = (FIRST_BLOCK..=LAST_BLOCK).contains(&range.shift) && range.shift.is_multiple_of(ID_RANGE_SIZE);
    (picked && range.size == ID_RANGE_SIZE).then_some(range)
}

/// Keeps the range for the next start.
fn remember(layout: &Layout, name: &MachineName, range: IdRange) -> Result<(), IdMapError> {
    let path = memory_path(layout, name);
    let new = path.with_extension("new");
    let write = || {
        // Below it are root trees with setuid programs, so only root may go there.
        make_dir(&layout.state_dir(name), 0o700)?;
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new);
        let mut file = opened.call(|| format!("open('{}')", new.display()))?;
        let text = format!("{} {}\n", range.shift, range.size);
        file.write_all(text.as_bytes()).call(|| format!("write('{}')", new.display()))?;
        file::rename(&new, &path)
    };
    match write() {
        // A host that keeps no state picks by name each time, and mostly gets the same.
        Err(e) if e.errno == Errno::EROFS => Ok(()),
        result => result.map_err(IdMapError::Remember),
    }
}

#[cfg(test)]
mod tests;
