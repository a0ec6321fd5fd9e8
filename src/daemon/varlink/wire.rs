//! Messages of Varlink: JSON objects, each ended by a zero byte. Pure.
//!
//! What comes in is hostile. A message that is none ends the connection: it is not known which call an answer would be
//! for. Nesting is limited by the parser (128 levels).

use std::borrow::Cow;
use std::os::fd::OwnedFd;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::sys::Errno;

/// Most bytes of one message; the longest that makes sense carries the arguments of a shell.
pub(super) const LARGEST: usize = 1024 * 1024;

/// Bytes that have come and are no whole message yet.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    /// How many of them are known to hold no end.
    scanned: usize,
}

impl Incoming {
    /// Takes in what was received.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message without its end; an error if it is too long, ended or not.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, ()> {
        let end = memchr::memchr(0, &self.bytes[self.scanned..]).map(|at| self.scanned + at);
        if end.unwrap_or(self.bytes.len()) > LARGEST {
            return Err(());
        }
        let Some(end) = end else {
            self.scanned = self.bytes.len();
            return Ok(None);
        };
        let rest = self.bytes.split_off(end + 1);
        let mut message = std::mem::replace(&mut self.bytes, rest);
        message.pop();
        self.scanned = 0;
        Ok(Some(message))
    }

    /// Whether a message has begun and not ended.
    pub(super) fn is_partial(&self) -> bool {
        !self.bytes.is_empty()
    }
}

/// A call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// Interface and method, joined by a dot.
    pub(super) method: String,
    parameters: Option<Map<String, Value>>,
    /// The caller wants no answer.
    #[serde(default)]
    pub(super) oneway: bool,
    /// The caller takes many answers.
    #[serde(default)]
    pub(super) more: bool,
    #[serde(default)]
    upgrade: bool,
}

impl Request {
    /// Reads a message; `None` if it is no call.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let request: Self = serde_json::from_slice(message).ok()?;
        let sound = request.method.contains('.') && !request.upgrade && !(request.oneway && request.more);
        sound.then_some(request)
    }

    /// The interface and the method in it.
    pub(super) fn name(&self) -> (&str, &str) {
        self.method.rsplit_once('.').unwrap_or(("", &self.method))
    }

    /// What was given to the method.
    pub(super) fn parameters(&mut self) -> Parameters {
        Parameters(self.parameters.take().unwrap_or_default())
    }
}

/// What a method was given; every name must be asked for, `null` counts as not given.
#[derive(Debug, Default)]
pub(super) struct Parameters(Map<String, Value>);

impl Parameters {
    /// One of them, if it was given.
    pub(super) fn get<T: DeserializeOwned>(&mut self, name: &'static str) -> Answer<Option<T>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|_| Refusal::invalid(name)),
        }
    }

    /// One that must be there.
    pub(super) fn need<T: DeserializeOwned>(&mut self, name: &'static str) -> Answer<T> {
        self.get(name)?.ok_or_else(|| Refusal::invalid(name))
    }

    /// Refuses what no method has read.
    pub(super) fn finish(self) -> Answer<()> {
        self.0.into_iter().next().map_or(Ok(()), |(name, _)| Err(Refusal::invalid(name)))
    }
}

/// One answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) parameters: Value,
    /// Descriptors that go with it; `parameters` name them by their place.
    pub(super) fds: Vec<OwnedFd>,
}

impl From<Value> for Reply {
    fn from(parameters: Value) -> Self {
        Self { parameters, fds: Vec::new() }
    }
}

/// An error as an answer.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) name: Cow<'static, str>,
    pub(super) parameters: Value,
}

/// What a method gives.
pub(super) type Answer<T> = Result<T, Refusal>;

impl Refusal {
    /// An error without parameters.
    pub(super) fn named(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), parameters: json!({}) }
    }

    /// A parameter that is missing, unknown or wrong.
    pub(super) fn invalid(parameter: impl Into<String>) -> Self {
        Self {
            name: "org.varlink.service.InvalidParameter".into(),
            parameters: json!({ "parameter": parameter.into() }),
        }
    }

    /// An errno.
    pub(super) fn errno(errno: Errno) -> Self {
        let number = errno as i32;
        let parameters = json!({ "origin": "linux", "errnoName": format!("{errno:?}"), "errno": number });
        Self { name: "io.systemd.System".into(), parameters }
    }
}

/// The bytes of an answer; `continues` says that more will follow.
pub(super) fn reply(parameters: &Value, continues: bool) -> Vec<u8> {
    let message = if continues {
        json!({ "parameters": parameters, "continues": true })
    } else {
        json!({ "parameters": parameters })
    };
    terminated(&message)
}

/// The bytes of an error.
pub(super) fn refusal(refusal: &Refusal) -> Vec<u8> {
    terminated(&json!({ "error": refusal.name, "parameters": refusal.parameters }))
}

fn terminated(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_at_zero_bytes_wherever_reads_end() {
        let mut incoming = Incoming::default();
        incoming.push(b"ab");
        assert_eq!(incoming.next(), Ok(None));
        assert!(incoming.is_partial());
        incoming.push(b"c\0\0de\0f");
        assert_eq!(incoming.next(), Ok(Some(b"abc".to_vec())));
        assert_eq!(incoming.next(), Ok(Some(Vec::new())));
        assert_eq!(incoming.next(), Ok(Some(b"de".to_vec())));
        assert_eq!(incoming.next(), Ok(None));
        assert!(incoming.is_partial());
    }

    #[test]
    fn too_long_a_message_is_refused_before_its_end() {
        for rest in ["x", "x\0"] {
            let mut incoming = Incoming::default();
            incoming.push(&vec![b'x'; LARGEST]);
            assert_eq!(incoming.next(), Ok(None));
            incoming.push(rest.as_bytes());
            assert_eq!(incoming.next(), Err(()), "{rest:?}");
        }
    }

    #[test]
    fn only_calls_are_calls() {
        let deep = format!(r#"{{"method":"a.B","parameters":{{"x":{}{}}}}}"#, "[".repeat(200), "]".repeat(200));
        for noise in [
            "",
            "{}",
            "[]",
            "null",
            "\u{0}",
            r#"{"method":"a.B""#,
            r#"{"method":"NoDot"}"#,
            r#"{"method":7}"#,
            r#"{"method":"a.B","parameters":[]}"#,
            r#"{"method":"a.B","oneway":1}"#,
            r#"{"method":"a.B","oneway":true,"more":true}"#,
            r#"{"method":"a.B","upgrade":true}"#,
            r#"{"method":"a.B","other":true}"#,
            r#"{"method":"a.B"} {"method":"a.B"}"#,
            &deep,
        ] {
            assert!(Request::parse(noise.as_bytes()).is_none(), "{noise}");
        }
        assert!(Request::parse(b"{\"method\":\"a.B\",\"parameters\":{\"x\":\"\xff\"}}").is_none());
        let call = Request::parse(br#"{"method":"a.b.C","parameters":null,"more":true}"#).expect("a call");
        assert_eq!((call.name(), call.more, call.oneway), (("a.b", "C"), true, false));
    }

    #[test]
    fn parameters_are_typed_and_all_known() {
        let parameters = |text: &str| {
            let message = format!(r#"{{"method":"a.B","parameters":{text}}}"#);
            Request::parse(message.as_bytes()).expect("a call").parameters()
        };
        let mut p = parameters(r#"{"name":"x","empty":null,"n":-1}"#);
        assert_eq!(p.need::<String>("name"), Ok("x".into()));
        assert_eq!(p.get::<String>("empty"), Ok(None));
        assert_eq!(p.get::<u32>("n"), Err(Refusal::invalid("n")));
        assert_eq!(p.need::<String>("name"), Err(Refusal::invalid("name")));
        assert_eq!(p.finish(), Ok(()));
        assert_eq!(parameters(r#"{"other":1}"#).finish(), Err(Refusal::invalid("other")));
    }
}
