//! Tests of hybrids, most of them with halves that disagree.

use super::*;
use crate::hash::sha256;

/// Parts of a hybrid with a file of two pieces and a file of five bytes.
#[derive(Clone)]
struct Hybrid {
    piece_length: u64,
    /// Content of `files`, the v1 half.
    files: Vec<u8>,
    /// Content of `file tree`, the v2 half.
    tree: Vec<u8>,
    layers: Option<Vec<u8>>,
}

const LAYER: [u8; 64] = [b'l'; 64];

fn file(path: &str, len: u64) -> Vec<u8> {
    format!("d6:lengthi{len}e4:pathl{}:{path}ee", path.len()).into_bytes()
}

fn pad(len: u64) -> Vec<u8> {
    format!("d4:attr1:p6:lengthi{len}e4:pathl4:.pad1:0ee").into_bytes()
}

fn node(name: &str, len: u64, root: &[u8]) -> Vec<u8> {
    let head = format!("{}:{name}d0:d6:lengthi{len}e11:pieces root{}:", name.len(), root.len());
    [head.as_bytes(), root, b"ee"].concat()
}

fn long_root() -> [u8; 32] {
    sha256([&LAYER[..32], &LAYER[32..]])
}

fn layer(root: &[u8], hashes: &[u8]) -> Vec<u8> {
    let (root_len, len) = (format!("{}:", root.len()), format!("{}:", hashes.len()));
    [root_len.as_bytes(), root, len.as_bytes(), hashes].concat()
}

impl Default for Hybrid {
    fn default() -> Self {
        Self {
            piece_length: 16384,
            files: [file("long", 20_000), pad(12_768), file("short", 5)].concat(),
            tree: [node("long", 20_000, &long_root()), node("short", 5, &[b's'; 32])].concat(),
            layers: Some(layer(&long_root(), &LAYER)),
        }
    }
}

impl Hybrid {
    fn parse(&self) -> Result<Metainfo, MetainfoError> {
        let pieces = 32_773u64.div_ceil(self.piece_length) as usize;
        let rest = format!(
            "e12:meta versioni2e4:name1:n12:piece lengthi{}e{}e",
            self.piece_length,
            hashes(pieces)
        );
        let mut bytes = b"d4:infod9:file treed".to_vec();
        bytes.extend_from_slice(&self.tree);
        bytes.extend_from_slice(b"e5:filesl");
        bytes.extend_from_slice(&self.files);
        bytes.extend_from_slice(rest.as_bytes());
        if let Some(layers) = &self.layers {
            bytes.extend_from_slice(b"12:piece layersd");
            bytes.extend_from_slice(layers);
            bytes.push(b'e');
        }
        bytes.push(b'e');
        Metainfo::parse(&Bytes::from(bytes), &MetainfoLimits::default())
    }

    fn refusal(&self) -> String {
        self.parse().unwrap_err().to_string()
    }
}

#[test]
fn halves_that_agree_are_accepted() {
    let torrent = Hybrid::default().parse().unwrap();
    assert!(torrent.hashes.v1.is_some() && torrent.hashes.v2.is_some());
    // Created by libtorrent 2.1: folders, padding, an empty file, a symbolic link, two files with equal content.
    let made = Bytes::from_static(include_bytes!("../../../testdata/hybrid.torrent"));
    let torrent = Metainfo::parse(&made, &MetainfoLimits::default()).unwrap();
    let stored = torrent.info.files.files().iter().filter(|file| file.is_stored());
    assert_eq!(stored.count(), 7);
}

/// Fault 14: both halves agree on names, lengths, order and number of files.
#[test]
fn files_that_differ_are_refused() {
    let refusal = |files: Vec<Vec<u8>>| {
        let files = files.concat();
        Hybrid {
            files,
            ..Hybrid::default()
        }
        .refusal()
    };
    assert_eq!(
        refusal(vec![file("lung", 20_000), pad(12_768), file("short", 5)]),
        "info.file tree: v1 has lung (20000 bytes) where v2 has long (20000 bytes)"
    );
    assert_eq!(
        refusal(vec![file("long", 20_001), pad(12_767), file("short", 5)]),
        "info.file tree: v1 has long (20001 bytes) where v2 has long (20000 bytes)"
    );
    assert_eq!(
        refusal(vec![file("short", 5), pad(16_379), file("long", 16_389)]),
        "info.file tree: v1 has short (5 bytes) where v2 has long (20000 bytes)"
    );
    assert_eq!(
        refusal(vec![file("long", 20_000), pad(12_773)]),
        "info.file tree: v1 has no more files where v2 has short (5 bytes)"
    );
    assert_eq!(
        refusal(vec![
            file("long", 20_000),
            pad(12_768),
            file("short", 5),
            file("more", 0)
        ]),
        "info.file tree: v1 has more (0 bytes) where v2 has no more files"
    );
}

/// Fault 14: each file starts a new piece in both halves.
#[test]
fn padding_that_is_wrong_is_refused() {
    let files = [file("long", 20_000), pad(12_767), file("short", 5), pad(1)].concat();
    assert_eq!(
        Hybrid {
            files,
            ..Hybrid::default()
        }
        .refusal(),
        "info.file tree: short starts at byte 32767 in v1 and at byte 32768 in v2"
    );
    let files = [file("long", 20_000), file("short", 5), pad(12_768)].concat();
    assert!(
        Hybrid {
            files,
            ..Hybrid::default()
        }
        .refusal()
        .contains("starts at byte 20000")
    );
}

/// BEP 52: the piece length is a power of two of at least 16 KiB.
#[test]
fn piece_lengths_that_cannot_be_are_refused() {
    for piece_length in [8192, 20_000] {
        let odd = Hybrid {
            piece_length,
            ..Hybrid::default()
        };
        assert_eq!(
            odd.refusal(),
            "info.piece length: v2 requires a power of two of at least 16384"
        );
    }
    let larger = Hybrid {
        piece_length: 32_768,
        layers: None,
        ..Hybrid::default()
    };
    assert!(larger.parse().is_ok());
}

/// Fault 13: missing, short and zero roots.
#[test]
fn roots_that_cannot_be_are_refused() {
    let refusal = |short: Vec<u8>| {
        let tree = [node("long", 20_000, &long_root()), short].concat();
        Hybrid {
            tree,
            ..Hybrid::default()
        }
        .refusal()
    };
    assert_eq!(
        refusal(node("short", 5, &[0; 32])),
        "info.file tree.short: pieces root is all zeros"
    );
    assert_eq!(
        refusal(node("short", 5, &[1; 31])),
        "info.file tree.short: pieces root has 31 bytes instead of 32"
    );
    assert_eq!(
        refusal(b"5:shortd0:d6:lengthi5eee".to_vec()),
        "info.file tree.short: no pieces root"
    );
}

/// Metadata from peers comes without layers (BEP 9).
#[test]
fn layers_may_be_absent() {
    let hybrid = Hybrid {
        layers: None,
        ..Hybrid::default()
    };
    assert_eq!(hybrid.parse().unwrap().info.files.files().len(), 3);
}

/// Fault 13: layers that lack a file, are too short, or of another file.
#[test]
fn layers_that_cannot_be_are_refused() {
    let refusal = |layers| {
        Hybrid {
            layers,
            ..Hybrid::default()
        }
        .refusal()
    };
    assert_eq!(refusal(Some(vec![])), "piece layers: long has 2 pieces and 0 hashes");
    let mut wrong = LAYER;
    wrong[63] ^= 1;
    let hex = const_hex::encode(long_root());
    for hashes in [&wrong[..], &LAYER[..63], b""] {
        assert_eq!(
            refusal(Some(layer(&long_root(), hashes))),
            format!("piece layers: the hashes of {hex} do not match that root")
        );
    }
    // Three hashes that match the root of a file with two pieces.
    let three = [b'l'; 96];
    let pair = |a: &[u8], b: &[u8]| sha256([a, b]);
    let root = pair(&long_root(), &pair(&three[64..], &[0; 32]));
    let many = Hybrid {
        tree: [node("long", 20_000, &root), node("short", 5, &[b's'; 32])].concat(),
        layers: Some(layer(&root, &three)),
        ..Hybrid::default()
    };
    assert_eq!(many.refusal(), "piece layers: long has 2 pieces and 3 hashes");
}

/// Fault 14: nodes that are neither a folder nor a file.
#[test]
fn malformed_file_trees_are_refused() {
    for (tree, place) in [
        (&b"0:d6:lengthi5ee"[..], "info.file tree."),
        (b"4:longi5e", "info.file tree.long"),
        (b"4:longd0:d6:lengthi5ee1:xdee", "info.file tree.long"),
        (b"4:longd0:d6:lengthi-5eee", "info.file tree.long"),
        (b"4:longd0:i5ee", "info.file tree.long"),
        (b"4:longd0:dee", "info.file tree.long"),
    ] {
        let refusal = Hybrid {
            tree: tree.to_vec(),
            ..Hybrid::default()
        }
        .refusal();
        assert_eq!(refusal, format!("{place}: neither a folder nor a file"));
    }
    let deep = [b"1:d".repeat(3), b"d".to_vec()].concat();
    assert!(
        Hybrid {
            tree: deep,
            ..Hybrid::default()
        }
        .parse()
        .is_err()
    );
}

#[test]
fn a_single_file_is_the_only_one_of_its_tree() {
    let parse = |tree: &[u8]| {
        let rest = format!(
            "e6:lengthi5e12:meta versioni2e4:name5:short12:piece lengthi16384e{}ee",
            hashes(1)
        );
        let bytes = [b"d4:infod9:file treed", tree, rest.as_bytes()].concat();
        Metainfo::parse(&Bytes::from(bytes), &MetainfoLimits::default())
    };
    assert!(parse(&node("short", 5, &[b's'; 32])).is_ok());
    assert_eq!(
        parse(&node("other", 5, &[b's'; 32])).unwrap_err().to_string(),
        "info.file tree: v1 has short (5 bytes) where v2 has other (5 bytes)"
    );
    assert_eq!(
        parse(b"").unwrap_err().to_string(),
        "info.file tree: v1 has short (5 bytes) where v2 has no more files"
    );
}
