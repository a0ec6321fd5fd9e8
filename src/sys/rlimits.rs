//! Limits and priority of the calling process (`getrlimit(2)`, `setpriority(2)`, `proc_pid_oom_score_adj(5)`).

use rustix::process::{Rlimit, getrlimit, setrlimit};

pub use rustix::process::Resource;

use super::file;
use super::{Context as _, Result};

/// The soft and the hard limit; `None` is no limit.
pub fn limits(resource: Resource) -> (Option<u64>, Option<u64>) {
    let limit = getrlimit(resource);
    (limit.current, limit.maximum)
}

/// Sets both limits. Raising the hard one takes `CAP_SYS_RESOURCE` in the host's user namespace.
pub fn set_limits(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<()> {
    let word = |limit: Option<u64>| limit.map_or("infinity".to_owned(), |limit| limit.to_string());
    let call = || format!("setrlimit({}, {}:{})", format!("{resource:?}").to_uppercase(), word(soft), word(hard));
    setrlimit(resource, Rlimit { current: soft, maximum: hard }).call(call)
}

/// Sets the nice value; one below the present takes `CAP_SYS_NICE` in the host's user namespace.
pub fn set_nice(value: i32) -> Result<()> {
    rustix::process::setpriority_process(None, value).call(|| format!("setpriority({value})"))
}

/// The present nice value.
pub fn nice() -> Result<i32> {
    rustix::process::getpriority_process(None).call(|| "getpriority".into())
}

const OOM_SCORE_ADJUST: &str = "/proc/self/oom_score_adj";

/// Sets how readily we are killed when memory is short; less than ever before takes `CAP_SYS_RESOURCE`.
///
/// `/proc` must be the host's, since that of a machine may be anything.
pub fn set_oom_score_adjust(value: i32) -> Result<()> {
    file::set(OOM_SCORE_ADJUST, &value.to_string())
}
