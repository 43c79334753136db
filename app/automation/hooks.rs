//! Hooks: programs that run at events, without a shell.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ecs_torrent_components::settings::seconds;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::notices::Notice;
use super::settings::{AutomationSettings, Hook};

/// Bytes of each of a program's two outputs that are logged.
const MAX_OUTPUT_BYTES: u64 = 1 << 16;

/// Time to read the rest of the output of a program that has ended: its child processes may hold the other end.
const OUTPUT_TIME: Duration = Duration::from_secs(1);

/// Runs the hooks of all notices, in the order of the notices, until the channel ends. Waits for programs that still
/// run then.
pub(super) async fn run(mut notices: Receiver<Notice>, settings: AutomationSettings) {
    let slots = Arc::new(Semaphore::new(settings.max_running_hooks));
    let limit = seconds(settings.hook_timeout_s);
    let mut running = JoinSet::new();
    while let Some(notice) = notices.recv().await {
        for hook in settings.hooks.iter().filter(|hook| hook.on.contains(&notice.event)) {
            // The semaphore is never closed.
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let (hook, notice) = (hook.clone(), notice.clone());
            running.spawn(async move {
                run_hook(&hook, &notice, limit).await;
                drop(slot);
            });
        }
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
}

async fn run_hook(hook: &Hook, notice: &Notice, limit: Duration) {
    let program = hook.program.display();
    match start(hook, notice) {
        Ok(program) => watch(hook, notice, program, limit).await,
        Err(error) => tracing::warn!("hook {program}: not started: {error}"),
    }
}

/// A program, and its process group while it runs. The group is killed when this is dropped. Once the program has ended
/// and was waited for, the number of its group may belong to other processes.
struct Program {
    child: Child,
    group: Option<Pid>,
}

impl Program {
    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.group = None;
        Ok(status)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // A group whose processes have all ended cannot be killed.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn start(hook: &Hook, notice: &Notice) -> io::Result<Program> {
    let child = Command::new(&hook.program)
        .args(&hook.arguments)
        .env("ECS_TORRENT_EVENT", notice.event.name())
        .env("ECS_TORRENT_HASH", notice.info_hash.to_string())
        .env("ECS_TORRENT_NAME", &notice.name)
        .env("ECS_TORRENT_FOLDER", &notice.folder)
        .env(
            "ECS_TORRENT_SIZE",
            notice.size.map_or_else(String::new, |size| size.to_string()),
        )
        .env("ECS_TORRENT_CATEGORY", notice.category.as_deref().unwrap_or_default())
        .env("ECS_TORRENT_LABELS", notice.labels.join(","))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    Ok(Program { child, group })
}

async fn watch(hook: &Hook, notice: &Notice, mut program: Program, limit: Duration) {
    let name = hook.program.display().to_string();
    let (stdout, stderr) = (program.child.stdout.take(), program.child.stderr.take());
    let outputs = [
        stdout.map(|output| tokio::spawn(log_output(name.clone(), output))),
        stderr.map(|output| tokio::spawn(log_output(name.clone(), output))),
    ];
    let event = format!("{} {}", notice.event.name(), notice.info_hash);
    match timeout(limit, program.wait()).await {
        Ok(Ok(status)) if status.success() => {
            tracing::debug!("hook {name}: done ({event})");
        }
        Ok(Ok(status)) => tracing::warn!("hook {name}: {status} ({event})"),
        Ok(Err(error)) => tracing::warn!("hook {name}: {error}"),
        Err(_) => {
            tracing::warn!("hook {name}: killed after {} s ({event})", limit.as_secs());
        }
    }
    drop(program);
    let rest = async {
        for output in outputs.into_iter().flatten() {
            let _ = output.await;
        }
    };
    let _ = timeout(OUTPUT_TIME, rest).await;
}

/// Logs the lines of an output. Output beyond the bound is read and dropped, so that the program does not hang.
async fn log_output(name: String, output: impl AsyncRead + Unpin) {
    let mut output = BufReader::new(output.take(MAX_OUTPUT_BYTES));
    let mut line = Vec::new();
    while let Ok(1..) = output.read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line);
        tracing::info!("hook {name}: {}", text.trim_end().escape_debug());
        line.clear();
    }
    let mut output = output.into_inner().into_inner();
    let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
}
