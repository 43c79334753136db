//! The Unix socket in the state folder, through which no other user and no other machine can reach the API.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use super::token::Token;

/// The file's name in the state folder.
const FILE: &str = "api.sock";

/// Maximum number of clients that wait to be accepted.
const BACKLOG: i32 = 128;

/// Longest path of a socket that every system supports, in bytes.
const MAX_PATH: usize = 100;

/// Returns the path of the socket of a state folder.
#[must_use]
pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Listens for processes of the daemon's own user. Only this daemon uses the state folder, so an existing socket was
/// left by a daemon that was killed.
pub(super) fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path(state_dir)) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path(state_dir))?,
        Ok(_) => return Err(io::Error::other("the file there is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let place = Place::of(state_dir)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&place.path)?)?;
    // No client can connect before the socket listens.
    std::fs::set_permissions(path(state_dir), PermissionsExt::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

/// Returns whether the process at the other end belongs to the daemon's user or to root, who can read the token anyway.
pub(super) fn is_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| can_have_token(peer.uid(), own))
}

/// Returns whether a process of user `peer` can read a token of user `owner`.
fn can_have_token(peer: u32, owner: u32) -> bool {
    peer == owner || peer == 0
}

/// Connects to the daemon that uses `state_dir`.
///
/// # Errors
/// If no daemon listens, or the listening process does not belong to the owner of the folder's token.
pub async fn connect(state_dir: &Path) -> io::Result<UnixStream> {
    let place = Place::of(state_dir)?;
    let stream = UnixStream::connect(&place.path).await?;
    let owner = std::fs::metadata(Token::path(state_dir))?.uid();
    let peer = stream.peer_cred()?.uid();
    if !can_have_token(peer, owner) {
        let why = format!("the process that listens belongs to user {peer}, the token to user {owner}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(stream)
}

/// A path of the socket that is short enough for the system, and the open folder that it leads through, if any.
struct Place {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

impl Place {
    fn of(state_dir: &Path) -> io::Result<Self> {
        let path = path(state_dir);
        if path.as_os_str().len() <= MAX_PATH {
            return Ok(Self { path, _folder: None });
        }
        let folder = rustix::fs::open(state_dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self {
            path: format!("/proc/self/fd/{}/{FILE}", folder.as_raw_fd()).into(),
            _folder: Some(folder),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_users_cannot_have_the_token() {
        for (peer, owner, can) in [
            (1000, 1000, true),
            (0, 1000, true),
            (1000, 0, false),
            (1001, 1000, false),
        ] {
            assert_eq!(can_have_token(peer, owner), can, "{peer} {owner}");
        }
    }
}
