//! What the supervisor and its two children say to each other while a machine is made, and in which order.
//!
//! One SEQPACKET pair between the supervisor and both children, another between the two children; one datagram
//! is one message. End of file after [`Go`](ToInner::Go) means that the payload has been executed, because
//! every other copy of the children's end is closed by then.
//!
//! ```text
//! supervisor            outer child                      inner child
//!    | -- clone3 ---------> |                                 |
//!    |                      | -- clone3 (sibling) ----------> |
//!    |                      |    writes the id maps           |
//!    |                      | -- Mapped --------------------> |  makes proc, sysfs, devpts ...
//!    |                      |    builds the root              |
//!    |                      | <- Api (descriptors) ---------- |
//!    |                      |    mounts, masks, pivots        |
//!    |                      | -- Entered(init) -------------> |  own mount namespace: all is locked
//!    | <- Ready (+ master) -|                                 |
//!    |  state file, log     `- exits                          |  host name, terminal
//!    | -- Go ----------------------------------------------> |  limits, filter, exec
//!    | <- end of file, or Failed ---------------------------- |  (the stub of a command: Waiting, then these)
//! ```
//!
//! Each of the three has a [`Sequence`], which knows what may come next: [`send`] and [`receive`] go through it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::spec::InitKind;
use crate::sys::{self, Errno, StepError, channel};

/// From either child to the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromChild {
    /// The root is complete; the console's master comes along. Sent by the outer child.
    Ready {
        /// The leader's process id as the host sees it.
        leader: i32,
        /// Path of the init that will be executed, if it is one.
        init: Option<String>,
        /// Its kind, if we know it.
        kind: Option<InitKind>,
    },
    /// The stub of a command has begun to wait for it. Sent by the inner child, which never executes a program
    /// then.
    Waiting,
    /// A step failed; the sender is about to exit.
    Failed(StepError),
}

/// Between the two children.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Between {
    /// To the inner child: your ids are mapped.
    Mapped,
    /// To the outer child: the file systems of the machine's namespaces, one descriptor each.
    Api {
        /// There is a sysfs, as the network is the machine's own.
        sysfs: bool,
    },
    /// To the inner child: the root is complete and is your root; execute this init, of this kind.
    Entered(Option<String>, Option<InitKind>),
}

/// From the supervisor to the inner child.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInner {
    /// The host is done with you: execute the payload.
    Go,
}

/// How far a handshake is: each phase begins with the message of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing has been said.
    Begun,
    /// The inner child has its ids. It makes its network namespace beside that: a message that this exists belongs here, so
    /// that the host's side of links is made while the root is built.
    Mapped,
    /// The file systems of the machine's namespaces are with the outer child.
    Api,
    /// The root is complete.
    Entered,
    /// The supervisor knows the leader. Hooks that run before the start of the payload belong here.
    Ready,
    /// The inner child drops its rights. The descriptor of a filter that notifies (`SECCOMP_RET_USER_NOTIF`) is made here, and
    /// would be sent to the supervisor before the payload is executed.
    Go,
    /// The stub of a command waits for it.
    Waiting,
    /// It is over: the payload has been executed, or a process has ended before that.
    Closed,
    /// It is over: a step has failed.
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("end of file"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// One of those that take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The supervisor.
    Supervisor,
    /// The child with the rights of the host.
    Outer,
    /// The child that becomes the leader.
    Inner,
}

impl Party {
    /// The messages that it sends or receives, in their order.
    fn messages(self) -> &'static [Phase] {
        use Phase::{Api, Entered, Go, Mapped, Ready, Waiting};
        match self {
            Self::Supervisor => &[Ready, Go, Waiting],
            Self::Outer => &[Mapped, Api, Entered, Ready],
            Self::Inner => &[Mapped, Api, Entered, Go, Waiting],
        }
    }
}

/// A handshake as one party sees it. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    party: Party,
    phase: Phase,
}

impl Sequence {
    /// Nothing has been said yet.
    pub fn new(party: Party) -> Self {
        Self { party, phase: Phase::Begun }
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes the message that `phase` begins with, sent or received; an error if it is not its turn.
    ///
    /// A connection can end, and a step fail, at any time before that.
    pub fn advance(&mut self, phase: Phase) -> sys::Result<()> {
        let due = match self.phase {
            Phase::Closed | Phase::Failed => None,
            now => self.party.messages().iter().find(|next| **next > now),
        };
        let ends = matches!(phase, Phase::Closed | Phase::Failed);
        if Some(&phase) == due || ends && self.phase < Phase::Closed {
            self.phase = phase;
            return Ok(());
        }
        let due = due.map_or("nothing".to_owned(), ToString::to_string);
        Err(sys::Error { call: format!("handshake: {phase} where {due} is due"), errno: Errno::EPROTO })
    }
}

/// A message of a handshake.
pub trait Message: Serialize + DeserializeOwned {
    /// The phase it begins.
    fn begins(&self) -> Phase;
}

impl Message for FromChild {
    fn begins(&self) -> Phase {
        match self {
            Self::Ready { .. } => Phase::Ready,
            Self::Waiting => Phase::Waiting,
            Self::Failed(_) => Phase::Failed,
        }
    }
}

impl Message for Between {
    fn begins(&self) -> Phase {
        match self {
            Self::Mapped => Phase::Mapped,
            Self::Api { .. } => Phase::Api,
            Self::Entered(..) => Phase::Entered,
        }
    }
}

impl Message for ToInner {
    fn begins(&self) -> Phase {
        match self {
            Self::Go => Phase::Go,
        }
    }
}

/// Sends a message if it is its turn.
pub fn send<M: Message>(
    sequence: &mut Sequence,
    socket: impl AsFd,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> sys::Result<()> {
    sequence.advance(message.begins())?;
    channel::send(socket, message, fds)
}

/// Receives the message whose turn it is; `None` at the end of the connection.
pub fn receive<M: Message>(sequence: &mut Sequence, socket: impl AsFd) -> sys::Result<Option<(M, Vec<OwnedFd>)>> {
    let received = channel::receive::<M>(socket)?;
    sequence.advance(received.as_ref().map_or(Phase::Closed, |(message, _)| message.begins()))?;
    Ok(received)
}

/// The places at which a test may have a process die, in the order of the drawing above.
pub const STEPS: [&str; 14] = [
    "supervisor:prepared",
    "outer:started",
    "outer:cloned",
    "outer:mapped",
    "outer:root",
    "outer:mounts",
    "outer:entered",
    "inner:started",
    "inner:api",
    "supervisor:ready",
    "inner:entered",
    "inner:go",
    "inner:limited",
    "supervisor:running",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;

    const PHASES: [Phase; 9] = [
        Phase::Begun,
        Phase::Mapped,
        Phase::Api,
        Phase::Entered,
        Phase::Ready,
        Phase::Go,
        Phase::Waiting,
        Phase::Closed,
        Phase::Failed,
    ];

    #[test]
    fn only_the_next_message_an_end_or_a_failure_may_come() {
        use Phase::{Api, Begun, Closed, Entered, Failed, Go, Mapped, Ready, Waiting};
        // A phase, and what may follow it.
        let supervisor: &[(Phase, &[Phase])] = &[
            (Begun, &[Ready, Closed, Failed]),
            (Ready, &[Go, Closed, Failed]),
            (Go, &[Waiting, Closed, Failed]),
            (Waiting, &[Closed, Failed]),
            (Closed, &[]),
            (Failed, &[]),
        ];
        let outer: &[(Phase, &[Phase])] = &[
            (Begun, &[Mapped, Closed, Failed]),
            (Mapped, &[Api, Closed, Failed]),
            (Api, &[Entered, Closed, Failed]),
            (Entered, &[Ready, Closed, Failed]),
            (Ready, &[Closed, Failed]),
            (Closed, &[]),
            (Failed, &[]),
        ];
        let inner: &[(Phase, &[Phase])] = &[
            (Begun, &[Mapped, Closed, Failed]),
            (Mapped, &[Api, Closed, Failed]),
            (Api, &[Entered, Closed, Failed]),
            (Entered, &[Go, Closed, Failed]),
            (Go, &[Waiting, Closed, Failed]),
            (Waiting, &[Closed, Failed]),
            (Closed, &[]),
            (Failed, &[]),
        ];
        let table = [(Party::Supervisor, supervisor), (Party::Outer, outer), (Party::Inner, inner)];
        for (party, rows) in table {
            for (phase, allowed) in rows {
                for next in PHASES {
                    let mut sequence = Sequence { party, phase: *phase };
                    let taken = sequence.advance(next);
                    assert_eq!(taken.is_ok(), allowed.contains(&next), "{party:?}: {next:?} after {phase:?}");
                    assert_eq!(sequence.phase(), if taken.is_ok() { next } else { *phase });
                }
            }
        }
    }

    #[test]
    fn whole_handshakes_are_taken_by_each_party() {
        use Phase::{Api, Closed, Entered, Go, Mapped, Ready, Waiting};
        for (party, order) in [
            (Party::Supervisor, &[Ready, Go, Closed][..]),
            (Party::Supervisor, &[Ready, Go, Waiting, Closed]),
            (Party::Outer, &[Mapped, Api, Entered, Ready]),
            (Party::Inner, &[Mapped, Api, Entered, Go]),
            (Party::Inner, &[Mapped, Api, Entered, Go, Waiting]),
        ] {
            let mut sequence = Sequence::new(party);
            for phase in order {
                sequence.advance(*phase).expect("its turn");
            }
        }
    }

    #[test]
    fn a_message_out_of_order_is_named_with_the_one_that_is_due() {
        let (ours, theirs) = socket::pair().expect("pair");
        channel::send(&theirs, &FromChild::Waiting, &[]).expect("send");
        let mut sequence = Sequence::new(Party::Supervisor);
        let error = receive::<FromChild>(&mut sequence, &ours).expect_err("not its turn");
        assert_eq!(error.to_string(), "handshake: Waiting where Ready is due: Protocol error");
        let error = send(&mut sequence, &ours, &ToInner::Go, &[]).expect_err("not its turn");
        assert_eq!(error.to_string(), "handshake: Go where Ready is due: Protocol error");
        drop(theirs);
        assert!(receive::<FromChild>(&mut sequence, &ours).expect("an end").is_none());
        let error = sequence.advance(Phase::Ready).expect_err("over");
        assert_eq!(error.to_string(), "handshake: Ready where nothing is due: Protocol error");
    }
}
