//! A scenario's control of name resolution.

use std::net::IpAddr;
use std::sync::Mutex;

use super::super::fabric::{Fabric, lock};
use super::NameService;

/// Controls the table of names.
pub struct NameControl<'s> {
    pub(in super::super) fabric: &'s Mutex<Fabric>,
}

impl NameControl<'_> {
    /// Sets the addresses of a name, replacing earlier ones.
    pub fn set(&self, name: &str, ips: impl IntoIterator<Item = IpAddr>) {
        let ips = ips.into_iter().collect();
        lock(self.fabric).names.table.insert(name.to_ascii_lowercase(), ips);
    }

    /// Removes a name from the table.
    pub fn remove(&self, name: &str) {
        lock(self.fabric).names.table.remove(&name.to_ascii_lowercase());
    }

    /// Sets the state of name resolution from now on.
    pub fn set_service(&self, service: NameService) {
        lock(self.fabric).names.service = service;
    }
}
