//! What is typed: bytes of a terminal as keys.

/// A key, as far as we care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Escape,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    /// Another.
    Other,
}

/// Bytes that are not yet a key: the Escape key sends the byte that others begin with.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<u8>);

const ESCAPE: u8 = 0x1b;
/// No key sends more.
const LONGEST: usize = 32;

impl Keys {
    /// The keys that these bytes complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Key> {
        bytes.iter().filter_map(|&byte| self.next(byte)).collect()
    }

    /// Whether it takes time to tell what comes from what has come.
    pub(super) fn is_waiting(&self) -> bool {
        !self.0.is_empty()
    }

    /// Nothing came after what has come.
    pub(super) fn time_up(&mut self) -> Option<Key> {
        let rest = std::mem::take(&mut self.0);
        match rest.as_slice() {
            [] => None,
            [ESCAPE] => Some(Key::Escape),
            _ => Some(Key::Other),
        }
    }

    fn next(&mut self, byte: u8) -> Option<Key> {
        if byte == ESCAPE {
            // One that is followed by another was a key of its own.
            let key = self.time_up();
            self.0.push(byte);
            return key;
        }
        if self.0.is_empty() {
            return Some(if byte.is_ascii() { Key::Char(char::from(byte)) } else { Key::Other });
        }
        self.0.push(byte);
        let done = match (self.0.len(), self.0[1]) {
            (2, b'[' | b'O') => false,
            (2, _) => true,
            _ => (0x40..=0x7e).contains(&byte) || self.0.len() == LONGEST,
        };
        done.then(|| sequence(&std::mem::take(&mut self.0)))
    }
}

fn sequence(bytes: &[u8]) -> Key {
    match &bytes[1..] {
        b"[A" | b"OA" => Key::Up,
        b"[B" | b"OB" => Key::Down,
        b"[5~" => Key::PageUp,
        b"[6~" => Key::PageDown,
        b"[H" | b"OH" | b"[1~" | b"[7~" => Key::Home,
        b"[F" | b"OF" | b"[4~" | b"[8~" => Key::End,
        _ => Key::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_however_their_bytes_come() {
        let mut keys = Keys::default();
        assert_eq!(
            keys.feed(b"q\x1b[A\x1bOB\x1b[5~ "),
            [Key::Char('q'), Key::Up, Key::Down, Key::PageUp, Key::Char(' ')]
        );
        assert!(!keys.is_waiting());
        let split: Vec<Key> = b"\x1b[6~\x1b[F\x1b[1;5C".iter().flat_map(|byte| keys.feed(&[*byte])).collect();
        assert_eq!(split, [Key::PageDown, Key::End, Key::Other]);
    }

    #[test]
    fn escape_alone_is_a_key_once_nothing_follows() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"\x1b"), []);
        assert!(keys.is_waiting());
        assert_eq!((keys.time_up(), keys.time_up(), keys.is_waiting()), (Some(Key::Escape), None, false));
        assert_eq!(keys.feed(b"\x1b\x1b[A"), [Key::Escape, Key::Up]);
    }

    #[test]
    fn nonsense_is_another_key_and_ends() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed("ä".as_bytes()), [Key::Other, Key::Other]);
        assert_eq!(keys.feed(b"\x1bx"), [Key::Other]);
        let mut endless = vec![ESCAPE, b'['];
        endless.extend([b'1'; 100]);
        assert!(keys.feed(&endless).contains(&Key::Other));
        assert_eq!((keys.feed(b"\x1b["), keys.time_up()), (vec![], Some(Key::Other)));
    }
}
