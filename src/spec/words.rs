//! Validated strings: each is checked once, when it is made, and can then be trusted everywhere.

use std::fmt;

use serde::Serialize;

/// Why a string from the user is not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordError {
    /// What kind of string was wanted, as in "machine name".
    pub wanted: &'static str,
    /// What the user wrote.
    pub got: String,
    /// The rule that was broken, as the end of a sentence.
    pub rule: &'static str,
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.got.chars().take(80).collect();
        write!(f, "{} '{}' {}", self.wanted, shown.escape_debug(), self.rule)
    }
}

impl std::error::Error for WordError {}

fn word_error(wanted: &'static str, got: &str, rule: &'static str) -> WordError {
    WordError { wanted, got: got.to_owned(), rule }
}

/// Name of a machine: a host name of at most 64 bytes, as machine1 demands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct MachineName(String);

impl MachineName {
    /// Checks the characters, the labels between dots and the length.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        check_hostname("machine name", text)?;
        Ok(Self(text.to_owned()))
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host name as the kernel's UTS namespace takes it (64 bytes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hostname(String);

impl Hostname {
    /// Accepts what [`MachineName::parse`] accepts.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        check_hostname("host name", text)?;
        Ok(Self(text.to_owned()))
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_hostname(wanted: &'static str, text: &str) -> Result<(), WordError> {
    let fail = |rule| Err(word_error(wanted, text, rule));
    if text.is_empty() {
        return fail("is empty");
    }
    if text.len() > 64 {
        return fail("is longer than 64 bytes");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return fail("may hold only letters, digits, `-`, `_` and `.`");
    }
    if text.split('.').any(|label| label.is_empty() || label.starts_with('-') || label.ends_with('-')) {
        return fail("has an empty part or a part that begins or ends with `-`");
    }
    Ok(())
}

/// Name of an entry of the image store: one path component that is not hidden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageName(String);

impl ImageName {
    /// Checks that the text is a single visible path component.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let fail = |rule| Err(word_error("image name", text, rule));
        if text.is_empty() || text.len() > 255 {
            return fail("must have 1 to 255 bytes");
        }
        if text.starts_with('.') {
            return fail("may not begin with `.`");
        }
        if text.contains('/') || text.chars().any(char::is_control) {
            return fail("may not hold `/` or control characters");
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Absolute path inside the machine, without `.`, `..` or doubled slashes; never `/` itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct GuestPath(String);

impl GuestPath {
    /// Normalises doubled and trailing slashes; refuses everything that could leave the root.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let fail = |rule| Err(word_error("path in the machine", text, rule));
        if !text.starts_with('/') {
            return fail("must begin with `/`");
        }
        if text.len() > 4000 || text.contains('\0') {
            return fail("is too long or holds a zero byte");
        }
        let parts: Vec<&str> = text.split('/').filter(|p| !p.is_empty()).collect();
        if parts.is_empty() {
            return fail("may not be the root itself");
        }
        if parts.iter().any(|p| matches!(*p, "." | "..")) {
            return fail("may not hold `.` or `..`");
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }

    /// `/var`, which `volatile = "state"` covers.
    pub fn var() -> Self {
        Self("/var".to_owned())
    }

    /// The path with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path below the root, as `openat2` with a root descriptor wants it.
    pub fn relative(&self) -> &str {
        &self.0[1..]
    }

    /// Number of components, by which mounts are ordered.
    pub fn depth(&self) -> usize {
        self.0.matches('/').count()
    }

    /// Whether `self` is `other` or lies below it.
    pub fn is_at_or_below(&self, other: &str) -> bool {
        self.0 == other || (self.0.starts_with(other) && self.0.as_bytes().get(other.len()) == Some(&b'/'))
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The 128 bits of a machine id (`machine-id(5)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineId(pub [u8; 16]);

impl MachineId {
    /// Accepts 32 hexadecimal digits, with or without the dashes of a UUID; refuses all zeroes.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let fail = |rule| Err(word_error("machine id", text, rule));
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return fail("must be 32 hexadecimal digits or a UUID");
        }
        let mut id = [0u8; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
            let hex = |d: u8| (d as char).to_digit(16).and_then(|v| u8::try_from(v).ok()).unwrap_or(0);
            *byte = hex(pair[0]) << 4 | hex(pair[1]);
        }
        if id == [0; 16] {
            return fail("may not be all zeroes");
        }
        Ok(Self(id))
    }

    /// The dashed form that `container_uuid=` carries.
    pub fn uuid(&self) -> String {
        let hex: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl Serialize for MachineId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_are_host_names_of_at_most_64_bytes() {
        for good in ["web", "a", "web-1.example", "A_b", &"x".repeat(64)] {
            assert!(MachineName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "..", ".", ".web", "web.", "-a", "a-", "a b", "ü", &"x".repeat(65), "a\0b", "a..b"] {
            assert!(MachineName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn guest_paths_are_normalised_and_cannot_leave_the_root() {
        assert_eq!(GuestPath::parse("//srv///www/").map(|p| p.as_str().to_owned()), Ok("/srv/www".to_owned()));
        for bad in ["srv", "/", "/a/../b", "/./a", ""] {
            assert!(GuestPath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_machine_id_is_read_in_both_forms_and_written_as_a_uuid() {
        let id = MachineId::parse("0123456789abcdef0123456789ABCDEF").expect("valid");
        assert_eq!(id.uuid(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(MachineId::parse(&id.uuid()), Ok(id));
        assert!(MachineId::parse(&"0".repeat(32)).is_err());
        assert!(MachineId::parse("xyz").is_err());
    }

    #[test]
    fn word_errors_are_short_and_carry_no_control_characters() {
        let text = MachineName::parse(&"\u{1b}[31m".repeat(100)).map_err(|e| e.to_string());
        assert!(text.is_err_and(|t| t.len() < 900 && !t.contains('\u{1b}')));
    }
}
