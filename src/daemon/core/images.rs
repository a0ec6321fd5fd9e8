//! Images and their store: each request is one call of the store, in the pool of threads.

use std::ops::ControlFlow;

use super::caller::Caller;
use super::definition_image::{self, Defined};
use super::error::{Failure, Outcome};
use super::state::{Daemon, Level};
use crate::image::{CleanMode, Image, ImageError, Pool, Store};

/// A change of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Remove,
    Rename(String),
    Clone {
        new: String,
        read_only: bool,
    },
    ReadOnly(bool),
    /// The most bytes that it may hold; none for no limit.
    Limit(Option<u64>),
}

impl Change {
    /// The word for it in the details for polkit.
    fn verb(&self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Rename(_) => "rename",
            Self::Clone { .. } => "clone",
            Self::ReadOnly(_) => "mark_read_only",
            Self::Limit(_) => "set_limit",
        }
    }
}

fn store(daemon: &Daemon) -> Store {
    Store::new(&daemon.layout)
}

/// Names of all images.
pub(crate) fn names(daemon: &Daemon) -> Vec<String> {
    // A store that cannot be read has none to show; listing it reports why.
    store(daemon).list().unwrap_or_default().into_iter().map(|image| image.name).collect()
}

/// Whether there is an image of that name, or the definition of a machine.
pub(crate) fn exists(daemon: &Daemon, name: &str) -> bool {
    find(daemon, name).is_ok() || definition_image::find(daemon, name).is_some()
}

/// An image by the name of one that must be there; what can be no name is none.
pub(crate) fn find(daemon: &Daemon, name: &str) -> Outcome<Image> {
    match store(daemon).get(name) {
        Err(ImageError::InvalidName { .. }) => Err(Failure::no_such_image(name)),
        other => other.map_err(Failure::from),
    }
}

/// The definition of that name if there is no such image.
fn defined(daemon: &Daemon, name: &str) -> Option<Defined> {
    if find(daemon, name).is_ok() { None } else { definition_image::find(daemon, name) }
}

/// An image, or the definition of a machine shown as one.
pub(crate) fn describe(daemon: &Daemon, name: &str) -> Outcome<Image> {
    match defined(daemon, name) {
        Some(defined) => Ok(defined.image(daemon)),
        None => find(daemon, name),
    }
}

/// All images.
pub(crate) async fn list(daemon: &Daemon) -> Outcome<Vec<Image>> {
    let store = store(daemon);
    Ok(daemon.blocking(move || store.list()).await??)
}

/// The store as a whole.
pub(crate) fn pool(daemon: &Daemon) -> Pool {
    store(daemon).pool()
}

/// Limits the store as a whole; none for no limit.
pub(crate) async fn limit_pool(daemon: &Daemon, caller: &Caller, limit: Option<u64>) -> Outcome {
    daemon.authorise(caller, "org.freedesktop.machine1.manage-machines", &[("verb", "set_pool_limit")]).await?;
    let store = store(daemon);
    Ok(daemon.blocking(move || store.set_pool_limit(limit)).await??)
}

/// Removes images, and gives their names with what each held alone.
pub(crate) async fn clean(daemon: &Daemon, caller: &Caller, mode: CleanMode) -> Outcome<Vec<(String, Option<u64>)>> {
    daemon.authorise(caller, "org.freedesktop.machine1.manage-machines", &[("verb", "clean_pool")]).await?;
    let store = store(daemon);
    Ok(daemon.blocking(move || store.clean(mode)).await??)
}

/// Changes one image; arguments and the image are checked before rights.
pub(crate) async fn change(daemon: &Daemon, caller: &Caller, name: &str, change: Change) -> Outcome {
    if let Some(defined) = defined(daemon, name) {
        return Err(defined.refuse(change.verb()));
    }
    let image = find(daemon, name)?;
    if let Change::Rename(new) | Change::Clone { new, .. } = &change {
        // Only whether it can be a name; that it is free is found out under the locks.
        store(daemon).find(new)?;
    }
    let details = [("image", name), ("verb", change.verb())];
    daemon.authorise(caller, "org.freedesktop.machine1.manage-images", &details).await?;
    let store = store(daemon);
    let work = move || {
        let name = &image.name;
        match change {
            Change::Remove => store.remove(name)?,
            Change::Rename(new) => store.rename(name, &new)?,
            Change::ReadOnly(mark) => store.set_read_only(name, mark)?,
            Change::Limit(limit) => store.set_limit(name, limit)?,
            Change::Clone { new, read_only } => {
                let cloned = store.clone(name, &new, read_only, &mut |_| ControlFlow::Continue(()))?;
                return Ok(Some(format!("New image {new}, made by {}.", cloned.method.as_str())));
            }
        }
        Ok::<_, ImageError>(None)
    };
    if let Some(line) = daemon.blocking(work).await?? {
        daemon.say(Level::Info, &line);
    }
    Ok(())
}

/// What `read` finds in an image; nothing in a definition: its layers are images themselves.
pub(crate) async fn look_into<T: Default + Send + 'static>(
    daemon: &Daemon,
    name: &str,
    read: impl FnOnce(&Store, &str) -> Result<T, ImageError> + Send + 'static,
) -> Outcome<T> {
    if defined(daemon, name).is_some() {
        return Ok(T::default());
    }
    let name = find(daemon, name)?.name;
    let store = store(daemon);
    Ok(daemon.blocking(move || read(&store, &name)).await??)
}
