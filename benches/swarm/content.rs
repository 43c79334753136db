//! Torrents to measure with and their data.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use ecs_torrent::making::{MakeOptions, Plan};
use ecs_torrent::protocol::geometry::Span;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};

use crate::lab::{Lab, TRACKER_URL};
use crate::rows::Shape;

/// A torrent and the location of its data.
#[derive(Debug, Clone)]
pub struct Content {
    /// Torrent file without trackers, for clients that accept peer addresses.
    pub torrent: PathBuf,
    /// Torrent file with the lab's tracker, for the other clients.
    pub tracked: PathBuf,
    /// Folder that holds the content and the torrent files.
    pub folder: PathBuf,
    /// Name of the content's file or folder.
    pub name: String,
    pub len: u64,
    pub piece_length: u32,
}

impl Content {
    /// Returns the content of this size and shape. Creates it if it does not exist.
    pub fn make(lab: &Lab, mib: u64, shape: Shape) -> Self {
        let folder = lab.path().join(format!("content-{mib}-{}", shape.files));
        let name = "content".to_owned();
        let path = folder.join(&name);
        if !folder.exists() {
            fs::create_dir(&folder).unwrap();
            write_noise(&path, mib << 20, shape.files);
        }
        let torrent = folder.join(format!("{}.torrent", shape.piece_length));
        let tracked = folder.join(format!("{}-tracked.torrent", shape.piece_length));
        for (file, trackers) in [(&torrent, vec![]), (&tracked, vec![TRACKER_URL.to_owned()])] {
            if !file.exists() {
                let options = MakeOptions {
                    piece_length: Some(shape.piece_length),
                    trackers,
                    ..MakeOptions::default()
                };
                fs::write(file, Plan::new(&path, options).unwrap().make(&|_| {}).unwrap()).unwrap();
            }
        }
        Self {
            torrent,
            tracked,
            folder,
            name,
            len: mib << 20,
            piece_length: shape.piece_length,
        }
    }

    pub fn gib(&self) -> f64 {
        self.len as f64 / f64::from(1 << 30)
    }
}

/// Writes `len` non-repeating bytes to one file, or evenly to several files in folders of 100.
fn write_noise(path: &Path, len: u64, files: u32) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut write = |path: &Path, len: u64| {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
        for _ in 0..len / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            file.write_all(&state.to_le_bytes()).unwrap();
        }
        file.write_all(&[7; 8][..(len % 8) as usize]).unwrap();
        file.flush().unwrap();
    };
    if files == 1 {
        return write(path, len);
    }
    for number in 0..files {
        let folder = path.join(format!("{:03}", number / 100));
        fs::create_dir_all(&folder).unwrap();
        let share = |number: u32| len * u64::from(number) / u64::from(files);
        write(&folder.join(format!("{number:05}")), share(number + 1) - share(number));
    }
}

pub fn load(torrent: &Path) -> io::Result<Metainfo> {
    let bytes = Bytes::from(fs::read(torrent)?);
    Metainfo::parse(&bytes, &MetainfoLimits::default()).map_err(io::Error::other)
}

/// A torrent's files. Each is opened on first use and kept open.
pub struct Files {
    metainfo: Metainfo,
    root: PathBuf,
    is_new: bool,
    open: Vec<OnceLock<File>>,
}

impl Files {
    /// Files that exist.
    pub fn existing(metainfo: Metainfo, root: &Path) -> Self {
        Self::new(metainfo, root, false)
    }

    /// Files that are created on first use.
    pub fn created(metainfo: Metainfo, root: &Path) -> Self {
        Self::new(metainfo, root, true)
    }

    fn new(metainfo: Metainfo, root: &Path, is_new: bool) -> Self {
        let count = metainfo.info.files.files().len();
        Self {
            metainfo,
            root: root.to_owned(),
            is_new,
            open: std::iter::repeat_with(OnceLock::new).take(count).collect(),
        }
    }

    pub fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        self.each(offset, bytes.len(), |file, offset, len| {
            file.read_exact_at(&mut bytes[at..at + len], offset)?;
            at += len;
            Ok(())
        })
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        self.each(offset, bytes.len(), |file, offset, len| {
            file.write_all_at(&bytes[at..at + len], offset)?;
            at += len;
            Ok(())
        })
    }

    fn each(
        &self,
        offset: u64,
        len: usize,
        mut act: impl FnMut(&File, u64, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let span = Span {
            offset,
            len: len as u32,
        };
        for slice in self.metainfo.info.files.slices(span) {
            let place = slice.place.expect("the content has no padding");
            act(self.file(place.file)?, place.offset, slice.len as usize)?;
        }
        Ok(())
    }

    fn file(&self, index: usize) -> io::Result<&File> {
        if let Some(file) = self.open[index].get() {
            return Ok(file);
        }
        let path = self.root.join(&*self.metainfo.info.files.files()[index].path);
        if let (true, Some(folder)) = (self.is_new, path.parent()) {
            fs::create_dir_all(folder)?;
        }
        let mut options = File::options();
        let file = options
            .read(true)
            .write(self.is_new)
            .create(self.is_new)
            .truncate(false)
            .open(path)?;
        Ok(self.open[index].get_or_init(|| file))
    }
}
