//! Gives processes of a machine their limits, in two steps: what needs the host's rights early, the rest just
//! before exec.
//!
//! Inside a user namespace no process may raise a hard limit, whatever the capabilities, so that is done before one is
//! entered. The limits themselves come last, so that they stop the machine's program and none of our own work.
//! None is left out silently: a limit that cannot be set is an error.

use crate::spec::{ProcessLimits, Resource as Word, Rlimit};
use crate::sys::StepError;
use crate::sys::rlimits::{self, Resource};
use crate::sys::{self, Errno, Error, process};

const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// What is limited, the soft and the hard limit.
type Usual = (Word, Option<u64>, Option<u64>);

/// What a kernel boots with, in place of the limits of our caller; the first of the hard ones is systemd's.
const DEFAULTS: [Usual; 4] = [
    (Word::Nofile, Some(1024), Some(524_288)),
    (Word::Core, Some(0), None),
    (Word::Stack, Some(8 << 20), None),
    (Word::Memlock, Some(8 << 20), Some(8 << 20)),
];

/// The defaults of those that are not requested.
fn unasked(wanted: &ProcessLimits) -> impl Iterator<Item = Usual> {
    DEFAULTS.into_iter().filter(|(word, ..)| wanted.rlimits.iter().all(|limit| limit.resource != *word))
}

fn resource(word: Word) -> Resource {
    match word {
        Word::As => Resource::As,
        Word::Core => Resource::Core,
        Word::Cpu => Resource::Cpu,
        Word::Data => Resource::Data,
        Word::Fsize => Resource::Fsize,
        Word::Locks => Resource::Locks,
        Word::Memlock => Resource::Memlock,
        Word::Msgqueue => Resource::Msgqueue,
        Word::Nice => Resource::Nice,
        Word::Nofile => Resource::Nofile,
        Word::Nproc => Resource::Nproc,
        Word::Rss => Resource::Rss,
        Word::Rtprio => Resource::Rtprio,
        Word::Rttime => Resource::Rttime,
        Word::Sigpending => Resource::Sigpending,
        Word::Stack => Resource::Stack,
    }
}

/// Whether `limit` is above `other`; none is above all.
fn is_above(limit: Option<u64>, other: Option<u64>) -> bool {
    other.is_some_and(|other| limit.is_none_or(|limit| limit > other))
}

/// With the rights of the host: raises what only they can, and sets priorities, which children inherit.
pub fn raise(wanted: &ProcessLimits) -> Result<(), StepError> {
    for (word, _, usual) in unasked(wanted) {
        let (soft, hard) = rlimits::limits(resource(word));
        if is_above(usual, hard) {
            // As far as the host allows, which `reset` looks at.
            let _ = rlimits::set_limits(resource(word), soft, usual);
        }
    }
    for limit in &wanted.rlimits {
        let (soft, hard) = rlimits::limits(resource(limit.resource));
        if is_above(limit.hard, hard) {
            rlimits::set_limits(resource(limit.resource), soft, limit.hard)
                .map_err(|cause| no_limit(limit, hard, cause))?;
        }
    }
    if let Some(value) = wanted.oom_score_adjust {
        rlimits::set_oom_score_adjust(value).map_err(|cause| {
            let why = "less than the present value needs CAP_SYS_RESOURCE on the host, which we do not have";
            let hint = (cause.errno == Errno::EACCES).then(|| why.to_owned());
            StepError { doing: format!("cannot set `oom-score-adjust` to {value}"), cause: Some(cause), hint }
        })?;
    }
    if let Some(value) = wanted.nice {
        rlimits::set_nice(value).map_err(|cause| {
            let present = rlimits::nice().unwrap_or(0);
            let why = format!("less than the present value, {present}, needs CAP_SYS_NICE on the host");
            let hint = matches!(cause.errno, Errno::EACCES | Errno::EPERM).then_some(why);
            StepError { doing: format!("cannot set `nice` to {value}"), cause: Some(cause), hint }
        })?;
    }
    Ok(())
}

fn no_limit(limit: &Rlimit, hard: Option<u64>, cause: Error) -> StepError {
    let is_capable = process::effective_set().is_ok_and(|set| set & CAP_SYS_RESOURCE != 0);
    let hint = (cause.errno == Errno::EPERM).then(|| match hard {
        Some(hard) if !is_capable => {
            format!("more than {hard}, our own hard limit, needs CAP_SYS_RESOURCE on the host, which we do not have")
        }
        _ => "the kernel has a limit of its own: fs.nr_open for open files".to_owned(),
    });
    StepError { doing: format!("cannot set the limit `{}` to {limit}", limit.resource), cause: Some(cause), hint }
}

/// Gives this process the defaults for what is not requested, as far as we may.
pub fn reset(wanted: &ProcessLimits) -> sys::Result<()> {
    for (word, soft, hard) in unasked(wanted) {
        let resource = resource(word);
        if rlimits::set_limits(resource, soft, hard).is_err() {
            // Without CAP_SYS_RESOURCE the hard limit can only sink: take what we have.
            let (_, have) = rlimits::limits(resource);
            let least = |limit: Option<u64>| if is_above(limit, have) { have } else { limit };
            rlimits::set_limits(resource, least(soft), least(hard))?;
        }
    }
    Ok(())
}

/// Just before exec: sets exactly what is requested, which after [`raise`] takes no rights.
pub fn apply(wanted: &ProcessLimits) -> Result<(), StepError> {
    for limit in &wanted.rlimits {
        rlimits::set_limits(resource(limit.resource), limit.soft, limit.hard)
            .map_err(|cause| no_limit(limit, limit.hard, cause))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_above_every_limit() {
        assert!(is_above(None, Some(u64::MAX - 1)) && is_above(Some(2), Some(1)));
        assert!(!is_above(None, None) && !is_above(Some(1), None) && !is_above(Some(1), Some(1)));
    }

    #[test]
    fn a_hard_limit_that_cannot_be_raised_is_named_with_its_value() {
        let limit = Rlimit { resource: Word::Nofile, soft: Some(1), hard: None };
        let cause = Error { call: "setrlimit(NOFILE, 1:infinity)".into(), errno: Errno::EPERM };
        let error = no_limit(&limit, Some(4096), cause);
        assert_eq!(error.doing, "cannot set the limit `nofile` to 1:infinity");
        assert!(error.hint.is_some());
    }
}
