//! What one process of ours tells another, a JSON object a line.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::{Event, Events, OpError};

/// Longest line that is read; a definition's problems take a few thousand bytes.
const LONGEST: usize = 256 << 10;

/// One line. A report ends with [`Done`](Self::Done) or [`Failed`](Self::Failed); one that does not is of a process that
/// was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// Something happened.
    Event(Event),
    /// All is as it was asked for.
    Done,
    /// It is not.
    Failed(OpError),
}

impl Line {
    /// The line as it is written.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// The lines of a whole report; what is none is left out.
    pub fn parse(report: &[u8]) -> Vec<Self> {
        report.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

/// The end of a pipe that lines are written to. A reader that has gone away is no failure.
#[derive(Debug)]
pub struct Writer(RefCell<Option<Rc<OwnedFd>>>);

impl Writer {
    /// Writes there.
    pub fn new(pipe: OwnedFd) -> Self {
        Self(RefCell::new(Some(Rc::new(pipe))))
    }

    /// Writes a line.
    pub fn send(&self, line: &Line) {
        let bytes = line.to_bytes();
        let mut rest = bytes.as_slice();
        while let (Some(pipe), false) = (&*self.0.borrow(), rest.is_empty()) {
            match rustix::io::write(pipe, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                // The reader is gone.
                Err(_) => return,
            }
        }
    }

    /// Writes the last line.
    pub fn finish(&self, result: &Result<(), OpError>) {
        self.send(&match result {
            Ok(()) => Line::Done,
            Err(error) => Line::Failed(error.clone()),
        });
    }
}

impl Events for Writer {
    fn tell(&self, event: Event) {
        self.send(&Line::Event(event));
    }

    fn descriptor(&self) -> Option<Rc<OwnedFd>> {
        self.0.borrow().clone()
    }

    fn leave(&self) {
        self.0.take();
    }
}

/// The other end.
#[derive(Debug)]
pub struct Reader {
    pipe: File,
    /// The beginning of a line.
    part: Vec<u8>,
}

impl Reader {
    /// A pipe for a report.
    pub fn pipe() -> io::Result<(Self, Writer)> {
        let (reader, writer) = io::pipe()?;
        let reader = Self { pipe: OwnedFd::from(reader).into(), part: Vec::new() };
        Ok((reader, Writer::new(writer.into())))
    }

    /// Waits for more lines; nothing if there will be none.
    pub fn read(&mut self) -> io::Result<Option<Vec<Line>>> {
        let mut buffer = [0; 4096];
        let count = loop {
            match self.pipe.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if count == 0 {
            return Ok(None);
        }
        self.part.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let rest = self.part.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = Line::parse(self.part.get(..rest).unwrap_or_default());
        self.part.drain(..rest);
        if self.part.len() > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Some(lines))
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_read() {
        let (mut reader, writer) = Reader::pipe().expect("pipe");
        let long = Line::Failed(OpError::new("x".repeat(9000)));
        writer.tell(Event::Warning("two\nlines".into()));
        writer.send(&long);
        writer.leave();
        writer.send(&Line::Done);
        let mut lines = Vec::new();
        while let Some(more) = reader.read().expect("read") {
            lines.extend(more);
        }
        assert_eq!(lines, [Line::Event(Event::Warning("two\nlines".into())), long]);
    }
}
