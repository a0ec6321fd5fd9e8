//! Asks the kernel about a network namespace over `rtnetlink(7)`.
//!
//! A socket stays in the namespace that it was made in, so a thread visits a machine only to open one. What comes
//! back is laid out by the kernel and filled by the machine: every length is checked.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send};

use super::{Context, Errno, Error, Result};

/// More addresses than this are not read: a machine can give itself as many as it likes.
pub const MOST_ADDRESSES: usize = 4096;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
/// `struct ifaddrmsg`: family, prefix, flags, scope, index.
const IFADDRMSG: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const SCOPE_HOST: u8 = 254;
const SCOPE_NOWHERE: u8 = 255;

/// An address that others may reach a host by. The order is that of `machinectl`: family, scope, link, bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// As in `rtnetlink(7)`; smaller reaches farther.
    pub scope: u8,
    /// Number of its link.
    pub link: u32,
    /// 4 or 16 bytes.
    pub bytes: Vec<u8>,
}

/// Opens a socket in the network namespace of the calling thread.
pub fn open() -> Result<OwnedFd> {
    let call = || "socket(NETLINK_ROUTE)".to_owned();
    let (flags, route) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
    let socket = nix::sys::socket::socket(AddressFamily::Netlink, SockType::Raw, flags, route).call(call)?;
    // Connected to the kernel, so that no process in the namespace can answer in its place.
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).call(|| "connect(NETLINK_ROUTE)".into())?;
    Ok(socket)
}

/// The addresses of the socket's namespace, sorted and each once, however many links have it.
///
/// Without those that are on their way in or out, and those that mean only the host itself.
pub fn addresses(socket: impl AsFd) -> Result<Vec<Address>> {
    const SEQUENCE: u32 = 1;
    let mut request = Vec::with_capacity(HEADER + IFADDRMSG);
    request.extend(u32::try_from(HEADER + IFADDRMSG).unwrap_or(0).to_ne_bytes());
    request.extend(RTM_GETADDR.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend(SEQUENCE.to_ne_bytes());
    request.extend([0; 4 + IFADDRMSG]);
    let fd = socket.as_fd().as_raw_fd();
    send(fd, &request, MsgFlags::empty()).call(|| "send(RTM_GETADDR)".into())?;
    let mut addresses = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match recv(fd, &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            other => other.call(|| "recv(RTM_GETADDR)".into())?,
        };
        if read_messages(&buffer[..length], &mut addresses)? || addresses.len() >= MOST_ADDRESSES {
            addresses.sort();
            let mut seen = HashSet::new();
            addresses.retain(|a| seen.insert((a.family, a.bytes.clone())));
            addresses.truncate(MOST_ADDRESSES);
            return Ok(addresses);
        }
    }
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// Splits off one block that begins with its own length and is padded to four bytes.
fn split_block(data: &[u8], length: usize, least: usize) -> Option<(&[u8], &[u8])> {
    let block = data.get(..length).filter(|_| length >= least)?;
    Some((block, data.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Reads one datagram; true at the end of the answer.
fn read_messages(mut data: &[u8], addresses: &mut Vec<Address>) -> Result<bool> {
    let broken = || Error { call: "recv(RTM_GETADDR)".into(), errno: Errno::EBADMSG };
    while !data.is_empty() {
        let length = u32_at(data, 0).and_then(|l| usize::try_from(l).ok()).ok_or_else(broken)?;
        let (message, rest) = split_block(data, length, HEADER).ok_or_else(broken)?;
        match u16_at(message, 4).ok_or_else(broken)? {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = u32_at(message, HEADER).ok_or_else(broken)?.cast_signed();
                return Err(Error { call: "RTM_GETADDR".into(), errno: Errno::from_raw(errno.wrapping_neg()) });
            }
            RTM_NEWADDR => addresses.extend(read_address(&message[HEADER..])),
            _ => {}
        }
        data = rest;
    }
    Ok(false)
}

fn read_address(message: &[u8]) -> Option<Address> {
    let (family, scope) = (*message.first()?, *message.get(3)?);
    let mut flags = u32::from(*message.get(2)?);
    let link = u32_at(message, 4)?;
    let (mut local, mut remote) = (None, None);
    let mut rest = message.get(IFADDRMSG..)?;
    while let Some(length) = u16_at(rest, 0) {
        let (attribute, tail) = split_block(rest, usize::from(length), 4)?;
        match u16_at(attribute, 2)? {
            IFA_LOCAL => local = Some(&attribute[4..]),
            IFA_ADDRESS => remote = Some(&attribute[4..]),
            IFA_FLAGS => flags = u32_at(attribute, 4)?,
            _ => {}
        }
        rest = tail;
    }
    // On a link between two the other attribute is the far end's.
    let bytes = local.or(remote)?;
    let size = match i32::from(family) {
        libc::AF_INET => 4,
        libc::AF_INET6 => 16,
        _ => return None,
    };
    let wanted = flags & (IFA_F_DEPRECATED | IFA_F_TENTATIVE) == 0 && ![SCOPE_HOST, SCOPE_NOWHERE].contains(&scope);
    (wanted && bytes.len() == size).then(|| Address { family, scope, link, bytes: bytes.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut block = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        block.extend(value);
        block.resize(block.len().next_multiple_of(4), 0);
        block
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).expect("short");
        let mut block = length.to_ne_bytes().to_vec();
        block.extend(kind.to_ne_bytes());
        block.extend([0; 10]);
        block.extend(body);
        block
    }

    fn address(family: u8, flags: u8, scope: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![family, 24, flags, scope];
        body.extend(7_u32.to_ne_bytes());
        body.extend(attributes.concat());
        message(RTM_NEWADDR, &body)
    }

    #[test]
    fn addresses_are_taken_that_others_can_use() {
        let plain = attribute(IFA_ADDRESS, &[10, 0, 0, 1]);
        let data = [
            address(2, 0, 0, &[attribute(IFA_ADDRESS, &[10, 0, 0, 9]), attribute(IFA_LOCAL, &[10, 0, 0, 1])]),
            address(2, 0, SCOPE_HOST, std::slice::from_ref(&plain)),
            address(2, 0, SCOPE_NOWHERE, std::slice::from_ref(&plain)),
            address(2, 0x20, 0, std::slice::from_ref(&plain)),
            address(2, 0, 0, &[plain.clone(), attribute(IFA_FLAGS, &IFA_F_TENTATIVE.to_ne_bytes())]),
            // The wide flags are the ones that count.
            address(2, 0x40, 0, &[attribute(IFA_FLAGS, &0_u32.to_ne_bytes()), plain]),
            address(10, 0, 253, &[attribute(IFA_ADDRESS, &[1; 16])]),
            address(10, 0, 253, &[attribute(IFA_ADDRESS, &[1; 4])]),
            address(1, 0, 0, &[attribute(IFA_ADDRESS, &[1; 4])]),
            message(NLMSG_DONE, &[0; 4]),
        ]
        .concat();
        let mut found = Vec::new();
        assert_eq!(read_messages(&data, &mut found), Ok(true));
        let four = Address { family: 2, scope: 0, link: 7, bytes: vec![10, 0, 0, 1] };
        let six = Address { family: 10, scope: 253, link: 7, bytes: vec![1; 16] };
        assert_eq!(found, [four.clone(), four, six]);
    }

    #[test]
    fn cve_2021_43784_lengths_that_do_not_fit_are_refused() {
        let whole = address(2, 0, 0, &[attribute(IFA_ADDRESS, &[1; 4])]);
        for length in 1..whole.len() {
            let mut found = Vec::new();
            assert!(read_messages(&whole[..length], &mut found).is_err(), "{length}");
            // The same with a header that fits: the attribute is cut instead.
            let mut cut = whole[..length].to_vec();
            if length >= HEADER {
                cut[..4].copy_from_slice(&u32::try_from(length).expect("short").to_ne_bytes());
                assert_eq!(read_messages(&cut, &mut found), Ok(false));
                assert_eq!(found, []);
            }
        }
        let mut endless = whole;
        endless[HEADER + IFADDRMSG..HEADER + IFADDRMSG + 2].copy_from_slice(&0_u16.to_ne_bytes());
        let mut found = Vec::new();
        assert_eq!(read_messages(&endless, &mut found), Ok(false));
        assert_eq!(found, []);
    }

    #[test]
    fn the_kernel_answers_with_our_own_addresses() {
        let found = addresses(open().expect("socket")).expect("answer");
        assert!(found.iter().all(|a| a.scope < SCOPE_HOST && a.link > 0), "{found:?}");
        assert!(found.is_sorted());
    }
}
