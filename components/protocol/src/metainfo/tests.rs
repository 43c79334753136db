//! Tests of metainfo parsing, including malformed files.

mod hybrid;

use super::*;

fn parse(text: &str) -> Result<Metainfo, MetainfoError> {
    Metainfo::parse(&Bytes::copy_from_slice(text.as_bytes()), &MetainfoLimits::default())
}

fn hashes(count: usize) -> String {
    format!("6:pieces{}:{}", count * 20, "h".repeat(count * 20))
}

fn info(middle: &str) -> Result<Metainfo, MetainfoError> {
    parse(&format!("d4:infod{middle}ee"))
}

/// Returns the text of the error, as a user sees it.
fn refusal(middle: &str) -> String {
    info(middle).unwrap_err().to_string()
}

fn single(length: &str, piece_length: &str, pieces: usize) -> String {
    format!(
        "6:length{length}4:name1:x12:piece length{piece_length}{}",
        hashes(pieces)
    )
}

fn paths(files: &str, total_pieces: usize) -> Vec<String> {
    let torrent = info(&format!(
        "5:filesl{files}e4:name4:root12:piece lengthi16384e{}",
        hashes(total_pieces)
    ))
    .unwrap();
    torrent.info.files.files().iter().map(|f| f.path.to_string()).collect()
}

#[test]
fn reads_a_single_file_torrent() {
    let middle = single("i20000e", "i16384e", 2);
    let torrent = parse(&format!(
        "d8:announce14:http://t.org/a7:comment2:hi4:infod{middle}7:privatei1eee"
    ))
    .unwrap();
    assert_eq!(torrent.info.geometry.piece_count(), 2);
    assert_eq!(torrent.info.pieces.get(1), Some(&[b'h'; 20]));
    assert_eq!(torrent.info.pieces.get(2), None);
    assert_eq!((torrent.info.pieces.len(), torrent.info.pieces.is_empty()), (2, false));
    assert_eq!(torrent.trackers, [["http://t.org/a"]]);
    assert!(torrent.info.private);
    let info_bytes = format!("d{middle}7:privatei1ee");
    assert_eq!(torrent.hashes, InfoHashes::of(info_bytes.as_bytes(), true, false));
}

/// Any integer but zero, as libtorrent reads it, even where nothing else can be used.
#[test]
fn every_integer_but_zero_makes_a_torrent_private() {
    let middle = single("i20000e", "i16384e", 2);
    for (value, expected) in [
        ("i1e", true),
        ("i2e", true),
        ("i-1e", true),
        ("i0e", false),
        ("1:1", false),
        ("le", false),
    ] {
        let torrent = parse(&format!("d4:infod{middle}7:private{value}ee")).unwrap();
        assert_eq!(torrent.info.private, expected, "{value}");
        let unusable = format!("d4:name1:x7:private{value}e");
        assert!(parse(&format!("d4:info{unusable}e")).is_err());
        let says = says_private(unusable.as_bytes(), &MetainfoLimits::default());
        assert_eq!(says, expected, "{value}");
    }
    for nothing in ["", "le", "d7:privatei1e"] {
        assert!(
            !says_private(nothing.as_bytes(), &MetainfoLimits::default()),
            "{nothing}"
        );
    }
}

/// BEP 12: the list overrides the single URL; unsupported and repeated URLs are dropped.
#[test]
fn trackers_come_from_the_list_once_each() {
    let middle = single("i1e", "i16384e", 1);
    let list = "ll8:http://a7:bad-urlel8:http://a9:udp://b:18:ftp://zzel8:file:///ee";
    let torrent = parse(&format!("d8:announce8:http://z13:announce-list{list}4:infod{middle}ee")).unwrap();
    assert_eq!(torrent.trackers, [["http://a"], ["udp://b:1"]]);
    let text = format!("d13:announce-list{list}4:infod{middle}ee");
    let limits = MetainfoLimits {
        max_urls: 1,
        ..MetainfoLimits::default()
    };
    let torrent = Metainfo::parse(&Bytes::from(text), &limits).unwrap();
    assert_eq!(torrent.trackers, [["http://a"]]);
}

/// BEP 5: entries that are not a pair of a host and a port are left out, and the number is bounded.
#[test]
fn nodes_of_the_dht_are_read_and_bounded() {
    let middle = single("i1e", "i16384e", 1);
    let nodes = |list: &str| {
        let torrent = parse(&format!("d4:infod{middle}e5:nodes{list}e")).unwrap();
        torrent.nodes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        nodes("ll9:127.0.0.1i6881eel11:dht.examplei6882eel3:::1i6883eel5:[::1]i6883eee"),
        ["127.0.0.1:6881", "dht.example:6882", "[::1]:6883"]
    );
    for list in [
        "le",
        "i1e",
        "1:x",
        "l9:127.0.0.1e",
        "ll9:127.0.0.1eli6881eel9:127.0.0.1i0eel9:127.0.0.1i65536eel0:i1eel3:a bi1eel4:a\n:xi1eee",
        &format!("ll254:{}i1eee", "a".repeat(254)),
    ] {
        assert!(nodes(list).is_empty(), "{list}");
    }
    let many: String = (1..1000).map(|port| format!("l1:ai{port}ee")).collect();
    assert_eq!(nodes(&format!("l{many}e")).len(), MetainfoLimits::default().max_nodes);
}

#[test]
fn web_seeds_may_be_one_or_many() {
    let middle = single("i1e", "i16384e", 1);
    let one = parse(&format!("d4:infod{middle}e8:url-list8:http://se")).unwrap();
    assert_eq!(one.web_seeds, ["http://s"]);
    let many = parse(&format!("d4:infod{middle}e8:url-listl8:http://s9:https://tee")).unwrap();
    assert_eq!(many.web_seeds, ["http://s", "https://t"]);
}

/// Fault 4: keys out of order are accepted, and the hash covers the original bytes.
#[test]
fn unsorted_info_keeps_its_bytes() {
    let middle = format!("4:name1:x6:lengthi1e{}12:piece lengthi16384e", hashes(1));
    let torrent = info(&middle).unwrap();
    assert_eq!(torrent.info_bytes, format!("d{middle}e"));
    assert_eq!(
        torrent.hashes,
        InfoHashes::of(format!("d{middle}e").as_bytes(), true, false)
    );
}

/// Fault 5: the refusal of zero and negative sizes names the field.
#[test]
fn bad_sizes_name_their_field() {
    let max = 256 << 20;
    for bad in ["i0e", "i-1e", "i268435457e"] {
        let value = &bad[1..bad.len() - 1];
        assert_eq!(
            refusal(&single("i1e", bad, 1)),
            format!("info.piece length: {value} is out of range (1 to {max})")
        );
    }
    assert!(refusal(&single("i-1e", "i16384e", 1)).starts_with("info.length: -1 is out of range"));
    assert_eq!(
        refusal(&single("i0e", "i16384e", 0)),
        "info.length: the torrent has no content"
    );
    assert_eq!(
        refusal(&single("3:abc", "i16384e", 0)),
        "info.length: expected integer, found string"
    );
    let file = "d6:lengthi-7e4:pathl1:aee";
    assert!(
        refusal(&format!("5:filesl{file}e4:name1:x12:piece lengthi1e{}", hashes(1)))
            .starts_with("info.files[0].length: -7")
    );
}

/// Fault 6: the error names both counts.
#[test]
fn piece_count_mismatch_gives_both_counts() {
    assert_eq!(
        refusal(&single("i40000e", "i16384e", 2)),
        "info.pieces: 2 piece hashes where the sizes make 3 pieces"
    );
    let ragged = "6:lengthi1e4:name1:x12:piece lengthi16384e6:pieces3:abc";
    assert_eq!(refusal(ragged), "info.pieces: 3 bytes is not a multiple of 20");
}

/// Fault 7: sizes whose sum overflows.
#[test]
fn overflowing_sizes_are_refused() {
    let file = |name: &str| format!("d6:lengthi9223372036854775807e4:pathl1:{name}ee");
    let middle = format!(
        "5:filesl{}{}e4:name1:x12:piece lengthi1e{}",
        file("a"),
        file("b"),
        hashes(1)
    );
    assert_eq!(refusal(&middle), "info.files[1].length: total size overflows");
    assert!(refusal(&single("i9223372036854775807e", "i1e", 1)).contains("9223372036854775807 pieces"));
}

/// Faults 8, 9, 11: hostile names are confined to the torrent's folder, visible and distinct.
#[test]
fn hostile_paths_are_confined() {
    let files = "d6:lengthi1e4:pathl2:..2:..3:etc6:passwdee\
                 d6:lengthi1e4:pathl4:/abs1:xee\
                 d6:lengthi1e4:pathl2:..ee\
                 d6:lengthi1e4:pathl3:A\0Zee\
                 d6:lengthi1e4:pathl3:a_zee";
    let expected = ["root/etc/passwd", "root/_abs/x", "root/_", "root/A_Z", "root/a_z.1"];
    assert_eq!(paths(files, 1), expected);
    let middle = single("i1e", "i16384e", 1).replace("4:name1:x", "4:name2:..");
    let torrent = info(&middle).unwrap();
    assert_eq!(torrent.info.name, torrent.hashes.primary().to_string());
}

/// Fault 10: depth beyond 100 is refused.
#[test]
fn deep_paths_are_refused() {
    let file = format!("d6:lengthi1e4:pathl{}ee", "1:d".repeat(101));
    let middle = format!("5:filesl{file}e4:name1:x12:piece lengthi1e{}", hashes(1));
    assert_eq!(refusal(&middle), "info.files[0].path: 101 exceeds the limit of 100");
    let file = format!("d6:lengthi1e4:pathl{}ee", "1:d".repeat(100));
    assert_eq!(paths(&file, 1), [format!("root{}", "/d".repeat(100))]);
}

/// Fault 15: the numbers of files and pieces are limited, and many equal names cost no more than many different ones.
#[test]
fn counts_are_limited() {
    let limits = MetainfoLimits {
        max_files: 2,
        max_pieces: 2,
        ..MetainfoLimits::default()
    };
    let file = "d6:lengthi1e4:pathl1:aee";
    let text = format!(
        "d4:infod5:filesl{}e4:name1:x12:piece lengthi1e{}ee",
        file.repeat(3),
        hashes(3)
    );
    let error = Metainfo::parse(&Bytes::from(text), &limits).unwrap_err();
    assert_eq!(error.to_string(), "info.files: 3 exceeds the limit of 2");
    let text = format!("d4:infod{}ee", single("i3e", "i1e", 3));
    let error = Metainfo::parse(&Bytes::from(text), &limits).unwrap_err();
    assert_eq!(error.to_string(), "info.pieces: 3 exceeds the limit of 2");
    let text = format!(
        "d4:infod5:filesl{}e4:name1:x12:piece lengthi1e{}ee",
        file.repeat(2),
        hashes(2)
    );
    assert!(
        Metainfo::parse(&Bytes::from(text), &limits).is_ok(),
        "exactly at both limits"
    );

    let many = paths(&file.repeat(20_000), 2);
    assert_eq!(many.last().unwrap(), "root/a.19999");
}

#[test]
fn folders_are_limited() {
    let parse = |max_folders| {
        let files = "d6:lengthi1e4:pathl1:a1:xeed6:lengthi1e4:pathl1:b1:xeed6:lengthi1e4:pathl1:c1:xee";
        let text = format!("d4:infod5:filesl{files}e4:name4:root12:piece lengthi1e{}ee", hashes(3));
        let limits = MetainfoLimits {
            max_folders,
            ..MetainfoLimits::default()
        };
        Metainfo::parse(&Bytes::from(text), &limits)
    };
    assert!(parse(4).is_ok(), "the torrent's own folder and three in it");
    assert_eq!(
        parse(3).unwrap_err().to_string(),
        "info.files[2].path: more than 3 folders"
    );
    assert_eq!(
        parse(2).unwrap_err().to_string(),
        "info.files[1].path: more than 2 folders"
    );
}

/// A long name is repeated in the path of each file: together the copies are limited to 4 MiB.
#[test]
fn the_name_of_a_torrent_with_many_files_is_cut() {
    let name_len = |file_count: usize| {
        let files = "d6:lengthi1e4:pathl1:aee".repeat(file_count);
        let middle = format!(
            "5:filesl{files}e4:name300:{}12:piece lengthi1048576e{}",
            "n".repeat(300),
            hashes(1)
        );
        info(&middle).unwrap().info.name.len()
    };
    assert_eq!(name_len(1), 255);
    assert_eq!(name_len(20_000), (4 << 20) / 20_000);
    assert_eq!(name_len(90_000), 48);
}

#[test]
fn v2_only_is_refused_by_name() {
    let v2 = "9:file treede12:meta versioni2e4:name1:x12:piece lengthi16384e";
    assert_eq!(refusal(v2), "info.meta version: v2-only torrents are not supported");
}

/// Hidden names become visible at the top level only.
#[test]
fn hidden_names_at_the_top_become_visible() {
    let middle = single("i1e", "i16384e", 1).replace("4:name1:x", "4:name4:.ssh");
    let torrent = info(&middle).unwrap();
    assert_eq!(
        (&*torrent.info.name, &*torrent.info.files.files()[0].path),
        ("_ssh", "_ssh")
    );
    let file = "d6:lengthi1e4:pathl4:.gitee";
    let middle = format!("5:filesl{file}e4:name12:.ecs_torrent12:piece lengthi1e{}", hashes(1));
    let torrent = info(&middle).unwrap();
    assert_eq!(&*torrent.info.files.files()[0].path, "_ecs_torrent/.git");
}

/// BEP 47: pads are recognized and need no path; links need no length and are not stored.
#[test]
fn pads_and_links() {
    let files = "d6:lengthi1e4:pathl1:aee\
                 d4:attr1:p6:lengthi16383ee\
                 d4:attr1:l4:pathl4:linke12:symlink pathl1:aee\
                 d4:attr2:xh6:lengthi5e4:pathl1:bee";
    let torrent = info(&format!(
        "5:filesl{files}e4:name4:root12:piece lengthi16384e{}",
        hashes(2)
    ))
    .unwrap();
    let files = torrent.info.files.files();
    assert_eq!(&*files[1].path, "root/.pad/16383");
    let stored: Vec<bool> = files.iter().map(crate::files::FileEntry::is_stored).collect();
    assert_eq!(stored, [true, false, false, true]);
    assert_eq!(files[3].offset, 16384);
    // The only file of a torrent is neither.
    let middle = single("i1e", "i16384e", 1);
    let torrent = info(&format!("4:attr3:lpx{middle}")).unwrap();
    let only = &torrent.info.files.files()[0];
    assert!(only.is_stored());
    assert_eq!(only.attributes, crate::files::FileAttributes::default());
}

#[test]
fn missing_fields_are_named() {
    assert_eq!(parse("de").unwrap_err().to_string(), "info: missing");
    assert_eq!(
        parse("le").unwrap_err().to_string(),
        "metainfo: expected dictionary, found list"
    );
    assert_eq!(
        parse("d4:infoi1ee").unwrap_err().to_string(),
        "info: expected dictionary, found integer"
    );
    assert_eq!(refusal("6:lengthi1e12:piece lengthi1e"), "info.name: missing");
    assert_eq!(
        refusal("6:lengthi1e4:name1:x12:piece lengthi1e"),
        "info.pieces: missing"
    );
    assert_eq!(
        parse("hello").unwrap_err().to_string(),
        "not a torrent file: unexpected byte 0x68 at byte 0"
    );
    let empty = format!("5:filesld6:lengthi1eee4:name1:x12:piece lengthi1e{}", hashes(1));
    assert_eq!(refusal(&empty), "info.files[0].path: missing");
    let file = "5:filesld4:pathl1:aeee4:name1:x12:piece lengthi1e";
    assert_eq!(
        refusal(&format!("{file}{}", hashes(1))),
        "info.files[0].length: missing"
    );
}
