//! Machines that are to be started, with what they lead to.

use std::collections::BTreeSet;

use super::context::{Failures, Ops};
use crate::config::{Family, Loaded, Member};
use crate::plan::dependencies::Graph;
use crate::report::OpError;
use crate::spec::MachineName;

/// The graph of the definitions; those with faults are in it, alone.
pub fn graph(family: &Family) -> Graph {
    let mut graph = Graph::default();
    for (name, member) in family.members() {
        let order = member.loaded().map(|loaded| loaded.spec.boot.order.clone());
        graph.insert(name.clone(), order.unwrap_or_default());
    }
    graph
}

/// Machines that are to be started, with what they lead to.
#[derive(Debug)]
pub struct StartSet {
    pub(super) family: Family,
    pub(super) graph: Graph,
    /// Those asked for, of which nothing is wrong.
    pub(super) asked: BTreeSet<MachineName>,
    /// These, and all that are started because of them.
    pub(super) all: BTreeSet<MachineName>,
}

impl StartSet {
    /// Gathers definitions; those that can be told at once to be wrong are.
    pub fn gather(ops: &Ops, names_or_files: &[String], failures: &mut Failures) -> Self {
        let (family, asked) = Family::gather(ops.layout(), names_or_files);
        let graph = graph(&family);
        let mut set = Self { family, graph, asked: BTreeSet::new(), all: BTreeSet::new() };
        for name in asked {
            match name.map_err(OpError::from).and_then(|name| set.check(&name).map(|()| name)) {
                Ok(name) => drop(set.asked.insert(name)),
                Err(error) => failures.add(error),
            }
        }
        set.all = set.graph.pulled_in(&set.asked);
        // What they do without.
        set.members().flat_map(|(_, member)| &member.warnings).for_each(|warning| ops.events.warn(warning));
        set
    }

    fn check(&self, name: &MachineName) -> Result<(), OpError> {
        if let Some(Err(error)) = self.family.get(name).map(Member::loaded) {
            return Err(error.into());
        }
        self.graph.cycle(name).map_or(Ok(()), |cycle| Err(self.family.cycle(&cycle).into()))
    }

    /// Those asked for, and all that are started because of them.
    pub fn members(&self) -> impl Iterator<Item = (&MachineName, &Member)> {
        self.family.members().filter(|(name, _)| self.all.contains(*name))
    }

    /// The definition of the only one asked for.
    pub fn take_only(&mut self) -> Option<Loaded> {
        let name = self.asked.pop_first()?;
        self.family.take(&name)
    }
}
