//! The five ports, with their requests and events.

pub mod disk;
pub mod hash;
pub mod http;
pub mod net;
pub mod state;

pub use self::disk::DiskPort;
pub use self::hash::HashPort;
pub use self::http::HttpPort;
pub use self::net::NetPort;
pub use self::state::StatePort;
