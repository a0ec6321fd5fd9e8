//! A machine as its supervisor has it: what it holds, what it knows, and the console.

use super::console::Console;
use super::error::MachineError;
use super::held::Held;
use super::session::Session;
use crate::running::control::{self, Answer};
use crate::running::restart::Exit;
use crate::running::state::State;

/// A machine that has been made at least once; all of this lasts over its reboots.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) held: Held,
    pub(super) session: Session,
    pub(super) console: Console,
}

impl Machine {
    /// Writes the state file.
    pub(super) fn save(&self, state: &State) {
        // The machine goes on without; `list` then shows the state before.
        let _ = self.held.run_dir.write(state);
    }

    /// Reports what follows an end: in the log, to viewers, the service manager and the caller.
    pub(super) fn remark(&mut self, text: &str) {
        // Reasons may hold words of the machine's, and one line is all that they get.
        let text: &str = &text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        self.console.remark(text);
        self.session.manager.send(&format!("STATUS={text}"));
        if !self.session.job.background {
            self.session.job.events.warn(text);
        }
    }

    /// Gives everything back.
    pub(super) fn release(self) -> Result<(), MachineError> {
        let Self { held, session, console } = self;
        // First, so that the caller's terminal is as it was.
        drop(console);
        held.release(&session.job, &session.registered)
    }

    /// Gives everything back and answers the clients that wait for the end.
    pub(super) fn finish(mut self, exit: Exit) -> Result<Exit, MachineError> {
        let waiting = std::mem::take(&mut self.session.wait_for_end);
        self.console.close_viewers("the machine has ended");
        let result = self.release();
        for connection in waiting {
            // A client that is gone needs no answer.
            let _ = control::send(&connection, &Answer::Ended { killed: exit.killed, status: exit.status });
        }
        result.map(|()| exit)
    }
}
