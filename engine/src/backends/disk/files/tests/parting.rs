//! Part files, on a real disk.

use super::*;
use crate::ports::disk::FileNeeds;

const HASH: [u8; 20] = [7; 20];

fn set(len: u32, members: &[u32]) -> Bitfield {
    let mut set = Bitfield::new(len);
    for member in members {
        set.insert(*member);
    }
    set
}

/// Three files of 25, 30 and 25 bytes in pieces of 10: pieces 2 and 5 belong to two files each.
const LENGTHS: [u64; 3] = [25, 30, 25];

fn needs(skipped: &[u32], parted: &[u32]) -> FileNeeds {
    FileNeeds {
        torrent: InfoHash(HASH),
        piece_length: 10,
        skipped: set(3, skipped),
        parted: set(3, parted),
        held: Bitfield::full(8),
    }
}

fn part(root: &Path) -> PathBuf {
    root.join(format!(".{}.parts", "07".repeat(20)))
}

struct Bed {
    folder: tempfile::TempDir,
    shared: Arc<SharedFiles>,
    data: Vec<u8>,
    last: u64,
}

impl Bed {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            shared: Arc::new(SharedFiles::new(2)),
            data: (1..=80).collect(),
            last: 0,
        }
    }

    /// Opens the files. `created` are those that the session claims.
    fn open(&mut self, needs: &FileNeeds, created: &[usize]) -> Files {
        self.last += 1;
        let claims = FileClaims {
            created: created.iter().map(|index| (*index, None)).collect(),
            key: Some(OwnerKey([3; 16])),
            ..FileClaims::default()
        };
        let root = self.folder.path();
        let files = Files::new(StorageId(self.last), root, None, table(&LENGTHS), self.shared.clone());
        let files = files.with_claims(claims).with_needs(Some(needs));
        files.look().unwrap();
        files
    }

    fn write(&self, files: &Files, piece: u64) -> Result<()> {
        let span = Span {
            offset: piece * 10,
            len: 10,
        };
        let begin = span.offset as usize;
        files.write(span, &blocks(&self.data[begin..begin + 10], 4))
    }

    fn reads(&self, files: &Files, piece: u64) -> bool {
        let span = Span {
            offset: piece * 10,
            len: 10,
        };
        let begin = span.offset as usize;
        let read = files.read(span, ReadPurpose::Serve, &FileBuffers::default());
        read.is_ok_and(|bytes| bytes == self.data[begin..begin + 10])
    }

    fn file(&self, index: usize) -> Option<Vec<u8>> {
        fs::read(self.folder.path().join(format!("t/d/{index}"))).ok()
    }
}

#[test]
fn a_skipped_file_is_not_created_and_its_bytes_come_back_when_it_is_wanted() {
    let mut bed = Bed::new();
    let files = bed.open(&needs(&[1], &[]), &[]);
    files.prepare(true, None).unwrap();
    for piece in [0, 1, 2, 5, 6, 7] {
        bed.write(&files, piece).unwrap();
        assert!(bed.reads(&files, piece), "{piece}");
    }
    assert!(bed.write(&files, 3).unwrap_err().is_unwanted());
    assert_eq!((bed.file(1), bed.file(0).unwrap()), (None, bed.data[..25].to_vec()));
    assert!(part(bed.folder.path()).exists());
    let synced: Vec<usize> = files.sync(false).unwrap().iter().map(|file| file.index).collect();
    assert_eq!(synced, [0, 2, 3]);

    // Wanted: the bytes are copied, and both places are kept until the session knows of it.
    files.take_needs(&needs(&[], &[1]));
    assert_eq!(files.prepare(false, Some(&needs(&[], &[1]))).unwrap(), [1]);
    assert!(part(bed.folder.path()).exists());
    bed.data[50..60].fill(200);
    bed.write(&files, 5).unwrap();
    for piece in [2, 5] {
        assert!(bed.reads(&files, piece));
    }
    assert_eq!(bed.file(1).unwrap()[..5], bed.data[25..30]);
    assert_eq!(bed.file(1).unwrap()[25..], bed.data[50..55]);
    // A kill at this time: the session still says that the part file has the bytes.
    files.close();
    let again = bed.open(&needs(&[], &[1]), &[0, 1, 2, 3]);
    assert!([2, 5].iter().all(|piece| bed.reads(&again, *piece)));
    assert_eq!(again.prepare(false, Some(&needs(&[], &[1]))).unwrap(), [1]);

    // The session says that the file has them.
    again.prepare(false, Some(&needs(&[], &[]))).unwrap();
    assert!(!part(bed.folder.path()).exists());
    bed.write(&again, 3).unwrap();
    bed.write(&again, 4).unwrap();
    assert!((0..8).all(|piece| bed.reads(&again, piece)));
    assert_eq!(bed.file(1).unwrap(), bed.data[25..55]);
}

#[test]
fn a_file_that_is_there_stays_as_it_is() {
    let mut bed = Bed::new();
    fs::create_dir_all(bed.folder.path().join("t/d")).unwrap();
    fs::write(bed.folder.path().join("t/d/1"), [9; 40]).unwrap();
    // The torrent is new: the file is the user's.
    let files = bed.open(&needs(&[1], &[1]), &[]);
    for piece in [2, 5] {
        bed.write(&files, piece).unwrap();
        assert!(bed.reads(&files, piece));
    }
    assert_eq!(bed.file(1).unwrap(), [9; 40]);
    // Wanted, it would have to change.
    files.take_needs(&needs(&[], &[1]));
    let error = files.prepare(false, Some(&needs(&[], &[1]))).unwrap_err();
    assert!(error.is_foreign(), "{error}");
    assert_eq!(bed.file(1).unwrap(), [9; 40]);
    assert!(bed.reads(&files, 2), "what is held is still there");

    // A file that the torrent has begun is used further.
    let mut bed = Bed::new();
    let files = bed.open(&needs(&[], &[]), &[]);
    bed.write(&files, 3).unwrap();
    files.take_needs(&needs(&[1], &[]));
    files.prepare(false, Some(&needs(&[1], &[]))).unwrap();
    bed.write(&files, 2).unwrap();
    assert!(bed.reads(&files, 2) && bed.reads(&files, 3) && !part(bed.folder.path()).exists());
}

#[test]
fn a_foreign_part_file_is_neither_written_nor_deleted() {
    let mut bed = Bed::new();
    fs::write(part(bed.folder.path()), b"mine").unwrap();
    let files = bed.open(&needs(&[1], &[]), &[3]);
    assert!(bed.write(&files, 2).unwrap_err().is_foreign());
    files.drop_parts().unwrap();
    files.delete(&[]).unwrap();
    assert_eq!(fs::read(part(bed.folder.path())).unwrap(), b"mine");
}

#[test]
fn the_part_file_goes_with_the_torrent() {
    for with_data in [false, true] {
        let mut bed = Bed::new();
        let files = bed.open(&needs(&[1], &[]), &[]);
        bed.write(&files, 2).unwrap();
        match with_data {
            true => assert_eq!(files.delete(&[]).unwrap().deleted, [0]),
            false => files.drop_parts().unwrap(),
        }
        assert!(!part(bed.folder.path()).exists());
        assert_eq!(bed.file(0).is_some(), !with_data);
    }
}
