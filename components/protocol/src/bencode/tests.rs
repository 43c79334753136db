//! Tests of bencode.

use proptest::prelude::*;

use super::*;

fn problem(input: &[u8]) -> (Problem, usize) {
    let error = Document::parse(input, &Limits::default()).unwrap_err();
    (error.problem, error.offset)
}

#[test]
fn reads_every_type() {
    let input = b"d1:ai-42e1:bl2:hi0:e1:cd1:xi0eee";
    let document = Document::parse(input, &Limits::default()).unwrap();
    let root = document.root();
    assert_eq!(root.get(b"a").unwrap().as_int(), Some(-42));
    let list: Vec<_> = root
        .get(b"b")
        .unwrap()
        .as_list()
        .unwrap()
        .map(|v| v.as_str().unwrap())
        .collect();
    assert_eq!(list, ["hi", ""]);
    assert_eq!(root.get(b"c").unwrap().raw(), b"d1:xi0ee");
    assert!(root.get(b"d").is_none());
    assert_eq!(root.get(b"c").unwrap().type_name(), "dictionary");
}

#[test]
fn prefix_leaves_the_rest() {
    let (document, used) = Document::parse_prefix(b"d1:ai1eeRAW", &Limits::default()).unwrap();
    assert_eq!(document.root().get(b"a").unwrap().as_int(), Some(1));
    assert_eq!(used, 8);
}

/// Fault 1: nesting is refused at the limit, without recursion.
#[test]
fn deep_nesting_is_refused() {
    for open in [&b"l"[..], b"d1:a"] {
        let (problem, offset) = problem(&open.repeat(150_000));
        assert_eq!(problem, Problem::TooDeep);
        assert_eq!(offset, 32 * open.len());
    }
}

/// Fault 2: a string longer than the document is refused before any allocation for it.
#[test]
fn huge_string_length_is_refused() {
    assert_eq!(problem(b"9223372036854775808:a"), (Problem::BadLength, 0));
    assert_eq!(problem(b"9223372036854775807:a"), (Problem::BadLength, 0));
    assert_eq!(problem(b"l4294967296:ae"), (Problem::BadLength, 1));
}

/// Fault 3: integers that overflow or have leading zeros are syntax errors with their offset.
#[test]
fn malformed_integers_are_refused() {
    for bad in [
        "i9223372036854775808e",
        "i-9223372036854775809e",
        "i01e",
        "i-0e",
        "i--1e",
        "ie",
        "i-e",
        "i1x",
    ] {
        assert_eq!(problem(bad.as_bytes()), (Problem::BadInteger, 1), "{bad}");
    }
    assert_eq!(problem(b"03:abc"), (Problem::BadLength, 0));
    for (good, value) in [
        ("i9223372036854775807e", i64::MAX),
        ("i-9223372036854775808e", i64::MIN),
        ("i0e", 0),
    ] {
        let document = Document::parse(good.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(document.root().as_int(), Some(value));
    }
}

/// Fault 4: unsorted keys are accepted, duplicates are refused in any order.
#[test]
fn keys_in_any_order_but_once() {
    let document = Document::parse(b"d1:bi1e1:ai2ee", &Limits::default()).unwrap();
    assert_eq!(document.root().get(b"a").unwrap().as_int(), Some(2));
    assert_eq!(problem(b"d1:ai1e1:ai2ee"), (Problem::DuplicateKey, 7));
    assert_eq!(problem(b"d1:bi1e1:ai2e1:bi3ee"), (Problem::DuplicateKey, 13));
    assert!(
        Document::parse(b"d1:ad1:ai0eee", &Limits::default()).is_ok(),
        "another dictionary, another key"
    );
}

#[test]
fn structure_errors_name_their_offset() {
    assert_eq!(problem(b""), (Problem::UnexpectedEnd, 0));
    assert_eq!(problem(b"l"), (Problem::UnexpectedEnd, 1));
    assert_eq!(problem(b"e"), (Problem::UnexpectedByte(b'e'), 0));
    assert_eq!(problem(b"d1:ae"), (Problem::UnexpectedByte(b'e'), 4));
    assert_eq!(problem(b"di1ei2ee"), (Problem::BadKey, 1));
    assert_eq!(problem(b"i1ei2e"), (Problem::TrailingData, 3));
    assert_eq!(problem(b"x"), (Problem::UnexpectedByte(b'x'), 0));
}

#[test]
fn limits_hold() {
    let limits = Limits {
        max_tokens: 3,
        ..Limits::default()
    };
    assert_eq!(
        Document::parse(b"li1ei2ei3ee", &limits).unwrap_err().problem,
        Problem::TooManyTokens
    );
    let limits = Limits::small(4);
    assert_eq!(
        Document::parse(b"3:abc", &limits).unwrap_err().problem,
        Problem::TooLarge
    );
}

#[derive(Debug, Clone)]
enum Tree {
    Int(i64),
    Bytes(Vec<u8>),
    List(Vec<Tree>),
    Dict(std::collections::BTreeMap<Vec<u8>, Tree>),
}

fn encode(tree: &Tree, out: &mut Vec<u8>) {
    let bytes = |b: &[u8], out: &mut Vec<u8>| {
        out.extend(format!("{}:", b.len()).bytes());
        out.extend(b);
    };
    match tree {
        Tree::Int(i) => out.extend(format!("i{i}e").bytes()),
        Tree::Bytes(b) => bytes(b, out),
        Tree::List(items) => {
            out.push(b'l');
            items.iter().for_each(|item| encode(item, out));
            out.push(b'e');
        }
        Tree::Dict(items) => {
            out.push(b'd');
            for (key, item) in items {
                bytes(key, out);
                encode(item, out);
            }
            out.push(b'e');
        }
    }
}

fn same(tree: &Tree, value: Value<'_>) -> bool {
    match tree {
        Tree::Int(i) => value.as_int() == Some(*i),
        Tree::Bytes(b) => value.as_bytes() == Some(b),
        Tree::List(items) => {
            let Some(list) = value.as_list() else { return false };
            items.len() == list.clone().count() && items.iter().zip(list).all(|(a, b)| same(a, b))
        }
        Tree::Dict(items) => {
            let Some(dict) = value.as_dict() else { return false };
            items.len() == dict.clone().count()
                && items.iter().zip(dict).all(|((k, a), (key, b))| k == key && same(a, b))
        }
    }
}

fn trees() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Tree::Int),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Tree::Bytes),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Tree::List),
            proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 0..8), inner, 0..8)
                .prop_map(Tree::Dict),
        ]
    })
}

proptest! {
    #[test]
    fn written_data_is_read_back(tree in trees()) {
        let mut bytes = Vec::new();
        encode(&tree, &mut bytes);
        let document = Document::parse(&bytes, &Limits::default()).unwrap();
        prop_assert!(same(&tree, document.root()));
        prop_assert_eq!(document.root().raw(), &bytes[..]);
    }

    #[test]
    fn any_input_is_accepted_or_refused_in_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = Document::parse(&bytes, &Limits::default()) {
            prop_assert!(error.offset <= bytes.len());
        }
    }

    #[test]
    fn every_truncation_is_refused(tree in trees(), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        encode(&tree, &mut bytes);
        let cut = cut.index(bytes.len());
        prop_assert!(Document::parse(&bytes[..cut], &Limits::default()).is_err());
    }
}
