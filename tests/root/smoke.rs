//! The shortest life of a machine.

use crate::support::Host;

#[test]
fn a_command_runs_and_its_status_is_passed_through() {
    let host = Host::new();
    let machine = host.define("cmd", "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n[boot]\ncommand = [\"/bin/sh\", \"-c\", \"echo hello; exit 7\"]\n");
    let output = host.run(&["run", &machine]);
    assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (7, "hello\n", ""));
    host.assert_nothing_left();
}
