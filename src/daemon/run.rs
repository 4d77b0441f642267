//! `bloom-agent run`: the daemon as systemd, or a person, starts it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::Signal;

/// Turns the kernel's signals into ours, for as long as somebody listens.
pub(super) async fn signals(listener: mpsc::Sender<Signal>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        let heard = tokio::select! {
            Some(()) = terminate.recv() => Signal::Stop,
            Some(()) = interrupt.recv() => Signal::Stop,
            Some(()) = hangup.recv() => Signal::Reload,
            else => return Ok(()),
        };
        if listener.send(heard).await.is_err() {
            return Ok(());
        }
    }
}
