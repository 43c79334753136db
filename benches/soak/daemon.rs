//! The daemon as a process, and requests to its API.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Time limit of one request.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct Daemon {
    child: Child,
    pub api: SocketAddr,
    pub peers: SocketAddr,
    token: String,
}

impl Daemon {
    pub fn start(folder: &Path) -> Self {
        let log = fs::File::create(folder.join("log")).expect("a log file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_ecs-torrent"))
            .args([
                "daemon",
                "--listen",
                "127.0.0.1:0",
                "--api",
                "127.0.0.1:0",
                "--download-dir",
                "downloads",
            ])
            .current_dir(folder)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the daemon prints its addresses");
        let addresses = line
            .trim()
            .strip_prefix("API at http://")
            .and_then(|rest| rest.split_once(", peers at "));
        let (api, peers) = addresses.unwrap_or_else(|| panic!("unexpected greeting: {line}"));
        Self {
            child,
            api: api.parse().expect("the API's address"),
            peers: peers.parse().expect("the peers' address"),
            token: fs::read_to_string(folder.join(".ecs_torrent/api_token")).expect("the token"),
        }
    }

    /// Sends an authenticated request and returns the status and body; `None` if the daemon does not answer.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect_timeout(&self.api, TIMEOUT).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        stream.set_write_timeout(Some(TIMEOUT)).ok()?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/x-bittorrent\r\nContent-Length: {}\r\n\r\n",
            self.api,
            self.token.trim(),
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
        let mut answer = Vec::new();
        // The daemon may reset the connection after its answer.
        let _ = stream.read_to_end(&mut answer);
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
        let status = std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()?;
        Some((status, answer.split_off(end + 4)))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default()
    }

    /// Returns a field of the process's status that is a size in KiB.
    fn size(&self, field: &str) -> Option<u64> {
        let status = self.read("status");
        let size = status.lines().find_map(|line| line.strip_prefix(field))?;
        size.trim_start_matches(':').trim_end_matches(" kB").trim().parse().ok()
    }

    /// Returns the peak of the resident memory in KiB.
    #[allow(dead_code, reason = "shared by benches that each use a part")]
    pub fn peak(&self) -> u64 {
        self.size("VmHWM").unwrap_or(0)
    }

    /// Returns the resident memory in KiB and the processor time used so far.
    pub fn usage(&self) -> (u64, Duration) {
        let stat = self.read("stat");
        // Fields after the command's name, which may contain any character: utime and stime are the 12th and 13th of
        // them.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let clock_ticks: u64 = [11, 12]
            .iter()
            .filter_map(|&index| fields.get(index)?.parse::<u64>().ok())
            .sum();
        let per_second = rustix::param::clock_ticks_per_second();
        (
            self.size("VmRSS").unwrap_or(0),
            Duration::from_secs_f64(clock_ticks as f64 / per_second as f64),
        )
    }

    pub fn is_running(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.child.id())).is_ok_and(|stat| {
            !stat
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .trim_start()
                .starts_with('Z')
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
