//! The kinds of values a machine file holds: how each is written, read, shown and described.
//!
//! Value types that the rest of the program shares come from [`crate::spec`]; those here exist only in files.

use std::path::Path;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value as Json;

use super::complaint::Complaint;
use super::diagnostic::{nearest, quoted};
use super::reader::{MapKey, Reader, Setting, Value};
use crate::plan::seccomp::SyscallPolicy;
use crate::spec::{
    CAPABILITIES, Clock, GuestPath, Hostname, ImageName, InitKind, Layer, MachineId, MachineName, NetworkMode,
    Ownership, Propagation, Register, Restart, Upper, Volatile,
};

/// Reads a string and hands it to a parser.
pub(super) fn read_text<T>(
    value: &Value<'_>,
    reader: &mut Reader<'_>,
    expected: &str,
    parse: impl FnOnce(&str) -> Result<T, Complaint>,
) -> Option<T> {
    let Some(text) = value.get_ref().as_str() else {
        reader.mistyped(value, expected);
        return None;
    };
    match parse(text) {
        Ok(read) => Some(read),
        Err(complaint) => {
            reader.complain(value, complaint);
            None
        }
    }
}

/// A setting written as a string: `Type, "what it is", parser, printer, schema`.
macro_rules! text_setting {
    ($ty:ty, $expected:literal, $parse:expr, $text:expr, $schema:tt) => {
        impl Setting for $ty {
            fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
                read_text(value, reader, $expected, |text| $parse(text).map_err(Complaint::from))
            }

            fn show(&self) -> Json {
                let text: fn(&Self) -> String = $text;
                text(self).into()
            }

            fn schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema = json_schema!($schema);
                schema.insert("type".into(), "string".into());
                schema
            }
        }
    };
}

/// Finds a word in a list, or lists the valid ones.
pub(super) fn choose<T: Copy>(text: &str, words: &[(&'static str, T)]) -> Result<T, Complaint> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let complaint = Complaint::new(format!("{} is not one of {}", quoted(text), all.join(", ")));
    Err(match nearest(text, words.iter().map(|(word, _)| *word)) {
        Some(near) => complaint.hint(format!("did you mean \"{near}\"?")),
        None => complaint,
    })
}

/// A setting that is one of a few words.
macro_rules! choice {
    ($ty:ident { $($word:literal => $variant:ident),* $(,)? }) => {
        text_setting!(
            $ty,
            "a string",
            |text| choose(text, &[$(($word, $ty::$variant)),*]),
            |value| match value { $($ty::$variant => $word,)* }.to_owned(),
            { "enum": [$($word),*] }
        );
    };
}

choice!(Restart { "no" => No, "on-failure" => OnFailure, "always" => Always });
choice!(Register { "auto" => Auto, "yes" => Yes, "no" => No });
choice!(Clock { "host" => Host, "own" => Own });
choice!(Volatile { "no" => No, "state" => State, "yes" => Yes });
choice!(Propagation { "private" => Private, "slave" => Slave });
choice!(Ownership { "auto" => Auto, "map" => Map, "chown" => Chown, "off" => Off });
choice!(NetworkMode { "private" => Private, "host" => Host });

text_setting!(Hostname, "a host name as a string", Hostname::parse, |name| name.as_str().to_owned(), { "maxLength": 64 });
text_setting!(MachineName, "the name of a machine as a string", MachineName::parse, MachineName::to_string, { "maxLength": 64 });
text_setting!(MachineId, "a machine id as a string", MachineId::parse, MachineId::to_string, { "minLength": 32 });
text_setting!(GuestPath, "a path as a string", GuestPath::parse, GuestPath::to_string, { "pattern": "^/" });

/// Declares a newtype over a checked string.
macro_rules! checked_string {
    ($(#[$doc:meta])* $ty:ident, $expected:literal, $check:expr, $schema:tt) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) struct $ty(String);

        impl $ty {
            /// Checks the text.
            pub(super) fn parse(text: &str) -> Result<Self, Complaint> {
                let check: fn(&str) -> Result<String, Complaint> = $check;
                check(text).map(Self)
            }

            /// The text as the program uses it.
            pub(super) fn as_str(&self) -> &str {
                &self.0
            }
        }

        text_setting!($ty, $expected, $ty::parse, |value| value.0.clone(), $schema);
    };
}

/// Passes a text that satisfies the rule.
fn require(text: &str, holds: bool, rule: &str) -> Result<String, Complaint> {
    if holds { Ok(text.to_owned()) } else { Err(Complaint::new(format!("{} {rule}", quoted(text)))) }
}

checked_string! {
    /// Text of one line.
    Line, "a string",
    |text| require(text, !text.chars().any(char::is_control), "holds control characters"), {}
}

checked_string! {
    /// One argument of a program.
    Argument, "a string",
    |text| require(text, !text.contains('\0'), "holds a zero byte, which no argument can"), {}
}

checked_string! {
    /// Name of an environment variable.
    VariableName, "a string",
    |text| {
        let word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let holds = word && !text.is_empty() && !text.starts_with(|c: char| c.is_ascii_digit());
        require(text, holds, "is no variable name: letters, digits and `_`, no digit first")
    }, {}
}

impl MapKey for VariableName {
    fn parse(text: &str) -> Result<Self, Complaint> {
        Self::parse(text)
    }

    fn text(&self) -> String {
        self.0.clone()
    }
}

checked_string! {
    /// Value of an environment variable.
    VariableValue, "a string",
    |text| require(text, !text.contains(['\0', '\n']), "holds a zero byte or a line break"), {}
}

checked_string! {
    /// Name of a profile: its file without `.toml`.
    ProfileName, "the name of a profile as a string",
    |text| {
        let word = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        let holds = word && !text.is_empty() && text.len() <= 64 && !text.starts_with('.');
        require(text, holds, "is no profile name: letters, digits, `-`, `_` and `.`, at most 64")
    }, { "pattern": "^[A-Za-z0-9_-][A-Za-z0-9_.-]*$" }
}

checked_string! {
    /// Absolute path on the host, without `.` and doubled slashes; `..` is refused, since what it means
    /// depends on symbolic links.
    HostPath, "a path as a string",
    |text| {
        if !text.starts_with('/') {
            return Err(Complaint::new(format!("path {} must begin with `/`", quoted(text))));
        }
        let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        let holds = !text.contains('\0') && !parts.contains(&"..") && text.len() <= 4000;
        require(text, holds, "holds `..` or a zero byte, or is too long").map(|_| format!("/{}", parts.join("/")))
    }, { "pattern": "^/" }
}

checked_string! {
    /// A control group, counted from the top of the cgroup2 tree, which is `/`.
    CgroupPath, "the path of a control group as a string",
    |text| {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let holds = !text.is_empty()
            && !text.chars().any(char::is_control)
            && parts.iter().all(|part| !matches!(*part, "." | "..") && part.len() <= 255);
        require(text, holds, "is no path of a control group, as in \"machines\"").map(|_| format!("/{}", parts.join("/")))
    }, {}
}

checked_string! {
    /// Name of a system call or `@set`.
    SyscallWord, "the name of a system call as a string", check_syscall, { "pattern": "^@?[a-z0-9_-]+$" }
}

/// Decides whether a text names a system call or a set of them. The one place for that check.
fn check_syscall(text: &str) -> Result<String, Complaint> {
    let policy = SyscallPolicy { allow: vec![text.to_owned()], deny: Vec::new() };
    let Some(unknown) = policy.check().pop() else { return Ok(text.to_owned()) };
    let complaint = Complaint::new(format!("there is no system call and no set {}", quoted(text)));
    Err(match unknown.nearest {
        Some(near) => complaint.hint(format!("did you mean \"{near}\"?")),
        None => complaint.hint("sets begin with `@`, as in \"@mount\""),
    })
}

/// `[boot] init`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InitWord {
    Auto,
    Kind(InitKind),
    Path(GuestPath),
}

impl InitWord {
    fn parse(text: &str) -> Result<Self, Complaint> {
        if text.starts_with('/') {
            return Ok(Self::Path(GuestPath::parse(text)?));
        }
        let words: Vec<(&'static str, Option<InitKind>)> =
            std::iter::once(("auto", None)).chain(InitKind::ALL.map(|kind| (kind.as_str(), Some(kind)))).collect();
        choose(text, &words)
            .map(|kind| kind.map_or(Self::Auto, Self::Kind))
            .map_err(|complaint| complaint.or("an absolute path"))
    }
}

text_setting!(
    InitWord,
    "a string",
    InitWord::parse,
    |word| match word {
        InitWord::Auto => "auto".to_owned(),
        InitWord::Kind(kind) => kind.as_str().to_owned(),
        InitWord::Path(path) => path.to_string(),
    },
    { "anyOf": [
        { "enum": ["auto", "systemd", "sysvinit", "openrc", "runit", "busybox", "s6", "dinit", "finit"] },
        { "pattern": "^/" }
    ] }
);

/// Reads a layer: an absolute path or the name of an image.
fn parse_layer(text: &str) -> Result<Layer, Complaint> {
    if text.starts_with('/') {
        return HostPath::parse(text).map(|path| Layer::Path(path.as_str().into()));
    }
    match ImageName::parse(text) {
        Ok(name) => Ok(Layer::Image(name)),
        Err(_) if text.contains('/') => {
            Err(Complaint::new(format!("layer {} is neither an image name nor an absolute path", quoted(text))))
        }
        Err(error) => Err(error.into()),
    }
}

/// A path as the file wrote it; all paths of a spec come from UTF-8 text.
fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

text_setting!(
    Layer,
    "the name of an image or a path as a string",
    parse_layer,
    |layer| match layer {
        Layer::Image(name) => name.as_str().to_owned(),
        Layer::Path(path) => path_text(path),
    },
    { "minLength": 1 }
);

text_setting!(
    Upper,
    "a string",
    |text: &str| match text {
        "persistent" => Ok(Upper::Persistent),
        "ephemeral" => Ok(Upper::Ephemeral),
        path if path.starts_with('/') => HostPath::parse(path).map(|path| Upper::Path(path.as_str().into())),
        word => choose(word, &[("persistent", ()), ("ephemeral", ())])
            .map(|()| Upper::Persistent)
            .map_err(|complaint| complaint.or("an absolute path")),
    },
    |upper| match upper {
        Upper::Persistent => "persistent".to_owned(),
        Upper::Ephemeral => "ephemeral".to_owned(),
        Upper::Path(path) => path_text(path),
    },
    { "anyOf": [{ "enum": ["persistent", "ephemeral"] }, { "pattern": "^/" }] }
);

/// A capability by number, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CapabilityWord {
    All,
    One(u8),
}

impl CapabilityWord {
    /// The bit number of a single capability.
    pub(super) fn number(self) -> Option<u8> {
        match self {
            Self::All => None,
            Self::One(bit) => Some(bit),
        }
    }

    fn parse(text: &str) -> Result<Self, Complaint> {
        if text.eq_ignore_ascii_case("all") {
            return Ok(Self::All);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let found = (0u8..).zip(CAPABILITIES).find(|(_, known)| *known == name);
        found.map(|(bit, _)| Self::One(bit)).ok_or_else(|| {
            let complaint = Complaint::new(format!("there is no capability {}", quoted(text)));
            match nearest(name, CAPABILITIES) {
                Some(near) => complaint.hint(format!("did you mean \"{near}\"?")),
                None => complaint,
            }
        })
    }
}

text_setting!(
    CapabilityWord,
    "the name of a capability as a string",
    CapabilityWord::parse,
    |word| match word {
        CapabilityWord::All => "all".to_owned(),
        CapabilityWord::One(bit) => CAPABILITIES[usize::from(*bit)].to_owned(),
    },
    { "anyOf": [
        { "enum": std::iter::once("all").chain(CAPABILITIES).collect::<Vec<_>>() },
        { "pattern": "^([Cc][Aa][Pp]_)?[A-Za-z_]+$" }
    ] }
);

#[cfg(test)]
mod tests {
    use super::super::reader::tests::{read, shown};
    use super::*;

    /// A plan or status shows the same word for a value as the file.
    fn assert_words<T: Setting + serde::Serialize>(words: &[&str]) {
        for word in words {
            let value = read::<T>(&format!("\"{word}\"")).expect(word);
            assert_eq!(value.show(), serde_json::to_value(&value).expect("JSON"));
            assert_eq!(value.show(), **word);
        }
    }

    #[test]
    fn words_are_shown_and_serialised_as_they_are_read() {
        assert_words::<crate::spec::Ready>(&["auto", "notify", "started"]);
        assert_words::<Restart>(&["no", "on-failure", "always"]);
        assert_words::<Register>(&["auto", "yes", "no"]);
        assert_words::<Clock>(&["host", "own"]);
        assert_words::<Volatile>(&["no", "state", "yes"]);
        assert_words::<Propagation>(&["private", "slave"]);
        assert_words::<Ownership>(&["auto", "map", "chown", "off"]);
        assert_words::<NetworkMode>(&["private", "host"]);
    }

    #[test]
    fn inits_are_words_or_paths() {
        for text in ["auto", "/sbin/init"].into_iter().chain(InitKind::ALL.map(InitKind::as_str)) {
            assert_eq!(shown::<InitWord>(&format!("\"{text}\"")), Ok(format!("\"{text}\"")));
        }
        for bad in ["", "init", "sbin/init", "/", "/sbin/../init", "Systemd"] {
            assert!(InitWord::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn capabilities_are_known_by_both_names() {
        for text in ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin", "cap_net_admin"] {
            assert_eq!(CapabilityWord::parse(text).expect(text), CapabilityWord::One(12));
        }
        assert_eq!(CapabilityWord::parse("CHECKPOINT_RESTORE").expect("the last"), CapabilityWord::One(40));
        assert_eq!(CapabilityWord::parse("all").expect("all"), CapabilityWord::All);
        for bad in ["", "CAP_", "CAP_ALL", "CAP_CAP_KILL", "41", "NET ADMIN"] {
            assert!(CapabilityWord::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn layers_are_images_or_absolute_paths() {
        let path = |path: &str| Layer::Path(path.into());
        assert_eq!(parse_layer("/").expect("host"), path("/"));
        assert_eq!(parse_layer("//srv/./tree/").expect("path"), path("/srv/tree"));
        assert_eq!(parse_layer("trixie").expect("image"), Layer::Image(ImageName::parse("trixie").expect("image")));
        for bad in ["", ".", "..", "./tree", "a/b", ".hidden", "/srv/../etc", "/a\0b"] {
            assert!(parse_layer(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variables_are_names_and_single_lines() {
        for good in ["LANG", "_", "a1", "PATH_2"] {
            assert!(VariableName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "1A", "A=B", "A B", "A.B", "A-B", "Ä", "A\0"] {
            assert!(VariableName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(VariableValue::parse("a=b c\t'ü'").is_ok());
        assert!(VariableValue::parse("a\nb").is_err() && VariableValue::parse("a\0b").is_err());
    }

    #[test]
    fn system_calls_and_sets_are_known_by_name() {
        for good in ["keyctl", "@mount", "@system-service", "clone3"] {
            assert!(SyscallWord::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "@", "Keyctl", "keyctl ", "mount@", "@nosuchset", "42"] {
            assert!(SyscallWord::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn control_groups_are_counted_from_the_top() {
        for (text, path) in [("machines", "/machines"), ("/a//b/", "/a/b"), ("/", "/"), ("a.slice", "/a.slice")] {
            assert_eq!(CgroupPath::parse(text).expect(text).as_str(), path);
        }
        for bad in ["", "..", "a/../b", "./a", "a\nb"] {
            assert!(CgroupPath::parse(bad).is_err(), "{bad:?}");
        }
    }
}
