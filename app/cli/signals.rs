//! SIGINT, SIGTERM and SIGHUP: the first one stops in order, a second one ends the process, whatever hangs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{CliError, ExitCodes};

/// After a second signal, the time that the engine has to end and to write what was handed to the state folder. Then the
/// process ends, whatever hangs: a disk, a state folder, a reader of the output. More signals do not shorten it, so that
/// quick ones lose nothing.
const FORCED_END_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between two tries to remove a folder into which somebody still writes.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// Listens from the moment it is made, in a thread of its own: neither a busy runtime nor a command that blocks delays it.
pub(super) struct Signals {
    received: watch::Receiver<u32>,
    taken: u32,
    last_will: Arc<LastWill>,
}

/// What is left to do when the process is ended by a second signal.
struct LastWill {
    code: AtomicU8,
    folder: Mutex<Option<PathBuf>>,
}

impl Signals {
    pub(super) fn new() -> Result<Self, CliError> {
        let failed = || CliError::io("cannot listen to signals");
        let (sender, received) = watch::channel(0);
        let last_will = Arc::new(LastWill {
            code: AtomicU8::new(ExitCodes::FAILED),
            folder: Mutex::new(None),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(failed())?;
        let mut streams = {
            let _inside = runtime.enter();
            Streams::new().map_err(failed())?
        };
        let end = last_will.clone();
        let listen = move || {
            runtime.block_on(async {
                loop {
                    streams.next().await;
                    sender.send_modify(|count| *count += 1);
                    if *sender.borrow() == 2 {
                        thread::spawn({
                            let end = end.clone();
                            move || end.fulfil()
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
            last_will,
        })
    }

    /// Waits for the next signal; each is told once.
    pub(super) async fn next(&mut self) {
        let taken = self.taken;
        if self.received.wait_for(|count| *count > taken).await.is_err() {
            // The thread that listens does not end.
            std::future::pending::<()>().await;
        }
        self.taken += 1;
    }

    /// Sets the exit code of an end by a second signal.
    pub(super) fn set_code(&self, code: u8) {
        self.last_will.code.store(code, Ordering::Release);
    }

    /// Has a folder removed when a second signal ends the process.
    pub(super) fn remove_at_end(&self, folder: PathBuf) {
        *self.last_will.folder.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
    }
}

impl LastWill {
    /// Ends the process when its time is over, unless it has ended by itself.
    fn fulfil(&self) {
        thread::sleep(FORCED_END_TIMEOUT);
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(folder) = folder {
            remove(&folder, FORCED_END_TIMEOUT);
        }
        std::process::exit(self.code.load(Ordering::Acquire).into());
    }
}

/// Removes a folder into which somebody may still write, for at most so long.
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
    /// A terminal that is closed; nothing where the command is to outlive it, as with `nohup`.
    hang_up: Option<Signal>,
}

impl Streams {
    fn new() -> std::io::Result<Self> {
        let hang_up = (!is_ignored(SignalKind::hangup())).then(|| signal(SignalKind::hangup()));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: hang_up.transpose()?,
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

/// Whether the process was started with a signal ignored. Only Linux tells that without unsafe code.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (signal.as_raw_value() - 1)) != 0)
}
