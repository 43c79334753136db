//! The network namespace of the client, and the link to it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Delay in milliseconds of each direction, and rate in Mbit/s.
const DELAY_MS: &str = "50";
const RATE_MBIT: &str = "100";

/// The client's address.
const CLIENT: &str = "10.201.1.1";

/// The link, and the process that holds the client's namespace. They end with this value.
pub struct Link {
    relay: Child,
    holder: Child,
}

impl Drop for Link {
    fn drop(&mut self) {
        for child in [&mut self.relay, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Link {
    /// Creates the namespace and the link; `None` if that is not possible here.
    pub fn new() -> Option<Self> {
        let mut relay = Command::new("python3")
            .arg(root().join("benches/discovery/relay.py"))
            .args(["near", "far", DELAY_MS, RATE_MBIT])
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let ready = first_line(&mut relay);
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .spawn()
            .ok()?;
        let link = Self { relay, holder };
        if ready.is_empty() {
            return None;
        }
        let pid = link.holder.id().to_string();
        // The namespace exists once it differs from ours.
        let own = std::fs::read_link("/proc/self/ns/net").ok()?;
        while std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()? == own {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let near = [
            "link set far netns PID",
            "addr add 10.202.1.1/32 dev near",
            "link set near up",
            "route add 10.201.0.0/16 dev near",
        ];
        let far = [
            "link set lo up".to_owned(),
            format!("addr add {CLIENT}/32 dev far"),
            "link set far up".to_owned(),
            "route add default dev far".to_owned(),
        ];
        for line in near {
            succeed(Command::new("ip").args(line.replace("PID", &pid).split(' ')));
        }
        for line in far {
            succeed(link.inside("ip").args(line.split(' ')));
        }
        Some(link)
    }

    /// Returns a command that runs in the client's namespace.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command.arg(program);
        command
    }

    /// Measures the engine, in a process of its own. Returns milliseconds, or `None` if it fails.
    pub fn run_engine(&self, mode: &str, torrent: &str, known: SocketAddr) -> Option<u64> {
        let mut command = self.inside(std::env::current_exe().unwrap().to_str()?);
        command.args(["client", mode, &format!("{CLIENT}:6881"), torrent, &known.to_string()]);
        time_of(command)
    }

    /// Measures libtorrent.
    pub fn run_libtorrent(&self, mode: &str, torrent: &str, known: SocketAddr) -> Option<u64> {
        let mut command = self.inside("python3");
        command
            .env("PYTHONPATH", root().join("target/peers/python"))
            .arg(root().join("benches/discovery/libtorrent_client.py"))
            .args([mode, &format!("{CLIENT}:6882"), torrent, &known.to_string()]);
        time_of(command)
    }

    pub fn has_libtorrent() -> bool {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", root().join("target/peers/python"));
        let output = command.args(["-c", "import libtorrent"]).output();
        output.is_ok_and(|output| output.status.success())
    }
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn time_of(mut command: Command) -> Option<u64> {
    let mut child = command.stdout(Stdio::piped()).spawn().ok()?;
    let line = first_line(&mut child);
    let _ = child.kill();
    let _ = child.wait();
    line.trim().parse().ok()
}

/// Returns the first line that a process prints, or nothing if it ends.
pub fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    line
}

fn succeed(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
