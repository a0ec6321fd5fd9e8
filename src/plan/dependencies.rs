//! The order among machines: who is started with whom and after whom, who is stopped before whom. Pure.
//!
//! The keys mean the same as in `systemd.unit(5)`, with one difference: `requires` and `wants` imply `after`, since a
//! machine that needs another needs it ready. A [`Schedule`] is the order of one start or stop: it returns the machines
//! that may begin now, takes those that have ended, and returns those that cannot begin any more and because of which.

use std::collections::{BTreeMap, BTreeSet};

use crate::spec::{MachineName, Order};

/// Machines and the dependencies between them.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    machines: BTreeMap<MachineName, Order>,
}

impl Graph {
    /// Adds a machine; those that it names and that are never added are taken for undefined and passed over.
    pub fn insert(&mut self, name: MachineName, order: Order) {
        self.machines.insert(name, order);
    }

    /// The machines that `name` is started after.
    fn predecessors<'g>(&'g self, name: &MachineName) -> impl Iterator<Item = &'g MachineName> {
        let order = self.machines.get(name);
        order.into_iter().flat_map(Order::predecessors).filter(|other| self.machines.contains_key(other))
    }

    /// A dependency cycle that `name` is part of or waits for, ending with the machine that it begins with.
    pub fn cycle(&self, name: &MachineName) -> Option<Vec<MachineName>> {
        let mut done: BTreeSet<&MachineName> = BTreeSet::new();
        let (name, _) = self.machines.get_key_value(name)?;
        // The way down from `name`, each with those still to be looked at.
        let mut way: Vec<(&MachineName, Vec<&MachineName>)> = vec![(name, self.predecessors(name).collect())];
        while let Some((machine, open)) = way.last_mut() {
            let Some(next) = open.pop() else {
                done.insert(machine);
                way.pop();
                continue;
            };
            if let Some(begin) = way.iter().position(|(on_way, _)| *on_way == next) {
                let cycle = way[begin..].iter().map(|(on_way, _)| *on_way).chain([next]);
                return Some(cycle.cloned().collect());
            }
            if !done.contains(next) {
                way.push((next, self.predecessors(next).collect()));
            }
        }
        None
    }

    /// These machines and all that are started because they are.
    pub fn pulled_in<'n>(&self, names: impl IntoIterator<Item = &'n MachineName>) -> BTreeSet<MachineName> {
        self.reach(names, |name| self.machines.get(name).into_iter().flat_map(Order::pulled_in).collect())
    }

    /// These machines and all that do not run without them.
    pub fn requirers<'n>(&self, names: impl IntoIterator<Item = &'n MachineName>) -> BTreeSet<MachineName> {
        let mut by: BTreeMap<&MachineName, Vec<&MachineName>> = BTreeMap::new();
        for (name, order) in &self.machines {
            order.requires.iter().for_each(|required| by.entry(required).or_default().push(name));
        }
        self.reach(names, |name| by.get(name).cloned().unwrap_or_default())
    }

    fn reach<'n, 'g>(
        &'g self,
        names: impl IntoIterator<Item = &'n MachineName>,
        next: impl Fn(&MachineName) -> Vec<&'g MachineName>,
    ) -> BTreeSet<MachineName> {
        let mut reached: BTreeSet<MachineName> = BTreeSet::new();
        let mut open: Vec<MachineName> = names.into_iter().cloned().collect();
        while let Some(name) = open.pop() {
            if reached.insert(name.clone()) {
                open.extend(next(&name).into_iter().filter(|other| self.machines.contains_key(other)).cloned());
            }
        }
        reached
    }

    /// The order in which these machines are started: each after those it is ordered after, and only if those it
    /// requires are ready.
    pub fn starting(&self, names: &BTreeSet<MachineName>) -> Schedule {
        let job = |name: &MachineName| {
            let among =
                |list: &mut dyn Iterator<Item = &MachineName>| list.filter(|o| names.contains(o)).cloned().collect();
            let required = self.machines.get(name).map(|order| &order.requires);
            Job {
                waits: among(&mut self.predecessors(name)),
                needs: among(&mut required.into_iter().flatten()),
                state: JobState::Waiting,
            }
        };
        Schedule { jobs: names.iter().map(|name| (name.clone(), job(name))).collect() }
    }

    /// The order in which these machines are stopped: each after all that are started after it. With `strict` none is
    /// stopped under one that requires it and could not be.
    pub fn stopping(&self, names: &BTreeSet<MachineName>, strict: bool) -> Schedule {
        let empty = || Job { waits: BTreeSet::new(), needs: BTreeSet::new(), state: JobState::Waiting };
        let mut jobs: BTreeMap<MachineName, Job> = names.iter().map(|name| (name.clone(), empty())).collect();
        for name in names {
            let order = self.machines.get(name);
            for (first, required) in order.into_iter().flat_map(|order| {
                let required = order.requires.iter().map(|first| (first, true));
                required.chain(order.predecessors().map(|first| (first, false)))
            }) {
                let Some(job) = jobs.get_mut(first) else { continue };
                job.waits.insert(name.clone());
                if strict && required {
                    job.needs.insert(name.clone());
                }
            }
        }
        Schedule { jobs }
    }
}

/// Where one machine of a schedule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JobState {
    Waiting,
    Begun,
    Done,
    /// It failed, or was not begun.
    Failed,
}

#[derive(Debug, Clone)]
struct Job {
    /// Those that are over before it begins.
    waits: BTreeSet<MachineName>,
    /// Those that succeeded before it begins.
    needs: BTreeSet<MachineName>,
    state: JobState,
}

/// A machine whose turn will not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The machine.
    pub name: MachineName,
    /// The machine that needed the failed one: the same, or one that it needs itself.
    pub by: MachineName,
    /// The machine that failed.
    pub failed: MachineName,
}

/// Machines that are started or stopped in one go.
#[derive(Debug, Clone)]
pub struct Schedule {
    jobs: BTreeMap<MachineName, Job>,
}

impl Schedule {
    /// Every machine of it.
    pub fn names(&self) -> impl Iterator<Item = &MachineName> {
        self.jobs.keys()
    }

    /// Whether another machine of it waits for this one.
    pub fn is_awaited(&self, name: &MachineName) -> bool {
        self.jobs.values().any(|job| job.waits.contains(name))
    }

    /// Whether nothing is left to be begun.
    pub fn is_over(&self) -> bool {
        self.jobs.values().all(|job| job.state != JobState::Waiting)
    }

    /// A machine that may begin now, and is taken to have begun.
    ///
    /// In a cycle, which only a stop of machines whose definitions have changed can meet, one machine goes first.
    pub fn begin(&mut self) -> Option<MachineName> {
        let over = |name: &MachineName| {
            self.jobs.get(name).is_none_or(|job| matches!(job.state, JobState::Done | JobState::Failed))
        };
        let may = |job: &Job| job.state == JobState::Waiting && job.waits.iter().all(over);
        let stuck = self.jobs.values().all(|job| job.state != JobState::Begun);
        let waiting = self.jobs.iter().filter(|(_, job)| job.state == JobState::Waiting);
        let mut waiting = waiting.peekable();
        let first = waiting.peek().copied();
        let name = waiting.find(|(_, job)| may(job)).or(first.filter(|_| stuck))?.0.clone();
        if let Some(job) = self.jobs.get_mut(&name) {
            job.state = JobState::Begun;
        }
        Some(name)
    }

    /// Records how a machine ended, whether it had begun or not; returns those that will not begin because of it.
    pub fn ended(&mut self, name: &MachineName, well: bool) -> Vec<Skipped> {
        if let Some(job) = self.jobs.get_mut(name) {
            job.state = if well { JobState::Done } else { JobState::Failed };
        }
        let mut skipped = Vec::new();
        let mut lost: Vec<MachineName> = if well { Vec::new() } else { vec![name.clone()] };
        while let Some(without) = lost.pop() {
            for (other, job) in &mut self.jobs {
                if job.state == JobState::Waiting && job.needs.contains(&without) {
                    job.state = JobState::Failed;
                    let by = if without == *name { other.clone() } else { via(&skipped, &without, name) };
                    skipped.push(Skipped { name: other.clone(), by, failed: name.clone() });
                    lost.push(other.clone());
                }
            }
        }
        skipped
    }

    /// The schedule in waves, if all goes well and as many as can begin at once.
    pub fn waves(mut self) -> Vec<Vec<MachineName>> {
        let mut waves = Vec::new();
        loop {
            let wave: Vec<MachineName> = std::iter::from_fn(|| self.begin()).collect();
            if wave.is_empty() {
                return waves;
            }
            wave.iter().for_each(|name| drop(self.ended(name, true)));
            waves.push(wave);
        }
    }
}

/// Who needed the machine that failed, on the way to one that was skipped for it.
fn via(skipped: &[Skipped], name: &MachineName, failed: &MachineName) -> MachineName {
    skipped.iter().find(|s| s.name == *name && s.failed == *failed).map_or_else(|| name.clone(), |s| s.by.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MachineName {
        MachineName::parse(text).expect("a name")
    }

    fn names(text: &str) -> BTreeSet<MachineName> {
        text.split_whitespace().map(name).collect()
    }

    /// `"b requires a; c after b"`
    fn graph(text: &str) -> Graph {
        let mut graph = Graph::default();
        for sentence in text.split(';').map(str::trim) {
            let words: Vec<&str> = sentence.split_whitespace().collect();
            let (from, to) = (name(words[0]), words.get(2).map(|to| name(to)));
            let order = graph.machines.entry(from).or_default();
            match (words.get(1).copied(), to) {
                (Some("requires"), Some(to)) => order.requires.push(to),
                (Some("wants"), Some(to)) => order.wants.push(to),
                (Some("after"), Some(to)) => order.after.push(to),
                (None, None) => {}
                _ => panic!("{sentence}"),
            }
        }
        graph
    }

    fn words<'n>(list: impl IntoIterator<Item = &'n MachineName>) -> String {
        list.into_iter().map(MachineName::as_str).collect::<Vec<_>>().join(" ")
    }

    fn waves(schedule: Schedule) -> Vec<String> {
        schedule.waves().iter().map(words).collect()
    }

    const DIAMOND: &str = "a; b requires a; c wants a; d requires b; d requires c";

    #[test]
    fn what_is_needed_is_started_first_and_stopped_last() {
        let graph = graph(DIAMOND);
        let all = graph.pulled_in([&name("d")]);
        assert_eq!(words(&all), "a b c d");
        assert_eq!(waves(graph.starting(&all)), ["a", "b c", "d"]);
        assert_eq!(waves(graph.stopping(&all, true)), ["d", "b c", "a"]);
        assert_eq!(words(&graph.pulled_in([&name("c")])), "a c");
    }

    #[test]
    fn an_order_alone_pulls_nothing_in() {
        let graph = graph("a; b after a; c after b; c after absent; d requires absent");
        assert_eq!(words(&graph.pulled_in([&name("b")])), "b");
        assert_eq!(words(&graph.pulled_in([&name("d")])), "d", "what is not defined cannot be pulled in");
        assert_eq!(waves(graph.starting(&names("a b"))), ["a", "b"]);
        // One between them that is not started orders nothing.
        assert_eq!(waves(graph.starting(&names("a c"))), ["a c"]);
        assert_eq!(waves(graph.stopping(&names("a b c"), false)), ["c", "b", "a"]);
    }

    #[test]
    fn circles_are_shown_from_where_they_begin() {
        let cycle = |text: &str, from: &str| graph(text).cycle(&name(from)).map(|cycle| words(&cycle));
        assert_eq!(cycle("a requires b; b wants c; c after a", "a").as_deref(), Some("a b c a"));
        assert_eq!(cycle("a requires b; b wants c; c after a", "c").as_deref(), Some("c a b c"));
        assert_eq!(cycle("a requires a", "a").as_deref(), Some("a a"));
        assert_eq!(cycle("x wants a; a requires b; b requires a", "x").as_deref(), Some("a b a"));
        assert_eq!(cycle("a requires b; b requires a; x", "x"), None);
        assert_eq!(cycle(DIAMOND, "d"), None);
        assert_eq!(cycle(DIAMOND, "absent"), None);
    }

    #[test]
    fn a_long_chain_is_no_deep_recursion() {
        let mut graph = Graph::default();
        let machine = |n: usize| name(&format!("m{n}"));
        for n in 0..1000 {
            graph.insert(machine(n), Order { requires: vec![machine(n + 1)], ..Order::default() });
        }
        assert_eq!(graph.cycle(&machine(0)), None);
        let all = graph.pulled_in([&machine(0)]);
        assert_eq!(all.len(), 1000);
        let mut schedule = graph.starting(&all);
        assert_eq!(schedule.begin(), Some(machine(999)));
        assert_eq!(schedule.ended(&machine(999), false).len(), 999);
        graph.insert(machine(1000), Order { wants: vec![machine(0)], ..Order::default() });
        assert_eq!(graph.cycle(&machine(7)).map(|cycle| cycle.len()), Some(1002));
    }

    #[test]
    fn a_failure_stops_those_that_require_it_and_nobody_else() {
        let graph = graph("a; b requires a; c requires b; d requires c; e wants a; f after b");
        let mut schedule = graph.starting(&names("a b c d e f"));
        assert_eq!(schedule.begin(), Some(name("a")));
        assert_eq!(schedule.begin(), None, "every machine waits");
        let skipped = schedule.ended(&name("a"), false);
        let told: Vec<String> = skipped.iter().map(|s| format!("{} {} {}", s.name, s.by, s.failed)).collect();
        assert_eq!(told, ["b b a", "c b a", "d b a"]);
        assert_eq!(schedule.begin(), Some(name("e")), "a wish is no need");
        assert_eq!(schedule.begin(), Some(name("f")), "nor is an order, behind one that was not begun");
        assert!(schedule.is_over());
    }

    #[test]
    fn one_that_cannot_be_stopped_keeps_what_it_requires_unless_all_must_end() {
        let graph = graph("a; b requires a; c wants a");
        assert_eq!(words(&graph.requirers([&name("a")])), "a b");
        let mut strict = graph.stopping(&names("a b c"), true);
        assert_eq!([strict.begin(), strict.begin(), strict.begin()], [Some(name("b")), Some(name("c")), None]);
        assert!(strict.ended(&name("c"), false).is_empty());
        let skipped = strict.ended(&name("b"), false);
        assert_eq!(skipped, [Skipped { name: name("a"), by: name("a"), failed: name("b") }]);
        let mut lax = graph.stopping(&names("a b"), false);
        assert_eq!(lax.begin(), Some(name("b")));
        assert!(lax.ended(&name("b"), false).is_empty());
        assert_eq!(lax.begin(), Some(name("a")));
    }

    #[test]
    fn a_circle_is_stopped_all_the_same() {
        let graph = graph("a; b requires a; c requires b; a requires c");
        assert_eq!(waves(graph.stopping(&names("a b c"), true)), ["a", "c", "b"]);
    }

    #[test]
    fn one_that_need_not_begin_is_reported_as_ended() {
        let graph = graph("a; b requires a");
        let mut schedule = graph.starting(&names("a b"));
        assert!(schedule.ended(&name("a"), true).is_empty());
        assert_eq!(schedule.begin(), Some(name("b")));
        assert!(schedule.is_awaited(&name("a")) && !schedule.is_awaited(&name("b")));
    }
}
