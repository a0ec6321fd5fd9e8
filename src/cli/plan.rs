//! `plan` and `show`: what would be, without touching anything.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write};
use std::time::Duration;

use super::config::{self as face, ShowError, ShowStyle};
use super::output::{self, Printer, written};
use crate::host;
use crate::ops::{self, Failures, Ops, StartSet, systemd};
use crate::plan::{
    self, ExecUser, IdPlan, Namespace, Namespaces, Plan, Stdio, TreePlan, UnitPlan, privileges, seccomp,
};
use crate::report::OpError;
use crate::spec::{
    Device, InitKind, Layout, Ownership, Payload, ProcessLimits, Ready, Register, Restart, RestartPolicy, Span,
    Volatile,
};

/// `machinist show`
pub(super) fn show(layout: &Layout, name: &str, origin: bool, printer: &Printer) -> Result<u8, OpError> {
    let style = match (origin, printer.json()) {
        (false, false) => ShowStyle::Toml,
        (false, true) => ShowStyle::Json,
        (true, true) => ShowStyle::OriginJson,
        (true, false) => {
            let terminal = std::io::stdout().is_terminal();
            let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok().filter(|s| s.ws_col > 0);
            ShowStyle::Origin { width: size.map(|s| usize::from(s.ws_col)), color: terminal && output::color() }
        }
    };
    let mut failed = None;
    let status = written(|out| match face::show(layout, name, style, out) {
        Ok(()) => Ok(()),
        Err(ShowError::Write(e)) => Err(e),
        Err(ShowError::Config(e)) => {
            failed = Some(e);
            Ok(())
        }
    })?;
    failed.map_or(Ok(status), |e| Err(e.into()))
}

/// `machinist plan`
pub(super) fn plan(ops: &Ops, name: &str, printer: &Printer) -> Result<u8, OpError> {
    let layout = ops.layout();
    let mut failures = Failures::of(ops);
    let mut wanted = StartSet::gather(ops, &[name.to_owned()], &mut failures);
    failures.result()?;
    let Some(loaded) = wanted.take_only() else { return Ok(output::status::OK) };
    let facts = host::probe_for(&loaded.spec.resources).map_err(|e| OpError::call("cannot look at this host", &e))?;
    let mut plan = match plan::build(&loaded.spec, &facts, layout) {
        Ok(plan) => plan,
        Err(e) => return Err(ops::unplanned(loaded, &e)),
    };
    if let (UnitPlan::Scope { .. }, Some(unit)) = (&plan.cgroup.unit, systemd::unit_for(layout, name)) {
        plan.cgroup.group = format!("/machine.slice/{unit}");
        plan.cgroup.unit = UnitPlan::Own(unit);
    }
    written(|out| if printer.json() { json_plan(&plan, out) } else { out.write_all(describe(&plan).as_bytes()) })
}

fn json_plan(plan: &Plan, out: &mut dyn Write) -> std::io::Result<()> {
    let mut value = serde_json::to_value(plan).map_err(std::io::Error::other)?;
    let filter = seccomp::describe(&plan.seccomp, plan.privileges.capabilities);
    if let Some(object) = value.as_object_mut() {
        object.insert("filter".into(), serde_json::to_value(filter).map_err(std::io::Error::other)?);
    }
    writeln!(out, "{value:#}")
}

/// The plan for people: one fact a line, mounts in their order.
pub fn describe(plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key:<13} {value}");
    };
    line("machine", plan.name.as_str());
    line(
        "registered",
        match plan.register {
            Register::Auto => "with org.freedesktop.machine1, if it can be",
            Register::Yes => "with org.freedesktop.machine1, or it does not run",
            Register::No => "no",
        },
    );
    line("namespaces", &describe_namespaces(&plan.namespaces));
    line("ids", &describe_ids(plan));
    line("root", &describe_root(plan));
    for (index, op) in plan.mounts.iter().enumerate() {
        line(if index == 0 { "mounts" } else { "" }, &op.describe());
    }
    line("capabilities", &privileges::names(plan.privileges.capabilities).join(" ").to_lowercase());
    let filter = seccomp::describe(&plan.seccomp, plan.privileges.capabilities);
    let mut words = vec![format!("{} system calls allowed", filter.allowed)];
    if !filter.added.is_empty() {
        words.push(format!("added {}", filter.added.join(" ")));
    }
    if !filter.denied.is_empty() {
        words.push(format!("denied {}", filter.denied.join(" ")));
    }
    if plan.privileges.no_new_privileges {
        words.push("no new privileges".into());
    }
    line("filter", &words.join(", "));
    if !plan.privileges.limits.is_empty() {
        line("limits", &describe_limits(&plan.privileges.limits));
    }
    if plan.privileges.device_filter {
        line("devices", "only those of /dev, by a filter on the control group");
    }
    for device in plan::mounts::devices(&plan.mounts) {
        line("", &describe_device(device));
    }
    let whose = match &plan.cgroup.unit {
        UnitPlan::None => String::new(),
        UnitPlan::Own(unit) => format!(", of the unit {unit}"),
        UnitPlan::Scope { unit, .. } => format!(", of the scope {unit} that systemd makes"),
    };
    line("cgroup", &format!("{}{}/payload{whose}", plan.cgroup.mount.display(), plan.cgroup.group));
    for (index, limit) in plan.limits.iter().enumerate() {
        let or_not = if limit.optional { ", optional" } else { "" };
        line(
            if index == 0 { "limits" } else { "" },
            &format!("{} in {} ({}{or_not})", limit.value, limit.file, limit.key),
        );
    }
    line("console", &describe_console(plan));
    line("exec", &describe_exec(plan));
    for (index, (key, value)) in plan.exec.environment.iter().enumerate() {
        line(if index == 0 { "environment" } else { "" }, &output::clean(&format!("{key}={value}")));
    }
    for (how, machines) in
        [("requires", &plan.order.requires), ("wants", &plan.order.wants), ("after", &plan.order.after)]
    {
        if !machines.is_empty() {
            line(how, &machines.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" "));
        }
    }
    for note in &plan.notes {
        line("note", note);
    }
    text
}

fn describe_namespaces(own: &Namespaces) -> String {
    let Namespaces { user, network, pid, uts, ipc, cgroup, time } = own;
    let mut text = "mount".to_owned();
    for (namespace, name) in [
        (pid, "pid"),
        (uts, "uts"),
        (ipc, "ipc"),
        (cgroup, "cgroup"),
        (user, "user"),
        (network, "network"),
        (time, "time"),
    ] {
        match namespace {
            Namespace::New => text.push_str(&format!(" {name}")),
            Namespace::Join(path) => text.push_str(&format!(" {name} ('{}')", path.display())),
            Namespace::Host => {}
        }
    }
    text
}

fn describe_ids(plan: &Plan) -> String {
    let owned = match plan.ownership {
        Ownership::Auto | Ownership::Map => "files mapped, not changed",
        Ownership::Chown => "files given to them once (chown)",
        Ownership::Off => "files already theirs",
    };
    match plan.ids {
        IdPlan::Host => "those of the host".to_owned(),
        IdPlan::Identity => "0..65536 of the host, in a user namespace".to_owned(),
        IdPlan::Picked => format!("a range of 65536, picked at the first start and kept; {owned}"),
        IdPlan::Fixed(range) => {
            format!("{}..{} of the host; {owned}", range.shift, u64::from(range.shift) + u64::from(range.size))
        }
    }
}

fn describe_root(plan: &Plan) -> String {
    let mut text = match &plan.root.source {
        TreePlan::Directory(path) => format!("directory '{}'", path.display()),
        TreePlan::Overlay(overlay) => format!("overlay of {}", overlay.describe()),
    };
    match plan.root.volatile {
        Volatile::No if plan.root.read_only => text.push_str(", read-only"),
        Volatile::No => {}
        Volatile::State => text.push_str(", read-only, /var forgotten at stop"),
        Volatile::Yes => text.push_str(", only /usr, read-only; all else forgotten at stop"),
    }
    text
}

fn describe_limits(limits: &ProcessLimits) -> String {
    let rlimits = limits.rlimits.iter().map(|limit| format!("{} {limit}", limit.resource));
    let others = [("oom-score-adjust", limits.oom_score_adjust), ("nice", limits.nice)];
    let others = others.iter().filter_map(|(key, value)| value.map(|value| format!("{key} {value}")));
    rlimits.chain(others).collect::<Vec<_>>().join(", ")
}

fn describe_device(device: &Device) -> String {
    let Device { node, target, permission, uid, gid, mode, optional } = device;
    let from = if node.as_os_str() == target.as_str() { String::new() } else { format!(" from '{}'", node.display()) };
    let optional = if *optional { ", optional" } else { "" };
    format!("{target}{from}: {permission}, owner {uid}:{gid}, mode {mode:04o}{optional}")
}

fn describe_console(plan: &Plan) -> String {
    if plan.console.log {
        format!("/dev/console, kept in console.log ({} at most, twice)", output::size(plan.console.log_size))
    } else {
        "/dev/console, not kept".to_owned()
    }
}

fn describe_exec(plan: &Plan) -> String {
    let exec = &plan.exec;
    let args = |args: &[String]| args.iter().map(|a| format!(" {a}")).collect::<String>();
    let what = match &exec.payload {
        Payload::Auto { args: list } => format!("the tree's own init{}", args(list)),
        Payload::Kind { init, args: list } => format!("the tree's {}{}", init.as_str(), args(list)),
        Payload::Path { init, args: list } => format!("{init}{}", args(list)),
        Payload::Command { argv } => argv.join(" "),
    };
    let mut what = if exec.stub { format!("{what} under a stub PID 1") } else { what };
    if exec.user != ExecUser::default() {
        what.push_str(&format!(" with the ids {}:{}", exec.user.uid, exec.user.gid));
    }
    if exec.directory != "/" {
        what.push_str(&format!(" in '{}'", exec.directory));
    }
    if exec.stdio == Stdio::Inherit {
        what.push_str(" on the caller's streams");
    }
    let ready = match &exec.ready {
        Ready::Auto => format!("ready when a {} says so or any other init has begun", InitKind::Systemd.as_str()),
        Ready::Notify => "ready when PID 1 says so".to_owned(),
        Ready::Started => "ready at once".to_owned(),
        Ready::Exec(argv) => format!("ready when `{}` succeeds in it", argv.join(" ")),
        Ready::Port(port) => format!("ready when its TCP port {port} answers"),
    };
    let stop = exec.stop_timeout.map_or("for ever".to_owned(), output::age);
    let restart = match exec.restart.when {
        Restart::No => String::new(),
        Restart::OnFailure => format!(", started again {} a failure", describe_delay(exec.restart)),
        Restart::Always => format!(", started again {} its end", describe_delay(exec.restart)),
    };
    output::clean(&format!("{what} as '{}', {ready}, stop waits {stop}{restart}", exec.hostname))
}

/// The words before what a machine is started again after.
fn describe_delay(restart: RestartPolicy) -> String {
    format!("{} after", Span(Duration::from_millis(restart.delay_ms)))
}
