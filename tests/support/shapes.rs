//! Adversarial torrent files that try to make a reader spend much time or memory.

#![allow(dead_code, reason = "shared by test binaries that each use a part")]

use std::fmt::Write;

/// A kind of adversarial torrent file.
pub struct Shape {
    pub name: &'static str,
    /// Creates a file of about the given number of bytes.
    pub make: fn(usize) -> Vec<u8>,
}

/// All shapes. Some are valid torrents and some are refused; reading any of them has to be cheap.
pub const SHAPES: [Shape; 19] = [
    Shape {
        name: "names that differ past the cut",
        make: |bytes| files(bytes, "x", |number| path(&[&format!("{}{number:06}", "x".repeat(256))])),
    },
    Shape {
        name: "names that become one when numbered",
        make: |bytes| {
            files(bytes, "x", |number| {
                path(&[&format!("{}{:05}", "x".repeat(250), number / 2)])
            })
        },
    },
    Shape {
        name: "the same, with extensions",
        make: |bytes| {
            files(bytes, "x", |number| {
                path(&[&format!("{}{:04}.{:02}", "x".repeat(248), number / 200, number % 100)])
            })
        },
    },
    Shape {
        name: "equal names below a long one",
        make: |bytes| files(bytes, &"n".repeat(255), |_| path(&["a"])),
    },
    Shape {
        name: "padding below a long name",
        make: |bytes| {
            let padding = |_| "d4:attr1:p6:lengthi1ee".to_owned();
            torrent(bytes, &"n".repeat(255), padding, "")
        },
    },
    Shape {
        name: "numbers that are taken",
        make: |bytes| {
            let half = bytes / 2 / 32;
            files(bytes, "x", move |number| match number {
                0 => path(&["a"]),
                number if number < half => path(&[&format!("a.{number}")]),
                _ => path(&["a"]),
            })
        },
    },
    Shape {
        name: "numbers of numbers",
        make: |bytes| {
            files(bytes, "x", |number| match number % 3 {
                0 => path(&["a"]),
                1 => path(&["a.1"]),
                _ => path(&["a.1.1"]),
            })
        },
    },
    Shape {
        name: "case variants",
        make: |bytes| {
            files(bytes, "x", |number| {
                let letter = |bit: usize| if number >> bit & 1 == 0 { 'k' } else { 'K' };
                path(&[&(0..20).map(letter).collect::<String>()])
            })
        },
    },
    Shape {
        name: "case variants that grow when folded",
        make: |bytes| {
            files(bytes, "x", |number| {
                let letter = |bit: usize| if number >> bit & 1 == 0 { '\u{130}' } else { '\u{23a}' };
                path(&[&(0..20).map(letter).collect::<String>()])
            })
        },
    },
    Shape {
        name: "deep folders of their own",
        make: |bytes| files(bytes, "x", |number| deep(&number.to_string(), "a", 98)),
    },
    Shape {
        name: "deep folders in turns",
        make: |bytes| files(bytes, "x", |number| deep(["a", "b"][number % 2], "c", 98)),
    },
    Shape {
        name: "deep folders with long names",
        make: |bytes| files(bytes, "x", |number| deep(&number.to_string(), &"d".repeat(255), 98)),
    },
    Shape {
        name: "folders where files stand",
        make: |bytes| {
            files(bytes, "x", |number| match number % 2 {
                0 => path(&["a"]),
                _ => path(&["a", "a", "a"]),
            })
        },
    },
    Shape {
        name: "one folder with very many files",
        make: |bytes| files(bytes, "x", |number| path(&[&number.to_string()])),
    },
    Shape {
        name: "very many values",
        make: |bytes| format!("l{}e", "0:".repeat(bytes / 2)).into_bytes(),
    },
    Shape {
        name: "very many keys, unsorted",
        make: |bytes| {
            let mut text = "d".to_owned();
            (0..bytes / 10)
                .rev()
                .for_each(|number| write!(text, "6:{number:06}0:").unwrap());
            format!("{text}e").into_bytes()
        },
    },
    Shape {
        name: "very many trackers and web seeds",
        make: |bytes| {
            let mut lists = ["13:announce-listl".to_owned(), "8:url-listl".to_owned()];
            for number in 0..bytes / 40 {
                write!(lists[0], "l16:udp://a:1/{number:06}e").unwrap();
                write!(lists[1], "16:http://b/{number:07}").unwrap();
            }
            let [trackers, seeds] = lists;
            format!("d{trackers}e4:info{}{seeds}ee", info("", "x", 1)).into_bytes()
        },
    },
    Shape {
        name: "very many piece hashes",
        make: |bytes| {
            let count = bytes / 20;
            let head = format!("6:lengthi{count}e4:name1:x12:piece lengthi1e6:pieces{}:", count * 20);
            format!("d4:infod{head}{}ee", "h".repeat(count * 20)).into_bytes()
        },
    },
    Shape {
        name: "a hybrid of very many files",
        make: |bytes| {
            let count = bytes / 124;
            let root = "r".repeat(32);
            let mut tree = String::new();
            let mut list = String::new();
            for number in 0..count {
                write!(tree, "7:{number:07}d0:d6:lengthi16384e11:pieces root32:{root}ee").unwrap();
                write!(list, "d6:lengthi16384e4:pathl7:{number:07}ee").unwrap();
            }
            let length = 256 << 20;
            let hashes = (count * 16384usize).div_ceil(length) * 20;
            format!(
                "d4:infod9:file treed{tree}e5:filesl{list}e12:meta versioni2e4:name1:x12:piece lengthi{length}e\
                 6:pieces{hashes}:{}e12:piece layersdee",
                "h".repeat(hashes)
            )
            .into_bytes()
        },
    },
];

/// Creates a torrent of one-byte files with the given paths.
fn files(bytes: usize, name: &str, path: impl Fn(usize) -> String) -> Vec<u8> {
    torrent(bytes, name, |number| format!("d6:lengthi1e4:path{}e", path(number)), "")
}

fn torrent(bytes: usize, name: &str, file: impl Fn(usize) -> String, more: &str) -> Vec<u8> {
    let mut files = String::new();
    let mut count = 0;
    // A torrent with more files is refused before its files are read.
    while files.len() < bytes && count < 500_000 {
        files += &file(count);
        count += 1;
    }
    format!("d4:info{}{more}e", info(&files, name, count)).into_bytes()
}

fn info(files: &str, name: &str, total: usize) -> String {
    let content = match files {
        "" => format!("6:lengthi{total}e"),
        files => format!("5:filesl{files}e"),
    };
    let name = format!("4:name{}:{name}", name.len());
    format!("d{content}{name}12:piece lengthi1048576e6:pieces20:{}e", "h".repeat(20))
}

fn path(components: &[&str]) -> String {
    let mut list = "l".to_owned();
    for component in components {
        write!(list, "{}:{component}", component.len()).unwrap();
    }
    list + "e"
}

/// Creates a path through `depth` folders.
fn deep(first: &str, folder: &str, depth: usize) -> String {
    let mut components = vec![first];
    components.resize(depth, folder);
    components.push("f");
    path(&components)
}
