//! `io.systemd.Machine`: each method becomes a request of the core.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::context::{Context, nothing};
use super::wire::{Answer, Refusal, Reply};
use crate::daemon::core::files::{Bind, Copy};
use crate::daemon::core::inspect::{self, HOST_IDS};
use crate::daemon::core::machines::{self, Subject};
use crate::daemon::core::register::{self, Claim};
use crate::daemon::core::registry::{Class, HOST, Machine, NO_CID, Process};
use crate::daemon::core::scope::UnitProperties;
use crate::daemon::core::{enter, files};
use crate::spec::{MachineId, MachineName};
use crate::sys::Errno;
use crate::sys::namespace::Ids;

/// Answers a call.
pub(super) async fn serve(context: &mut Context<'_>, method: &str) -> Answer<Vec<Reply>> {
    match method {
        "List" => list(context).await,
        "Register" => register(context).await,
        "MapTo" => map_to(context),
        _ => of_one(context, method).await,
    }
}

/// Methods that are about one machine.
async fn of_one(context: &mut Context<'_>, method: &str) -> Answer<Vec<Reply>> {
    let target = Target::read(context)?;
    context.interaction()?;
    let done = match method {
        "Open" => return open(context, &target).await,
        "MapFrom" => return map_from(context, &target),
        "Unregister" => {
            let subject = target.subject(context)?;
            register::unregister(context.daemon, &context.caller, subject.name()).await
        }
        "Terminate" => {
            let subject = target.subject(context)?;
            machines::terminate(context.daemon, &context.caller, &subject).await
        }
        "Kill" => {
            let whom: Option<Whom> = context.parameters.get("whom")?;
            let signal: i32 = context.parameters.need("signal")?;
            if !(1..=libc::SIGRTMAX()).contains(&signal) {
                return Err(Refusal::invalid("signal"));
            }
            let subject = target.subject(context)?;
            let whom = whom.map_or("all", Whom::as_str);
            machines::kill(context.daemon, &context.caller, &subject, whom, signal).await
        }
        "BindMount" => {
            let (source, destination) = paths(context)?;
            let read_only = context.parameters.get("readOnly")?.unwrap_or(false);
            let mkdir = context.parameters.get("mkdir")?.unwrap_or(false);
            let subject = target.subject(context)?;
            let bind = Bind { source, destination, read_only, mkdir };
            files::bind(context.daemon, &context.caller, &subject, bind).await
        }
        "CopyFrom" | "CopyTo" => {
            let (source, destination) = paths(context)?;
            let replace = context.parameters.get("replace")?.unwrap_or(false);
            let subject = target.subject(context)?;
            let copy = Copy { to: method == "CopyTo", source, destination, flags: u64::from(replace) };
            let copied = files::copy(context.daemon, &context.caller, &subject, copy).await;
            return context.translate(copied).map(|()| nothing()).map_err(copying);
        }
        _ => {
            let subject = target.subject(context)?;
            let fd = inspect::root_directory(context.daemon, &context.caller, &subject).await;
            let fds = vec![context.translate(fd)?];
            return Ok(vec![Reply { parameters: json!({ "fileDescriptor": 0 }), fds }]);
        }
    };
    context.translate(done).map(|()| nothing())
}

/// A copy onto something that is there has an error of its own.
fn copying(refusal: Refusal) -> Refusal {
    let exists = refusal.parameters["errno"] == json!(Errno::EEXIST as i32);
    if exists { Refusal::named("io.systemd.Machine.FileExists") } else { refusal }
}

fn paths(context: &mut Context<'_>) -> Answer<(String, String)> {
    let mut path = |name: &'static str| -> Answer<Option<String>> {
        let path: Option<String> = context.parameters.get(name)?;
        match path {
            Some(path) if !path.starts_with('/') => Err(Refusal::invalid(name)),
            other => Ok(other),
        }
    };
    let source = path("source")?.ok_or_else(|| Refusal::invalid("source"))?;
    let destination = path("destination")?.unwrap_or_else(|| source.clone());
    Ok((source, destination))
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Whom {
    All,
    Leader,
    Supervisor,
}

impl Whom {
    fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Leader => "leader",
            Self::Supervisor => "supervisor",
        }
    }
}

/// A process as it is written: an object, or just its number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ProcessId {
    Number(i32),
    #[serde(rename_all = "camelCase")]
    Whole {
        pid: i32,
        pidfd_id: Option<u64>,
        boot_id: Option<String>,
    },
}

impl ProcessId {
    /// Takes hold of it; an error if it has ended, or is of another boot.
    fn open(&self, name: &'static str) -> Answer<Process> {
        let (pid, id, boot) = match self {
            Self::Number(pid) => (*pid, None, None),
            Self::Whole { pid, pidfd_id, boot_id } => (*pid, *pidfd_id, boot_id.as_deref()),
        };
        let process = Process::open(pid).map_err(|_| Refusal::invalid(name))?;
        let other = id.is_some_and(|id| id != 0 && process.id != 0 && id != process.id);
        let earlier = boot.is_some_and(|boot| boot_id().is_some_and(|ours| ours != boot));
        if other || earlier { Err(Refusal::errno(Errno::ESRCH)) } else { Ok(process) }
    }
}

/// The host's boot as 32 digits.
fn boot_id() -> Option<String> {
    let text = crate::sys::read_text(Path::new("/proc/sys/kernel/random/boot_id")).ok()?;
    Some(text.trim().replace('-', ""))
}

/// Which machine a call is about.
struct Target {
    name: Option<String>,
    pid: Option<ProcessId>,
}

impl Target {
    fn read(context: &mut Context<'_>) -> Answer<Self> {
        let name: Option<String> = context.parameters.get("name")?;
        if name.as_ref().is_some_and(|name| name != HOST && MachineName::parse(name).is_err()) {
            return Err(Refusal::invalid("name"));
        }
        Ok(Self { name, pid: context.parameters.get("pid")? })
    }

    /// The machine, when all parameters have been read.
    fn subject(&self, context: &mut Context<'_>) -> Answer<Subject> {
        context.no_more()?;
        let name = self.find(context)?;
        context.translate(Subject::find(context.daemon, &name))
    }

    /// Name of the machine that all that was said fits.
    fn find(&self, context: &Context<'_>) -> Answer<String> {
        let none = || Refusal::named("io.systemd.Machine.NoSuchMachine");
        let by_name = match &self.name {
            Some(name) if context.daemon.knows(name) => Some(name.clone()),
            Some(_) => return Err(none()),
            None => None,
        };
        let by_pid = match &self.pid {
            Some(pid) => {
                let number = match pid {
                    ProcessId::Number(0) | ProcessId::Whole { pid: 0, .. } => context.peer.pid,
                    other => other.open("pid").map_err(|_| none())?.pid,
                };
                Some(context.daemon.registry().of_process(number).map(|m| m.name.clone()).ok_or_else(none)?)
            }
            None => None,
        };
        match (by_name, by_pid) {
            (Some(name), Some(other)) if name != other => Err(none()),
            (name, other) => name.or(other).ok_or_else(none),
        }
    }
}

/// Whether to look into a machine or an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Metadata {
    #[default]
    No,
    Yes,
    Graceful,
}

impl Metadata {
    /// What was found, or nothing if that may be.
    pub(super) fn accept<T>(self, found: Answer<T>) -> Answer<Option<T>> {
        match found {
            Err(_) if self == Self::Graceful => Ok(None),
            found => found.map(Some),
        }
    }
}

async fn list(context: &mut Context<'_>) -> Answer<Vec<Reply>> {
    let target = Target::read(context)?;
    context.interaction()?;
    let metadata = context.parameters.get::<Metadata>("acquireMetadata")?.unwrap_or_default();
    context.no_more()?;
    if target.name.is_some() || target.pid.is_some() {
        let name = target.find(context)?;
        return Ok(vec![describe(context, &name, metadata).await?.into()]);
    }
    if !context.more {
        return Err(Refusal::named("org.varlink.service.ExpectedMore"));
    }
    let known: Vec<String> = context.daemon.registry().iter().map(|m| m.name.clone()).collect();
    let mut replies = Vec::with_capacity(known.len() + 1);
    for name in std::iter::once(HOST.to_owned()).chain(known) {
        match describe(context, &name, metadata).await {
            Ok(reply) => replies.push(reply.into()),
            // It has gone while we looked at the others.
            Err(e) if e.name.ends_with(".NoSuchMachine") => {}
            Err(e) => return Err(e),
        }
    }
    Ok(replies)
}

/// What is said of one machine.
async fn describe(context: &Context<'_>, name: &str, metadata: Metadata) -> Answer<Value> {
    let mut fields = if name == HOST { host() } else { plain(&*context.translate(context.daemon.machine(name))?) };
    if metadata != Metadata::No {
        look_into(context, name, metadata, &mut fields).await?;
    }
    Ok(Value::Object(fields))
}

fn plain(machine: &Machine) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    add("name", json!(machine.name));
    add("class", json!(machine.class.as_str()));
    add("leader", process(&machine.leader));
    add("timestamp", json!({ "realtime": machine.realtime, "monotonic": machine.monotonic }));
    add("UID", json!(machine.uid));
    if machine.id != [0; 16] {
        add("id", json!(MachineId(machine.id).to_string()));
    }
    if let Some(supervisor) = &machine.supervisor {
        add("supervisor", process(supervisor));
    }
    if machine.vsock_cid != NO_CID {
        add("vSockCid", json!(machine.vsock_cid));
    }
    let texts = [
        ("service", &machine.service),
        ("rootDirectory", &machine.root),
        ("unit", &machine.unit),
        ("subgroup", &machine.subgroup),
        ("sshAddress", &machine.ssh_address),
        ("sshPrivateKeyPath", &machine.ssh_key),
    ];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        add(name, json!(text));
    }
    fields
}

/// The host as a machine.
fn host() -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("name".into(), json!(HOST));
    fields.insert("class".into(), json!("host"));
    fields.insert("rootDirectory".into(), json!("/"));
    fields.insert("unit".into(), json!("-.slice"));
    fields.insert("UID".into(), json!(0));
    if let Ok(leader) = Process::open(1) {
        fields.insert("leader".into(), process(&leader));
    }
    fields
}

fn process(process: &Process) -> Value {
    let mut value = json!({ "pid": process.pid });
    if process.id != 0 {
        value["pidfdId"] = json!(process.id);
        value["bootId"] = json!(boot_id());
    }
    value
}

/// Adds what must be asked of the machine itself. That is for those who may inspect machines.
async fn look_into(
    context: &Context<'_>,
    name: &str,
    metadata: Metadata,
    fields: &mut Map<String, Value>,
) -> Answer<()> {
    let daemon = context.daemon;
    let details = [("machine", name), ("verb", "list")];
    let inspect = "org.freedesktop.machine1.inspect-machines";
    context.translate(daemon.authorise(&context.caller, inspect, &details).await)?;
    let subject = &context.translate(Subject::find(daemon, name))?;
    let release = context.translate(inspect::os_release(daemon, subject).await);
    if let Some(release) = metadata.accept(release)? {
        fields.insert("OSRelease".into(), pairs(release));
    }
    let addresses = context.translate(inspect::addresses(daemon, subject).await);
    if let Some(addresses) = metadata.accept(addresses)? {
        let addresses = addresses.iter().map(|a| json!({ "family": a.family, "address": a.bytes }));
        fields.insert("addresses".into(), addresses.collect());
    }
    if let Some(shift) = metadata.accept(context.translate(inspect::uid_shift(subject)))? {
        fields.insert("UIDShift".into(), json!(shift));
    }
    Ok(())
}

/// `KEY=VALUE` for each.
pub(super) fn pairs(variables: impl IntoIterator<Item = (String, String)>) -> Value {
    let sorted: BTreeMap<_, _> = variables.into_iter().collect();
    sorted.iter().map(|(key, value)| json!(format!("{key}={value}"))).collect()
}

async fn register(context: &mut Context<'_>) -> Answer<Vec<Reply>> {
    let name: String = context.parameters.need("name")?;
    MachineName::parse(&name).map_err(|_| Refusal::invalid("name"))?;
    let class: String = context.parameters.need("class")?;
    Class::parse(&class).ok_or_else(|| Refusal::invalid("class"))?;
    let mut claim = Claim { name, class, ..Claim::default() };
    if let Some(id) = context.parameters.get::<String>("id")? {
        claim.id = MachineId::parse(&id).map_err(|_| Refusal::invalid("id"))?.0.to_vec();
    }
    for (field, value) in [
        ("service", &mut claim.service),
        ("rootDirectory", &mut claim.root),
        ("sshAddress", &mut claim.ssh_address),
        ("sshPrivateKeyPath", &mut claim.ssh_key),
    ] {
        *value = context.parameters.get(field)?.unwrap_or_default();
    }
    claim.interfaces = context.parameters.get("ifIndices")?.unwrap_or_default();
    if claim.interfaces.iter().any(|index| *index <= 0) {
        return Err(Refusal::invalid("ifIndices"));
    }
    claim.vsock_cid = context.parameters.get("vSockCid")?;
    for ignored in ["supervisor", "supervisorProcessId", "controlAddress"] {
        let _: Option<Value> = context.parameters.get(ignored)?;
    }
    claim.leader_fd =
        Some(leader(context)?.pidfd().as_fd().try_clone_to_owned().map_err(|_| Refusal::errno(Errno::EMFILE))?);
    let create = context.parameters.get("allocateUnit")?.unwrap_or(false);
    context.interaction()?;
    context.no_more()?;
    let scope = create.then(UnitProperties::default);
    context.translate(register::register(context.daemon, &context.caller, claim, scope).await)?;
    Ok(nothing())
}

/// The leader that is meant: named in one way or in both, or the caller.
fn leader(context: &mut Context<'_>) -> Answer<Process> {
    let number: Option<i32> = context.parameters.get("leader")?;
    let whole: Option<ProcessId> = context.parameters.get("leaderProcessId")?;
    let number = number.map(|pid| ProcessId::Number(pid).open("leader")).transpose()?;
    let whole = whole.map(|process| process.open("leaderProcessId")).transpose()?;
    let leader = match (number, whole) {
        (Some(a), Some(b)) if a.pid != b.pid => return Err(Refusal::invalid("leader")),
        (_, Some(process)) | (Some(process), None) => process,
        (None, None) => {
            let pidfd = context.peer.pidfd.as_ref().and_then(|fd| fd.try_clone().ok());
            let process = pidfd.and_then(|fd| Process::from_pidfd(context.peer.pid, fd).ok());
            process.ok_or_else(|| Refusal::errno(Errno::ESRCH))?
        }
    };
    if leader.pid <= 1 { Err(Refusal::invalid("leader")) } else { Ok(leader) }
}

/// What is at the other end of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Tty,
    Login,
    Shell,
}

async fn open(context: &mut Context<'_>, target: &Target) -> Answer<Vec<Reply>> {
    let mode: Mode = context.parameters.need("mode")?;
    let user: Option<String> = context.parameters.get("user")?;
    let path: Option<String> = context.parameters.get("path")?;
    let args: Option<Vec<String>> = context.parameters.get("args")?;
    let environment: Option<Vec<String>> = context.parameters.get("environment")?;
    context.no_more()?;
    if path.as_ref().is_some_and(|path| !path.starts_with('/')) {
        return Err(Refusal::invalid("path"));
    }
    let given = [
        ("user", user.is_some()),
        ("path", path.is_some()),
        ("args", args.is_some()),
        ("environment", environment.is_some()),
    ];
    if let Some((name, _)) = given.iter().find(|(_, given)| *given && mode != Mode::Shell) {
        return Err(Refusal::invalid(*name));
    }
    let subject = &target.subject(context)?;
    let Context { daemon, caller, .. } = &*context;
    let opened = match mode {
        Mode::Tty => enter::pty(daemon, caller, subject).await,
        Mode::Login => enter::login(daemon, caller, subject).await,
        Mode::Shell => {
            let (user, path) = (user.unwrap_or_default(), path.unwrap_or_default());
            let (args, environment) = (args.unwrap_or_default(), environment.unwrap_or_default());
            enter::shell(daemon, caller, subject, enter::Shell { user, path, args, environment }).await
        }
    };
    let opened = context.translate(opened)?;
    let parameters = json!({ "ptyFileDescriptor": 0, "ptyPath": opened.path });
    Ok(vec![Reply { parameters, fds: vec![opened.master] }])
}

fn map_from(context: &mut Context<'_>, target: &Target) -> Answer<Vec<Reply>> {
    let uid: Option<u32> = context.parameters.get("uid")?;
    let gid: Option<u32> = context.parameters.get("gid")?;
    context.no_more()?;
    let name = target.find(context)?;
    let mut fields = Map::new();
    for (field, ids, id) in [("uid", Ids::Users, uid), ("gid", Ids::Groups, gid)] {
        if let Some(id) = id {
            let outer = context.translate(inspect::id_on_host(context.daemon, &name, ids, id))?;
            fields.insert(field.into(), json!(outer));
        }
    }
    Ok(vec![Value::Object(fields).into()])
}

fn map_to(context: &mut Context<'_>) -> Answer<Vec<Reply>> {
    let uid: Option<u32> = context.parameters.get("uid")?;
    let gid: Option<u32> = context.parameters.get("gid")?;
    context.no_more()?;
    let mut fields = Map::new();
    let asked = [("uid", Ids::Users, uid, "UserInHostRange"), ("gid", Ids::Groups, gid, "GroupInHostRange")];
    for (field, ids, id, host) in asked {
        let Some(id) = id else { continue };
        if id < HOST_IDS {
            return Err(Refusal::named(format!("io.systemd.Machine.{host}")));
        }
        let (machine, inner) = context.translate(inspect::owner_of_id(context.daemon, ids, id))?;
        if fields.get("machineName").is_some_and(|other| *other != json!(machine.name)) {
            return Err(Refusal::named("io.systemd.Machine.NoSuchGroup"));
        }
        fields.insert(field.into(), json!(inner));
        fields.insert("machineName".into(), json!(machine.name));
    }
    Ok(vec![Value::Object(fields).into()])
}
