//! SIGINT and SIGTERM: the first stops in order, the second at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliError;

/// Listens from the moment it is made.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, CliError> {
        let failed = || CliError::io("cannot listen to signals");
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed())?,
            terminate: signal(SignalKind::terminate()).map_err(failed())?,
        })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
