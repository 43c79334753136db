//! The keys by which future events name their data. The key of removed data finds nothing.

use slotmap::new_key_type;

new_key_type! {
    /// A connection.
    pub(super) struct ConnectionKey;
    /// A datagram in transit.
    pub(super) struct DatagramKey;
    /// A job of a backend.
    pub(super) struct JobKey;
}
