//! Measured programs.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use wait4::Wait4;

/// Maximum time of any wait.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// Polling interval for signs without a notification.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Externally visible sign of a program's state.
#[derive(Debug, Clone)]
pub enum Sign {
    /// The process has started.
    Start,
    /// The process has exited successfully.
    Exit,
    /// The process has printed a line that contains this text.
    Line(&'static str),
    /// The process accepts connections at this address.
    Listens(SocketAddr),
    /// This file exists.
    File(PathBuf),
}

/// A program, and the signs that it is ready and done.
pub struct Program {
    pub command: Command,
    pub ready: Sign,
    pub done: Sign,
}

/// Time and memory that a program has used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Seconds from ready to done.
    pub wall_s: f64,
    /// Seconds of user and system time from ready to done.
    pub cpu_s: f64,
    /// Peak resident memory in MiB.
    pub peak_mib: f64,
}

/// A running program, which is killed on drop.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    name: String,
    done: Sign,
    ready_at: Instant,
    cpu_at_ready_s: f64,
}

impl Running {
    /// Starts a program and waits until it is ready.
    pub fn start(program: Program) -> Result<Self, String> {
        let Program {
            mut command,
            ready,
            done,
        } = program;
        let name = format!("{command:?}");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let ready_at = Instant::now();
        let (sender, lines) = channel();
        let streams: [Option<Box<dyn io::Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        // The channel closes once the program's output ends.
        drop(sender);
        let mut this = Self {
            child,
            lines,
            said: Vec::new(),
            name,
            done,
            ready_at,
            cpu_at_ready_s: 0.0,
        };
        if !matches!(ready, Sign::Start) {
            this.wait_for(&ready)?;
            this.ready_at = Instant::now();
            this.cpu_at_ready_s = this.cpu_s();
        }
        Ok(this)
    }

    /// Waits until the program is done. Returns its usage.
    pub fn finish(mut self) -> Result<Usage, String> {
        if matches!(self.done, Sign::Exit) {
            // The program's output ends when it exits, so `wait4` does not take long after that.
            while self.next_line(Instant::now() + DEADLINE)?.is_some() {}
            let ended = self.child.wait4().map_err(|error| format!("{}: {error}", self.name))?;
            let wall_s = self.ready_at.elapsed().as_secs_f64();
            if !ended.status.success() {
                return Err(self.failed(&ended.status.to_string()));
            }
            let used = ended.rusage;
            return Ok(Usage {
                wall_s,
                cpu_s: (used.utime + used.stime).as_secs_f64() - self.cpu_at_ready_s,
                peak_mib: used.maxrss as f64 / f64::from(1 << 20),
            });
        }
        self.until_done()?;
        self.usage()
    }

    /// Waits until the program is done and leaves it running.
    pub fn until_done(&mut self) -> Result<(), String> {
        self.wait_for(&self.done.clone())
    }

    /// Usage up to now.
    pub fn usage(&self) -> Result<Usage, String> {
        Ok(Usage {
            wall_s: self.ready_at.elapsed().as_secs_f64(),
            cpu_s: self.cpu_s() - self.cpu_at_ready_s,
            peak_mib: self.memory_mib("VmHWM:")?,
        })
    }

    /// Current resident memory in MiB.
    pub fn resident_mib(&self) -> Result<f64, String> {
        self.memory_mib("VmRSS:")
    }

    /// Sends a line to the program's input and returns its answer.
    pub fn ask(&mut self, line: &str) -> Result<String, String> {
        let measured = self
            .child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(format!("{line}\n").as_bytes());
        measured.map_err(|error| format!("{}: {error}", self.name))?;
        self.next_line(Instant::now() + DEADLINE)?
            .ok_or_else(|| self.failed("has ended"))
    }

    fn wait_for(&mut self, sign: &Sign) -> Result<(), String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match sign {
                Sign::Line(wanted) => match self.next_line(deadline)? {
                    Some(line) if line.contains(wanted) => return Ok(()),
                    Some(_) => continue,
                    None => return Err(self.failed("has ended")),
                },
                Sign::Listens(address) if TcpStream::connect(address).is_ok() => return Ok(()),
                Sign::File(path) if path.exists() => return Ok(()),
                Sign::Start | Sign::Exit => return Ok(()),
                _ => {}
            }
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return Err(self.failed("has ended"));
            }
            if Instant::now() > deadline {
                return Err(self.failed("takes too long"));
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Returns the next line of output, or `None` at the end of the output.
    fn next_line(&mut self, deadline: Instant) -> Result<Option<String>, String> {
        match self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(line) => {
                self.said.push(line.clone());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(self.failed("takes too long")),
        }
    }

    /// Seconds of user and system time of all threads, including ended ones.
    pub fn cpu_s(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |at: usize| {
            fields
                .get(at)
                .and_then(|field| field.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
    }

    fn memory_mib(&self, field: &str) -> Result<f64, String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .map_err(|error| format!("{}: {error}", self.name))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0)
            .ok_or_else(|| self.failed("reports no memory"))
    }

    fn failed(&self, why: &str) -> String {
        let last = &self.said[self.said.len().saturating_sub(20)..];
        format!("{}: {why}; it said:\n{}", self.name, last.join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
