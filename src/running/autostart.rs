//! Machines that start with a host without systemd: links in [`Layout::autostart`], which the scripts for OpenRC and
//! sysvinit go by.

use std::path::PathBuf;

use crate::config;
use crate::spec::{Layout, MachineName};
use crate::sys::file;
use crate::sys::{self, Context as _};

/// The link that makes `name` start with the host, for good or until the next reboot.
pub fn link(layout: &Layout, name: &MachineName, until_reboot: bool) -> PathBuf {
    layout.autostart(until_reboot).join(format!("{name}.toml"))
}

/// Has a machine start with the host; gives the link and what it points to, if it is new. There is nothing to point to
/// without a definition.
pub fn enable(layout: &Layout, name: &MachineName, until_reboot: bool) -> sys::Result<Option<(PathBuf, PathBuf)>> {
    let Some(target) = config::definition(layout, name) else { return Ok(None) };
    let link = link(layout, name, until_reboot);
    if file::read_link(&link).is_ok_and(|now| now == target) {
        return Ok(None);
    }
    let dir = layout.autostart(until_reboot);
    file::make_dirs(dir)?;
    if file::symlink_metadata(&link).is_ok_and(|m| m.is_symlink()) {
        file::remove(&link)?;
    }
    let call = || format!("symlink('{}', '{}')", target.display(), link.display());
    std::os::unix::fs::symlink(&target, &link).call(call)?;
    Ok(Some((link, target)))
}

/// Takes that back; gives the link, if there was one. What is no link is nothing that we made.
pub fn disable(layout: &Layout, name: &MachineName, until_reboot: bool) -> sys::Result<Option<PathBuf>> {
    let link = link(layout, name, until_reboot);
    if !file::symlink_metadata(&link).is_ok_and(|m| m.is_symlink()) {
        return Ok(None);
    }
    file::remove(&link)?;
    Ok(Some(link))
}

/// Every machine that has such a link.
pub fn enabled(layout: &Layout) -> Vec<MachineName> {
    let dirs = [layout.autostart(true), layout.autostart(false)];
    let links = dirs.iter().filter_map(|dir| file::list(dir).ok()).flatten().flatten();
    let links = links.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let names = links.filter_map(|link| {
        let file = link.file_name();
        MachineName::parse(file.to_str()?.strip_suffix(".toml")?).ok()
    });
    names.collect()
}
