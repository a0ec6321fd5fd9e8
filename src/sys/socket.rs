//! Sockets: SEQPACKET pairs that carry messages and descriptors, and the notification socket.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg,
    setsockopt, socket, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::{Context, Errno, Error, Result};

/// Most descriptors one message carries.
pub const MAX_FDS: usize = 8;

/// A connected pair on which each message arrives whole or not at all.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .call(|| "socketpair(SOCK_SEQPACKET)".into())
}

/// Sends one message with descriptors; a vanished reader is EPIPE, never a signal.
pub fn send(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    send_some(socket, data, fds).map(drop)
}

/// The same on a stream, which may take only some of the bytes; returns how many. The descriptors go with the first.
pub fn send_some(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let slices = [IoSlice::new(data)];
    loop {
        match sendmsg::<()>(socket.as_fd().as_raw_fd(), &slices, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) => return Ok(sent),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error { call: format!("sendmsg({} bytes)", data.len()), errno }),
        }
    }
}

/// One received message.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes of the message that fitted; 0 at the end of the connection.
    pub len: usize,
    /// The message was longer, and its rest is lost.
    pub truncated: bool,
    /// Descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Process id of the sender in our namespace, if credentials were requested.
    pub sender: core::option::Option<i32>,
}

/// Receives one message into `buffer`; blocks unless the socket is non-blocking.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS], nix::libc::ucred);
    let mut slices = [IoSliceMut::new(buffer)];
    loop {
        let fd = socket.as_fd().as_raw_fd();
        match recvmsg::<()>(fd, &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let truncated = message.flags.contains(MsgFlags::MSG_TRUNC);
                let mut received = Received { len: message.bytes, truncated, ..Received::default() };
                for part in message.cmsgs().call(|| "recvmsg(control)".into())? {
                    match part {
                        ControlMessageOwned::ScmRights(raw) => {
                            // SAFETY: the kernel just made these descriptors for us and nothing else knows them.
                            received.fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                        }
                        ControlMessageOwned::ScmCredentials(who) => received.sender = Some(who.pid()),
                        _ => {}
                    }
                }
                return Ok(received);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error { call: "recvmsg".into(), errno }),
        }
    }
}

/// A datagram socket, not yet bound, that reports who sent what: PID 1 of the machine notifies through it.
pub fn notify_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None).call(|| "socket(SOCK_DGRAM)".into())?;
    setsockopt(&fd, sockopt::PassCred, &true).call(|| "setsockopt(SO_PASSCRED)".into())?;
    Ok(fd)
}

/// Binds `socket` to `name` inside the directory `dir`, however long the directory's path is.
pub fn bind_in(socket: impl AsFd, dir: impl AsFd, name: &str) -> Result<()> {
    let path = format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd());
    let address = UnixAddr::new(path.as_str()).call(|| format!("address '{name}'"))?;
    nix::sys::socket::bind(socket.as_fd().as_raw_fd(), &address).call(|| format!("bind('{name}')"))
}

/// Listens on a SEQPACKET socket `name` in `dir`; only those who may write the file can connect.
pub fn listen_in(dir: impl AsFd, name: &str) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).call(|| "socket(SOCK_SEQPACKET)".into())?;
    bind_in(&fd, dir, name)?;
    let backlog = nix::sys::socket::Backlog::new(16).call(|| "listen".into())?;
    nix::sys::socket::listen(&fd, backlog).call(|| format!("listen('{name}')"))?;
    Ok(fd)
}

/// Listens on a stream socket `name` in `dir` that every user may connect to, in place of whatever has the name.
pub fn listen_stream_in(dir: impl AsFd, name: &str) -> Result<OwnedFd> {
    use rustix::fs::{AtFlags, Mode, chmodat, renameat, unlinkat};
    let dir = dir.as_fd();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).call(|| "socket(SOCK_STREAM)".into())?;
    // Under another name first: it is there for others only when it can be used.
    let temporary = format!(".#{name}");
    let _ = unlinkat(dir, &temporary, AtFlags::empty());
    bind_in(&fd, dir, &temporary)?;
    chmodat(dir, &temporary, Mode::from_raw_mode(0o666), AtFlags::empty()).call(|| format!("chmod('{temporary}')"))?;
    let backlog = nix::sys::socket::Backlog::new(128).call(|| "listen".into())?;
    nix::sys::socket::listen(&fd, backlog).call(|| format!("listen('{name}')"))?;
    renameat(dir, &temporary, dir, name).call(|| format!("rename('{temporary}', '{name}')"))?;
    Ok(fd)
}

/// Path that a socket of the UNIX family was bound to; `None` for others.
pub fn bound_to(socket: impl AsFd) -> core::option::Option<std::path::PathBuf> {
    let address: UnixAddr = nix::sys::socket::getsockname(socket.as_fd().as_raw_fd()).ok()?;
    address.path().map(std::path::Path::to_owned)
}

/// Accepts one connection, whose reads block unless set otherwise; `None` if no client is waiting.
pub fn accept(listener: impl AsFd) -> Result<core::option::Option<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match nix::sys::socket::accept4(listener.as_fd().as_raw_fd(), flags) {
        // SAFETY: a new descriptor that nothing else owns.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
        Err(errno) => Err(Error { call: "accept4".into(), errno }),
    }
}

/// Connects to the SEQPACKET socket `name` in `dir`.
pub fn connect_in(dir: impl AsFd, name: &str) -> Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .call(|| "socket(SOCK_SEQPACKET)".into())?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd());
    let address = UnixAddr::new(path.as_str()).call(|| format!("address '{name}'"))?;
    nix::sys::socket::connect(fd.as_raw_fd(), &address).call(|| format!("connect('{name}')"))?;
    Ok(fd)
}

/// The process that connected a socket, as the kernel remembers it.
#[derive(Debug)]
pub struct Peer {
    /// Its effective user then.
    pub uid: u32,
    /// Its number in our namespace, 0 if it is in none that we see.
    pub pid: i32,
    /// A hold on the process, so that no later one is taken for it; `None` if it has ended.
    pub pidfd: core::option::Option<OwnedFd>,
}

/// Asks who is at the other end of a connected socket of the UNIX family.
///
/// Before Linux 6.5 the pidfd is opened by number, and a process that took the number in between is mistaken.
pub fn peer(socket: impl AsFd) -> Result<Peer> {
    let socket = socket.as_fd();
    let told = nix::sys::socket::getsockopt(&socket, sockopt::PeerCredentials);
    let told = told.call(|| "getsockopt(SO_PEERCRED)".into())?;
    let pid = told.pid();
    let pidfd = match nix::sys::socket::getsockopt(&socket, sockopt::PeerPidfd) {
        Err(Errno::ENOPROTOOPT) if pid > 0 => super::process::pidfd_open(nix::unistd::Pid::from_raw(pid)).ok(),
        other => other.ok(),
    };
    Ok(Peer { uid: told.uid(), pid, pidfd })
}

/// Connects to a stream socket, `address` being a path or `@` and an abstract name; never waits.
///
/// A listener whose queue is full is EAGAIN. The peer's credentials for this connection are the caller's for good,
/// whichever process uses the descriptor afterwards (`unix(7)`, `SO_PEERCRED`).
pub fn connect_stream(address: &str) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).call(|| "socket(SOCK_STREAM)".into())?;
    let to = unix_address(address)?;
    nix::sys::socket::connect(fd.as_raw_fd(), &to).call(|| format!("connect('{address}')"))?;
    Ok(fd)
}

/// A socket's address: a path, or `@` and an abstract name.
fn unix_address(address: &str) -> Result<UnixAddr> {
    let to = match address.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()),
        None => UnixAddr::new(address),
    };
    to.call(|| format!("address '{address}'"))
}

/// Takes the `count` descriptors from number 3 on, which the service manager passed (`sd_listen_fds(3)`).
///
/// Only for the beginning of a program whose `LISTEN_PID` is its own number: no other code may use them yet.
/// Those that are not open are left out; all are close-on-exec from then on.
pub fn take_passed(count: u32) -> Vec<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let mut fds = Vec::new();
    for number in (3..).take(usize::try_from(count).unwrap_or(0)) {
        // SAFETY: only looked at, and nothing closes it meanwhile.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        if fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {
            continue;
        }
        // SAFETY: it is open, and was given to this process to own.
        fds.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    fds
}

/// Sends a datagram to the service manager's socket `address` (a path or `@abstract`), as `sd_notify(3)` does.
pub fn notify(address: &str, text: &str) -> Result<()> {
    let fd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .call(|| "socket(SOCK_DGRAM)".into())?;
    // Its queue holds few messages, and we must not wait without limit for a receiver that does not read them.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(5)).call(|| "setsockopt(SO_SNDTIMEO)".into())?;
    let to = unix_address(address)?;
    let slices = [IoSlice::new(text.as_bytes())];
    sendmsg(fd.as_raw_fd(), &slices, &[], MsgFlags::MSG_NOSIGNAL, Some(&to))
        .call(|| format!("sendmsg('{address}')"))
        .map(drop)
}
