//! A private network namespace: its addresses are unused, and it has no route out.

use std::net::IpAddr;
use std::process::{Command, ExitCode};

pub enum Namespace {
    /// This process runs in the namespace.
    Inside,
    /// Another process ran in the namespace, with this result.
    Ran(ExitCode),
    /// No namespace can be created, for this reason.
    Unavailable(String),
}

/// Runs this program again in a network namespace of its own, if the system permits it. In the namespace, `mark` is set
/// in the environment, and the loopback device has `addresses`.
pub fn enter(mark: &str, addresses: &[IpAddr]) -> Namespace {
    if std::env::var_os(mark).is_some() {
        return match setup(addresses) {
            Ok(()) => Namespace::Inside,
            Err(reason) => Namespace::Unavailable(reason),
        };
    }
    let probe = Command::new("unshare")
        .args(["--map-root-user", "--net", "true"])
        .output();
    let can_map = probe.is_ok_and(|output| output.status.success());
    let is_root = Command::new("unshare")
        .args(["--net", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    let flags: &[&str] = match (is_root, can_map) {
        (true, _) => &["--net"],
        (false, true) => &["--map-root-user", "--net"],
        (false, false) => return Namespace::Unavailable("unshare --net is not permitted here".into()),
    };
    let this = std::env::current_exe().expect("a running program knows itself");
    let mut command = Command::new("unshare");
    command
        .args(flags)
        .arg("--")
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(mark, "1");
    match command.status() {
        Ok(status) => Namespace::Ran(ExitCode::from(status.code().unwrap_or(101) as u8)),
        Err(error) => Namespace::Unavailable(error.to_string()),
    }
}

fn setup(addresses: &[IpAddr]) -> Result<(), String> {
    let mut batch = "link set lo up\n".to_owned();
    for address in addresses {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        batch += &format!("addr add {address}/{bits} dev lo\n");
    }
    let file = std::env::temp_dir().join(format!("ecs-torrent-namespace-{}.ip", std::process::id()));
    std::fs::write(&file, batch).map_err(|error| error.to_string())?;
    let output = Command::new("ip").args(["-batch".as_ref(), file.as_os_str()]).output();
    let _ = std::fs::remove_file(&file);
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("ip: {error}")),
    }
}
