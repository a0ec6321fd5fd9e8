//! Images as `org.freedesktop.machine1` shows them: each request is one call of the store, beside the bus.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use zbus::wire::{OwnedObjectPath, Variant};

use super::call::{Call, Failure, Outcome};
use super::manager::object_path;
use super::objects::{self, Properties, image_path};
use crate::daemon::core::state::Daemon;
use crate::image::{CleanMode, Image, ImageError, Store};
use crate::sys::Errno;

/// What can be asked of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Request {
    Remove,
    Rename(String),
    Clone { new: String, read_only: bool },
    ReadOnly(bool),
    Limit(u64),
    Hostname,
    MachineId,
    MachineInfo,
    OsRelease,
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        match &error {
            ImageError::NoSuchImage(name) => Self::no_such_image(name),
            ImageError::InvalidName { name, .. } => Self::invalid_args(format!("Image name '{name}' is invalid.")),
            ImageError::Exists(_) => Self::errno(Errno::EEXIST, sentence(&error)),
            ImageError::InUse { .. } => Self::errno(Errno::EBUSY, sentence(&error)),
            ImageError::ReadOnly(_) => Self::errno(Errno::EROFS, sentence(&error)),
            ImageError::NotSupported { .. } => Self::errno(Errno::EOPNOTSUPP, sentence(&error)),
            ImageError::Cancelled => Self::errno(Errno::ECANCELED, sentence(&error)),
            ImageError::Call { cause, .. } => Self::errno(cause.errno, format!("{error}: {cause}")),
        }
    }
}

/// An error with what can be done about it.
fn sentence(error: &ImageError) -> String {
    error.hint().map_or_else(|| error.to_string(), |hint| format!("{error} ({hint})"))
}

fn store(daemon: &Daemon) -> Store {
    Store::new(&daemon.layout)
}

/// The number that stands for what is not known or not limited.
fn or_max(bytes: Option<u64>) -> u64 {
    bytes.unwrap_or(u64::MAX)
}

/// Names of all images.
pub(crate) fn names(daemon: &Daemon) -> Vec<String> {
    // A store that cannot be read has none to show; listing it tells why.
    store(daemon).list().unwrap_or_default().into_iter().map(|image| image.name).collect()
}

/// Whether there is an image of that name.
pub(crate) fn exists(daemon: &Daemon, name: &str) -> bool {
    find(daemon, name).is_ok()
}

/// An image by the name of one that must be there; what can be no name is none.
fn find(daemon: &Daemon, name: &str) -> Outcome<Image> {
    match store(daemon).get(name) {
        Err(ImageError::InvalidName { .. }) => Err(Failure::no_such_image(name)),
        other => other.map_err(Failure::from),
    }
}

pub(crate) async fn properties(daemon: &Arc<Daemon>, name: &str) -> Outcome<Properties> {
    let image = find(daemon, name)?;
    Ok(vec![
        ("Name", Variant::from(image.name)),
        ("Path", Variant::from(image.path.display().to_string())),
        ("Type", Variant::from(image.kind.as_str())),
        ("ReadOnly", Variant::from(image.read_only)),
        ("CreationTimestamp", Variant::from(image.created_us.unwrap_or(0))),
        ("ModificationTimestamp", Variant::from(image.modified_us.unwrap_or(0))),
        ("Usage", Variant::from(or_max(image.usage))),
        ("Limit", Variant::from(or_max(image.limit))),
        ("UsageExclusive", Variant::from(or_max(image.usage_exclusive))),
        ("LimitExclusive", Variant::from(or_max(image.limit_exclusive))),
    ])
}

/// The pool's properties.
pub(crate) fn pool(daemon: &Daemon) -> Properties {
    let pool = store(daemon).pool();
    vec![
        ("PoolPath", Variant::from(pool.path.display().to_string())),
        ("PoolUsage", Variant::from(or_max(pool.usage))),
        ("PoolLimit", Variant::from(or_max(pool.limit))),
    ]
}

/// Methods of the image's object.
pub(crate) async fn call(daemon: &Arc<Daemon>, call: &Call, member: &str, name: &str) -> Outcome {
    let request = match member {
        "Remove" => Request::Remove,
        "Rename" => Request::Rename(call.arguments()?),
        "Clone" => {
            let (new, read_only) = call.arguments()?;
            Request::Clone { new, read_only }
        }
        "MarkReadOnly" => Request::ReadOnly(call.arguments()?),
        "SetLimit" => Request::Limit(call.arguments()?),
        "GetHostname" => Request::Hostname,
        "GetMachineID" => Request::MachineId,
        "GetMachineInfo" => Request::MachineInfo,
        "GetOSRelease" => Request::OsRelease,
        _ => return Err(objects::unknown_method(call)),
    };
    serve(daemon, call, name, request).await
}

/// Methods of the manager that are about images and the pool.
pub(crate) async fn manager_call(daemon: &Arc<Daemon>, call: &Call, member: &str) -> Outcome {
    let (name, request) = match member {
        "ListImages" => return list(daemon, call).await,
        "SetPoolLimit" => return limit_pool(daemon, call).await,
        "CleanPool" => return clean(daemon, call).await,
        "RemoveImage" => (call.arguments()?, Request::Remove),
        "RenameImage" => {
            let (name, new): (String, String) = call.arguments()?;
            (name, Request::Rename(new))
        }
        "CloneImage" => {
            let (name, new, read_only): (String, String, bool) = call.arguments()?;
            (name, Request::Clone { new, read_only })
        }
        "MarkImageReadOnly" => {
            let (name, read_only): (String, bool) = call.arguments()?;
            (name, Request::ReadOnly(read_only))
        }
        "SetImageLimit" => {
            let (name, limit): (String, u64) = call.arguments()?;
            (name, Request::Limit(limit))
        }
        "GetImageHostname" => (call.arguments()?, Request::Hostname),
        "GetImageMachineID" => (call.arguments()?, Request::MachineId),
        "GetImageMachineInfo" => (call.arguments()?, Request::MachineInfo),
        "GetImageOSRelease" => (call.arguments()?, Request::OsRelease),
        _ => return Err(objects::unknown_method(call)),
    };
    serve(daemon, call, &name, request).await
}

async fn list(daemon: &Arc<Daemon>, call: &Call) -> Outcome {
    let store = store(daemon);
    let images = daemon.blocking(move || store.list()).await??;
    let mut rows: Vec<(String, &str, bool, u64, u64, u64, OwnedObjectPath)> = Vec::with_capacity(images.len());
    for image in images {
        let path = object_path(image_path(&image.name))?;
        let (created, modified) = (image.created_us.unwrap_or(0), image.modified_us.unwrap_or(0));
        rows.push((image.name, image.kind.as_str(), image.read_only, created, modified, or_max(image.usage), path));
    }
    call.reply(&rows)
}

async fn limit_pool(daemon: &Arc<Daemon>, call: &Call) -> Outcome {
    let limit: u64 = call.arguments()?;
    daemon.authorise(call, "org.freedesktop.machine1.manage-machines", &[("verb", "set_pool_limit")]).await?;
    let store = store(daemon);
    daemon.blocking(move || store.set_pool_limit(Some(limit).filter(|l| *l != u64::MAX))).await??;
    call.reply(&())
}

async fn clean(daemon: &Arc<Daemon>, call: &Call) -> Outcome {
    let word: String = call.arguments()?;
    let mode = match word.as_str() {
        "hidden" => CleanMode::Hidden,
        "all" => CleanMode::All,
        _ => return Err(Failure::invalid_args(format!("Unknown mode '{word}'."))),
    };
    daemon.authorise(call, "org.freedesktop.machine1.manage-machines", &[("verb", "clean_pool")]).await?;
    let store = store(daemon);
    let removed = daemon.blocking(move || store.clean(mode)).await??;
    let rows: Vec<(String, u64)> = removed.into_iter().map(|(name, bytes)| (name, or_max(bytes))).collect();
    call.reply(&rows)
}

/// Does what is asked of one image; arguments and the image are looked at before anybody is asked about rights.
async fn serve(daemon: &Arc<Daemon>, call: &Call, name: &str, request: Request) -> Outcome {
    let image = find(daemon, name)?;
    let verb = match &request {
        Request::Remove => "remove",
        Request::Rename(_) => "rename",
        Request::Clone { .. } => "clone",
        Request::ReadOnly(_) => "mark_read_only",
        Request::Limit(_) => "set_limit",
        Request::Hostname | Request::MachineId | Request::MachineInfo | Request::OsRelease => "",
    };
    if let Request::Rename(new) | Request::Clone { new, .. } = &request {
        // Only whether it can be a name; that it is free is found out under the locks.
        store(daemon).find(new)?;
    }
    if !verb.is_empty() {
        let details = [("image", name), ("verb", verb)];
        daemon.authorise(call, "org.freedesktop.machine1.manage-images", &details).await?;
    }
    let store = store(daemon);
    let name = image.name;
    match request {
        Request::Remove => daemon.blocking(move || store.remove(&name)).await??,
        Request::Rename(new) => daemon.blocking(move || store.rename(&name, &new)).await??,
        Request::Clone { new, read_only } => {
            let cloned = daemon.blocking(move || {
                store.clone(&name, &new, read_only, &mut |_| ControlFlow::Continue(())).map(|c| (c, new))
            });
            let (cloned, new) = cloned.await??;
            let how = cloned.method.as_str();
            daemon.say(crate::daemon::core::state::Level::Info, &format!("New image {new}, made by {how}."));
        }
        Request::ReadOnly(mark) => daemon.blocking(move || store.set_read_only(&name, mark)).await??,
        Request::Limit(limit) => {
            let limit = Some(limit).filter(|l| *l != u64::MAX);
            daemon.blocking(move || store.set_limit(&name, limit)).await??;
        }
        Request::Hostname => {
            let hostname = daemon.blocking(move || store.hostname(&name)).await??;
            return call.reply(&hostname.unwrap_or_default());
        }
        Request::MachineId => {
            let id = daemon.blocking(move || store.machine_id(&name)).await??;
            return call.reply(&id.map(Vec::from).unwrap_or_default());
        }
        Request::MachineInfo => {
            let info = daemon.blocking(move || store.machine_info(&name)).await??;
            return call.reply(&info.into_iter().collect::<BTreeMap<_, _>>());
        }
        Request::OsRelease => {
            let release = daemon.blocking(move || store.os_release(&name)).await??;
            return call.reply(&release.into_iter().collect::<BTreeMap<_, _>>());
        }
    }
    call.reply(&())
}
