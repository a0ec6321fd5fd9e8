//! `set`: other limits for a machine, at once and for later.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use clap::Args;

use super::machine::{ask, machine_name, state_of};
use super::output::{self, Failure, say, status};
use super::remote;
use crate::config::{self, Change, ConfigError, Loaded, OriginSource};
use crate::host;
use crate::plan::{self, PlanError, UnitPlan, limits};
use crate::running::control::NewLimits;
use crate::running::control::{Answer, Request};
use crate::running::state::{self, State};
use crate::spec::{Layout, MachineName, Resources};
use crate::sys::{self, Context as _, Errno};

#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// The machine
    name: String,
    /// Keys of `[resources]`, as in `memory-max=1G`; without a value, back to what the definition says
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Keep them for later starts, too, in a drop-in of the definition
    #[arg(long)]
    save: bool,
}

/// `machinist set`
pub(super) fn set(layout: &Layout, args: &SetArguments, quiet: bool) -> Result<u8, Failure> {
    let name = machine_name(&args.name)?;
    let change = Change::parse(&args.settings).map_err(Failure::typed)?;
    if let Some(said) = remote::set_limits(layout, name.as_str(), &args.settings, args.save) {
        for line in said?.lines() {
            match line.strip_prefix("warning: ") {
                Some(warning) => output::warn(warning),
                None => say(quiet, line),
            }
        }
        return Ok(status::OK);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::told(status::NOT_PERMITTED, "only root may change what machines are limited by".into()));
    }
    // Nobody else changes it from here on.
    let held = hold(layout, &name)?;
    let running = match &held {
        Some(_) => state_of(layout, &name)?,
        None => None,
    };
    let source = Source::of(layout, &name, running.as_ref());
    if running.is_none() && !args.save {
        let known = config::definition(layout, &name).is_some();
        let failure = Failure::new(format!("machine '{name}' is not running"));
        return Err(failure.hint(match known {
            true => format!("`machinist set --save {name} …` keeps the settings for its next start"),
            false => "`machinist list --all` shows which machines there are".to_owned(),
        }));
    }
    let saving = if args.save { Some(Saving::stage(&source, &change)?) } else { None };
    if let Some(state) = &running {
        let definition = match &saving {
            Some(saving) => saving.loaded.spec.resources.clone(),
            None => source.resources()?,
        };
        in_force(layout, &name, state, change, &definition, quiet)?;
        say(quiet, &format!("Machine '{name}' has its new limits."));
    }
    if let Some(saving) = saving {
        let path = saving.path.clone();
        saving.keep().map_err(|e| match running {
            Some(_) => Failure::call("the new limits hold, but cannot be saved", &e),
            None => Failure::call("cannot save the new limits", &e),
        })?;
        let until = if running.is_some() { "for later starts, too" } else { "for its next start" };
        say(quiet, &format!("They are in '{}' {until}.", path.display()));
    }
    Ok(status::OK)
}

/// Keeps others from changing a machine that may be running.
fn hold(layout: &Layout, name: &MachineName) -> Result<Option<OwnedFd>, Failure> {
    match state::hold_limits(layout, name) {
        Ok(held) => Ok(Some(held)),
        Err(e) if e.errno == Errno::ENOENT => Ok(None),
        Err(e) => Err(Failure::call(format!("cannot change machine '{name}'"), &e)),
    }
}

/// Where a machine's definition is, if it still is anywhere.
struct Source<'a> {
    layout: &'a Layout,
    name: &'a MachineName,
    /// As it was given at the start, outside of our directories.
    file: Option<PathBuf>,
}

impl<'a> Source<'a> {
    fn of(layout: &'a Layout, name: &'a MachineName, running: Option<&State>) -> Self {
        let is_ours =
            |file: &PathBuf| file.parent().is_some_and(|dir| layout.definition_dirs().any(|ours| ours == dir));
        let file = running.and_then(|state| state.definition.clone()).filter(|file| !is_ours(file));
        Self { layout, name, file }
    }

    fn load(&self, instead: Option<(&Path, &str)>) -> Result<Loaded, ConfigError> {
        let file = self.file.as_ref().map(|file| file.to_string_lossy().into_owned());
        config::load_with(self.layout, file.as_deref().unwrap_or(self.name.as_str()), instead)
    }

    /// What the definition says; a definition that is gone says nothing.
    fn resources(&self) -> Result<Resources, Failure> {
        match self.load(None) {
            Ok(loaded) => Ok(loaded.spec.resources),
            Err(ConfigError::NotFound { .. }) => Ok(Resources::default()),
            Err(ConfigError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Resources::default())
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Has the supervisor change the limits, which it keeps for later boots.
fn in_force(
    layout: &Layout,
    name: &MachineName,
    state: &State,
    change: Change,
    definition: &Resources,
    quiet: bool,
) -> Result<(), Failure> {
    let resources = change.apply(&state.resources, definition);
    let group = state.unit.is_some().then_some(state.cgroup.as_path());
    let facts = host::probe_beside(&resources, group).map_err(|e| Failure::call("cannot look at this host", &e))?;
    let unit = state.unit.clone().map_or(UnitPlan::None, UnitPlan::Own);
    let (limits, notes) = match limits::plan(&resources, &facts.limits, &unit) {
        Ok(planned) => planned,
        Err(unmet) => return Err(Failure::unmet(change.refuse(&unmet))),
    };
    notes.iter().for_each(|note| output::warn(note));
    let request = Request::Limit(Box::new(NewLimits { resources, limits }));
    let failed = || Failure::new(format!("cannot change the limits of machine '{name}'"));
    match ask(layout, name, &request, format!("changing machine '{name}'"), quiet)? {
        Some(Answer::Limited) => Ok(()),
        Some(Answer::NotLimited { why, hint }) => {
            let failure = failed().cause(why);
            Err(match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
        Some(Answer::Refused(why)) => Err(failed().cause(why)),
        _ => Err(failed().cause("it ended meanwhile")),
    }
}

/// The drop-in with the new settings, beside the old one until it is to take its place.
struct Saving {
    path: PathBuf,
    text: String,
    loaded: Loaded,
    _dir: DropInDir,
}

impl Saving {
    /// Checks that the whole definition is right with the settings and that they are what holds then.
    fn stage(source: &Source<'_>, change: &Change) -> Result<Self, Failure> {
        if let Err(e @ (ConfigError::NotFound { .. } | ConfigError::Io { .. })) = source.load(None) {
            return Err(Failure::from(e).hint("without its definition a machine cannot be started again"));
        }
        let path = config::drop_in(source.layout, source.name, source.file.as_deref());
        let cannot = |e: &sys::Error| Failure::call("cannot save the new limits", e);
        let dir = DropInDir::make(&path).map_err(|e| cannot(&e))?;
        let before = config::read_drop_in(&path)?;
        let text = change.saved(&path, &before)?;
        let loaded = source.load(Some((&path, &text)))?;
        let beaten = change.keys().find_map(|key| {
            let origin = loaded.origins.iter().find(|origin| origin.key == format!("resources.{key}"))?;
            match &origin.source {
                OriginSource::File { path: other, line } if *other != path => Some((key, other.clone(), *line)),
                _ => None,
            }
        });
        if let Some((key, other, line)) = beaten {
            let failure = Failure::new(format!("cannot save `resources.{key}`: '{}' is stronger", other.display()));
            return Err(failure.hint(format!("change it there, in line {line}")));
        }
        let facts =
            host::probe_for(&loaded.spec.resources).map_err(|e| Failure::call("cannot look at this host", &e))?;
        if let Err(PlanError::Limits(unmet)) = plan::build(&loaded.spec, &facts, source.layout) {
            return Err(Failure::unmet(loaded.refuse(&unmet)));
        }
        let saving = Self { path, text, loaded, _dir: dir };
        saving.write_beside().map_err(|e| cannot(&e))?;
        Ok(saving)
    }

    /// Hidden, so that nobody takes it for a drop-in.
    fn beside(&self) -> PathBuf {
        self.path.with_file_name(".50-set.toml.new")
    }

    fn write_beside(&self) -> sys::Result<()> {
        let beside = self.beside();
        let call = || format!("write('{}')", beside.display());
        let mut file = std::fs::File::create(&beside).call(call)?;
        file.write_all(self.text.as_bytes()).and_then(|()| file.sync_all()).call(call)
    }

    /// Puts the new drop-in in the old one's place; an empty one is none.
    fn keep(self) -> sys::Result<()> {
        let call = |what: &str| format!("{what}('{}')", self.path.display());
        if !self.text.is_empty() {
            return std::fs::rename(self.beside(), &self.path).call(|| call("rename"));
        }
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).call(|| call("unlink")),
            _ => Ok(()),
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        // Not there any more after a change that was kept.
        let _ = std::fs::remove_file(self.beside());
    }
}

/// The directory of a definition's drop-ins, which no other `set` writes to meanwhile.
struct DropInDir {
    path: PathBuf,
    _lock: OwnedFd,
}

impl DropInDir {
    fn make(drop_in: &Path) -> sys::Result<Self> {
        let path = drop_in.parent().unwrap_or(drop_in).to_owned();
        std::fs::create_dir_all(&path).call(|| format!("mkdir('{}')", path.display()))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(&path, flags, Mode::empty()).call(|| format!("open('{}')", path.display()))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).call(|| format!("flock('{}')", path.display()))?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for DropInDir {
    fn drop(&mut self) {
        // Only an empty one goes.
        let _ = std::fs::remove_dir(&self.path);
    }
}
