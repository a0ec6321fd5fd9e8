//! Waiting for a machine that another process starts.

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::state::{self, Phase};
use crate::spec::{Layout, MachineName};
use crate::sys::{self, Context as _, Errno, Error};

/// How often we look without a notification: a killed supervisor sends none.
const LOOK_AGAIN: u16 = 1000;

/// Waits until a machine is ready; returns whether it is, or false when it has no owner any more.
pub fn ready(layout: &Layout, name: &MachineName) -> sys::Result<bool> {
    let dir = layout.run_dir(name);
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).call(|| "inotify_init1".into())?;
    // State files come by rename. A directory that is gone already is seen below.
    let _ = inotify::add_watch(&watch, &dir, WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::DELETE_SELF);
    loop {
        match state::read(layout, name)? {
            Some(state) if state.phase == Phase::Running => return Ok(true),
            None if !state::is_owned(layout, name)? => return Ok(false),
            _ => {}
        }
        wait(&watch)?;
    }
}

/// Waits until one of the files that are watched has changed, or it is time to look without a notification.
pub(super) fn wait(watch: &OwnedFd) -> sys::Result<()> {
    match poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK_AGAIN)) {
        Ok(0) | Err(Errno::EINTR) => Ok(()),
        Ok(_) => {
            let mut buffer = [0; 4096];
            // Its content does not matter.
            while rustix::io::read(watch, &mut buffer).is_ok_and(|count| count > 0) {}
            Ok(())
        }
        Err(errno) => Err(Error { call: "poll".into(), errno }),
    }
}
