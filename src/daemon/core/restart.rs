//! Machines whose supervisor was killed: started again, if their definition says so.
//!
//! A supervisor starts its own machine again, but none can do that after its own death. Under a unit the service manager sees to
//! it; for those that run in the background the state file left behind says what is wanted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::registry::Process;
use super::state::{Daemon, Level, Supervisor, ended, lock};
use crate::config;
use crate::running::restart::{End, Exit, History, Next};
use crate::running::state::{self, Phase, State};
use crate::spec::MachineName;

/// Watches the supervisor of a machine that is to be kept up, unless it is watched already.
pub(crate) fn watch(daemon: &Arc<Daemon>, name: &MachineName, state: &State) {
    let Some(policy) = state.restart else { return };
    let pid = state.supervisor;
    if lock(&daemon.kept_up).get(name.as_str()).is_some_and(|known| known.pid == pid) {
        return;
    }
    // Held first, then looked at again: the number may be another's by now.
    let Ok(process) = Process::open(pid) else { return };
    if !state::read(&daemon.layout, name).is_ok_and(|now| now.is_some_and(|now| now.supervisor == pid)) {
        return;
    }
    let mut watched = lock(&daemon.kept_up);
    let known = watched.remove(name.as_str()).filter(|known| known.policy == policy);
    let history = known.map_or_else(|| History::new(policy), |known| known.history);
    watched.insert(name.to_string(), Supervisor { pid, policy, history });
    drop(watched);
    let (daemon, name) = (Arc::clone(daemon), name.clone());
    let runtime = daemon.runtime.clone();
    let task = runtime.spawn("supervisor", async move {
        if ended(&daemon.runtime, &process).await.is_ok() {
            keep_up(&daemon, &name, pid).await;
        }
    });
    task.detach();
}

/// Starts a machine again whose supervisor has ended before it; as often as its limit allows, should that fail.
async fn keep_up(daemon: &Daemon, name: &MachineName, supervisor: i32) {
    let left = state::abandoned(&daemon.layout, name).filter(|left| left.supervisor == supervisor);
    // One that was about to stop has what it was asked for.
    let Some(left) = left.filter(|left| left.phase != Phase::Stopping) else { return forget(daemon, name, supervisor) };
    let mut what = "was killed".to_owned();
    let mut end = End::Killed(libc::SIGKILL);
    loop {
        let exit = Exit::unasked(end);
        let next = match lock(&daemon.kept_up).get_mut(name.as_str()) {
            Some(known) if known.pid == supervisor => known.history.next(name.as_str(), &exit, Instant::now()),
            // It was started again meanwhile, and that one is watched.
            _ => return,
        };
        match next {
            Next::Over => return,
            Next::GiveUp(text) => {
                daemon.say(Level::Err, &format!("The supervisor of machine {name} {what}."));
                daemon.say(Level::Err, &format!("{text}."));
                return forget(daemon, name, supervisor);
            }
            Next::After(delay) => {
                let when = crate::spec::Span(delay);
                let text = format!("The supervisor of machine {name} {what}; starting the machine again in {when}.");
                daemon.say(Level::Warning, &text);
                daemon.runtime.sleep(delay.max(Duration::from_millis(1))).await;
            }
        }
        if state::is_owned(&daemon.layout, name).unwrap_or(true) {
            return;
        }
        match daemon.start(&start_by(daemon, name, &left)).await {
            Ok(()) => return,
            Err(failure) => {
                what = format!("could not be replaced: {}", failure.text);
                end = End::NotStarted(failure.text);
            }
        }
    }
}

/// Its name if that leads to the definition it was started by, else the file.
fn start_by(daemon: &Daemon, name: &MachineName, left: &State) -> String {
    let file = left.definition.as_ref().filter(|file| config::definition(&daemon.layout, name).as_ref() != Some(*file));
    file.and_then(|file| file.to_str()).unwrap_or(name.as_str()).to_owned()
}

/// An orderly end, or the last: the next start begins with a new count.
fn forget(daemon: &Daemon, name: &MachineName, supervisor: i32) {
    let mut watched = lock(&daemon.kept_up);
    if watched.get(name.as_str()).is_some_and(|known| known.pid == supervisor) {
        watched.remove(name.as_str());
    }
}
