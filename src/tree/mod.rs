//! Trees that are not trusted: walked, looked at, copied, changed and deleted by descriptor, never by a path that
//! something in them could redirect.

pub mod chown;
pub mod copy;
pub mod delete;
pub mod inode;
pub mod metadata;
pub mod walk;
