//! What makes a terminal carry bytes unchanged when the caller's side is a pipe.

use std::collections::VecDeque;

use rustix::termios::{InputModes, LocalModes, OutputModes, SpecialCodeIndex as Code, Termios};

/// Types a stream of bytes into a terminal so that the reader gets exactly these bytes, then end of file.
///
/// A line-oriented terminal acts on some bytes, gives up on lines over 4095 bytes and has no end but `^D`. So
/// bytes it would act on are quoted with `^V` and long lines are handed over in pieces by an unquoted `^D`.
/// A terminal that the machine made raw gets the bytes as they are. The settings are looked up for each piece.
#[derive(Debug, Default)]
pub(super) struct Typist {
    /// Bytes typed since the reader was last given something.
    unread: usize,
}

impl Typist {
    const LONGEST: usize = 2048;

    /// Queues `bytes` for a terminal whose settings are `line`.
    pub(super) fn type_in(&mut self, bytes: &[u8], line: &Termios, out: &mut VecDeque<u8>) {
        if !line.local_modes.contains(LocalModes::ICANON) {
            self.unread = 0;
            return out.extend(bytes);
        }
        let quote = line.special_codes[Code::VLNEXT];
        let quotes = line.local_modes.contains(LocalModes::IEXTEN) && quote != 0;
        let end = line.special_codes[Code::VEOF];
        for &byte in bytes {
            if quotes && is_special(byte, line) {
                out.push_back(quote);
            }
            out.push_back(byte);
            self.unread = if byte == b'\n' { 0 } else { self.unread + 1 };
            if self.unread >= Self::LONGEST && end != 0 {
                out.push_back(end);
                self.unread = 0;
            }
        }
    }

    /// Queues the end of input.
    pub(super) fn finish(&mut self, line: &Termios, out: &mut VecDeque<u8>) {
        let end = match line.special_codes[Code::VEOF] {
            0 => 0x04,
            code => code,
        };
        // After an unfinished line the first one only hands that line over.
        if self.unread > 0 {
            out.push_back(end);
        }
        out.push_back(end);
        self.unread = 0;
    }
}

/// Whether a line-oriented terminal would do something with `byte` other than passing it on.
fn is_special(byte: u8, line: &Termios) -> bool {
    let is_one_of = |codes: &[Code]| byte != 0 && codes.iter().any(|c| line.special_codes[*c] == byte);
    let input = line.input_modes;
    is_one_of(&[Code::VERASE, Code::VKILL, Code::VEOF, Code::VEOL])
        || is_one_of(&[Code::VWERASE, Code::VREPRINT, Code::VLNEXT, Code::VEOL2])
        || line.local_modes.contains(LocalModes::ISIG) && is_one_of(&[Code::VINTR, Code::VQUIT, Code::VSUSP])
        || input.contains(InputModes::IXON) && is_one_of(&[Code::VSTART, Code::VSTOP])
        || byte == b'\r' && input.intersects(InputModes::ICRNL | InputModes::IGNCR)
        || byte == b'\n' && input.contains(InputModes::INLCR)
}

/// Takes the carriage returns out that a terminal adds before line feeds.
///
/// The machine may set its terminal back to what it was used to; a file still wants plain lines.
#[derive(Debug, Default)]
pub(super) struct Newlines {
    held: bool,
}

impl Newlines {
    /// Whether a terminal with the settings `line` adds carriage returns.
    pub(super) fn are_added(line: &Termios) -> bool {
        line.output_modes.contains(OutputModes::OPOST | OutputModes::ONLCR)
    }

    /// Rewrites `data` in place; gives whether a carriage return held back earlier comes first, and the new length.
    pub(super) fn undo(&mut self, data: &mut [u8]) -> (bool, usize) {
        let Some(&first) = data.first() else { return (false, 0) };
        let before = std::mem::take(&mut self.held) && first != b'\n';
        let mut kept = 0;
        for at in 0..data.len() {
            if data[at] == b'\r' {
                match data.get(at + 1) {
                    Some(b'\n') => continue,
                    Some(_) => {}
                    None => {
                        self.held = true;
                        continue;
                    }
                }
            }
            data[kept] = data[at];
            kept += 1;
        }
        (before, kept)
    }

    /// Whether a carriage return is still held back, at the end of the stream or where none is added any more.
    pub(super) fn take_held(&mut self) -> bool {
        std::mem::take(&mut self.held)
    }
}
