//! The errors of the rooms below as those of an operation.

use crate::config::{ConfigError, Loaded};
use crate::enter::EnterError;
use crate::image::ImageError;
use crate::plan::PlanError;
use crate::report::{Kind, OpError};
use crate::supervisor::MachineError;

fn hinted(error: OpError, hint: Option<impl Into<String>>) -> OpError {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// A machine could not be made.
pub fn machine(doing: &str, error: &MachineError) -> OpError {
    let kind = match error {
        MachineError::NotPermitted => Kind::NotPermitted,
        _ => Kind::Failed,
    };
    hinted(OpError::of(kind, doing).cause(error.to_string()).caused_by(error), error.hint())
}

/// A verb on an image failed; the error says what was tried.
pub fn image(error: &ImageError) -> OpError {
    let kind = match error {
        ImageError::InvalidName { .. } => Kind::Usage,
        ImageError::Call { cause, .. } => Kind::of_call(cause),
        _ => Kind::Failed,
    };
    hinted(OpError::of(kind, error.to_string()).caused_by(error), error.hint())
}

/// A machine could not be entered.
pub fn enter(error: &EnterError) -> OpError {
    let kind = match error {
        EnterError::NotFound(_) => Kind::NoSuchProgram,
        EnterError::NotExecutable(_) => Kind::CannotExecute,
        _ => Kind::Failed,
    };
    OpError::of(kind, error.to_string()).caused_by(error)
}

/// What was typed is wrong.
pub fn invalid(error: &ConfigError) -> OpError {
    OpError { kind: Kind::Usage, ..error.into() }
}

/// Limits that this host cannot keep.
pub fn unmet(error: &ConfigError) -> OpError {
    OpError { kind: Kind::Failed, ..error.into() }
}

/// A definition that this host cannot follow.
pub fn unplanned(loaded: Loaded, error: &PlanError) -> OpError {
    if let PlanError::Limits(limits) = error {
        return unmet(&loaded.refuse(limits));
    }
    let doing = format!("cannot plan machine '{}'", loaded.spec.name);
    hinted(OpError::new(doing).cause(error.to_string()), error.hint())
}
