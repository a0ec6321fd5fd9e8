//! What several verbs share: names, states and requests.

use std::io::IsTerminal as _;
use std::time::Duration;

use super::output::{self, Failure, Failures};
use crate::plan;
use crate::running::control::{self, Answer, NewLimits, Request};
use crate::running::state::{self, State};
use crate::spec::{Layout, MachineName, UserMode};
use crate::supervisor::Job;
use crate::supervisor::console::Mode;
use crate::sys::exe_seal;
use crate::{config, host};

/// Parses a name given on the command line.
pub(super) fn machine_name(text: &str) -> Result<MachineName, Failure> {
    MachineName::parse(text).map_err(|e| Failure::usage(e.to_string()))
}

/// What a machine's supervisor says of it, if it runs.
pub(super) fn state_of(layout: &Layout, name: &MachineName) -> Result<Option<State>, Failure> {
    state::read(layout, name).map_err(|e| Failure::call(format!("cannot look at machine '{name}'"), &e))
}

/// Loads, checks and plans a machine.
pub(super) fn prepare(layout: &Layout, name: &str) -> Result<Job, Failure> {
    let loaded = config::load(layout, name)?;
    let facts = host::probe_for(&loaded.spec.resources).map_err(|e| Failure::call("cannot look at this host", &e))?;
    let plan = match plan::build(&loaded.spec, &facts, layout) {
        Ok(plan) => plan,
        Err(e) => return Err(Failure::plan(loaded, &e)),
    };
    let definition = Some(std::path::absolute(&loaded.definition).unwrap_or(loaded.definition));
    if loaded.spec.users.mode == UserMode::Host {
        if facts.authority == host::Authority::Root {
            // Comes back only in a process that is sealed already.
            exe_seal::seal_own_program().map_err(|e| Failure::new(e.to_string()))?;
        }
        output::warn(&format!("machine '{}' has no user namespace: its root is root of this host", plan.name));
    }
    Ok(Job {
        layout: layout.clone(),
        limits: NewLimits { resources: loaded.spec.resources, limits: plan.limits.clone() },
        plan,
        facts,
        definition,
        console: Mode::Detached,
        on_chown: chown_progress,
        on_warning: output::warn_anywhere,
        background: false,
    })
}

/// One line that counts files, where somebody watches.
fn chown_progress(done: Option<u64>) {
    use indicatif::{ProgressBar, ProgressStyle};
    use std::sync::OnceLock;
    static BAR: OnceLock<ProgressBar> = OnceLock::new();
    let bar = BAR.get_or_init(|| {
        let style = ProgressStyle::with_template("{spinner} giving files to the machine's ids: {pos} done, {per_sec}");
        ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
    });
    match done {
        Some(done) if done.is_multiple_of(100) => bar.set_position(done),
        Some(_) => {}
        None => bar.finish_and_clear(),
    }
}

pub(super) fn cannot_start(name: &MachineName) -> String {
    format!("cannot start machine '{name}'")
}

/// A spinner on a terminal until it is dropped, nothing elsewhere.
pub(super) struct Spinner(Option<indicatif::ProgressBar>);

impl Spinner {
    pub(super) fn new(quiet: bool, text: String) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = indicatif::ProgressBar::new_spinner().with_message(text);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Does `work` for every name and fails at the end if any failed; all but the last failure are printed at once.
pub(super) fn each(names: &[String], mut work: impl FnMut(&str) -> Result<(), Failure>) -> Result<u8, Failure> {
    let mut failures = Failures::default();
    for name in names {
        if let Err(failure) = work(name) {
            failures.add(failure);
        }
    }
    failures.result()
}

/// The state of a machine that must be running.
pub(super) fn running(layout: &Layout, name: &str) -> Result<(MachineName, State), Failure> {
    let name = machine_name(name)?;
    match state_of(layout, &name)? {
        Some(state) => Ok((name, state)),
        None => Err(Failure::new(format!("machine '{name}' is not running"))),
    }
}

/// Sends a request and waits for the last answer to it.
pub(super) fn ask(
    layout: &Layout,
    name: &MachineName,
    request: &Request,
    text: String,
    quiet: bool,
) -> Result<Option<Answer>, Failure> {
    let failed = |e: &crate::sys::Error| Failure::call(format!("cannot reach the supervisor of machine '{name}'"), e);
    let connection = control::ask(layout, name, request).map_err(|e| failed(&e))?;
    let spinner = Spinner::new(quiet, text);
    let mut last = None;
    while let Some(answer) = control::receive::<Answer>(&connection).map_err(|e| failed(&e))? {
        let over = !matches!(answer, Answer::Accepted);
        last = Some(answer);
        if over {
            break;
        }
    }
    drop(spinner);
    Ok(last)
}

/// Passes on what the daemon remarked.
pub(super) fn remarked(remark: &str) {
    remark.lines().for_each(output::warn);
}
