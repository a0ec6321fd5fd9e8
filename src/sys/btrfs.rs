//! Subvolumes and quota groups of btrfs, by descriptor.
//!
//! Structures and numbers are the kernel's (`linux/btrfs.h`, `linux/btrfs_tree.h`); everything here needs the host's
//! root but [`is_subvolume`], [`info`] and [`set_read_only`] of one's own subvolumes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use linux_raw_sys::btrfs as raw;
use linux_raw_sys::ioctl;
use rustix::fs::Stat;

use super::{Context, Errno, Error, Result};

/// Inode number of the root directory of every subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
const ROOT_INODE: u64 = raw::BTRFS_FIRST_FREE_OBJECTID as u64;
/// A level of quota groups that systemd keeps for the subvolume with everything below it.
const SUBTREE_LEVEL: u64 = 255;
const LEVEL_SHIFT: u32 = raw::BTRFS_QGROUP_LEVEL_SHIFT;

/// What the kernel reports about a subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subvolume {
    /// Number of its tree.
    pub id: u64,
    /// Nothing in it can be changed.
    pub read_only: bool,
    /// When it was made, in microseconds since 1970.
    pub created_us: u64,
    /// When anything in it was changed last, in microseconds since 1970.
    pub changed_us: u64,
}

/// A subvolume directly below another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Number of its tree.
    pub id: u64,
    /// The directory it is in, below the root of the upper subvolume, with a slash at its end unless empty.
    pub directory: CString,
    /// Its name there.
    pub name: CString,
}

/// What a quota group counts and allows, in bytes; no limit is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Everything that is reachable.
    pub referenced: u64,
    /// What no other subvolume refers to.
    pub exclusive: u64,
    /// Most of `referenced`.
    pub referenced_limit: Option<u64>,
    /// Most of `exclusive`.
    pub exclusive_limit: Option<u64>,
}

/// Whether a file that has been looked at is the root of a subvolume.
pub fn is_subvolume(fd: impl AsFd, stat: &Stat) -> bool {
    stat.st_ino == ROOT_INODE && is_btrfs(fd)
}

/// Whether a file lies on btrfs.
pub fn is_btrfs(fd: impl AsFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|s| s.f_type == libc::BTRFS_SUPER_MAGIC)
}

/// Looks at the subvolume that an open (not `O_PATH`) directory belongs to.
pub fn info(fd: impl AsFd) -> Result<Subvolume> {
    // SAFETY: the structure is made of integers only.
    let mut args: raw::btrfs_ioctl_get_subvol_info_args = unsafe { std::mem::zeroed() };
    // SAFETY: the number belongs to this structure.
    unsafe { control(fd.as_fd(), ioctl::BTRFS_IOC_GET_SUBVOL_INFO, &raw mut args) }
        .call(|| "ioctl(BTRFS_IOC_GET_SUBVOL_INFO)".to_owned())?;
    let micros = |t: raw::btrfs_ioctl_timespec| t.sec.saturating_mul(1_000_000) + u64::from(t.nsec / 1000);
    Ok(Subvolume {
        id: args.treeid,
        read_only: args.flags & READ_ONLY_ON_DISK != 0,
        created_us: micros(args.otime),
        changed_us: micros(args.ctime),
    })
}

/// `BTRFS_ROOT_SUBVOL_RDONLY`: the flag as it is stored, another number than the one in requests.
const READ_ONLY_ON_DISK: u64 = 1;

/// Makes the subvolume whose open root directory this is read-only, or writable again.
pub fn set_read_only(fd: impl AsFd, read_only: bool) -> Result<()> {
    let fd = fd.as_fd();
    let mut flags: u64 = 0;
    // SAFETY: the call writes one such integer.
    unsafe { control(fd, ioctl::BTRFS_IOC_SUBVOL_GETFLAGS, &raw mut flags) }
        .call(|| "ioctl(BTRFS_IOC_SUBVOL_GETFLAGS)".to_owned())?;
    let read_only_flag = u64::from(raw::BTRFS_SUBVOL_RDONLY);
    let mut new = if read_only { flags | read_only_flag } else { flags & !read_only_flag };
    if new == flags {
        return Ok(());
    }
    // SAFETY: the call reads one such integer.
    unsafe { control(fd, ioctl::BTRFS_IOC_SUBVOL_SETFLAGS, &raw mut new) }
        .call(|| "ioctl(BTRFS_IOC_SUBVOL_SETFLAGS)".to_owned())
}

/// Makes a snapshot of the subvolume with the open root `source`, as `name` in `dir` on the same file system.
///
/// Subvolumes below `source` are empty directories in it.
pub fn snapshot(source: impl AsFd, dir: impl AsFd, name: &CStr, read_only: bool) -> Result<()> {
    let mut args = volume_args(name)?;
    args.fd = i64::from(source.as_fd().as_raw_fd());
    args.flags = if read_only { u64::from(raw::BTRFS_SUBVOL_RDONLY) } else { 0 };
    // SAFETY: the number belongs to this structure.
    unsafe { control(dir.as_fd(), ioctl::BTRFS_IOC_SNAP_CREATE_V2, &raw mut args) }
        .call(|| format!("ioctl(BTRFS_IOC_SNAP_CREATE_V2, '{}')", name.to_string_lossy().escape_debug()))
}

/// Makes an empty subvolume.
pub fn create(dir: impl AsFd, name: &CStr) -> Result<()> {
    let mut args = volume_args(name)?;
    // SAFETY: the number belongs to this structure.
    unsafe { control(dir.as_fd(), ioctl::BTRFS_IOC_SUBVOL_CREATE_V2, &raw mut args) }
        .call(|| format!("ioctl(BTRFS_IOC_SUBVOL_CREATE_V2, '{}')", name.to_string_lossy().escape_debug()))
}

/// Removes the subvolume `name` of `dir` and all that is in it; none may lie below it.
pub fn destroy(dir: impl AsFd, name: &CStr) -> Result<()> {
    let mut args = volume_args(name)?;
    // SAFETY: the number belongs to this structure.
    unsafe { control(dir.as_fd(), ioctl::BTRFS_IOC_SNAP_DESTROY_V2, &raw mut args) }
        .call(|| format!("ioctl(BTRFS_IOC_SNAP_DESTROY_V2, '{}')", name.to_string_lossy().escape_debug()))
}

/// The subvolumes directly below subvolume `id`, on the file system that `fd` is open on.
pub fn children(fd: impl AsFd, id: u64) -> Result<Vec<Child>> {
    let fd = fd.as_fd();
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let key = search_key(raw::BTRFS_ROOT_TREE_OBJECTID, (id, id), raw::BTRFS_ROOT_REF_KEY, (at, u64::MAX));
        let items = search(fd, key)?;
        let Some(last) = items.last() else { return Ok(found) };
        at = last.offset.saturating_add(1);
        for item in items.iter().filter(|item| item.kind == raw::BTRFS_ROOT_REF_KEY) {
            // `struct btrfs_root_ref`: directory, sequence, length of the name; then the name.
            let name = item.data.get(18..).and_then(|name| CString::new(name).ok());
            if let (Some(directory), Some(name)) = (item.word(0), name) {
                found.push(Child { id: item.offset, directory: path_of(fd, id, directory)?, name });
            }
        }
    }
}

/// Path of a directory below the root of its subvolume, with a slash at its end unless it is the root.
fn path_of(fd: BorrowedFd<'_>, subvolume: u64, inode: u64) -> Result<CString> {
    let mut args = raw::btrfs_ioctl_ino_lookup_args { treeid: subvolume, objectid: inode, name: [0; 4080] };
    if inode == ROOT_INODE {
        return Ok(CString::default());
    }
    // SAFETY: the number belongs to this structure.
    unsafe { control(fd, ioctl::BTRFS_IOC_INO_LOOKUP, &raw mut args) }
        .call(|| format!("ioctl(BTRFS_IOC_INO_LOOKUP, {inode})"))?;
    let bytes = args.name.map(|c| u8::from_ne_bytes(c.to_ne_bytes()));
    let path = CStr::from_bytes_until_nul(&bytes).map_err(|_| malformed("BTRFS_IOC_INO_LOOKUP"))?;
    Ok(path.to_owned())
}

/// What the quota group of subvolume `id` counts, that of its whole subtree where there is one; `None` where the
/// file system keeps no quotas or has not counted yet.
pub fn quota(fd: impl AsFd, id: u64) -> Result<Option<Quota>> {
    let fd = fd.as_fd();
    let Some((group, info)) = find_group(fd, id)? else { return Ok(None) };
    let (Some(referenced), Some(exclusive)) = (info.word(1), info.word(3)) else {
        return Err(malformed("BTRFS_IOC_TREE_SEARCH"));
    };
    let key = search_key(raw::BTRFS_QUOTA_TREE_OBJECTID, (0, 0), raw::BTRFS_QGROUP_LIMIT_KEY, (group, group));
    let limits = search(fd, key)?;
    let limit = |flag: u32, word: usize| {
        let item = limits.first()?;
        let value = item.word(word)?;
        (item.word(0)? & u64::from(flag) != 0 && value != u64::MAX).then_some(value)
    };
    Ok(Some(Quota {
        referenced,
        exclusive,
        referenced_limit: limit(raw::BTRFS_QGROUP_LIMIT_MAX_RFER, 1),
        exclusive_limit: limit(raw::BTRFS_QGROUP_LIMIT_MAX_EXCL, 2),
    }))
}

/// The highest quota group that has the number of subvolume `id`.
fn find_group(fd: BorrowedFd<'_>, id: u64) -> Result<Option<(u64, Item)>> {
    for group in [subtree_group(id), id] {
        let key = search_key(raw::BTRFS_QUOTA_TREE_OBJECTID, (0, 0), raw::BTRFS_QGROUP_INFO_KEY, (group, group));
        match search(fd, key) {
            // No tree of quotas.
            Err(e) if e.errno == Errno::ENOENT => return Ok(None),
            result => {
                if let Some(item) = result?.into_iter().next() {
                    return Ok(Some((group, item)));
                }
            }
        }
    }
    Ok(None)
}

fn subtree_group(id: u64) -> u64 {
    SUBTREE_LEVEL << LEVEL_SHIFT | id
}

/// Limits what subvolume `id` may refer to, and its whole subtree where that is counted; `None` takes the limit away.
///
/// # Errors
/// `ENOTCONN` where the file system keeps no quotas.
pub fn set_limit(fd: impl AsFd, id: u64, limit: Option<u64>) -> Result<()> {
    let fd = fd.as_fd();
    let Some((group, _)) = find_group(fd, id)? else {
        return Err(Error { call: "looking for the quota group".to_owned(), errno: Errno::ENOTCONN });
    };
    // Both groups, as systemd does: the subvolume's own was the only one once, and readers of either are right.
    let groups = if group == id { vec![id] } else { vec![id, group] };
    for group in groups {
        let mut args = raw::btrfs_ioctl_qgroup_limit_args {
            qgroupid: group,
            lim: raw::btrfs_qgroup_limit {
                flags: u64::from(raw::BTRFS_QGROUP_LIMIT_MAX_RFER),
                max_rfer: limit.unwrap_or(u64::MAX),
                max_excl: 0,
                rsv_rfer: 0,
                rsv_excl: 0,
            },
        };
        // SAFETY: the number belongs to this structure.
        unsafe { control(fd, ioctl::BTRFS_IOC_QGROUP_LIMIT, &raw mut args) }
            .call(|| format!("ioctl(BTRFS_IOC_QGROUP_LIMIT, {}/{id})", group >> LEVEL_SHIFT))?;
    }
    Ok(())
}

/// One item that a search found.
#[derive(Debug)]
struct Item {
    kind: u32,
    offset: u64,
    data: Vec<u8>,
}

impl Item {
    /// The `index`th 64 bits of the item.
    fn word(&self, index: usize) -> Option<u64> {
        let bytes = self.data.get(index * 8..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }
}

fn search_key(tree: u32, object: (u64, u64), kind: u32, offset: (u64, u64)) -> raw::btrfs_ioctl_search_key {
    raw::btrfs_ioctl_search_key {
        tree_id: tree.into(),
        min_objectid: object.0,
        max_objectid: object.1,
        min_offset: offset.0,
        max_offset: offset.1,
        min_transid: 0,
        max_transid: u64::MAX,
        min_type: kind,
        max_type: kind,
        nr_items: 256,
        unused: 0,
        unused1: 0,
        unused2: 0,
        unused3: 0,
        unused4: 0,
    }
}

/// The first items of a tree that a key takes in, as many as fit into one answer.
fn search(fd: BorrowedFd<'_>, key: raw::btrfs_ioctl_search_key) -> Result<Vec<Item>> {
    let mut args = raw::btrfs_ioctl_search_args { key, buf: [0; 3992] };
    // SAFETY: the number belongs to this structure.
    unsafe { control(fd, ioctl::BTRFS_IOC_TREE_SEARCH, &raw mut args) }
        .call(|| format!("ioctl(BTRFS_IOC_TREE_SEARCH, {})", key.tree_id))?;
    let bytes = args.buf.map(|c| u8::from_ne_bytes(c.to_ne_bytes()));
    let mut rest = &bytes[..];
    let mut items = Vec::new();
    for _ in 0..args.key.nr_items {
        items.push(next_item(&mut rest).ok_or_else(|| malformed("BTRFS_IOC_TREE_SEARCH"))?);
    }
    Ok(items)
}

/// Takes `struct btrfs_ioctl_search_header` and its item from the front.
fn next_item(rest: &mut &[u8]) -> Option<Item> {
    let (header, data) = rest.split_at_checked(size_of::<raw::btrfs_ioctl_search_header>())?;
    let offset = u64::from_ne_bytes(*header.get(16..)?.first_chunk()?);
    let kind = u32::from_ne_bytes(*header.get(24..)?.first_chunk()?);
    let length = u32::from_ne_bytes(*header.get(28..)?.first_chunk()?);
    let (data, next) = data.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = next;
    Some(Item { kind, offset, data: data.to_vec() })
}

fn volume_args(name: &CStr) -> Result<raw::btrfs_ioctl_vol_args_v2> {
    // SAFETY: the structure is made of integers only, one of them a pointer that may be null.
    let mut args: raw::btrfs_ioctl_vol_args_v2 = unsafe { std::mem::zeroed() };
    let mut field = [0; raw::BTRFS_SUBVOL_NAME_MAX as usize + 1];
    let bytes = name.to_bytes();
    if bytes.len() > 255 {
        return Err(Error { call: "naming a subvolume".to_owned(), errno: Errno::ENAMETOOLONG });
    }
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = std::ffi::c_char::from_ne_bytes(from.to_ne_bytes());
    }
    args.__bindgen_anon_2.name = field;
    Ok(args)
}

fn malformed(call: &str) -> Error {
    Error { call: format!("reading the answer to ioctl({call})"), errno: Errno::EBADMSG }
}

/// # Safety
/// `T` must be what `request` reads and writes.
unsafe fn control<T>(fd: BorrowedFd<'_>, request: u32, argument: *mut T) -> nix::Result<()> {
    // SAFETY: by this function's own condition; the pointer is to a whole `T` that the caller owns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request.into(), argument) };
    Errno::result(result).map(drop)
}
