//! Finds out what an entry of the store is.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Access, AtFlags, FileType, IFlags, Mode, OFlags, Stat, StatxFlags};

use super::entry::{HOST, Image, ImageKind, check_name};
use crate::sys::block;
use crate::sys::{self, Context as _, btrfs};

/// Looks at an entry of the store's directory; `None` if it is no image, or cannot be looked at.
pub(super) fn look_at_entry(store: &Path, file_name: &str) -> Option<Image> {
    let path = store.join(file_name);
    let stem = file_name.strip_suffix(".raw");
    let image = look(file_name, &path).ok()??;
    let image = match (image.kind, stem) {
        (ImageKind::Raw, Some(stem)) => Image { name: stem.to_owned(), ..image },
        _ => image,
    };
    (check_name(&image.name).is_ok() && image.name != HOST).then_some(image)
}

/// Looks at `path` and calls it `name`; `None` if it is no image.
///
/// A symlink is followed: administrators put trees and devices into the store in this way.
pub(super) fn look(name: &str, path: &Path) -> sys::Result<Option<Image>> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open('{}')", path.display()))?;
    let stat = rustix::fs::fstat(&fd).call(|| format!("fstat('{}')", path.display()))?;
    let image = Image {
        name: name.to_owned(),
        path: path.to_owned(),
        kind: ImageKind::Directory,
        read_only: is_on_read_only(&fd),
        created_us: None,
        modified_us: None,
        usage: None,
        limit: None,
        usage_exclusive: None,
        limit_exclusive: None,
    };
    let is_raw = path.extension().is_some_and(|e| e == "raw");
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Some(look_at_tree(image, &stat)?),
        FileType::RegularFile if is_raw => Some(look_at_file(image, &fd, &stat)),
        FileType::BlockDevice => Some(look_at_device(image, &stat)),
        _ => None,
    })
}

fn look_at_tree(image: Image, stat: &Stat) -> sys::Result<Image> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(&image.path, flags, Mode::empty()) {
        // A caller that may not look into it may know that it is there.
        Err(rustix::io::Errno::ACCESS) => return Ok(image),
        dir => dir.call(|| format!("open('{}')", image.path.display()))?,
    };
    if btrfs::is_subvolume(&dir, stat) {
        let info = btrfs::info(&dir)?;
        // Without privilege, or while the file system counts, there is nothing to report.
        let quota = btrfs::quota(&dir, info.id).ok().flatten();
        return Ok(Image {
            kind: ImageKind::Subvolume,
            read_only: image.read_only || info.read_only,
            created_us: Some(info.created_us),
            modified_us: Some(info.changed_us),
            usage: quota.map(|q| q.referenced),
            usage_exclusive: quota.map(|q| q.exclusive),
            limit: quota.and_then(|q| q.referenced_limit),
            limit_exclusive: quota.and_then(|q| q.exclusive_limit),
            ..image
        });
    }
    // The mode of the directory is the machine's, so the mark is the one attribute that is not. Not every file
    // system has it.
    let immutable = rustix::fs::ioctl_getflags(&dir).is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE));
    // Its own time of change has no meaning for the tree.
    Ok(Image { read_only: image.read_only || immutable, created_us: born_us(&dir), ..image })
}

fn look_at_file(image: Image, fd: &OwnedFd, stat: &Stat) -> Image {
    let usage = u64::try_from(stat.st_blocks).ok().map(|blocks| blocks.saturating_mul(512));
    let limit = u64::try_from(stat.st_size).ok();
    Image {
        kind: ImageKind::Raw,
        read_only: image.read_only || stat.st_mode & 0o222 == 0,
        created_us: born_us(fd),
        modified_us: micros(stat.st_mtime, stat.st_mtime_nsec.try_into().unwrap_or(0)),
        usage,
        limit,
        usage_exclusive: usage,
        limit_exclusive: limit,
        ..image
    }
}

fn look_at_device(image: Image, stat: &Stat) -> Image {
    let device = block::open(&image.path).ok();
    let size = device.as_ref().and_then(|fd| block::size(fd).ok()).filter(|size| *size > 0);
    let locked = device.as_ref().is_some_and(|fd| block::is_read_only(fd).unwrap_or(false));
    Image {
        kind: ImageKind::Block,
        read_only: image.read_only || locked || stat.st_mode & 0o222 == 0,
        usage: size,
        limit: size,
        usage_exclusive: size,
        limit_exclusive: size,
        ..image
    }
}

fn is_on_read_only(fd: &OwnedFd) -> bool {
    let writable = rustix::fs::accessat(fd, "", Access::WRITE_OK, AtFlags::EACCESS | AtFlags::EMPTY_PATH);
    writable == Err(rustix::io::Errno::ROFS)
}

fn born_us(fd: impl AsFd) -> Option<u64> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok()?;
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    known.then(|| micros(stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)).flatten()
}

fn micros(seconds: i64, nanos: u32) -> Option<u64> {
    u64::try_from(seconds).ok()?.checked_mul(1_000_000)?.checked_add(u64::from(nanos / 1000))
}
