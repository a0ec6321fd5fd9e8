//! Who asks.

use std::sync::Arc;

use crate::sys::socket::Peer;

/// Where a request came from.
#[derive(Debug, Clone)]
pub(crate) enum Sender {
    /// A connection of the bus, by its unique name. The bus knows whose it is.
    Bus(String),
    /// The process at the other end of a socket.
    Process(Arc<Peer>),
}

/// Who asks, and whether polkit may ask back.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) sender: Sender,
    /// Whether the caller is ready to answer questions of polkit.
    pub(crate) interactive: bool,
}

/// The user and the process behind a caller, as the bus or the kernel knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) pid: i32,
    /// In the group that may read.
    pub(crate) reader: bool,
}
