//! Machines of ours that began while no daemon ran: found by their run directories.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::register::{add, adopt, micros, monotonic};
use super::registry::{Class, Machine, NO_CID, Process, payload_group, unit_of};
use super::state::{Daemon, Level};
use crate::bus::machine1::SERVICE;
use crate::running::state::{self, State};
use crate::spec::MachineId;

/// Takes in every machine of ours that is not known and wants to be.
pub(crate) async fn take_in(daemon: &Arc<Daemon>) {
    for name in state::names(&daemon.layout) {
        // What cannot be read is what is not there: its supervisor is at its beginning or its end.
        let Some(state) = state::read(&daemon.layout, &name).ok().flatten() else { continue };
        let Some(mut machine) = entry(&state) else { continue };
        let known = daemon.registry().get(&machine.name).map(|known| known.leader.pid);
        if known == Some(machine.leader.pid) {
            continue;
        }
        adopt(daemon, &mut machine);
        if let Err(failure) = add(daemon, machine).await {
            daemon.say(Level::Warning, &format!("Cannot take in machine {name}: {}", failure.text));
        }
    }
}

/// The machine as its supervisor would have registered it; `None` if it wants none of that, or has ended.
fn entry(state: &State) -> Option<Machine> {
    let id = MachineId::parse(state.machine_id.as_ref()?).ok()?;
    // Held first, then compared with what was said of it: the number may be another's by now.
    let leader = Process::open(state.leader).ok()?;
    state.open_leader().ok()?;
    let group = payload_group(leader.pid);
    let (unit, subgroup) = unit_of(&group);
    let since = Duration::from_secs(state.since);
    let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(since);
    Some(Machine {
        name: state.name.clone(),
        id: id.0,
        service: SERVICE.to_owned(),
        class: Class::Container,
        supervisor: Process::open(state.supervisor).ok(),
        // Only a directory is given as a path; the rest is described in words.
        root: Some(&state.root).filter(|root| Path::new(root).is_dir()).cloned().unwrap_or_default(),
        interfaces: Vec::new(),
        vsock_cid: NO_CID,
        ssh_address: String::new(),
        ssh_key: String::new(),
        unit,
        subgroup,
        group,
        uid: 0,
        realtime: micros(since),
        monotonic: monotonic().saturating_sub(micros(age)),
        leader,
    })
}
