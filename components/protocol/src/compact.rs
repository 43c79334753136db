//! Compact addresses (BEP 23 for IPv4, BEP 7 for IPv6): 6 or 18 bytes each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in the order in which they are tried.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A length that is not a whole number of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes is not a multiple of {unit}")]
pub struct RaggedError {
    /// Bytes received.
    pub len: usize,
    /// Bytes of one address.
    pub unit: usize,
}

/// Reads IPv4 addresses of 6 bytes each.
///
/// # Errors
/// Returns an error if the last address is truncated.
pub(crate) fn read_v4(bytes: &[u8]) -> Result<impl Iterator<Item = SocketAddr> + '_, RaggedError> {
    let (addresses, rest) = bytes.as_chunks::<6>();
    whole::<6>(bytes, rest)?;
    Ok(addresses.iter().map(|&[a, b, c, d, high, low]| {
        SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low]))
    }))
}

/// Reads IPv6 addresses of 18 bytes each.
///
/// # Errors
/// Returns an error if the last address is truncated.
pub(crate) fn read_v6(bytes: &[u8]) -> Result<impl Iterator<Item = SocketAddr> + '_, RaggedError> {
    let (addresses, rest) = bytes.as_chunks::<18>();
    whole::<18>(bytes, rest)?;
    Ok(addresses.iter().map(|address| {
        let mut ip = [0; 16];
        ip.copy_from_slice(&address[..16]);
        SocketAddr::new(
            Ipv6Addr::from(ip).into(),
            u16::from_be_bytes([address[16], address[17]]),
        )
    }))
}

fn whole<const UNIT: usize>(bytes: &[u8], rest: &[u8]) -> Result<(), RaggedError> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(RaggedError {
            len: bytes.len(),
            unit: UNIT,
        })
    }
}

/// Reads a single address with its port: 6 or 18 bytes. IPv4 addresses in IPv6 form become IPv4 addresses.
#[must_use]
pub(crate) fn read_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk()?;
    Some(SocketAddr::new(read_ip(ip)?, u16::from_be_bytes(*port)))
}

/// Appends an address with its port.
pub(crate) fn write_address(address: SocketAddr, list: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(v4) => list.extend(v4.octets()),
        IpAddr::V6(v6) => list.extend(v6.octets()),
    }
    list.extend(address.port().to_be_bytes());
}

/// Reads a single address without a port: 4 or 16 bytes (BEP 10 `yourip`, BEP 24 `external ip`).
#[must_use]
pub(crate) fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|v6| IpAddr::from(v6).to_canonical())
}

/// Writes a single address without a port.
#[must_use]
pub(crate) fn write_ip(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_families() {
        let v4: Vec<_> = read_v4(&[127, 0, 0, 1, 0x1a, 0xe1]).unwrap().collect();
        assert_eq!(v4, ["127.0.0.1:6881".parse().unwrap()]);
        let mut bytes = Ipv6Addr::LOCALHOST.octets().to_vec();
        bytes.extend([0x1a, 0xe1]);
        let v6: Vec<_> = read_v6(&bytes).unwrap().collect();
        assert_eq!(v6, ["[::1]:6881".parse().unwrap()]);
    }

    /// Fault 54: a truncated list is an error.
    #[test]
    fn ragged_lists_are_refused() {
        assert_eq!(read_v4(&[0; 7]).err(), Some(RaggedError { len: 7, unit: 6 }));
        assert_eq!(read_v6(&[0; 17]).err(), Some(RaggedError { len: 17, unit: 18 }));
        assert_eq!(read_v4(&[]).unwrap().count(), 0);
    }

    #[test]
    fn lone_addresses() {
        for text in ["1.2.3.4", "2001:db8::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(read_ip(&write_ip(ip)), Some(ip));
        }
        assert_eq!(read_ip(&[1, 2, 3]), None);
    }
}
