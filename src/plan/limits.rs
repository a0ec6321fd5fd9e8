//! What is written into the files of the payload's control group so that the machine stays within its `[resources]`.

use serde::{Deserialize, Serialize};

use super::cgroup::UnitPlan;
use crate::host::LimitFacts;
use crate::spec::{Amount, Bound, IoMax, NumberSet, ResourceKey, Resources, Unmet, Weight};

/// Controllers that systemd hands on to a group with `Delegate=yes`, which is all that it knows.
const DELEGATED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// The kernel's word for no limit.
const NO_LIMIT: &str = "max";

/// One file of the payload's group and what is written into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limit {
    /// The key it is for.
    pub key: ResourceKey,
    /// The file.
    pub file: String,
    /// What is written.
    pub value: String,
    /// The machine may run without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

impl Limit {
    /// What the limit is on: two limits on the same thing replace each other.
    fn on(&self) -> (ResourceKey, &str) {
        let part = match self.key {
            ResourceKey::IoMax => self.value.split(' ').next().unwrap_or_default(),
            ResourceKey::Hugetlb => &self.file,
            _ => "",
        };
        (self.key, part)
    }

    /// What lifts the limit.
    #[must_use]
    pub fn lifted(&self) -> Self {
        let (file, value) = match self.key {
            ResourceKey::MemoryMax | ResourceKey::MemoryHigh | ResourceKey::SwapMax | ResourceKey::PidsMax => {
                (&*self.file, NO_LIMIT.to_owned())
            }
            ResourceKey::Hugetlb => (&*self.file, NO_LIMIT.to_owned()),
            ResourceKey::CpuMax => (&*self.file, format!("{NO_LIMIT} 100000")),
            ResourceKey::CpuWeight => ("cpu.weight", "100".to_owned()),
            ResourceKey::IoWeight => (&*self.file, "100".to_owned()),
            // An empty line; no bytes at all would be no write.
            ResourceKey::Cpus | ResourceKey::Mems => (&*self.file, "\n".to_owned()),
            ResourceKey::IoMax => (&*self.file, io_max(self.on().1, [None; 4])),
        };
        Self { key: self.key, file: file.to_owned(), value, optional: self.optional }
    }
}

/// What has to be written where one set of limits is to follow another, each with what undoes it.
pub fn change(old: &[Limit], new: &[Limit]) -> Vec<(Limit, Limit)> {
    let same = |list: &[Limit], limit: &Limit| list.iter().find(|other| other.on() == limit.on()).cloned();
    let lifted = old.iter().filter(|limit| same(new, limit).is_none()).map(|limit| (limit.lifted(), limit.clone()));
    let set = new.iter().filter_map(|limit| {
        let before = same(old, limit).unwrap_or_else(|| limit.lifted());
        (before.value != limit.value || before.file != limit.file).then(|| (limit.clone(), before))
    });
    lifted.chain(set).collect()
}

/// Decides how `resources` are enforced on the host `facts`, in the group of `unit`; gives notes, too.
///
/// # Errors
/// Every limit that the host cannot enforce and that is not optional.
pub fn plan(
    resources: &Resources,
    facts: &LimitFacts,
    unit: &UnitPlan,
) -> Result<(Vec<Limit>, Vec<String>), Vec<Unmet>> {
    let mut planning = Planning { facts, unit, optional: &resources.optional, limits: Vec::new(), unmet: Vec::new() };
    planning.memory(resources);
    planning.processors(resources);
    if let Some(Bound::At(count)) = resources.pids_max {
        planning.add(ResourceKey::PidsMax, "pids.max", count.to_string());
    }
    if let Some(weight) = resources.io_weight {
        planning.add(ResourceKey::IoWeight, "io.weight", weight.to_string());
    }
    for (index, disk) in resources.io_max.iter().enumerate() {
        planning.disk(index, disk);
    }
    for (size, max) in &resources.hugetlb {
        if let Bound::At(bytes) = max {
            planning.huge_pages(*size, *bytes);
        }
    }
    let Planning { limits, mut unmet, .. } = planning;
    let notes = unmet.iter().filter(|(_, optional)| *optional).map(|(unmet, _)| format!("not enforced: {unmet}"));
    let notes = notes.chain(tasks_note(resources, facts, unit)).collect();
    unmet.retain(|(_, optional)| !optional);
    if unmet.is_empty() { Ok((limits, notes)) } else { Err(unmet.into_iter().map(|(unmet, _)| unmet).collect()) }
}

/// The note that the unit has a stricter limit of tasks of its own, which a machine cannot raise.
fn tasks_note(resources: &Resources, facts: &LimitFacts, unit: &UnitPlan) -> Option<String> {
    let (UnitPlan::Own(unit), Some(most)) = (unit, facts.unit_tasks) else { return None };
    let beyond = match resources.pids_max? {
        Bound::Infinity => true,
        Bound::At(count) => u64::from(count) > most,
    };
    beyond.then(|| format!("`resources.pids-max`: the unit {unit} allows only {most} tasks (`TasksMax=`)"))
}

/// A list of limits that grows, and what stands in its way.
struct Planning<'a> {
    facts: &'a LimitFacts,
    unit: &'a UnitPlan,
    optional: &'a [ResourceKey],
    limits: Vec<Limit>,
    unmet: Vec<(Unmet, bool)>,
}

impl Planning<'_> {
    fn add(&mut self, key: ResourceKey, file: impl Into<String>, value: impl Into<String>) {
        self.add_part(key, "", file, value);
    }

    /// Adds a limit if its controller is there; `part` is what of the key it is for.
    fn add_part(&mut self, key: ResourceKey, part: &str, file: impl Into<String>, value: impl Into<String>) {
        let optional = self.optional.contains(&key);
        match self.missing(key.controller()) {
            None => self.limits.push(Limit { key, file: file.into(), value: value.into(), optional }),
            Some((why, hint)) => self.refuse(key, part, why, Some(hint)),
        }
    }

    fn refuse(&mut self, key: ResourceKey, part: &str, why: impl Into<String>, hint: Option<String>) {
        let unmet = Unmet { key: format!("resources.{key}{part}"), why: why.into(), hint };
        self.unmet.push((unmet, self.optional.contains(&key)));
    }

    /// Why a controller will not be in the machine's group, and what helps.
    fn missing(&self, controller: &str) -> Option<(String, String)> {
        let has = |list: &[String]| list.iter().any(|name| name == controller);
        let skip = "or name the key in `resources.optional`";
        let here = has(&self.facts.controllers);
        match self.unit {
            UnitPlan::Own(unit) if here && !has(&self.facts.unit_controllers) => Some((
                format!("the unit {unit} was not given the controller '{controller}'"),
                format!("`Delegate=yes` in the unit gives what systemd knows, {}; {skip}", DELEGATED.join(", ")),
            )),
            UnitPlan::Scope { .. } if here && !DELEGATED.contains(&controller) => Some((
                format!("systemd does not hand on the controller '{controller}'"),
                format!("name a control group of your own with `[cgroup] parent`, {skip}"),
            )),
            _ if here => None,
            _ if has(&self.facts.version1) => Some((
                format!("the controller '{controller}' is not on cgroup2 of this host, but on version 1"),
                format!("boot with `cgroup_no_v1=all` (systemd: `systemd.unified_cgroup_hierarchy=1`), {skip}"),
            )),
            _ => Some((
                format!("this host has no controller '{controller}'"),
                format!("the kernel was built or booted without it (`cgroup_disable=`); boot another, {skip}"),
            )),
        }
    }

    fn memory(&mut self, resources: &Resources) {
        let total = self.facts.memory;
        let bytes = |amount: Option<Bound<Amount>>| match amount {
            Some(Bound::At(Amount::Bytes(bytes))) => Some(bytes),
            Some(Bound::At(Amount::Percent(percent))) => Some(total / 100 * u64::from(percent)),
            Some(Bound::Infinity) | None => None,
        };
        let (max, mut high) = (bytes(resources.memory_max), bytes(resources.memory_high));
        if let Some((bytes, max)) = high.zip(max).filter(|(high, max)| high > max) {
            let why = format!("{bytes} bytes are above `memory-max`, which is {max} on this host");
            self.refuse(ResourceKey::MemoryHigh, "", why, None);
            high = None;
        }
        for (key, file, bytes) in [
            (ResourceKey::MemoryMax, "memory.max", max),
            (ResourceKey::MemoryHigh, "memory.high", high),
            (ResourceKey::SwapMax, "memory.swap.max", bytes(resources.swap_max)),
        ] {
            if let Some(bytes) = bytes {
                self.add(key, file, bytes.to_string());
            }
        }
    }

    fn processors(&mut self, resources: &Resources) {
        if let Some(Bound::At(time)) = resources.cpu_max {
            self.add(ResourceKey::CpuMax, "cpu.max", format!("{} {}", time.quota(), time.period));
        }
        match resources.cpu_weight {
            Some(Weight::Of(weight)) => self.add(ResourceKey::CpuWeight, "cpu.weight", weight.to_string()),
            Some(Weight::Idle) => self.add(ResourceKey::CpuWeight, "cpu.idle", "1"),
            None => {}
        }
        let (cpus, mems) = (self.facts.cpus.clone(), self.facts.mems.clone());
        self.numbers(ResourceKey::Cpus, "cpuset.cpus", resources.cpus.as_ref(), ("processors", &cpus));
        self.numbers(ResourceKey::Mems, "cpuset.mems", resources.mems.as_ref(), ("memory nodes", &mems));
    }

    fn numbers(&mut self, key: ResourceKey, file: &str, wanted: Option<&NumberSet>, (what, there): (&str, &NumberSet)) {
        let Some(wanted) = wanted else { return };
        let missing = wanted.without(there);
        if missing.is_empty() {
            self.add(key, file, wanted.to_string());
        } else {
            self.refuse(key, "", format!("this host has the {what} {there}, and not {missing}"), None);
        }
    }

    fn disk(&mut self, index: usize, disk: &IoMax) {
        let part = format!("[{index}].device");
        match self.facts.disks.get(&disk.device) {
            Some(Ok((major, minor))) => {
                let on = format!("{major}:{minor}");
                let twice = |limit: &&Limit| limit.on() == (ResourceKey::IoMax, &on);
                if let Some(other) = self.limits.iter().find(twice) {
                    let why = format!("'{}' is on the disk {} like one above", disk.device.display(), other.on().1);
                    self.refuse(ResourceKey::IoMax, &part, why, Some("give each disk once".to_owned()));
                    return;
                }
                let value = io_max(&on, [disk.read, disk.write, disk.read_iops, disk.write_iops]);
                self.add_part(ResourceKey::IoMax, &part, "io.max", value);
            }
            Some(Err(why)) => {
                let why = format!(
                    "'{}' {}",
                    disk.device.display(),
                    if why.starts_with("is ") { why.clone() } else { format!("cannot be used: {why}") }
                );
                let hint = "name a disk, as in \"/dev/vda\", or a directory on one".to_owned();
                self.refuse(ResourceKey::IoMax, &part, why, Some(hint));
            }
            None => self.refuse(ResourceKey::IoMax, &part, "was not looked for", None),
        }
    }

    fn huge_pages(&mut self, size: u64, bytes: u64) {
        let part = format!(".{}", short(size, &["", "K", "M", "G", "T"]));
        if self.facts.huge_pages.contains(&size) || self.missing("hugetlb").is_some() {
            let file = format!("hugetlb.{}.max", short(size, &["B", "KB", "MB", "GB"]));
            self.add_part(ResourceKey::Hugetlb, &part, file, bytes.to_string());
        } else {
            let sizes: Vec<String> =
                self.facts.huge_pages.iter().map(|size| short(*size, &["", "K", "M", "G", "T"])).collect();
            let why = format!(
                "this host has huge pages of {}",
                if sizes.is_empty() { "no size".to_owned() } else { sizes.join(" and ") }
            );
            self.refuse(ResourceKey::Hugetlb, &part, why, None);
        }
    }
}

/// A power of two in the largest unit.
fn short(bytes: u64, units: &[&str]) -> String {
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024 && unit + 1 < units.len() {
        (value, unit) = (value / 1024, unit + 1);
    }
    format!("{value}{}", units[unit])
}

/// A line of `io.max`: bytes read and written, reads and writes.
fn io_max(disk: &str, limits: [Option<u64>; 4]) -> String {
    let words = ["rbps", "wbps", "riops", "wiops"].iter().zip(limits);
    let words = words.map(|(word, limit)| format!(" {word}={}", limit.map_or(NO_LIMIT.to_owned(), |l| l.to_string())));
    format!("{disk}{}", words.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::CpuTime;

    fn facts(controllers: &str) -> LimitFacts {
        let list = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        LimitFacts {
            controllers: list(controllers),
            unit_controllers: list("memory pids"),
            unit_tasks: Some(16_384),
            version1: list("cpu"),
            memory: 1000 << 20,
            cpus: NumberSet::of_kernel("0-3"),
            mems: NumberSet::of_kernel("0"),
            huge_pages: vec![2 << 20, 1 << 30],
            disks: [
                ("/dev/vda".into(), Ok((254, 0))),
                ("/srv".into(), Ok((254, 0))),
                ("/gone".into(), Err("No such file or directory".into())),
                ("/tmp".into(), Err("is on a file system without a disk (tmpfs)".into())),
            ]
            .into(),
        }
    }

    const ALL: &str = "cpu cpuset hugetlb io memory pids";

    fn disk(device: &str) -> IoMax {
        IoMax { device: device.into(), read: Some(10), write: None, read_iops: None, write_iops: Some(7) }
    }

    fn everything() -> Resources {
        Resources {
            memory_max: Some(Bound::At(Amount::Percent(50))),
            memory_high: Some(Bound::At(Amount::Bytes(4096))),
            swap_max: Some(Bound::At(Amount::Bytes(0))),
            cpu_max: Some(Bound::At(CpuTime { share: 15_000, period: 20_000 })),
            cpu_weight: Some(Weight::Of(50)),
            cpus: Some(NumberSet::of_kernel("0,2-3")),
            mems: Some(NumberSet::of_kernel("0")),
            pids_max: Some(Bound::At(100)),
            io_weight: Some(200),
            io_max: vec![disk("/dev/vda")],
            hugetlb: [(2 << 20, Bound::At(64 << 20)), (1 << 30, Bound::Infinity)].into(),
            optional: Vec::new(),
        }
    }

    fn lines(limits: &[Limit]) -> Vec<String> {
        limits.iter().map(|limit| format!("{} {}", limit.file, limit.value.escape_debug())).collect()
    }

    #[test]
    fn every_limit_is_a_line_of_a_file() {
        let (limits, notes) = plan(&everything(), &facts(ALL), &UnitPlan::None).expect("a host with everything");
        let expected = [
            "memory.max 524288000",
            "memory.high 4096",
            "memory.swap.max 0",
            "cpu.max 30000 20000",
            "cpu.weight 50",
            "cpuset.cpus 0,2-3",
            "cpuset.mems 0",
            "pids.max 100",
            "io.weight 200",
            "io.max 254:0 rbps=10 wbps=max riops=max wiops=7",
            "hugetlb.2MB.max 67108864",
        ];
        assert_eq!(lines(&limits), expected);
        assert_eq!(notes, [""; 0]);
        let idle = Resources { cpu_weight: Some(Weight::Idle), ..Resources::default() };
        assert_eq!(lines(&plan(&idle, &facts("cpu"), &UnitPlan::None).expect("cpu").0), ["cpu.idle 1"]);
    }

    #[test]
    fn what_is_unset_or_infinite_needs_no_controller() {
        let none = Resources {
            memory_max: Some(Bound::Infinity),
            cpu_max: Some(Bound::Infinity),
            pids_max: Some(Bound::Infinity),
            hugetlb: [(4 << 20, Bound::Infinity)].into(),
            ..Resources::default()
        };
        assert_eq!(plan(&none, &LimitFacts::default(), &UnitPlan::None), Ok((Vec::new(), Vec::new())));
    }

    #[test]
    fn every_missing_controller_is_named_with_its_keys() {
        let unmet = plan(&everything(), &facts("hugetlb"), &UnitPlan::None).expect_err("hardly any");
        let keys: Vec<&str> = unmet.iter().map(|unmet| unmet.key.trim_start_matches("resources.")).collect();
        let all = ["memory-max", "memory-high", "swap-max", "cpu-max", "cpu-weight", "cpus", "mems", "pids-max"];
        assert_eq!(keys, all.into_iter().chain(["io-weight", "io-max[0].device"]).collect::<Vec<_>>());
        assert_eq!(unmet[0].why, "this host has no controller 'memory'");
        assert_eq!(unmet[3].why, "the controller 'cpu' is not on cgroup2 of this host, but on version 1");
    }

    #[test]
    fn a_unit_has_what_it_was_given() {
        let why = |unit: &UnitPlan| {
            let unmet = plan(&everything(), &facts(ALL), unit).expect_err("not all");
            unmet.into_iter().map(|unmet| unmet.why).collect::<Vec<_>>()
        };
        assert_eq!(
            why(&UnitPlan::Scope { unit: "x.scope".into(), otherwise: "/x".into() }),
            ["systemd does not hand on the controller 'hugetlb'"]
        );
        let own = why(&UnitPlan::Own("x.service".into()));
        assert_eq!(own[0], "the unit x.service was not given the controller 'cpu'");
        assert!(own.iter().all(|why| !why.contains("'memory'") && !why.contains("'pids'")), "{own:?}");
    }

    #[test]
    fn a_stricter_limit_of_the_unit_is_told() {
        let notes = |pids_max, unit: &UnitPlan| {
            plan(&Resources { pids_max, ..Resources::default() }, &facts(ALL), unit).expect("a plan").1
        };
        let own = UnitPlan::Own("x.service".into());
        let told = ["`resources.pids-max`: the unit x.service allows only 16384 tasks (`TasksMax=`)"];
        assert_eq!(notes(Some(Bound::At(16_385)), &own), told);
        assert_eq!(notes(Some(Bound::Infinity), &own), told);
        assert!(notes(Some(Bound::At(16_384)), &own).is_empty() && notes(None, &own).is_empty());
        assert!(notes(Some(Bound::Infinity), &UnitPlan::None).is_empty());
    }

    #[test]
    fn optional_keys_are_notes_and_change_nothing_else() {
        let optional = vec![ResourceKey::MemoryMax, ResourceKey::IoMax, ResourceKey::Cpus];
        let resources = Resources {
            memory_max: Some(Bound::At(Amount::Bytes(1 << 20))),
            cpus: Some(NumberSet::of_kernel("2-9")),
            pids_max: Some(Bound::At(100)),
            io_max: vec![disk("/gone"), disk("/tmp")],
            optional,
            ..Resources::default()
        };
        let (limits, notes) = plan(&resources, &facts("cpuset io pids"), &UnitPlan::None).expect("all else optional");
        assert_eq!(lines(&limits), ["pids.max 100"]);
        let expected = [
            "not enforced: `resources.memory-max`: this host has no controller 'memory'",
            "not enforced: `resources.cpus`: this host has the processors 0-3, and not 4-9",
            "not enforced: `resources.io-max[0].device`: '/gone' cannot be used: No such file or directory",
            "not enforced: `resources.io-max[1].device`: '/tmp' is on a file system without a disk (tmpfs)",
        ];
        assert_eq!(notes, expected);
    }

    #[test]
    fn what_the_host_does_not_have_is_refused() {
        let why = |resources: Resources| {
            let unmet = plan(&resources, &facts(ALL), &UnitPlan::None).expect_err("refused");
            unmet.into_iter().map(|unmet| unmet.to_string()).collect::<Vec<_>>()
        };
        let high = Some(Bound::At(Amount::Bytes(600 << 20)));
        let memory = Resources { memory_high: high, memory_max: everything().memory_max, ..Resources::default() };
        assert_eq!(
            why(memory),
            ["`resources.memory-high`: 629145600 bytes are above `memory-max`, which is 524288000 on this host"]
        );
        let pages = Resources { hugetlb: [(4 << 20, Bound::At(0))].into(), ..Resources::default() };
        assert_eq!(why(pages), ["`resources.hugetlb.4M`: this host has huge pages of 2M and 1G"]);
        let disks = Resources { io_max: vec![disk("/dev/vda"), disk("/srv")], ..Resources::default() };
        assert_eq!(why(disks), ["`resources.io-max[1].device`: '/srv' is on the disk 254:0 like one above"]);
    }

    #[test]
    fn a_change_writes_only_what_differs_and_knows_the_way_back() {
        let limits = |resources: &Resources| plan(resources, &facts(ALL), &UnitPlan::None).expect("a plan").0;
        let old = limits(&everything());
        assert_eq!(change(&old, &old), []);
        let idle = Resources {
            memory_max: Some(Bound::At(Amount::Bytes(1 << 20))),
            cpu_weight: Some(Weight::Idle),
            ..Resources::default()
        };
        let list = |change: &[(Limit, Limit)]| {
            let one = |l: &Limit| format!("{} {}", l.file, l.value.escape_debug());
            change.iter().map(|(new, old)| format!("{} <- {}", one(new), one(old))).collect::<Vec<_>>()
        };
        let expected = [
            "memory.high max <- memory.high 4096",
            "memory.swap.max max <- memory.swap.max 0",
            "cpu.max max 100000 <- cpu.max 30000 20000",
            "cpuset.cpus \\n <- cpuset.cpus 0,2-3",
            "cpuset.mems \\n <- cpuset.mems 0",
            "pids.max max <- pids.max 100",
            "io.weight 100 <- io.weight 200",
            "io.max 254:0 rbps=max wbps=max riops=max wiops=max <- io.max 254:0 rbps=10 wbps=max riops=max wiops=7",
            "hugetlb.2MB.max max <- hugetlb.2MB.max 67108864",
            "memory.max 1048576 <- memory.max 524288000",
            "cpu.idle 1 <- cpu.weight 50",
        ];
        assert_eq!(list(&change(&old, &limits(&idle))), expected);
        assert_eq!(
            list(&change(&limits(&idle), &[])),
            ["memory.max max <- memory.max 1048576", "cpu.weight 100 <- cpu.idle 1"]
        );
    }
}
