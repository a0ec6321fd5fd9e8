//! What an operation is asked, tells and gives, as types that cross process borders.
//!
//! An operation ([`Request`]) tells [`Event`]s to who called it while it runs and ends well or with an [`OpError`]. In one
//! process these are values. Between two processes of ours each is one [`Line`] of JSON on a descriptor that the parent
//! gave; over the bus a list of events, or of errors, is one text of JSON. What people read is made of them where it is
//! printed, and no process reads that back.

mod error;
mod event;
mod line;
mod request;

pub use error::{Kind, OpError};
pub use event::{Done, Event, Events, Recorder, What};
pub use line::{Line, Reader, Writer};
pub use request::Request;
