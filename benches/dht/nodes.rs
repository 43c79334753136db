//! Processes that are nodes.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running program with a node of the DHT. It ends with this value.
pub struct RunningNode {
    child: Child,
    pub address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for RunningNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RunningNode {
    /// Starts the daemon. All answers fit its budget.
    pub fn ours(program: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.ron");
        let text =
            "(dht: (answer_bytes_per_s: 100000000, host_queries_per_s: 1000, bootstrap: []), lsd: (enabled: false))";
        std::fs::write(&config, text).unwrap();
        let address = free_address();
        let mut command = Command::new(program);
        command
            .args(["daemon", "--config", "config.ron", "--api", "127.0.0.1:0"])
            .args(["--download-dir", ".", "--state-dir", "state"])
            .args(["--listen", &address.to_string()])
            .current_dir(folder.path());
        Self::start(command, address, folder)
    }

    /// Starts libtorrent, if it is installed.
    pub fn libtorrent() -> Option<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let python = |root: &Path| {
            let mut command = Command::new("python3");
            command.env("PYTHONPATH", root.join("target/peers/python"));
            command
        };
        let probe = python(&root).args(["-c", "import libtorrent"]).output();
        if !probe.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let address = free_address();
        let mut command = python(&root);
        command
            .arg(root.join("benches/dht/libtorrent_node.py"))
            .arg(address.to_string());
        Some(Self::start(command, address, tempfile::tempdir().unwrap()))
    }

    /// Returns when the program has printed a line.
    fn start(mut command: Command, address: SocketAddr, folder: tempfile::TempDir) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{command:?} does not run");
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    /// CPU time so far, of all threads, in user and system mode.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name may contain spaces; the state follows it.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
    }
}

fn free_address() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
