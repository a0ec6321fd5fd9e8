//! When a machine counts as ready: a word of its init, or a check that is repeated until it succeeds.
//!
//! A check is a process of its own, watched by the poll loop like everything else: a program in the machine
//! ([`crate::enter`]), or a child of ours that connects to a port in the machine's network. One that hangs is killed
//! when its time is up, and dropping it kills it at once, so that it holds nothing up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use crate::enter::{self, Command, Outcome, Stdio};
use crate::running::state::State;
use crate::spec::{InitKind, Ready};
use crate::sys::process::{self, Ended, ns};
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, Errno, netlink};

/// How long a program may take until it is killed and run again.
const PROGRAM_LIMIT: Duration = Duration::from_secs(10);

/// The same for a connection to every address of the machine.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);

/// How long one address may take.
const ADDRESS_LIMIT: Duration = Duration::from_secs(1);

/// Pauses between two attempts grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What is still to happen before a machine counts as ready.
#[derive(Debug)]
pub(super) enum Awaited {
    /// Nothing.
    Nothing,
    /// `READY=1` of its init.
    Notice,
    /// A check that succeeds.
    Check(Box<Check>),
}

/// A check and where it stands.
#[derive(Debug)]
pub(super) struct Check {
    what: What,
    attempt: Option<Attempt>,
    next: Instant,
    pause: Duration,
    /// Why the last attempt failed.
    failure: Option<String>,
}

#[derive(Debug)]
enum What {
    Program(Vec<String>),
    Port(u16),
}

/// A check under way.
#[derive(Debug)]
enum Attempt {
    Program(enter::Running),
    Connection(Connecting),
}

impl Awaited {
    /// What `ready` means for a machine with this init.
    pub(super) fn new(ready: &Ready, init: Option<InitKind>) -> Self {
        let check = |what| {
            let check = Check { what, attempt: None, next: Instant::now(), pause: PAUSES.0, failure: None };
            Self::Check(Box::new(check))
        };
        match ready {
            Ready::Notify => Self::Notice,
            Ready::Auto if init == Some(InitKind::Systemd) => Self::Notice,
            Ready::Auto | Ready::Started => Self::Nothing,
            Ready::Exec(argv) => check(What::Program(argv.clone())),
            Ready::Port(port) => check(What::Port(*port)),
        }
    }

    /// Whether a word of its init is all that is missing.
    pub(super) fn is_notice(&self) -> bool {
        matches!(self, Self::Notice)
    }

    /// What is waited for, in words; `None` if nothing is.
    pub(super) fn describe(&self) -> Option<String> {
        let check = match self {
            Self::Nothing => return None,
            Self::Notice => return Some("its init to say that it is ready".into()),
            Self::Check(check) => check,
        };
        let what = match &check.what {
            What::Program(argv) => format!("`{}` to succeed", argv.join(" ")),
            What::Port(port) => format!("TCP port {port} to answer"),
        };
        let text = check.failure.as_ref().map_or_else(|| what.clone(), |why| format!("{what}; last: {why}"));
        // It holds words of the machine's.
        Some(text.chars().filter(|c| !c.is_control()).take(400).collect())
    }

    /// What [`Self::step`] waits for, if there is a descriptor for it.
    pub(super) fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        let Self::Check(check) = self else { return None };
        check.attempt.as_ref().map(Attempt::poll_fd)
    }

    /// When [`Self::step`] has something to do in any case.
    pub(super) fn due(&self) -> Option<Instant> {
        let Self::Check(check) = self else { return None };
        match &check.attempt {
            None => Some(check.next),
            Some(attempt) => attempt.deadline(),
        }
    }

    /// Goes on with a check as far as that is possible without waiting; true when it has succeeded.
    pub(super) fn step(&mut self, state: &State, leader: BorrowedFd<'_>) -> bool {
        let Self::Check(check) = self else { return false };
        let now = Instant::now();
        if check.attempt.is_none() && check.next <= now {
            match check.begin(state, leader) {
                Ok(attempt) => check.attempt = Some(attempt),
                Err(why) => check.fail(why),
            }
        }
        match check.attempt.as_mut().and_then(Attempt::step) {
            None => false,
            Some(Ok(())) => {
                check.attempt = None;
                true
            }
            Some(Err(why)) => {
                check.fail(why);
                false
            }
        }
    }
}

impl Check {
    fn begin(&self, state: &State, leader: BorrowedFd<'_>) -> Result<Attempt, String> {
        match &self.what {
            What::Program(argv) => {
                let (rights, group) = (state.rights(), state.payload_group());
                let target = state.target(leader, &group, &rights);
                let command = Command {
                    argv: argv.clone(),
                    stdio: Stdio::Null,
                    timeout: Some(PROGRAM_LIMIT),
                    ..Command::default()
                };
                enter::start(&target, &command).map(Attempt::Program).map_err(|e| e.to_string())
            }
            What::Port(port) => {
                let network = state.private_network.then_some(leader);
                Connecting::begin(network, *port).map(Attempt::Connection).map_err(|e| e.to_string())
            }
        }
    }

    /// Notes why there must be another attempt, and when that is.
    fn fail(&mut self, why: String) {
        self.attempt = None;
        self.failure = Some(why);
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSES.1);
    }
}

impl Attempt {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Program(running) => running.poll_fd(),
            Self::Connection(connecting) => connecting.child.as_fd(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Program(running) => running.deadline(),
            Self::Connection(connecting) => Some(connecting.deadline),
        }
    }

    /// How it went; `None` while it goes on.
    fn step(&mut self) -> Option<Result<(), String>> {
        match self {
            Self::Program(running) => match running.step() {
                Ok(None) => None,
                Ok(Some(Outcome::TimedOut)) => Some(Err(format!("killed after {}s", PROGRAM_LIMIT.as_secs()))),
                Ok(Some(Outcome::Ended(Ended::Exited(0)))) => Some(Ok(())),
                Ok(Some(Outcome::Ended(Ended::Exited(status)))) => Some(Err(format!("status {status}"))),
                Ok(Some(Outcome::Ended(Ended::Killed(signal)))) => Some(Err(format!("killed by signal {signal}"))),
                Err(error) => Some(Err(error.to_string())),
            },
            Self::Connection(connecting) => connecting.step(),
        }
    }
}

/// A child of ours that tries to connect to a port of the machine and exits with 0 or an errno.
#[derive(Debug)]
struct Connecting {
    child: Child,
    deadline: Instant,
}

impl Connecting {
    /// `network` is a process whose network it is, unless that is ours.
    fn begin(network: Option<BorrowedFd<'_>>, port: u16) -> sys::Result<Self> {
        let kept: Vec<BorrowedFd<'_>> = network.into_iter().collect();
        // Locks and the console are not to outlive the supervisor by a moment.
        let worker = Worker::new(c"machinist-port").tied().kill_on_drop().keep(&kept);
        let child = worker.spawn(|| {
            let entered = network.map_or(Ok(()), |leader| process::setns(leader, ns::NET));
            let result = entered.and_then(|()| connect(port));
            result.err().map_or(0, |e| u8::try_from(e.errno as i32).unwrap_or(u8::MAX))
        })?;
        Ok(Self { child, deadline: Instant::now() + CONNECTION_LIMIT })
    }

    fn step(&mut self) -> Option<Result<(), String>> {
        Some(match self.child.try_wait() {
            Ok(Some(Ended::Exited(0))) => Ok(()),
            Ok(Some(Ended::Exited(errno))) => Err(Errno::from_raw(errno.into()).desc().to_owned()),
            Ok(Some(Ended::Killed(signal))) => Err(format!("killed by signal {signal}")),
            Ok(None) if Instant::now() < self.deadline => return None,
            Ok(None) => Err(format!("no answer within {}s", CONNECTION_LIMIT.as_secs())),
            Err(error) => Err(error.to_string()),
        })
    }
}

/// Connects to the first address that answers; else gives the error of the first one, the loopback link's.
fn connect(port: u16) -> sys::Result<()> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut first = None;
    // Asked only when it matters. A network that cannot be asked has its loopback link, if anything.
    let others = std::iter::once_with(|| netlink::open().and_then(netlink::addresses).unwrap_or_default()).flatten();
    let addresses = loopback.map(|ip| SocketAddr::new(ip, port)).into_iter();
    for address in addresses.chain(others.filter_map(|address| socket_address(&address, port))) {
        match TcpStream::connect_timeout(&address, ADDRESS_LIMIT) {
            Ok(_) => return Ok(()),
            Err(e) => drop(first.get_or_insert(e)),
        }
    }
    let errno = match first.as_ref().map(|e| (e.raw_os_error(), e.kind())) {
        Some((Some(raw), _)) => Errno::from_raw(raw),
        Some((None, std::io::ErrorKind::TimedOut)) => Errno::ETIMEDOUT,
        _ => Errno::EIO,
    };
    Err(sys::Error { call: format!("connect(port {port})"), errno })
}

fn socket_address(address: &netlink::Address, port: u16) -> Option<SocketAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(&*address.bytes) {
        return Some(SocketAddr::new(four.into(), port));
    }
    let six = <[u8; 16]>::try_from(&*address.bytes).ok()?;
    // Addresses of a link alone mean nothing without its number.
    Some(SocketAddrV6::new(six.into(), port, 0, address.link).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_systemd_is_waited_for_unless_something_is_asked() {
        let awaited = |ready, init| Awaited::new(&ready, init).describe();
        assert_eq!(awaited(Ready::Auto, Some(InitKind::Busybox)), None);
        assert_eq!(awaited(Ready::Started, Some(InitKind::Systemd)), None);
        let notice = Some("its init to say that it is ready".to_owned());
        assert_eq!(awaited(Ready::Auto, Some(InitKind::Systemd)), notice);
        assert_eq!(awaited(Ready::Notify, None), notice);
        assert_eq!(awaited(Ready::Port(80), None).as_deref(), Some("TCP port 80 to answer"));
        let exec = Ready::Exec(vec!["/bin/a".into(), "b\u{1b}".into()]);
        assert_eq!(awaited(exec, None).as_deref(), Some("`/bin/a b` to succeed"));
    }

    #[test]
    fn pauses_grow_up_to_a_second() {
        let mut check =
            Check { what: What::Port(1), attempt: None, next: Instant::now(), pause: PAUSES.0, failure: None };
        let pauses: Vec<u128> = (0..6)
            .map(|_| {
                let pause = check.pause.as_millis();
                check.fail("no".into());
                pause
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(Awaited::Check(Box::new(check)).describe().as_deref(), Some("TCP port 1 to answer; last: no"));
    }

    #[test]
    fn a_port_answers_by_either_family_or_not_at_all() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else {
                assert!(address.starts_with('['), "every host has the older family");
                continue;
            };
            let port = listener.local_addr().expect("bound").port();
            assert_eq!(connect(port), Ok(()), "{address}");
            drop(listener);
            let refused = connect(port).expect_err("no listener");
            assert_eq!(refused.errno, Errno::ECONNREFUSED, "{address}");
        }
    }
}
