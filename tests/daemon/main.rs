//! The daemon, its API and its clients, as they are met from outside.
