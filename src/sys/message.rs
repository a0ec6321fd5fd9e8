//! Bodies of D-Bus messages that are encoded once and sent many times.

use zbus::message::Builder;
use zbus::wire::{Endian, Signature};
use zbus::{Message, Result};

/// The body of a message, as it goes over the wire.
#[derive(Debug)]
pub struct Body {
    bytes: Box<[u8]>,
    signature: Signature,
    endian: Endian,
}

impl Body {
    /// The body of `message`; none if descriptors belong to it.
    pub fn of(message: &Message) -> Option<Self> {
        let body = message.body();
        let data = body.data();
        data.fds().is_empty().then(|| Self {
            bytes: data.bytes().into(),
            signature: body.signature().clone(),
            endian: data.context().endian(),
        })
    }

    /// A message with this body, in the body's byte order, which need not be that of the receiver.
    ///
    /// # Errors
    ///
    /// Those of [`Builder::build`].
    pub fn build(&self, builder: Builder<'_>) -> Result<Message> {
        // SAFETY: the library has encoded these bytes for this signature in this byte order, and the encoding of a body
        // does not depend on the header before it, which is padded to the body's alignment. No descriptors belong to it.
        unsafe { builder.endian(self.endian).build_raw_body(&self.bytes, self.signature.clone(), Vec::new()) }
    }
}
