//! The torrent file that `create` and `fetch` write. An existing file is replaced only with `--overwrite`, and the
//! content of a new torrent never.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ecs_torrent::InfoHash;
use ecs_torrent_engine::backends::whole_file::{self, Existing};
use rustix::fs::{Access, access};

use super::CliError;
use super::output::{check_output, print};

/// The permissions of a torrent file, from which the user's umask takes some.
const MODE: u32 = 0o666;

/// A checked destination of the torrent file.
#[derive(Debug)]
pub(super) enum Destination {
    /// The standard output.
    Stdout,
    /// A named pipe or character device, which is written to and never replaced.
    Stream(PathBuf),
    /// A path without a file, or one whose regular file may be replaced.
    File { path: PathBuf, existing: Existing },
}

impl Destination {
    /// Checks a path before the torrent is made. `content` is the file or folder of a new torrent.
    pub(super) fn find(path: &Path, overwrite: bool, content: Option<&Path>) -> Result<Self, CliError> {
        if path.as_os_str() == "-" {
            if io::stdout().is_terminal() {
                let why = "cannot write to the standard output: it is a terminal; redirect it, or name a file";
                return Err(CliError::Other(why.into()));
            }
            return Ok(Self::Stdout);
        }
        let failed = || CliError::io(cannot_write(path));
        let refused = |why: &str| Err(CliError::Other(format!("{}: {why}", cannot_write(path))));
        let itself = match path.symlink_metadata() {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed()(error)),
        };
        // Links such as /dev/stdout may lead to a pipe.
        let kind = path.metadata().ok().map(|target| target.file_type());
        if kind.is_some_and(|kind| kind.is_fifo() || kind.is_char_device()) {
            return Ok(Self::Stream(path.to_owned()));
        }
        match itself {
            Some(metadata) if metadata.is_dir() => return refused("it is a folder"),
            Some(metadata) if metadata.is_symlink() => {
                return refused("it is a symbolic link; name another file, or `-` for standard output");
            }
            Some(metadata) if !metadata.is_file() => return refused("it is not a regular file"),
            Some(metadata) => {
                if is_content(&metadata, content) {
                    return Err(in_content(path));
                }
                if !overwrite {
                    return refused("it exists already; --overwrite replaces it");
                }
            }
            None => {}
        }
        let folder = folder_of(path);
        let real = folder.canonicalize().map_err(failed())?;
        if !real.is_dir() {
            return refused(&format!("{} is not a folder", folder.display()));
        }
        let is_inside = |above: &Path| above.metadata().is_ok_and(|above| is_content(&above, content));
        if real.ancestors().any(is_inside) {
            return Err(in_content(path));
        }
        access(&real, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| failed()(error.into()))?;
        Ok(Self::File {
            path: path.to_owned(),
            existing: if overwrite { Existing::Replace } else { Existing::Keep },
        })
    }

    /// Writes the torrent file, and prints its info-hash and its path. A regular file appears complete or not at all.
    pub(super) fn write(&self, bytes: &[u8], hash: InfoHash) -> Result<(), CliError> {
        let (path, result) = match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                check_output(out.write_all(bytes).and_then(|()| out.flush()));
                // The standard output contains the torrent file alone.
                eprintln!("{hash}");
                return Ok(());
            }
            Self::Stream(path) => {
                let file = File::options().write(true).open(path);
                (path, file.and_then(|mut file| file.write_all(bytes)))
            }
            Self::File { path, existing } => (path, whole_file::create(path, MODE, bytes, *existing)),
        };
        result.map_err(CliError::io(cannot_write(path)))?;
        print(format_args!("{hash} {}\n", path.display()));
        Ok(())
    }
}

/// Returns the error for an output that would change the content.
pub(super) fn in_content(path: &Path) -> CliError {
    let why = "it is part of the content; name a file outside of it";
    CliError::Other(format!("{}: {why}", cannot_write(path)))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

fn folder_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Whether a file or folder is the content itself, under any name.
fn is_content(metadata: &Metadata, content: Option<&Path>) -> bool {
    let content = content.and_then(|content| content.metadata().ok());
    content.is_some_and(|content| (content.dev(), content.ino()) == (metadata.dev(), metadata.ino()))
}
