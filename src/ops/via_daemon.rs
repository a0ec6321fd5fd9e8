//! Operations that the daemon does for us: for every caller where it runs, and for users other than root in any case.
//!
//! Root does everything alone when there is no daemon; what is told is the same.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::context::{Failures, Ops};
use super::via::{Facts, Verb, Via};
use crate::bus::Bus;
use crate::bus::machinist1::{Daemon, Exec, Refused};
use crate::report::{Event, OpError, Request};
use crate::running::view::{Statistics, Status, Summary};

impl Ops {
    /// Asks the daemon; nothing if it is not there, and then it is not asked again.
    fn question<T>(&self, question: impl FnOnce(&Daemon<'_>) -> Result<T, Refused>) -> Result<Option<T>, OpError> {
        let bus = Bus::of(&self.layout);
        match question(&Daemon::new(&bus, !self.facts.get().root)) {
            Ok(answer) => Ok(Some(answer)),
            Err(Refused::Absent) => {
                self.facts.set(Facts { daemon: false, ..self.facts.get() });
                Ok(None)
            }
            Err(Refused::Failed(error)) => Err(error),
        }
    }

    /// Tells what another process has told; its last failure is ours.
    fn replay(&self, events: Vec<Event>) -> Result<(), OpError> {
        let mut failures = Failures::new(&self.events);
        for event in events {
            match event {
                Event::Failed(error) => failures.add(error),
                event => self.events.tell(event),
            }
        }
        failures.result()
    }

    /// Has the daemon do something; nothing if it is not there.
    pub(super) fn perform(&self, request: &Request) -> Result<Option<()>, OpError> {
        self.question(|daemon| daemon.perform(request))?.map(|events| self.replay(events)).transpose()
    }

    /// The same by a process of its own, so that this one can go on to make others; says in words what takes a while.
    pub(super) fn perform_aside(&self, request: &Request, text: Option<String>) -> Result<Option<()>, OpError> {
        let told = text.is_some();
        let began = || text.into_iter().for_each(|text| self.events.tell(Event::Began(text)));
        let asked = self.question(|daemon| daemon.perform_aside(request, began));
        if told {
            self.events.tell(Event::Ended);
        }
        asked?.map(|events| self.replay(events)).transpose()
    }

    /// What users other than root see of something, if the daemon is there.
    fn look<T>(&self, question: impl FnOnce(&Daemon<'_>) -> Result<T, Refused>) -> Result<Option<T>, OpError> {
        if self.via(Verb::Look) == Via::Daemon { self.question(question) } else { Ok(None) }
    }

    /// What the daemon says of all machines that run, with `all` also of those that are only defined.
    pub fn list_via_daemon(&self, all: bool) -> Result<Option<Vec<Summary>>, OpError> {
        self.look(|daemon| daemon.list(all))?.map(parse).transpose()
    }

    /// What the daemon says of a machine.
    pub fn status_via_daemon(&self, name: &str) -> Result<Option<Status>, OpError> {
        self.look(|daemon| daemon.machine(name))?.map(parse).transpose()
    }

    /// What the daemon says that machines use.
    pub fn statistics_via_daemon(&self, names: &[String]) -> Result<Option<Vec<Statistics>>, OpError> {
        self.look(|daemon| daemon.statistics(names))?.map(parse).transpose()
    }

    /// Has the daemon run a command on these files; nothing if it is not to, or is not there.
    pub fn exec_via_daemon(
        &self,
        name: &str,
        exec: &Exec<'_>,
        files: Option<[BorrowedFd<'_>; 3]>,
    ) -> Result<Option<i32>, OpError> {
        match (files, self.via(Verb::Exec { terminal: files.is_none() })) {
            (Some(files), Via::Daemon) => self.question(|daemon| daemon.exec(name, exec, files)),
            _ => Ok(None),
        }
    }

    /// Gives every event on the host to `tell` until that says no; nothing if there is no daemon.
    pub fn follow(&self, tell: impl FnMut(&str, &str, Value) -> bool) -> Result<Option<()>, OpError> {
        self.question(|daemon| daemon.events(tell))
    }
}

/// What the bus says, as we know it.
fn parse<T: DeserializeOwned>(answer: Value) -> Result<T, OpError> {
    serde_json::from_value(answer).map_err(|e| OpError::new(format!("invalid reply from the daemon: {e}")))
}

/// A stop as the daemon is asked for it.
pub(super) fn stop(name: &str, timeout: Option<Duration>) -> Request {
    Request::Stop { name: name.to_owned(), timeout }
}
