//! Start slots: of the machines that take one, only so many are on their way up at once.
//!
//! ```text
//! /run/machinist/starting/0, 1, …     each locked by a machine that begins, and gone when it is ready
//! ```

use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::state::make_private_dir;
use super::wait_ready;
use crate::spec::Layout;
use crate::sys;
use crate::sys::lock::LockFile;

/// A machine that is not ready by then waits more than it works, and others may begin.
const LONGEST: Duration = Duration::from_secs(20);

/// What a machine holds while it begins.
#[derive(Debug)]
pub struct StartSlot {
    _lock: LockFile,
    /// When it is given back in any case.
    pub until: Instant,
}

impl StartSlot {
    /// Takes one of `count` slots. If all are taken, calls `busy` and waits until one is free.
    ///
    /// A process that waits holds nothing and can be ended by any signal. There is no order among those that wait.
    ///
    /// # Errors
    ///
    /// Those of making and locking files below `/run/machinist`.
    pub fn take(layout: &Layout, count: usize, busy: impl FnOnce()) -> sys::Result<Self> {
        let dir = layout.run_root().join("starting");
        make_private_dir(&dir)?;
        let try_take = || {
            let locks = (0..count).map(|index| LockFile::try_take(&dir.join(index.to_string())));
            locks.filter_map(Result::transpose).next().transpose()
        };
        let taken = |lock| Self { _lock: lock, until: Instant::now() + LONGEST };
        if let Some(lock) = try_take()? {
            return Ok(taken(lock));
        }
        busy();
        // There is a limit to the number of these, too; without one we look often enough.
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        let freed = watch.filter(|watch| inotify::add_watch(watch, &dir, WatchFlags::DELETE).is_ok());
        loop {
            if let Some(lock) = try_take()? {
                return Ok(taken(lock));
            }
            match &freed {
                Some(freed) => wait_ready::wait(freed)?,
                None => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}
