//! Files are read by programs without async code while they are downloaded.

use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::sync::Arc;

use crate::bed::{Bed, Torrent, loopback};
use crate::peer::listen_as_seed;

/// A blocking reader returns verified bytes from any place of the file. A seek before the start is refused and changes
/// nothing. A reader of a paused torrent gets the reason.
#[test]
fn a_blocking_reader_reads_and_seeks() {
    let torrent = Arc::new(Torrent::new(2_000_003, 65536));
    let seed = listen_as_seed(loopback(131), &torrent, |_, _| true);
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[seed]);
    let torrents = bed.torrents().blocking();
    let mut reader = torrents.read_file(id, 0).unwrap();
    assert_eq!((reader.path(), reader.length()), ("data", 2_000_003));
    let mut end = Vec::new();
    assert_eq!(reader.seek(SeekFrom::End(-70_000)).unwrap(), 1_930_003);
    assert_eq!(reader.read_to_end(&mut end).unwrap(), 70_000);
    assert_eq!(end, torrent.data[1_930_003..]);
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "the end of the file");
    let refused = reader.seek(SeekFrom::Current(-3_000_000)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert_eq!(reader.stream_position().unwrap(), 2_000_003);
    assert_eq!(reader.read_at(65_530, 6).unwrap(), torrent.data[65_530..65_536]);
    let mut all = Vec::new();
    reader.rewind().unwrap();
    reader.read_to_end(&mut all).unwrap();
    assert!(all == torrent.data, "{} bytes", all.len());
    torrents.pause(id).unwrap();
    reader.rewind().unwrap();
    let paused = reader.read(&mut [0; 1]).unwrap_err();
    // The pause ended the reader.
    assert!(paused.to_string().contains("it is being stopped or paused"), "{paused}");
}
