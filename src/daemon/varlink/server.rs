//! The sockets and their clients: accepts, receives, has calls answered, sends.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use zruntime::{AsyncIo, Shared, Task};

use super::context::Context;
use super::interfaces::{self, Service};
use super::wire::{self, Answer, Incoming, Refusal, Reply, Request};
use super::{images, machines, users};
use crate::daemon::core::caller::{Caller, Sender};
use crate::daemon::core::state::{Daemon, Level, lock};
use crate::sys::file;
use crate::sys::{self, Context as _, Errno, socket};

/// Connections at once, of all users together and of each but root; fewer if the limit of open files is low.
const CONNECTIONS: usize = 1024;
/// See [`CONNECTIONS`].
const CONNECTIONS_OF_USER: usize = 128;
/// How long a client may take to finish a message that it began, or to take in an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Name under which a service manager passes sockets (`FileDescriptorName=`).
const PASSED: &str = "varlink";

/// Sockets that are served until this is dropped.
#[derive(Debug)]
pub(crate) struct Sockets {
    tasks: Vec<Task<(), Shared>>,
    /// Those that we made, with device and inode.
    made: Vec<(PathBuf, (u64, u64))>,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.tasks.clear();
        for (path, id) in &self.made {
            // Another daemon may have put its own there since.
            if identity(path) == Some(*id) {
                let _ = file::remove(path);
            }
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    file::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Makes the sockets if `own`, takes those that the service manager passed, and serves them.
///
/// What cannot be served costs a line, not the daemon: D-Bus has most of it too.
pub(crate) fn serve(daemon: &Arc<Daemon>, passed: Vec<(String, OwnedFd)>, own: bool) -> Sockets {
    let mut sockets = Sockets { tasks: Vec::new(), made: Vec::new() };
    let connections: Arc<Mutex<HashMap<u32, usize>>> = Arc::default();
    let (machines, users) = (daemon.layout.machine_sockets(), daemon.layout.user_sockets());
    let mut wanted = vec![
        (machines.join("io.systemd.Machine"), Service::Machines),
        (machines.join("io.systemd.MachineImage"), Service::Machines),
        (users.join("io.systemd.Machine"), Service::Users),
    ];
    let mut listeners = Vec::new();
    for (name, fd) in passed {
        if name != PASSED {
            continue;
        }
        let path = socket::bound_to(&fd);
        let service =
            if path.as_ref().is_some_and(|p| p.starts_with(&users)) { Service::Users } else { Service::Machines };
        wanted.retain(|(made, _)| path.as_ref() != Some(made));
        listeners.push((service, fd));
    }
    if !own {
        wanted.clear();
    }
    for (path, service) in wanted {
        match listen(&path) {
            Ok(fd) => {
                sockets.made.extend(identity(&path).map(|id| (path, id)));
                listeners.push((service, fd));
            }
            Err(e) => daemon.say(Level::Warning, &format!("Cannot serve '{}': {e}.", path.display())),
        }
    }
    for (service, fd) in listeners {
        let accepting = accept(Arc::clone(daemon), service, fd, Arc::clone(&connections));
        sockets.tasks.push(daemon.runtime.spawn("varlink", accepting));
    }
    sockets
}

fn listen(path: &Path) -> sys::Result<OwnedFd> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Err(sys::Error { call: format!("listen('{}')", path.display()), errno: Errno::EINVAL });
    };
    file::make_dirs(dir)?;
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open('{}')", dir.display()))?;
    socket::listen_stream_in(dir, name)
}

/// The place of a connection among the others, given back when it ends.
#[derive(Debug)]
struct Place {
    connections: Arc<Mutex<HashMap<u32, usize>>>,
    uid: u32,
}

impl Place {
    /// A place for one of `uid`, if there is one left.
    fn take(connections: &Arc<Mutex<HashMap<u32, usize>>>, uid: u32) -> Option<Self> {
        let mut counts = lock(connections);
        let all: usize = counts.values().sum();
        let own = counts.entry(uid).or_default();
        let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        // Each has its socket and its pidfd, and there are machines besides.
        let most = usize::try_from(files / 4).unwrap_or(CONNECTIONS).min(CONNECTIONS);
        if all >= most || uid != 0 && *own >= CONNECTIONS_OF_USER {
            return None;
        }
        *own += 1;
        Some(Self { connections: Arc::clone(connections), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.connections);
        if let Some(own) = counts.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

async fn accept(daemon: Arc<Daemon>, service: Service, fd: OwnedFd, connections: Arc<Mutex<HashMap<u32, usize>>>) {
    let Ok(listener) = AsyncIo::<_, Shared>::new(&daemon.runtime, fd) else { return };
    loop {
        let accepted = listener.read_with(|fd| socket::accept(fd).map_err(from_errno)?.ok_or_else(would_block)).await;
        let Ok(stream) = accepted else {
            // No descriptors or no memory: both may come back.
            daemon.runtime.sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(peer) = socket::peer(&stream) else { continue };
        // For a client without a place, the end of the connection is the answer.
        let Some(place) = Place::take(&connections, peer.uid) else { continue };
        let Ok(stream) = AsyncIo::<_, Shared>::new_nonblocking(&daemon.runtime, stream) else { continue };
        let connection =
            Connection { daemon: Arc::clone(&daemon), service, stream, peer: Arc::new(peer), _place: place };
        daemon.runtime.spawn("varlink client", connection.run()).detach();
    }
}

fn from_errno(e: sys::Error) -> std::io::Error {
    std::io::Error::from_raw_os_error(e.errno as i32)
}

fn would_block() -> std::io::Error {
    std::io::ErrorKind::WouldBlock.into()
}

/// One client.
struct Connection {
    daemon: Arc<Daemon>,
    service: Service,
    stream: AsyncIo<OwnedFd, Shared>,
    peer: Arc<socket::Peer>,
    _place: Place,
}

impl Connection {
    /// Answers call after call, in their order; what breaks the rules ends the connection.
    async fn run(self) {
        let mut incoming = Incoming::default();
        while let Some(message) = self.receive(&mut incoming).await {
            let Some(mut request) = Request::parse(&message) else { return };
            *lock(&self.daemon.last_call) = Instant::now();
            let result = self.answer(&mut request).await;
            if let Err(refusal) = &result {
                let (peer, name) = (self.peer.pid, &refusal.name);
                self.daemon.say(Level::Debug, &format!("{} for process {peer}: {name}", request.method));
            }
            if !request.oneway && self.send(result).await.is_err() {
                return;
            }
        }
    }

    /// The next message; `None` at the end, or if the client takes too long or sends too much.
    async fn receive(&self, incoming: &mut Incoming) -> Option<Vec<u8>> {
        let mut begun = Instant::now();
        loop {
            if let Some(message) = incoming.next().ok()? {
                return Some(message);
            }
            let mut buffer = [0; 4096];
            // Descriptors that come along are closed at once: no method takes any.
            let reading = self
                .stream
                .read_with(|fd| socket::receive(fd, &mut buffer).map(|received| received.len).map_err(from_errno));
            let length = if incoming.is_partial() {
                self.daemon.runtime.timeout_at(begun + PATIENCE, reading).await.ok()?.ok()?
            } else {
                let length = reading.await.ok()?;
                begun = Instant::now();
                length
            };
            if length == 0 {
                return None;
            }
            incoming.push(&buffer[..length]);
        }
    }

    async fn answer(&self, request: &mut Request) -> Answer<Vec<Reply>> {
        let parameters = request.parameters();
        let (interface, method) = request.name();
        let served = interfaces::of(self.service);
        let known = served.iter().find(|i| i.name == interface).is_some_and(|i| i.has(method));
        if !known {
            return Err(Refusal {
                name: "org.varlink.service.MethodNotFound".into(),
                parameters: json!({ "method": request.method }),
            });
        }
        let mut context = Context {
            daemon: &self.daemon,
            caller: Caller { sender: Sender::Process(Arc::clone(&self.peer)), interactive: false },
            peer: &self.peer,
            interface,
            parameters,
            more: request.more,
        };
        match interface {
            "io.systemd.Machine" => machines::serve(&mut context, method).await,
            "io.systemd.MachineImage" => images::serve(&mut context, method).await,
            "io.systemd.UserDatabase" => users::serve(&mut context, method),
            "io.systemd.service" => interfaces::control(&mut context, method),
            _ => interfaces::describe(&mut context, method, served),
        }
    }

    async fn send(&self, result: Answer<Vec<Reply>>) -> std::io::Result<()> {
        let replies = match result {
            Ok(replies) => replies,
            Err(refusal) => return self.write(&wire::refusal(&refusal), &[]).await,
        };
        let count = replies.len();
        for (index, reply) in replies.iter().enumerate() {
            self.write(&wire::reply(&reply.parameters, index + 1 < count), &reply.fds).await?;
        }
        Ok(())
    }

    async fn write(&self, bytes: &[u8], fds: &[OwnedFd]) -> std::io::Result<()> {
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let (mut rest, mut fds) = (bytes, &borrowed[..]);
        while !rest.is_empty() {
            let writing = self.stream.write_with(|fd| socket::send_some(fd, rest, fds).map_err(from_errno));
            let written = self.daemon.runtime.timeout(PATIENCE, writing).await;
            let written = written.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
            (rest, fds) = (&rest[written..], &[]);
        }
        Ok(())
    }
}

/// The sockets that the service manager passed to this process, by name (`sd_listen_fds(3)`).
pub(crate) fn passed() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let count = number("LISTEN_FDS").unwrap_or(0);
    let fds = socket::take_passed(count).into_iter();
    fds.map(|fd| (names.next().unwrap_or_default().to_owned(), fd)).collect()
}
