//! The environment in which clients run: addresses, folders, processes.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::namespace;
pub use crate::namespace::Namespace;

/// Time limit for every wait. It is generous because the tests check whether something happens, not when.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// A public address in the namespace, from the block for documentation (RFC 5737).
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Environment variable that is set in the process that runs in the namespace.
const MARK: &str = "ECS_TORRENT_PEERS_NAMESPACE";

/// Number of addresses in the namespace: enough for every node of every case.
const ADDRESSES: u16 = 400;

/// Runs this program again in a network namespace with an address for each node, if the system allows it.
pub fn enter_namespace() -> Namespace {
    let nodes = (1..=ADDRESSES).flat_map(|number| [v4(number).into(), v6(number).into()]);
    let addresses: Vec<IpAddr> = std::iter::once(PUBLIC.into()).chain(nodes).collect();
    namespace::enter(MARK, &addresses)
}

fn v4(number: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, (number >> 8) as u8, number as u8)
}

fn neighbor_v4(number: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, number as u8)
}

fn neighbor_v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, number)
}

fn v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number)
}

/// Returns whether each node has its own address in a namespace.
pub fn has_namespace() -> bool {
    std::env::var_os(MARK).is_some()
}

/// The environment of one case: a temporary folder and addresses.
pub struct Lab {
    folder: tempfile::TempDir,
    nodes: &'static AtomicU16,
}

/// The number of the last assigned address, over all cases.
static LAST_NODE: AtomicU16 = AtomicU16::new(0);

/// Number of addresses in the local network.
const NEIGHBORS: u16 = 20;

/// The number of the last address assigned in the local network, and whether the network is there.
static LAST_NEIGHBOR: AtomicU16 = AtomicU16::new(0);
static LOCAL_NETWORK: Once = Once::new();

impl Lab {
    pub fn new(name: &str) -> Self {
        let base = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let folder = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(base)
            .unwrap();
        // Programs that drop their privileges still have to reach their files.
        open_to_all(folder.path());
        Self {
            folder,
            nodes: &LAST_NODE,
        }
    }

    /// Returns a subfolder of the case's folder. Creates it if it does not exist.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        open_to_all(&path);
        path
    }

    /// Returns an address that no other node has.
    pub fn address(&self) -> IpAddr {
        let number = self.next_node();
        if has_namespace() {
            v4(number).into()
        } else {
            Ipv4Addr::new(127, 77, (number >> 8) as u8, number as u8).into()
        }
    }

    /// Returns an address that no other node has, in a local network of the namespace, where multicast works.
    pub fn neighbor(&self) -> IpAddr {
        neighbor_v4(self.next_neighbor()).into()
    }

    /// Returns an IPv6 address in the local network that no other node has.
    pub fn neighbor_v6(&self) -> IpAddr {
        neighbor_v6(self.next_neighbor()).into()
    }

    /// Returns the number of a node in the local network. Creates the network if it is not there.
    fn next_neighbor(&self) -> u16 {
        assert!(has_namespace(), "the network belongs to the namespace");
        LOCAL_NETWORK.call_once(|| {
            let begin = "link add lan0 type veth peer name lan1\nlink set lan1 up\nlink set lan0 up\n".to_owned();
            let all = (1..=NEIGHBORS).map(|number| {
                let (v4, v6) = (neighbor_v4(number), neighbor_v6(number));
                format!("addr add {v4}/24 dev lan0\naddr add {v6}/64 dev lan0 nodad\n")
            });
            let batch = all.fold(begin, |batch, line| batch + &line);
            let file = self.folder("network").join("batch");
            std::fs::write(&file, batch).unwrap();
            let status = Command::new("ip").arg("-batch").arg(&file).status().unwrap();
            assert!(status.success(), "ip: {status}");
        });
        let number = LAST_NEIGHBOR.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number <= NEIGHBORS, "more neighbors than addresses");
        number
    }

    /// Returns an IPv6 address that no other node has.
    pub fn address_v6(&self) -> IpAddr {
        v6(self.next_node()).into()
    }

    fn next_node(&self) -> u16 {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number <= ADDRESSES, "more nodes than addresses");
        number
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}

/// A child program that ends when this value is dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    name: String,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let name = format!("{command:?}");
        // A separate process group, so that the program's helpers end with it.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let (sender, lines) = channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Self {
            child,
            lines,
            seen: Vec::new(),
            name,
        }
    }

    /// Waits for a line that `wanted` accepts, and returns it.
    pub fn wait_for_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(error) => panic!(
                    "{}: waited for {what} ({error}), saw:\n{}",
                    self.name,
                    self.seen.join("\n")
                ),
            }
        }
    }

    /// Waits until the program has ended by itself, and returns whether it succeeded.
    pub fn wait_for_end(&mut self) -> bool {
        self.wait_for_code() == Some(0)
    }

    /// Waits until the program has ended by itself, and returns its exit code.
    pub fn wait_for_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = self.output();
        panic!("{}: did not end, said:\n{output}", self.name);
    }

    /// Sends SIGINT to the program.
    pub fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    /// Returns the program's output so far.
    pub fn output(&mut self) -> String {
        self.seen.extend(self.lines.try_iter());
        self.seen.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let last = &lines[lines.len().saturating_sub(200)..];
            eprintln!("---- {}, the end of what it said:\n{}", self.name, last.join("\n"));
        }
    }
}
