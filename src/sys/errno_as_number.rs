//! An errno between processes of ours, for serde's `with`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Errno;

/// Writes the number.
pub fn serialize<S: Serializer>(errno: &Errno, serializer: S) -> Result<S::Ok, S::Error> {
    (*errno as i32).serialize(serializer)
}

/// Reads the number.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Errno, D::Error> {
    i32::deserialize(deserializer).map(Errno::from_raw)
}
