//! The file in the state folder from which clients learn where the API is and which process serves it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ecs_torrent_engine::backends::whole_file;

/// The file's name in the state folder.
const FILE: &str = "api_address";

/// Maximum number of bytes of the file that are read.
const MAX_BYTES: u64 = 1024;

/// The address of an API, and the process that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiAddress {
    /// An address that a client of this machine can connect to.
    pub address: SocketAddr,
    /// The process that serves it.
    pub process: u32,
    /// Start time of that process, in clock ticks since boot, if the system reports it.
    started: Option<u64>,
}

impl ApiAddress {
    /// Returns the path of the file.
    pub(super) fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE)
    }

    /// Creates the entry of this process, which serves on `listen`.
    pub(super) fn of_this_process(listen: SocketAddr) -> Self {
        let process = std::process::id();
        Self {
            address: reachable(listen),
            process,
            started: start_time(process).ok().flatten(),
        }
    }

    /// Writes the file atomically: a reader sees all of it or nothing.
    pub(super) fn write(&self, state_dir: &Path) -> io::Result<()> {
        let started = self.started.map_or_else(String::new, |ticks| format!(" {ticks}"));
        let text = format!("{}\n{}{started}\n", self.address, self.process);
        let temporary = Path::new(FILE).with_extension("tmp");
        whole_file::replace(
            fs::File::open(state_dir)?,
            Path::new(FILE),
            &temporary,
            0o600,
            text.as_bytes(),
        )
    }

    /// Reads the file that a daemon has left in its state folder.
    ///
    /// # Errors
    /// If there is no such file, or its content is invalid.
    pub fn read(state_dir: &Path) -> io::Result<Self> {
        let text = whole_file::read_text(&Self::path(state_dir), MAX_BYTES)?;
        Self::parse(&text).ok_or_else(|| io::Error::other(format!("{FILE} holds no address and process")))
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, process) = text.trim_end().split_once('\n')?;
        let mut numbers = process.split(' ');
        Some(Self {
            address: address.parse().ok()?,
            process: numbers.next()?.parse().ok()?,
            started: numbers.next().map(str::parse).transpose().ok()?,
        })
    }

    /// Returns whether that process still runs. If the system does not report it, assumes that it does.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match start_time(self.process) {
            Ok(started) => started.is_some() && (self.started.is_none() || self.started == started),
            // Without `/proc`, the client relies on the daemon's proof.
            Err(_) => true,
        }
    }
}

/// Returns the start time of a process, or `None` if there is no such process or only its exit status.
fn start_time(process: u32) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(text) => text,
        Err(_) if Path::new("/proc/self/stat").exists() => return Ok(None),
        Err(error) => return Err(error),
    };
    // proc_pid_stat(5): the name, in parentheses, may contain any character. The state follows as field 3, the start
    // time as field 22.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_ascii_whitespace();
    let is_over = matches!(fields.next(), Some("Z" | "X") | None);
    Ok(fields.nth(18).and_then(|ticks| ticks.parse().ok()).filter(|_| !is_over))
}

/// Converts a listen address into one that a client of this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_read_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let written = ApiAddress::of_this_process("0.0.0.0:6880".parse().unwrap());
        written.write(folder.path()).unwrap();
        let read = ApiAddress::read(folder.path()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.address, "127.0.0.1:6880".parse().unwrap());
        assert!(read.is_alive());
        for text in [
            "",
            "127.0.0.1:6880",
            "127.0.0.1:6880\n\n",
            "127.0.0.1:6880\nx 1\n",
            "x\n1 1\n",
        ] {
            fs::write(ApiAddress::path(folder.path()), text).unwrap();
            assert!(ApiAddress::read(folder.path()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn another_process_with_the_same_number_is_another_process() {
        let this = ApiAddress::of_this_process("127.0.0.1:1".parse().unwrap());
        let other = ApiAddress {
            started: Some(1),
            ..this
        };
        assert!(!other.is_alive());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = ApiAddress {
            process: child.id(),
            started: None,
            ..this
        };
        child.wait().unwrap();
        assert!(!ended.is_alive());
    }
}
