//! What a machine writes to its overlay.

use std::os::unix::fs::MetadataExt;

use crate::small_tree::SmallTree;
use crate::support::Host;

/// Every kind of change to what a layer holds, each of which overlay does in another way.
const CHANGES: &str = "set -e; echo new > /new; echo more >> /etc/passwd; mkdir -p /dir/sub; chmod 700 /etc; \
    chown 1000:1000 /etc/os-release; rm /etc/group; ln /etc/passwd /hard; ln -s new /soft; mv /root /moved; \
    touch /user; chown 1000:1000 /user; rm -rf /usr; mkdir /usr";
const LOOK: &str = "cat /new; grep -c . /etc/passwd; [ ! -e /etc/group ] && cat /soft; stat -c '%n %u %a' /user \
    /etc/os-release /etc; ls -1d /moved /hard /dir/sub /root /usr/*";

#[test]
fn every_change_to_a_kept_overlay_is_there_for_the_next_machine() {
    for mode in ["auto", "host"] {
        let host = Host::new();
        let tree = SmallTree::new(&host, "tree");
        let run = |name: &str, script: &str| {
            let machine = host.define(
                name,
                &format!(
                    "[root]\noverlay = {{ lower = [\"{{root}}/tree\"], upper = \"{{root}}/writes\" }}\n[boot]\ncommand = \
                     [\"/bin/sh\", \"-c\", \"{script}\"]\n[users]\nmode = \"{mode}\"\n"
                ),
            );
            host.run(&["run", &machine])
        };
        let output = run("write", CHANGES);
        assert_eq!((output.status, output.stdout.as_str()), (0, ""), "{mode}: {output:?}");
        // Another machine has other ids and sees the same owners.
        let output = run("look", LOOK);
        assert_eq!(
            output.stdout,
            "new\n3\nnew\n/user 1000 644\n/etc/os-release 1000 644\n/etc 0 700\nls: /root: No such file or directory\n\
             ls: /usr/*: No such file or directory\n/dir/sub\n/hard\n/moved\n",
            "{mode}"
        );
        let owner = |name: &str| host.path("writes/upper").join(name).symlink_metadata().expect("stat").uid();
        assert_eq!((owner("new"), owner("user"), owner("etc/os-release")), (0, 1000, 1000), "{mode}");
        assert!(tree.path("etc/group").exists() && tree.path("usr/lib").exists() && tree.path("root").exists());
        host.assert_nothing_left();
    }
}
