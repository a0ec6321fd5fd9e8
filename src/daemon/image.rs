//! Images as `org.freedesktop.machine1` shows them.

use std::sync::Arc;

use zbus::wire::{OwnedObjectPath, Variant};

use super::Daemon;
use super::call::{Call, Failure, Outcome};
use super::objects::{self, Properties};

/// Names of all images.
pub(super) fn names(_daemon: &Daemon) -> Vec<String> {
    Vec::new()
}

/// Whether there is an image of that name.
pub(super) fn exists(daemon: &Daemon, name: &str) -> bool {
    names(daemon).iter().any(|n| n == name)
}

pub(super) async fn properties(_daemon: &Arc<Daemon>, name: &str) -> Outcome<Properties> {
    Err(Failure::no_such_image(name))
}

pub(super) async fn call(_daemon: &Arc<Daemon>, call: &Call, _member: &str, _name: &str) -> Outcome {
    Err(objects::unknown_method(call))
}

/// The pool's properties.
pub(super) fn pool(daemon: &Daemon) -> Properties {
    vec![
        ("PoolPath", Variant::from(daemon.layout.images().display().to_string())),
        ("PoolUsage", Variant::from(u64::MAX)),
        ("PoolLimit", Variant::from(u64::MAX)),
    ]
}

/// Methods of the manager that are about images and the pool.
pub(super) async fn manager_call(daemon: &Arc<Daemon>, call: &Call, member: &str) -> Outcome {
    match member {
        "ListImages" => {
            let rows: Vec<(String, String, bool, u64, u64, u64, OwnedObjectPath)> =
                names(daemon).into_iter().map(|_| unreachable_row()).collect();
            call.reply(&rows)
        }
        _ => Err(Failure::not_supported("Not there yet.")),
    }
}

fn unreachable_row() -> (String, String, bool, u64, u64, u64, OwnedObjectPath) {
    (String::new(), String::new(), false, 0, 0, 0, OwnedObjectPath::default())
}
