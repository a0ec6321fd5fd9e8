//! Events of our machines as they occur: the `Event` signal of `org.machinist1.Manager`.
//!
//! Seen in the run directories, where supervisors write by rename; so it does not matter who started a machine, nor
//! when this daemon began.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use zruntime::{AsyncIo, Shared};

use super::restart;
use super::state::{Daemon, Level};
use crate::plan::limits::Limit;
use crate::running::state;
use crate::running::view::Summary;
use crate::spec::MachineName;
use crate::sys::file;
use crate::sys::{self, Context as _};

/// Follows the run directories until the daemon ends.
pub(crate) async fn follow(daemon: Arc<Daemon>) {
    if let Err(e) = try_follow(&daemon).await {
        daemon.say(Level::Warning, &format!("Cannot announce events: {e}."));
    }
}

async fn try_follow(daemon: &Arc<Daemon>) -> sys::Result<()> {
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).call(|| "inotify_init".into())?;
    let top = daemon.layout.run_root().join("machines");
    file::make_dirs(&top)?;
    let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
    inotify::add_watch(&fd, &top, flags).call(|| format!("inotify_add_watch('{}')", top.display()))?;
    let fd = AsyncIo::<_, Shared>::new_nonblocking(&daemon.runtime, fd).call(|| "watching inotify".into())?;
    let mut watched = BTreeSet::new();
    let mut known = BTreeMap::new();
    // Those that ran before us are no news.
    look(daemon, fd.get_ref(), &mut watched, &mut known);
    loop {
        fd.readable().await.call(|| "waiting for inotify".into())?;
        if drain(fd.get_ref())? {
            for (name, state, details) in look(daemon, fd.get_ref(), &mut watched, &mut known) {
                daemon.event(&name, state, details).await;
            }
        }
    }
}

/// Throws away what inotify says: what matters is what is there now.
fn drain(fd: &std::os::fd::OwnedFd) -> sys::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(fd, &mut buffer);
    let mut any = false;
    loop {
        match reader.next() {
            Ok(_) => any = true,
            Err(Errno::AGAIN) => return Ok(any),
            Err(e) => return Err(e).call(|| "read(inotify)".into()),
        }
    }
}

/// What was last announced of a machine.
#[derive(Debug)]
struct Known {
    state: &'static str,
    leader: i32,
    limits: Vec<Limit>,
}

/// Compares what runs with what ran, and keeps a watch on every machine's directory.
fn look(
    daemon: &Arc<Daemon>,
    fd: &std::os::fd::OwnedFd,
    watched: &mut BTreeSet<PathBuf>,
    known: &mut BTreeMap<String, Known>,
) -> Vec<(String, &'static str, Value)> {
    let names = state::names(&daemon.layout);
    watched.retain(|path| path.exists());
    let mut now = BTreeMap::new();
    let mut news = Vec::new();
    for name in &names {
        watch(fd, &daemon.layout.run_dir(name), watched);
        let Some(state) = read(daemon, name) else { continue };
        restart::watch(daemon, name, &state);
        let current = Known { state: state.word(), leader: state.leader, limits: state.limits.clone() };
        let before = known.get(name.as_str());
        if before.is_none_or(|known| (known.state, known.leader) != (current.state, current.leader)) {
            news.push((name.as_str().to_owned(), current.state, Summary::of(&state).to_json()));
        }
        // Those it starts with are no news.
        if before.is_some_and(|known| known.limits != current.limits) {
            news.push((name.as_str().to_owned(), "limits", json!({ "limits": state.limits_in_force() })));
        }
        now.insert(name.as_str().to_owned(), current);
    }
    let ended = known.keys().filter(|name| !now.contains_key(*name));
    news.extend(ended.map(|name| (name.clone(), "stopped", Summary::stopped(name).to_json())));
    *known = now;
    news
}

fn read(daemon: &Daemon, name: &MachineName) -> Option<state::State> {
    state::read(&daemon.layout, name).ok().flatten()
}

fn watch(fd: &std::os::fd::OwnedFd, path: &Path, watched: &mut BTreeSet<PathBuf>) {
    let flags = WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::ONLYDIR;
    // One that is gone again needs none.
    if !watched.contains(path) && inotify::add_watch(fd, path, flags).is_ok() {
        watched.insert(path.to_owned());
    }
}
