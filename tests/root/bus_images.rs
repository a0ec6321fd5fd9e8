//! Images over the bus: what each method does, and every way it says no.

use zbus::wire::OwnedObjectPath;

use crate::bus::{Bus, Refusal};
use crate::support::Host;

type Row = (String, String, bool, u64, u64, u64, OwnedObjectPath);

fn tree(host: &Host, name: &str) {
    let root = host.path("var/lib/machines").join(name);
    std::fs::create_dir_all(root.join("etc")).expect("mkdir");
    std::fs::create_dir_all(root.join("usr/lib")).expect("mkdir");
    std::fs::write(root.join("etc/hostname"), format!("{name}-host\n")).expect("write");
    std::fs::write(root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").expect("write");
    std::fs::write(root.join("etc/machine-info"), "PRETTY_HOSTNAME=\"A b\"\n").expect("write");
    std::fs::write(root.join("usr/lib/os-release"), "ID=test\nVERSION_ID=7\n").expect("write");
}

fn images(bus: &Bus) -> Vec<(String, String, bool)> {
    let reply = bus.client().manager("ListImages", &()).expect("ListImages");
    let rows: Vec<Row> = reply.body().deserialize().expect("rows");
    rows.into_iter().filter(|r| r.0 != ".host").map(|r| (r.0, r.1, r.2)).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, name: &str, text: &str) {
    let error = result.expect_err("refused");
    assert_eq!((error.0.trim_start_matches("org.freedesktop."), error.1.as_str()), (name, text));
}

fn image(name: &str, kind: &str, read_only: bool) -> (String, String, bool) {
    (name.into(), kind.into(), read_only)
}

#[test]
fn images_are_told_and_changed_by_name_and_by_object() {
    let host = Host::new();
    tree(&host, "one");
    std::fs::write(host.path("var/lib/machines/disk.raw"), vec![0; 4096]).expect("write");
    let bus = Bus::start(&host);
    let client = bus.client();
    assert_eq!(images(&bus), [image("disk", "raw", false), image("one", "directory", false)]);
    let reply = client.manager("GetImage", &"one").expect("GetImage");
    let path: OwnedObjectPath = reply.body().deserialize().expect("a path");
    assert_eq!(path.as_str(), "/org/freedesktop/machine1/image/one");
    let text = |member| -> String { client.manager(member, &"one").expect(member).body().deserialize().expect("text") };
    assert_eq!(text("GetImageHostname"), "one-host");
    let id: Vec<u8> = client.manager("GetImageMachineID", &"one").expect("id").body().deserialize().expect("bytes");
    assert_eq!(id[..4], [0x01, 0x23, 0x45, 0x67]);
    let pairs = |member| -> std::collections::BTreeMap<String, String> {
        client.manager(member, &"one").expect(member).body().deserialize().expect("pairs")
    };
    assert_eq!(pairs("GetImageMachineInfo")["PRETTY_HOSTNAME"], "A b");
    assert_eq!(pairs("GetImageOSRelease")["VERSION_ID"], "7");
    client.manager("CloneImage", &("one", "two", false)).expect("clone");
    client.manager("RenameImage", &("two", "three")).expect("rename");
    let object = |member: &str, value: bool| {
        client.call("/org/freedesktop/machine1/image/three", "org.freedesktop.machine1.Image", member, &value)
    };
    object("MarkReadOnly", true).expect("read-only");
    assert_eq!(images(&bus)[2], image("three", "directory", true));
    object("MarkReadOnly", false).expect("writable");
    let clone = std::fs::read_to_string(host.path("var/lib/machines/three/etc/hostname")).expect("the clone");
    assert_eq!(clone, "one-host\n");
    client.manager("RemoveImage", &"three").expect("remove");
    assert_eq!(images(&bus), [image("disk", "raw", false), image("one", "directory", false)]);
    tree(&host, ".hidden");
    let reply = client.manager("CleanPool", &"hidden").expect("clean");
    let cleaned: Vec<(String, u64)> = reply.body().deserialize().expect("rows");
    assert_eq!(cleaned.into_iter().map(|c| c.0).collect::<Vec<_>>(), [".hidden"]);
}

#[test]
fn images_say_no_by_the_names_that_machined_uses() {
    let host = Host::new();
    tree(&host, "one");
    tree(&host, "two");
    let bus = Bus::start(&host);
    let client = bus.client();
    for (member, name) in [("GetImage", "nope"), ("RemoveImage", "nope"), ("GetImageHostname", "a/b"), ("GetImage", "")]
    {
        let text = format!("No image '{name}' known");
        refused(client.manager(member, &name), "machine1.NoSuchImage", &text);
    }
    let invalid = "DBus.Error.InvalidArgs";
    refused(client.manager("RenameImage", &("one", "a/b")), invalid, "Image name 'a/b' is invalid.");
    refused(client.manager("CloneImage", &("one", "..", false)), invalid, "Image name '..' is invalid.");
    refused(client.manager("CleanPool", &"some"), invalid, "Unknown mode 'some'.");
    let exists = "DBus.Error.FileExists";
    refused(client.manager("RenameImage", &("one", "two")), exists, "image 'two' already exists");
    refused(client.manager("CloneImage", &("one", "two", false)), exists, "image 'two' already exists");
    for result in [client.manager("RemoveImage", &".host"), client.manager("RenameImage", &(".host", "x"))] {
        assert_eq!(result.expect_err("the host").0, "System.Error.EROFS");
    }
    let limit = client.manager("SetImageLimit", &("one", 1_u64 << 30));
    assert_eq!(limit.expect_err("no quotas here").0, "org.freedesktop.DBus.Error.NotSupported");
    // A machine that runs has its image for itself.
    let machine = host.define(
        "m",
        "[root]\ndirectory = \"{root}/var/lib/machines/busy\"\n[boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n",
    );
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(crate::support::tree("trixie-busybox")).arg(host.path("var/lib/machines/busy"));
    let copied = copy.status().expect("cp");
    assert!(copied.success());
    host.ok(&["start", &machine]);
    for result in [
        client.manager("RemoveImage", &"busy"),
        client.manager("RenameImage", &("busy", "x")),
        client.manager("GetImageHostname", &"busy"),
    ] {
        assert_eq!(result.expect_err("in use").0, "System.Error.EBUSY");
    }
    host.ok(&["stop", &machine]);
    client.manager("RemoveImage", &"busy").expect("free again");
    drop(bus);
    host.assert_nothing_left();
}
