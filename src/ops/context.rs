//! What every operation has at hand: where machines live, who is told, and who may do it.

use std::cell::Cell;
use std::rc::Rc;

use super::via::{Facts, Verb, Via};
use crate::report::{Event, Events, Kind, OpError};
use crate::running::control::{self, Answer, Request};
use crate::running::state::{self, State};
use crate::spec::{Layout, MachineName};
use crate::sys;

/// Operations on the machines of a layout, told to a listener.
#[derive(Debug, Clone)]
pub struct Ops {
    pub(super) layout: Layout,
    pub(super) events: Rc<dyn Events>,
    pub(super) facts: Cell<Facts>,
}

impl Ops {
    /// Operations of this process.
    pub fn new(layout: Layout, events: Rc<dyn Events>) -> Self {
        let facts = Cell::new(Facts::of_process(&layout));
        Self { layout, events, facts }
    }

    /// Where machines live.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The same, told to another listener.
    pub(super) fn telling(&self, events: Rc<dyn Events>) -> Self {
        Self { events, ..self.clone() }
    }

    /// Who is to do this, as far as is known.
    pub fn via(&self, verb: Verb) -> Via {
        self.facts.get().via(verb)
    }

    /// What a machine's supervisor says of it, if it runs.
    pub fn state_of(&self, name: &MachineName) -> Result<Option<State>, OpError> {
        state::read(&self.layout, name).map_err(|e| OpError::call(format!("cannot look at machine '{name}'"), &e))
    }

    /// The state of a machine that must be running.
    pub fn running(&self, name: &str) -> Result<(MachineName, State), OpError> {
        let name = machine_name(name)?;
        match self.state_of(&name)? {
            Some(state) => Ok((name, state)),
            None => Err(OpError::not_running(name.as_str())),
        }
    }

    /// Sends a request to a machine's supervisor and waits for the last answer to it, saying so if `text` does.
    pub(super) fn ask(
        &self,
        name: &MachineName,
        request: &Request,
        text: Option<String>,
    ) -> Result<Option<Answer>, OpError> {
        let failed = |e: sys::Error| OpError::call(format!("cannot reach the supervisor of machine '{name}'"), &e);
        let connection = control::ask(&self.layout, name, request).map_err(failed)?;
        self.while_busy(text, || {
            let mut last = None;
            while let Some(answer) = control::receive::<Answer>(&connection).map_err(failed)? {
                let over = !matches!(answer, Answer::Accepted);
                last = Some(answer);
                if over {
                    break;
                }
            }
            Ok(last)
        })
    }

    /// Says that a machine had to be killed, if it was.
    pub(super) fn warn_killed(&self, name: &MachineName, killed: bool) {
        if killed {
            self.events.warn(&format!("machine '{name}' did not stop in time and was killed"));
        }
    }

    /// Does something that takes a while.
    pub(super) fn while_busy<T>(&self, text: Option<String>, work: impl FnOnce() -> T) -> T {
        let told = text.map(|text| self.events.tell(Event::Began(text))).is_some();
        let result = work();
        if told {
            self.events.tell(Event::Ended);
        }
        result
    }

    /// Does `work` for every name and fails at the end if any failed.
    pub fn each(&self, names: &[String], work: impl Fn(&str) -> Result<(), OpError>) -> Result<(), OpError> {
        let mut failures = Failures::new(&self.events);
        names.iter().for_each(|name| failures.take(work(name)));
        failures.result()
    }
}

/// Reads a name that was typed.
pub fn machine_name(text: &str) -> Result<MachineName, OpError> {
    MachineName::parse(text).map_err(|e| OpError::of(Kind::Usage, e.to_string()))
}

/// Failures of several things of which one does not end the others: all but the last are told at once.
#[derive(Debug)]
pub struct Failures {
    events: Rc<dyn Events>,
    last: Option<OpError>,
}

impl Failures {
    /// None yet.
    pub fn new(events: &Rc<dyn Events>) -> Self {
        Self { events: Rc::clone(events), last: None }
    }

    /// None yet, of these operations.
    pub fn of(ops: &Ops) -> Self {
        Self::new(&ops.events)
    }

    /// One more.
    pub fn add(&mut self, error: OpError) {
        if let Some(earlier) = self.last.replace(error) {
            self.events.tell(Event::Failed(earlier));
        }
    }

    /// One more if it is one.
    pub fn take(&mut self, result: Result<(), OpError>) {
        result.err().into_iter().for_each(|error| self.add(error));
    }

    /// Success, if there were none.
    pub fn result(self) -> Result<(), OpError> {
        self.last.map_or(Ok(()), Err)
    }
}
