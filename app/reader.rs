//! Reading of files while they are downloaded.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, Read, Seek, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use ecs_torrent_components::readers::{OpenReader, OpenedReader, ReadError, ReadFile, ReaderCommand};
use ecs_torrent_engine::mailbox::ReservedPlace;
use pollster::block_on;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};

use crate::error::Error;
use crate::id::TorrentId;
use crate::torrents::Torrents;

/// Minimum number of bytes that a reader requests as [`AsyncRead`]; smaller reads are answered from the rest.
const LEAST_READ: usize = 64 << 10;

type Reading = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;

/// A reader of a file of a torrent, from [`Torrents::read_file`]. It implements the traits [`AsyncRead`] and
/// [`AsyncSeek`] of tokio; any runtime can drive it.
///
/// All bytes are verified. A read waits until its piece is downloaded. The pieces ahead of the latest read are
/// downloaded before all others, as far as `readers.window_bytes` says; several readers of one file are independent.
/// When the reader is dropped, or does not read for `readers.idle_s`, the torrent returns to its own order.
///
/// A read fails if the torrent is paused, stopped, removed or failed, if the file is skipped, or if no data arrives for
/// `readers.timeout_s`.
pub struct FileReader {
    torrents: Torrents,
    opened: OpenedReader,
    /// Sends the command that closes the reader.
    close: Option<ReservedPlace>,
    /// The offset of the next byte.
    position: u64,
    /// Bytes from `position` on.
    buffer: Bytes,
    reading: Option<Reading>,
}

impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileReader")
            .field("opened", &self.opened)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Torrents {
    /// Opens a reader of a file, named by its index in [`Torrents::list_files`].
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # use ecs_torrent::AddOptions;
    /// use tokio::io::{AsyncReadExt, AsyncSeekExt};
    /// # setup::run(async |torrents, folder| {
    /// # let options = AddOptions { root: Some(folder.join("music")), ..AddOptions::default() };
    /// let id = torrents.download_with(folder.join("album.torrent"), options).await?;
    /// let mut reader = torrents.read_file(id, 0).await?;
    /// // Waits for the end of the file, although its beginning is not there yet.
    /// let mut last = [0; 10];
    /// reader.seek(std::io::SeekFrom::End(-10)).await.unwrap();
    /// reader.read_exact(&mut last).await.unwrap();
    /// assert_eq!(last, [7; 10]);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::ReadFile`] if there is no such file, if the file is skipped and incomplete,
    /// if the torrent is paused, stopped or failed, or if there are as many readers as `readers.max_readers` allows.
    pub async fn read_file(&self, id: impl Into<TorrentId>, file: u32) -> Result<FileReader, Error> {
        let TorrentId(torrent) = id.into();
        let close = self.reserve().await?;
        let open = |reply| ReaderCommand::Open(OpenReader { torrent, file, reply });
        let opened = self.ask(open).await??;
        Ok(FileReader {
            torrents: self.clone(),
            opened,
            close: Some(close),
            position: 0,
            buffer: Bytes::new(),
            reading: None,
        })
    }
}

impl FileReader {
    /// Returns the path of the file, below the download folder.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.opened.path
    }

    /// Returns the length of the file in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.opened.length
    }

    /// Reads bytes at an offset, without moving the position of [`AsyncRead`]. Returns at least one byte and at most
    /// `len`, or none at the end of the file.
    ///
    /// # Errors
    /// [`Error::ReadFile`] if the bytes cannot be read, see [`FileReader`].
    pub async fn read_at(&mut self, offset: u64, len: u32) -> Result<Bytes, Error> {
        self.reading = None;
        self.begin_read(offset, len).await
    }

    fn begin_read(&self, offset: u64, len: u32) -> Reading {
        let (torrents, reader) = (self.torrents.clone(), self.opened.id);
        Box::pin(async move {
            let read = |reply| {
                ReaderCommand::Read(ReadFile {
                    reader,
                    offset,
                    len,
                    reply,
                })
            };
            Ok(torrents.ask(read).await??)
        })
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        if let Some(place) = self.close.take() {
            place.send(ReaderCommand::Close(self.opened.id));
        }
    }
}

/// A reader of a file of a torrent for programs without async code, from
/// [`BlockingTorrents::read_file`](crate::BlockingTorrents::read_file). It implements [`Read`] and [`Seek`], and is
/// otherwise like [`FileReader`]: a read blocks the calling thread until its piece is downloaded and verified.
#[derive(Debug)]
pub struct BlockingFileReader(pub(crate) FileReader);

impl BlockingFileReader {
    /// Returns the path of the file, below the download folder.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.path()
    }

    /// Returns the length of the file in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.0.length()
    }

    /// Blocking form of [`FileReader::read_at`].
    ///
    /// # Errors
    /// As [`FileReader::read_at`].
    pub fn read_at(&mut self, offset: u64, len: u32) -> Result<Bytes, Error> {
        block_on(self.0.read_at(offset, len))
    }
}

impl Read for BlockingFileReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut into = ReadBuf::new(into);
        block_on(poll_fn(|context| Pin::new(&mut self.0).poll_read(context, &mut into)))?;
        Ok(into.filled().len())
    }
}

impl Seek for BlockingFileReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        Pin::new(&mut self.0).start_seek(to)?;
        Ok(self.0.position)
    }
}

impl AsyncRead for FileReader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() && into.remaining() > 0 {
            let mut reading = self.reading.take().unwrap_or_else(|| {
                let len = into.remaining().max(LEAST_READ);
                self.begin_read(self.position, u32::try_from(len).unwrap_or(u32::MAX))
            });
            match reading.as_mut().poll(context) {
                Poll::Pending => {
                    self.reading = Some(reading);
                    return Poll::Pending;
                }
                Poll::Ready(bytes) => self.buffer = bytes.map_err(to_io)?,
            }
        }
        let count = self.buffer.len().min(into.remaining());
        into.put_slice(&self.buffer[..count]);
        self.buffer.advance(count);
        self.position += count as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for FileReader {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.opened.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let before_start = || io::Error::new(io::ErrorKind::InvalidInput, "a place before the start of the file");
        let target = target.ok_or_else(before_start)?;
        if target != self.position {
            (self.buffer, self.reading) = (Bytes::new(), None);
            self.position = target;
        }
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

fn to_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::TorrentNotFound(_) => io::ErrorKind::NotFound,
        Error::ReadFile(ReadError::TimedOut { .. }) => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
