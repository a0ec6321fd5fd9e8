//! What would be done for every example, on a host that can do everything and on one that can do little.
//!
//! A change of these snapshots is a change of what machines are made of: read it before `cargo insta accept`, or
//! `INSTA_UPDATE=always`.

use std::path::Path;

use insta::{Settings, assert_snapshot};
use machinist::cli::plan::describe;
use machinist::config;
use machinist::host::{Authority, CgroupFacts, HostFacts, LimitFacts};
use machinist::plan::{self, Plan, PlanError, UnitPlan};
use machinist::spec::{Layout, NumberSet};

use crate::config::files;

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// A host with every controller.
fn limits() -> LimitFacts {
    LimitFacts {
        controllers: words("cpu cpuset io memory pids hugetlb"),
        unit_controllers: Vec::new(),
        unit_tasks: None,
        version1: Vec::new(),
        memory: 8 << 30,
        cpus: NumberSet::of_kernel("0-7"),
        mems: NumberSet::of_kernel("0"),
        huge_pages: vec![2 << 20, 1 << 30],
        disks: [("/dev/vda".into(), Ok((254, 0))), ("/srv".into(), Ok((254, 16)))].into(),
    }
}

/// Root on a current kernel, in a unit with a delegated group.
fn privileged() -> HostFacts {
    HostFacts {
        authority: Authority::Root,
        kernel: (6, 18),
        capabilities: (1 << 41) - 1,
        cgroup: Some(CgroupFacts {
            mount: "/sys/fs/cgroup".into(),
            own: "/machine.slice/machinist@web.service/supervisor".into(),
            unit: Some("machinist@web.service".into()),
        }),
        systemd: true,
        limits: LimitFacts { unit_controllers: words("cpu cpuset io memory pids hugetlb"), ..limits() },
        os_release: "ID=debian\nVERSION_ID=\"13\"\n".into(),
    }
}

/// A user on the oldest kernel, on a host with groups of both versions.
fn rootless() -> HostFacts {
    HostFacts {
        authority: Authority::None,
        kernel: (5, 19),
        capabilities: 0,
        cgroup: Some(CgroupFacts { mount: "/sys/fs/cgroup/unified".into(), own: "/".into(), unit: None }),
        systemd: false,
        limits: LimitFacts { controllers: words("cpu cpuset hugetlb memory pids"), version1: words("io"), ..limits() },
        os_release: String::new(),
    }
}

fn planned(file: &Path, facts: &HostFacts) -> Plan {
    let layout = Layout::system("/");
    let loaded = config::load(&layout, file.to_str().expect("text")).unwrap_or_else(|e| panic!("{e}"));
    plan::build(&loaded.spec, facts, &layout).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Compares with `snapshots/KIND.NAME.snap`.
fn snapshot(kind: &str, file: &Path, text: &str) {
    let mut settings = Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        let name = file.file_stem().expect("a name").to_string_lossy();
        assert_snapshot!(format!("{kind}.{name}"), text);
    });
}

#[test]
fn every_example_is_planned_for_a_privileged_host() {
    for file in files("machines") {
        snapshot("plan", &file, &describe(&planned(&file, &privileged())));
    }
}

#[test]
fn every_example_is_planned_for_a_rootless_host() {
    for file in files("machines") {
        snapshot("plan-rootless", &file, &describe(&planned(&file, &rootless())));
    }
}

#[test]
fn a_plan_is_data() {
    for file in ["machines/try.toml", "machines/everything.toml"].map(Path::new) {
        let json = serde_json::to_string_pretty(&planned(file, &privileged())).expect("JSON");
        snapshot("plan-json", file, &json);
    }
}

#[test]
fn a_plan_does_not_depend_on_the_moment() {
    for file in files("machines") {
        assert_eq!(planned(&file, &privileged()), planned(&file, &privileged()));
    }
}

#[test]
fn the_control_group_is_the_units_or_a_scopes_or_ours() {
    let spec = config::load(&Layout::system("/"), "machines/try.toml").unwrap_or_else(|e| panic!("{e}")).spec;
    let group = |unit: Option<&str>, systemd: bool, root: &str| {
        let own = "/user.slice/session-1.scope".to_owned();
        let cgroup = CgroupFacts { mount: "/sys/fs/cgroup".into(), own, unit: unit.map(Into::into) };
        let facts = HostFacts { systemd, cgroup: Some(cgroup), ..privileged() };
        let plan = plan::build(&spec, &facts, &Layout::system(root)).unwrap_or_else(|e| panic!("{e}"));
        (plan.cgroup.group, plan.cgroup.unit)
    };
    let otherwise = "/user.slice/session-1.scope/machinist-try".to_owned();
    let scope = UnitPlan::Scope { unit: "machinist-try.scope".into(), otherwise };
    assert_eq!(group(None, true, "/"), ("/machine.slice/machinist-try.scope".into(), scope));
    let own = UnitPlan::Own("session-1.scope".into());
    assert_eq!(group(Some("session-1.scope"), true, "/"), ("/user.slice/session-1.scope".into(), own));
    assert_eq!(group(None, false, "/"), ("/user.slice/session-1.scope/machinist-try".into(), UnitPlan::None));
    let (elsewhere, unit) = group(None, true, "/elsewhere");
    assert!(elsewhere.starts_with("/user.slice/session-1.scope/machinist-try-"), "{elsewhere}");
    assert_eq!(unit, UnitPlan::None, "systemd does not know of another root");
}

#[test]
fn hosts_that_cannot_make_machines_are_told_why() {
    let layout = Layout::system("/");
    let spec = config::load(&layout, "machines/try.toml").unwrap_or_else(|e| panic!("{e}")).spec;
    let refused = |facts: &HostFacts| plan::build(&spec, facts, &layout).expect_err("no machine can be made there");
    assert_eq!(refused(&HostFacts { cgroup: None, ..privileged() }), PlanError::NoCgroup2);
    let old = refused(&HostFacts { kernel: (5, 18), ..privileged() });
    assert_eq!(old.to_string(), "the kernel is 5.18, and machines need Linux 5.19 or later");
}

#[test]
fn limits_that_the_host_cannot_keep_are_shown_where_they_are_set() {
    let layout = Layout::system("/");
    let loaded = config::load(&layout, "tests/data/valid/limits.toml").unwrap_or_else(|e| panic!("{e}"));
    let facts = HostFacts { limits: LimitFacts { controllers: words("hugetlb"), ..limits() }, ..rootless() };
    let Err(PlanError::Limits(unmet)) = plan::build(&loaded.spec, &facts, &layout) else { panic!("it has no limits") };
    let text = loaded.refuse(&unmet).render(false);
    snapshot("limits", Path::new("unmet.toml"), &text);
}

#[test]
fn a_machine_without_limits_says_nothing_of_them() {
    let plan = planned(Path::new("machines/minimal.toml"), &privileged());
    let json = serde_json::to_value(&plan).expect("JSON");
    assert!(json.get("limits").is_none() && !describe(&plan).contains("limits"));
}
