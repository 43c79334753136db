//! ecs-torrent.
pub use ecs_torrent_components as components;
pub use ecs_torrent_engine as engine;
pub use ecs_torrent_protocol as protocol;
pub use ecs_torrent_systems as systems;
