//! The daemon's face on D-Bus: reads calls, has the core do what they ask, and writes the answers.
//!
//! Messages are dispatched by us and not by the library's object server: objects exist as long as a file does, all
//! interfaces are asked for by an empty name, and `machine/self` is another object for each caller.

mod call;
mod face;
mod image;
mod interface;
mod log_control;
mod machine;
mod machinist1;
mod manager;
mod objects;
mod paths;
mod systemd1_facade;

use std::sync::Arc;
use std::time::Instant;

use futures_core::Stream as _;
use zbus::MessageStream;

use crate::daemon::core::state::{Level, lock};
use call::Call;
pub(crate) use face::{Face, announcer};
pub(crate) use systemd1_facade::take_name;

/// Answers calls until the bus goes away.
pub(crate) async fn serve_calls(face: Arc<Face>, mut stream: MessageStream) {
    loop {
        let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut stream).poll_next(cx)).await;
        match next {
            Some(Ok(message)) if message.message_type() == zbus::message::Type::MethodCall => {
                *lock(&face.daemon.last_call) = Instant::now();
                let call = Call::new(message, face.connection.clone());
                let (runtime, face) = (face.daemon.runtime.clone(), Arc::clone(&face));
                runtime.spawn("call", async move { answer(&face, &call).await }).detach();
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => {
                face.daemon.say(Level::Err, "The connection to the bus has ended.");
                face.daemon.quit.notify(1);
                return;
            }
        }
    }
}

async fn answer(face: &Arc<Face>, call: &Call) {
    let daemon = &face.daemon;
    daemon.completion().await;
    let result = objects::dispatch(face, call).await;
    if let Err(refusal) = &result {
        daemon.say(Level::Debug, &format!("{} for {}: {refusal}", call.member(), call.sender()));
    }
    if !call.wants_reply() {
        return;
    }
    let reply = result.map_or_else(|refusal| call.refuse(&refusal), Ok);
    // A caller that has left gets no answer.
    face.send(reply).await;
}
