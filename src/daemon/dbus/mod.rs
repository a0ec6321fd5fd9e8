//! The daemon's face on D-Bus: reads calls, has the core do what they ask, and writes the answers.

pub(crate) mod call;
pub(crate) mod image;
mod interface;
pub(crate) mod log_control;
pub(crate) mod machine;
mod machinist1;
pub(crate) mod manager;
pub(crate) mod objects;
pub(crate) mod systemd1_facade;

use std::sync::Arc;
use std::time::Instant;

use futures_core::Stream as _;
use zbus::MessageStream;

use crate::daemon::core::state::{Daemon, Level, lock};
use call::Call;

/// Answers calls until the bus goes away.
pub(crate) async fn serve_calls(daemon: Arc<Daemon>, mut stream: MessageStream) {
    loop {
        let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut stream).poll_next(cx)).await;
        match next {
            Some(Ok(message)) if message.message_type() == zbus::message::Type::MethodCall => {
                *lock(&daemon.last_call) = Instant::now();
                let (daemon, call) = (Arc::clone(&daemon), Call::new(message, daemon.connection.clone()));
                let runtime = daemon.runtime.clone();
                runtime.spawn("call", async move { answer(&daemon, &call).await }).detach();
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => {
                daemon.say(Level::Err, "The bus has gone away.");
                daemon.quit.notify(1);
                return;
            }
        }
    }
}

async fn answer(daemon: &Arc<Daemon>, call: &Call) {
    daemon.completion().await;
    let result = objects::dispatch(daemon, call).await;
    if let Err(failure) = &result {
        daemon.say(Level::Debug, &format!("{} for {}: {failure}", call.member(), call.sender()));
    }
    if !call.wants_reply() {
        return;
    }
    let reply = result.map_or_else(|failure| call.refuse(&failure), Ok);
    // A caller that has gone away gets no answer.
    daemon.emit(reply).await;
}
