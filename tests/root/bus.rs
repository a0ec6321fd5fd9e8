//! A bus of its own for a test's host, with the daemon on it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_core::Stream as _;
use zbus::wire::Endian;

use crate::support::{Host, Output, finish, wait_for};

pub(crate) const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    {rules}
  </policy>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
"#;

/// A `dbus-daemon` where the host's machines look for the system bus, and a `machinist daemon` that is machine1 there.
pub(crate) struct Bus {
    socket: PathBuf,
    bus: Child,
    daemon: Child,
    log: PathBuf,
    arguments: Vec<String>,
}

/// Starts a `dbus-daemon` where the host's machines look for the system bus, with these rules after those that allow
/// everything; gives its socket, too.
pub(crate) fn dbus_daemon(host: &Host, rules: &str) -> (Child, PathBuf) {
    let dir = host.path("run/dbus");
    std::fs::create_dir_all(&dir).expect("mkdir");
    let socket = dir.join("system_bus_socket");
    let config = host.path("bus.conf");
    let text = CONFIG.replace("{socket}", &socket.display().to_string()).replace("{rules}", rules);
    std::fs::write(&config, text).expect("write");
    let bus = Command::new("dbus-daemon")
        .arg("--nofork")
        .arg("--nopidfile")
        .arg(format!("--config-file={}", config.display()))
        .stdin(Stdio::null())
        .spawn()
        .expect("run dbus-daemon");
    wait_for("the bus", Duration::from_secs(20), || UnixStream::connect(&socket).is_ok());
    (bus, socket)
}

impl Bus {
    /// Starts both and waits until the daemon has its names.
    pub(crate) fn start(host: &Host) -> Self {
        Self::start_with(host, &[])
    }

    /// The same with more arguments for the daemon.
    pub(crate) fn start_with(host: &Host, arguments: &[&str]) -> Self {
        let (bus, socket) = dbus_daemon(host, "");
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let daemon = Self::spawn_daemon(host, &socket, &arguments);
        let bus = Self { socket, bus, daemon, log: host.path("daemon.log"), arguments };
        bus.wait_for_daemon();
        bus
    }

    fn spawn_daemon(host: &Host, socket: &std::path::Path, arguments: &[String]) -> Child {
        let address = format!("unix:path={}", socket.display());
        let mut command = host.command();
        command.args(["daemon", "--machine1", "yes", "--bus", &address]).args(arguments);
        let log = std::fs::File::options().create(true).append(true).open(host.path("daemon.log")).expect("a log");
        command.stdin(Stdio::null()).stderr(log).spawn().expect("run the daemon")
    }

    fn wait_for_daemon(&self) {
        wait_for("the daemon", Duration::from_secs(20), || {
            self.busctl(&["status", "org.freedesktop.machine1"]).status == 0
        });
    }

    /// The address of the bus.
    pub(crate) fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// What the daemon has said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log")
    }

    /// The daemon's process.
    pub(crate) fn daemon(&self) -> u32 {
        self.daemon.id()
    }

    /// Kills the daemon and starts another.
    pub(crate) fn restart_daemon(&mut self, host: &Host) {
        self.daemon.kill().expect("kill the daemon");
        self.daemon.wait().expect("wait for the daemon");
        wait_for("the name to be free", Duration::from_secs(20), || {
            self.busctl(&["status", "org.freedesktop.machine1"]).status != 0
        });
        self.daemon = Self::spawn_daemon(host, &self.socket, &self.arguments);
        self.wait_for_daemon();
    }

    /// Ends the daemon as a service manager does, and fails the test unless it ends well.
    pub(crate) fn stop_daemon(&mut self) {
        let status = Command::new("kill").arg(self.daemon.id().to_string()).status().expect("run kill");
        assert!(status.success());
        let status = self.daemon.wait().expect("wait for the daemon");
        assert!(status.success(), "{status}");
    }

    /// `busctl` on this bus.
    pub(crate) fn busctl(&self, args: &[&str]) -> Output {
        finish(Command::new("busctl").arg(format!("--address={}", self.address())).args(args))
    }

    /// Calls a method of the manager; the words after the member are a signature and arguments as busctl wants them.
    pub(crate) fn call(&self, member: &str, args: &[&str]) -> Output {
        let mut all = vec![
            "--timeout=60",
            "call",
            "org.freedesktop.machine1",
            "/org/freedesktop/machine1",
            "org.freedesktop.machine1.Manager",
            member,
        ];
        all.extend(args);
        self.busctl(&all)
    }

    /// The same, and fails the test if it fails; gives what busctl prints of the answer.
    pub(crate) fn ok(&self, member: &str, args: &[&str]) -> String {
        let output = self.call(member, args);
        assert_eq!(output.status, 0, "{member} {args:?}: {output:?}");
        output.stdout.trim().to_owned()
    }

    /// The same, and fails the test unless it fails; gives the error's text as busctl prints it.
    pub(crate) fn refused(&self, member: &str, args: &[&str]) -> String {
        let output = self.call(member, args);
        assert_ne!(output.status, 0, "{member} {args:?}: {output:?}");
        output.stderr.trim().strip_prefix("Call failed: ").unwrap_or(&output.stderr).to_owned()
    }

    /// `machinectl` on this bus, on what looks like a host with systemd.
    pub(crate) fn machinectl(&self, args: &[&str]) -> Output {
        let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec machinectl --no-pager \"$@\"";
        let mut command = Command::new("unshare");
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.address()).env("SYSTEMD_COLORS", "0");
        finish(command.args(["--mount", "sh", "-c", script, "sh"]).args(args).stdin(Stdio::null()))
    }
}

#[expect(clippy::print_stderr, reason = "what the daemon said is of use where a test fails")]
impl Drop for Bus {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.bus] {
            // They may have ended by themselves.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the daemon said:\n{}", self.log());
        }
    }
}

/// A client that sees errors by their names.
pub(crate) struct Client {
    address: String,
}

/// Name and text of an error.
pub(crate) type Refusal = (String, String);

impl Bus {
    /// A method of `org.machinist1.Manager` by busctl.
    pub(crate) fn own(&self, member: &str, args: &[&str]) -> Output {
        let mut all = vec!["call", "org.machinist1", "/org/machinist1", "org.machinist1.Manager", member];
        all.extend(args);
        self.busctl(&all)
    }

    /// A client of its own connection for every call.
    pub(crate) fn client(&self) -> Client {
        Client { address: self.address() }
    }
}

impl Client {
    /// Calls any method of any object of the daemon.
    pub(crate) fn call<B>(&self, path: &str, interface: &str, member: &str, body: &B) -> Result<zbus::Message, Refusal>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        zbus::block_on(async {
            let connection = zbus::connection::Builder::address(self.address.as_str()).build().await.expect("connect");
            let name = interface.split('.').take(if interface.starts_with("org.machinist1") { 2 } else { 3 });
            let name = name.collect::<Vec<_>>().join(".");
            let name = if name.starts_with("org.freedesktop.DBus") { "org.freedesktop.machine1".into() } else { name };
            let reply = connection.call_method(Some(name.as_str()), path, Some(interface), member, body).await;
            connection.close().await.expect("close");
            reply.map_err(|error| match error {
                zbus::Error::MethodError(name, text, _) => (name.to_string(), text.unwrap_or_default()),
                zbus::Error::FDO(e) => {
                    use zbus::DBusError as _;
                    (e.name().to_string(), e.description().unwrap_or_default().to_owned())
                }
                other => panic!("{member}: {other}"),
            })
        })
    }

    /// A method of machine1's manager.
    pub(crate) fn manager<B>(&self, member: &str, body: &B) -> Result<zbus::Message, Refusal>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        self.call("/org/freedesktop/machine1", "org.freedesktop.machine1.Manager", member, body)
    }

    /// A method of machine1's manager without arguments, by a caller of this byte order.
    pub(crate) fn manager_in(&self, endian: Endian, member: &str) -> zbus::Message {
        zbus::block_on(async {
            let connection = zbus::connection::Builder::address(self.address.as_str()).build().await.expect("connect");
            let call = zbus::Message::method_call("/org/freedesktop/machine1", member);
            let call = call.destination("org.freedesktop.machine1").interface("org.freedesktop.machine1.Manager");
            let call = call.endian(endian).build(&()).expect("a message");
            let serial = Some(call.primary_header().serial_num());
            let mut messages = zbus::MessageStream::from(&connection);
            connection.send(&call).await.expect("send");
            loop {
                let message = std::future::poll_fn(|context| Pin::new(&mut messages).poll_next(context)).await;
                let message = message.expect("the connection").expect("a message");
                if message.header().reply_serial() == serial {
                    return message;
                }
            }
        })
    }

    /// `Exec` of our own manager, with `output` for both outputs.
    #[expect(clippy::too_many_arguments, reason = "the method has them")]
    pub(crate) fn exec(
        &self,
        machine: &str,
        user: &str,
        command: &[&str],
        environment: &[&str],
        directory: &str,
        timeout: u64,
        input: std::io::PipeReader,
        output: std::io::PipeWriter,
    ) -> Result<i32, Refusal> {
        let error = output.try_clone().expect("clone");
        let files: Vec<zbus::Fd<'_>> = vec![
            std::os::fd::OwnedFd::from(input).into(),
            std::os::fd::OwnedFd::from(output).into(),
            std::os::fd::OwnedFd::from(error).into(),
        ];
        let body = (machine, user, command, environment, directory, timeout, files);
        let reply = self.call("/org/machinist1", "org.machinist1.Manager", "Exec", &body)?;
        Ok(reply.body().deserialize().expect("a status"))
    }
}
