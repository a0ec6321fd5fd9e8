//! The generator (`systemd.generator(7)`): tells systemd what definitions say of the order among machines.
//!
//! It runs while the host boots and whenever systemd reloads its units, so all that it says is as the definitions are
//! then. Whatever is wrong with one of them is passed over with a line: it must not keep the host from booting.

use std::io::Write as _;
use std::path::Path;

use super::output::status;
use crate::config::{self, Family};
use crate::ops::graph;
use crate::ops::systemd::{drop_in, drop_in_file, installed};
use crate::plan::unit;
use crate::report::OpError;
use crate::spec::{Layout, MachineName};
use crate::sys::{self, Context as _, file};

/// Writes what all definitions have to say below `directory`.
pub(super) fn generate(layout: &Layout, directory: &Path) -> Result<u8, OpError> {
    let names: Vec<String> = config::list(layout).into_iter().map(|(name, _)| name.to_string()).collect();
    let (family, read) = Family::gather(layout, &names);
    let graph = graph(&family);
    for (name, machine) in names.iter().zip(read) {
        let machine = match machine {
            Ok(machine) => machine,
            Err(error) => {
                tell(&format!("{}, ignoring machine '{name}'", OpError::from(error).line()));
                continue;
            }
        };
        let Some((member, Ok(loaded))) = family.get(&machine).map(|member| (member, &member.alone)) else { continue };
        if let Some(text) = drop_in(layout, loaded) {
            report(name, write(&drop_in_file(directory, &machine), &text));
        }
        // What cannot be started is told to systemd all the same, so that it does not start it, either.
        let wrong = match member.loaded() {
            Err(error) => Some(OpError::from(error)),
            Ok(_) => graph.cycle(&machine).map(|cycle| family.cycle(&cycle).into()),
        };
        match wrong {
            Some(failure) => tell(&format!("{}, not starting machine '{name}' with the host", failure.line())),
            None if loaded.spec.boot.autostart => report(name, start_with_host(layout, directory, &machine)),
            None => {}
        }
    }
    Ok(status::OK)
}

/// Has `machines.target` start a machine, and the host start `machines.target`.
fn start_with_host(layout: &Layout, directory: &Path, name: &MachineName) -> sys::Result<()> {
    let dir = installed(layout.root(), unit::TEMPLATE).unwrap_or("/usr/lib/systemd/system");
    link(&Path::new(dir).join(unit::TEMPLATE), &directory.join("machines.target.wants").join(unit::name(name)))?;
    link(Path::new("../machines.target"), &directory.join("multi-user.target.wants/machines.target"))
}

fn link(target: &Path, link: &Path) -> sys::Result<()> {
    file::make_dirs(link.parent().unwrap_or(link))?;
    match std::os::unix::fs::symlink(target, link) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.call(|| format!("symlink('{}')", link.display())),
    }
}

fn write(file: &Path, text: &str) -> sys::Result<()> {
    file::make_dirs(file.parent().unwrap_or(file))?;
    file::write(file, text)
}

fn report(name: &str, result: sys::Result<()>) {
    if let Err(e) = result {
        tell(&format!("cannot write what machine '{name}' has to say: {e}, ignoring"));
    }
}

/// Says something where nothing listens yet but the kernel, whose log the journal takes over.
fn tell(text: &str) {
    let line = format!("machinist-generator: {text}\n");
    // systemd says of itself that it is the caller; only its own instance may write to the kernel's log.
    let system = std::env::var_os("SYSTEMD_SCOPE").is_some_and(|scope| scope == "system");
    let kmsg = if system { std::fs::OpenOptions::new().write(true).open("/dev/kmsg").ok() } else { None };
    // Without it the boot goes on all the same.
    let _ = match kmsg {
        Some(mut kmsg) => kmsg.write_all(format!("<4>{line}").as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
}
