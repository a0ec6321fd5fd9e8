//! Other limits for a machine, at once and for later.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::context::{Ops, machine_name};
use super::error;
use super::via::{Verb, Via};
use crate::config::{self, Change, ConfigError, Loaded, OriginSource};
use crate::host;
use crate::plan::{self, PlanError, UnitPlan, limits};
use crate::report::{self, Kind, OpError, What};
use crate::running::control::{Answer, NewLimits, Request};
use crate::running::state::{self, State};
use crate::spec::{Layout, MachineName, Resources};
use crate::sys::file;
use crate::sys::{self, Context as _, Errno};

impl Ops {
    /// Changes a machine's limits while it runs; with `save` they are kept for later starts, too.
    pub fn set(&self, name: &str, settings: &[String], save: bool) -> Result<(), OpError> {
        let name = machine_name(name)?;
        let change = Change::parse(settings).map_err(|e| error::invalid(&e))?;
        if self.via(Verb::Set) == Via::Daemon {
            let request = report::Request::Set { name: name.to_string(), settings: settings.to_vec(), save };
            if self.perform(&request)?.is_some() {
                return Ok(());
            }
        }
        if !self.facts.get().root {
            return Err(OpError::of(Kind::NotPermitted, "only root may change what machines are limited by"));
        }
        // No other process changes it from here on.
        let held = hold(&self.layout, &name)?;
        let running = match &held {
            Some(_) => self.state_of(&name)?,
            None => None,
        };
        let source = Source::of(&self.layout, &name, running.as_ref());
        if running.is_none() && !save {
            return Err(self.nothing_to_set(&name));
        }
        let saving = if save { Some(Saving::stage(&source, &change)?) } else { None };
        if let Some(state) = &running {
            let definition = match &saving {
                Some(saving) => saving.loaded.spec.resources.clone(),
                None => source.resources()?,
            };
            self.set_running(&name, state, change, &definition)?;
            self.events.done(&name, What::Limited);
        }
        if let Some(saving) = saving {
            let path = saving.path.clone();
            saving.keep().map_err(|e| match running {
                Some(_) => OpError::call("the new limits hold, but cannot be saved", &e),
                None => OpError::call("cannot save the new limits", &e),
            })?;
            self.events.done(&name, What::LimitsSaved { path, running: running.is_some() });
        }
        Ok(())
    }

    fn nothing_to_set(&self, name: &MachineName) -> OpError {
        OpError::not_running(name.as_str()).hint(match config::definition(&self.layout, name) {
            Some(_) => format!("`machinist set --save {name} …` keeps the settings for its next start"),
            None => "`machinist list --all` shows which machines there are".to_owned(),
        })
    }

    /// Has the supervisor change the limits, which it keeps for later boots.
    fn set_running(
        &self,
        name: &MachineName,
        state: &State,
        change: Change,
        definition: &Resources,
    ) -> Result<(), OpError> {
        let resources = change.apply(&state.resources, definition);
        let group = state.unit.is_some().then_some(state.cgroup.as_path());
        let facts = host::probe_beside(&resources, group).map_err(|e| OpError::call("cannot look at this host", &e))?;
        let unit = state.unit.clone().map_or(UnitPlan::None, UnitPlan::Own);
        let (limits, notes) = match limits::plan(&resources, &facts.limits, &unit) {
            Ok(planned) => planned,
            Err(unmet) => return Err(error::unmet(&change.refuse(&unmet))),
        };
        notes.iter().for_each(|note| self.events.warn(note));
        let request = Request::Limit(Box::new(NewLimits { resources, limits }));
        let failed = |why: &str| OpError::new(format!("cannot change the limits of machine '{name}'")).cause(why);
        match self.ask(name, &request, Some(format!("changing machine '{name}'")))? {
            Some(Answer::Limited) => Ok(()),
            Some(Answer::NotLimited { why, hint: None }) | Some(Answer::Refused(why)) => Err(failed(&why)),
            Some(Answer::NotLimited { why, hint: Some(hint) }) => Err(failed(&why).hint(hint)),
            _ => Err(failed("it ended meanwhile")),
        }
    }
}

/// Keeps others from changing a machine that may be running.
fn hold(layout: &Layout, name: &MachineName) -> Result<Option<OwnedFd>, OpError> {
    match state::hold_limits(layout, name) {
        Ok(held) => Ok(Some(held)),
        Err(e) if e.errno == Errno::ENOENT => Ok(None),
        Err(e) => Err(OpError::call(format!("cannot change machine '{name}'"), &e)),
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
    fn resources(&self) -> Result<Resources, OpError> {
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

/// The drop-in with the new settings, beside the old one until it is to take its place.
struct Saving {
    path: PathBuf,
    text: String,
    loaded: Loaded,
    _dir: DropInDir,
}

impl Saving {
    /// Checks that the whole definition is right with the settings and that they are what holds then.
    fn stage(source: &Source<'_>, change: &Change) -> Result<Self, OpError> {
        if let Err(e @ (ConfigError::NotFound { .. } | ConfigError::Io { .. })) = source.load(None) {
            return Err(OpError::from(e).hint("without its definition a machine cannot be started again"));
        }
        let path = config::drop_in(source.layout, source.name, source.file.as_deref());
        let cannot = |e: &sys::Error| OpError::call("cannot save the new limits", e);
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
            let error = OpError::new(format!("cannot save `resources.{key}`: '{}' is stronger", other.display()));
            return Err(error.hint(format!("change it there, in line {line}")));
        }
        let facts =
            host::probe_for(&loaded.spec.resources).map_err(|e| OpError::call("cannot look at this host", &e))?;
        if let Err(PlanError::Limits(unmet)) = plan::build(&loaded.spec, &facts, source.layout) {
            return Err(error::unmet(&loaded.refuse(&unmet)));
        }
        let saving = Self { path, text, loaded, _dir: dir };
        saving.write_beside().map_err(|e| cannot(&e))?;
        Ok(saving)
    }

    /// Hidden, so that it does not count as a drop-in.
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
        if !self.text.is_empty() {
            return file::rename(self.beside(), &self.path);
        }
        match file::remove(&self.path) {
            Err(e) if e.errno != Errno::ENOENT => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        // Not there any more after a change that was kept.
        let _ = file::remove(self.beside());
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
        file::make_dirs(&path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(&path, flags, Mode::empty()).call(|| format!("open('{}')", path.display()))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).call(|| format!("flock('{}')", path.display()))?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for DropInDir {
    fn drop(&mut self) {
        // Only an empty one goes.
        let _ = file::remove_dir(&self.path);
    }
}
