//! The name of one direction of a simulated connection.

use super::keys::ConnectionKey;

/// One direction of a connection, named by the sending end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) connection: ConnectionKey,
    /// Index of the sending end: 0 for the end that connected.
    pub(super) sender: u8,
}

impl Flow {
    pub(super) fn reversed(self) -> Self {
        let sender = 1 - self.sender;
        Self { sender, ..self }
    }
}
