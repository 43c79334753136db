//! SIGINT, SIGTERM and SIGHUP: the first signal stops the command cleanly, and a second one ends the process even if
//! something hangs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{CliError, ExitCodes};

/// Time between a second signal and the forced end of the process. During this time, the engine writes the sessions
/// that it has handed to the state folder. Then the process ends even if a disk, the state folder or a reader of the
/// output hangs. Further signals do not shorten the time, so that quick signals lose nothing.
const FORCED_END_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between two attempts to remove a folder to which another thread still writes.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// The signals that the process has received since this value was created. A dedicated thread receives them, so that
/// neither a busy runtime nor a blocking command delays a signal.
pub(super) struct Signals {
    received: watch::Receiver<u32>,
    taken: u32,
    forced_end: Arc<ForcedEnd>,
}

/// How a second signal ends the process.
struct ForcedEnd {
    code: AtomicU8,
    folder: Mutex<Option<PathBuf>>,
}

impl Signals {
    pub(super) fn new() -> Result<Self, CliError> {
        let failed = || CliError::io("cannot listen to signals");
        let (sender, received) = watch::channel(0);
        let forced_end = Arc::new(ForcedEnd {
            code: AtomicU8::new(ExitCodes::FAILED),
            folder: Mutex::new(None),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(failed())?;
        let mut streams = {
            let _inside = runtime.enter();
            Streams::new().map_err(failed())?
        };
        let end = forced_end.clone();
        let listen = move || {
            runtime.block_on(async {
                loop {
                    streams.next().await;
                    sender.send_modify(|count| *count += 1);
                    if *sender.borrow() == 2 {
                        thread::spawn({
                            let end = end.clone();
                            move || end.end_process()
                        });
                    }
                }
            });
        };
        let thread = thread::Builder::new().name("ecs-torrent-signals".into());
        thread.spawn(listen).map_err(failed())?;
        Ok(Self {
            received,
            taken: 0,
            forced_end,
        })
    }

    /// Waits for the next signal; returns once for each signal.
    pub(super) async fn next(&mut self) {
        let taken = self.taken;
        if self.received.wait_for(|count| *count > taken).await.is_err() {
            // The receiving thread never ends.
            std::future::pending::<()>().await;
        }
        self.taken += 1;
    }

    /// Sets the exit code for an end by a second signal.
    pub(super) fn set_code(&self, code: u8) {
        self.forced_end.code.store(code, Ordering::Release);
    }

    /// Registers a folder to remove when a second signal ends the process.
    pub(super) fn remove_at_end(&self, folder: PathBuf) {
        *self.forced_end.folder.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
    }
}

impl ForcedEnd {
    /// Ends the process after [`FORCED_END_TIMEOUT`], unless the process has ended by itself.
    fn end_process(&self) {
        thread::sleep(FORCED_END_TIMEOUT);
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(folder) = folder {
            remove(&folder, FORCED_END_TIMEOUT);
        }
        std::process::exit(self.code.load(Ordering::Acquire).into());
    }
}

/// Removes a folder to which other threads may still write. Gives up after `timeout`.
pub(super) fn remove(folder: &std::path::Path, timeout: Duration) {
    let began = Instant::now();
    while folder.exists() && began.elapsed() < timeout {
        if std::fs::remove_dir_all(folder).is_err() {
            thread::sleep(REMOVE_PAUSE);
        }
    }
}

struct Streams {
    interrupt: Signal,
    terminate: Signal,
    /// SIGHUP: the terminal was closed. `None` if the process was started with SIGHUP ignored, as by `nohup`.
    hang_up: Option<Signal>,
    /// SIGXFSZ, which would end the process: with a handler, a write beyond the limit of file sizes (`ulimit -f`) is an
    /// error like any other.
    _file_size: Signal,
}

impl Streams {
    fn new() -> std::io::Result<Self> {
        let hang_up = (!is_ignored(SignalKind::hangup())).then(|| signal(SignalKind::hangup()));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: hang_up.transpose()?,
            _file_size: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    async fn next(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hang_up => {}
        }
    }
}

/// Returns whether the process was started with a signal ignored. Only Linux shows that without unsafe code;
/// elsewhere no signal counts as ignored.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (signal.as_raw_value() - 1)) != 0)
}
