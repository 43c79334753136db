//! Safe paths from untrusted names. The path of a torrent's file never leaves the download folder, never depends on the
//! machine, and never merges two files.
//!
//! The same bytes always give the same path, so that a torrent that is added again finds its data.

mod unique;

use std::borrow::Cow;

pub(crate) use self::unique::UniquePaths;
use crate::text::is_deceptive;

/// Maximum length in bytes of one path component, as common file systems allow.
pub const MAX_COMPONENT_BYTES: usize = 255;

/// Maximum number of components of one path.
pub const MAX_DEPTH: usize = 100;

/// Maximum length in bytes of an extension that is kept when a name is cut, dot included.
const MAX_EXTENSION_BYTES: usize = 32;

/// Makes one component of a path safe. Returns `None` for `.`, `..` and the empty name, which have no safe form and are
/// left out of the path.
///
/// Separators, control and bidirectional-override characters and invalid UTF-8 become `_`; so do joiners, except where
/// the script needs them (see [`is_deceptive`]). A name longer than [`MAX_COMPONENT_BYTES`] is cut before its
/// extension.
#[must_use]
pub(crate) fn safe_component(raw: &[u8]) -> Option<Cow<'_, str>> {
    if matches!(raw, b"" | b"." | b"..") {
        return None;
    }
    let name = match std::str::from_utf8(raw) {
        Ok(name) if raw.iter().all(is_plain) || !has_unsafe(name) => Cow::Borrowed(name),
        _ => Cow::Owned(replace_unsafe(raw)),
    };
    Some(cut_to(name, MAX_COMPONENT_BYTES))
}

/// Makes a torrent's own name safe as the topmost component of its paths. Returns `None` for names without a safe form.
/// The result has at most `max_bytes` bytes.
///
/// Separators, control and bidirectional-override characters and invalid UTF-8 become `_`, and a name that is too long
/// is cut before its extension. A leading dot becomes `_`, too: a torrent therefore cannot replace hidden folders in
/// which programs keep their configuration (`.ssh`, `.config`) or this engine its state.
#[must_use]
pub fn safe_name(raw: &[u8], max_bytes: usize) -> Option<Cow<'_, str>> {
    let name = cut_to(safe_component(raw)?, max_bytes.min(MAX_COMPONENT_BYTES));
    Some(match name.strip_prefix('.') {
        Some(rest) => Cow::Owned(format!("_{rest}")),
        None => name,
    })
}

/// Whether a byte is harmless in any name; most names consist of such bytes only.
fn is_plain(byte: &u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'/' | b'\\')
}

fn has_unsafe(name: &str) -> bool {
    unsafe_chars(name).any(|(_, is_unsafe)| is_unsafe)
}

/// Iterates over the characters of `name`, each with a flag that marks separators and deceptive characters.
fn unsafe_chars(name: &str) -> impl Iterator<Item = (char, bool)> {
    let mut before = None;
    let mut rest = name.chars();
    std::iter::from_fn(move || {
        let c = rest.next()?;
        let is_unsafe = matches!(c, '/' | '\\') || c.is_control() || is_deceptive(before, c, rest.clone().next());
        before = Some(c);
        Some((c, is_unsafe))
    })
}

fn replace_unsafe(raw: &[u8]) -> String {
    let mut name = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        name.extend(unsafe_chars(chunk.valid()).map(|(c, is_unsafe)| if is_unsafe { '_' } else { c }));
        if !chunk.invalid().is_empty() {
            name.push('_');
        }
    }
    name
}

/// Shortens `name` to `max` bytes at a character boundary, keeping its extension.
fn cut_to(name: Cow<'_, str>, max: usize) -> Cow<'_, str> {
    if name.len() <= max {
        return name;
    }
    let (stem, extension) = split_extension(&name);
    let stem = cut_stem(stem, max.saturating_sub(extension.len()));
    Cow::Owned(format!("{stem}{extension}"))
}

/// Cuts `stem` to at most `max` bytes at a character boundary, without a trailing joiner.
fn cut_stem(stem: &str, max: usize) -> &str {
    if stem.len() <= max {
        return stem;
    }
    stem[..stem.floor_char_boundary(max)].trim_end_matches(['\u{200c}', '\u{200d}'])
}

fn split_extension(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(dot) if dot > 0 && name.len() - dot <= MAX_EXTENSION_BYTES => name.split_at(dot),
        _ => (name, ""),
    }
}

/// Checks a name that a user or a session gives to a torrent's file or folder.
///
/// # Errors
/// The reason if the name would be hidden, or would be changed to make it safe.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.starts_with('.') {
        return Err("a leading dot hides it");
    }
    match safe_component(name.as_bytes()) {
        None => Err("it is empty"),
        Some(safe) if safe != name => Err("it has characters that are not safe in a path, or is too long"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn component(raw: &[u8]) -> String {
        safe_component(raw).unwrap().into_owned()
    }

    /// Fault 8: no name leaves its folder or contains a separator.
    #[test]
    fn traversal_is_confined() {
        assert_eq!(safe_component(b".."), None);
        assert_eq!(safe_component(b"."), None);
        assert_eq!(safe_component(b""), None);
        assert_eq!(component(b"/etc/passwd"), "_etc_passwd");
        assert_eq!(component(b"..\\..\\x"), ".._.._x");
        assert_eq!(component(b"..."), "...");
    }

    #[test]
    fn nothing_but_separators_is_replaced() {
        assert_eq!(component(b"/"), "_");
        assert_eq!(component(b"\\//"), "___");
    }

    /// Torrents have up to a million names: those that are safe already are not copied.
    #[test]
    fn safe_names_are_borrowed() {
        for name in ["plain name.txt", "na\u{ef}ve", "\u{645}\u{6cc}\u{200c}\u{62e}"] {
            assert!(matches!(safe_component(name.as_bytes()), Some(Cow::Borrowed(safe)) if safe == name));
        }
        assert!(matches!(safe_component(b"a/b"), Some(Cow::Owned(_))));
    }

    /// Fault 9: NUL, control, bidirectional and invalid bytes give a fixed, visible name.
    #[test]
    fn unprintable_names_are_replaced() {
        assert_eq!(component(b"a\0b\nc"), "a_b_c");
        assert_eq!(component("x\u{202e}gpj.exe".as_bytes()), "x_gpj.exe");
        assert_eq!(component(b"caf\xe9 \xff\xfe.txt"), "caf_ __.txt");
        assert_eq!(
            component("na\u{ef}ve \u{65e5}\u{672c}.txt".as_bytes()),
            "na\u{ef}ve \u{65e5}\u{672c}.txt"
        );
    }

    /// Fault 10: long names are cut before their extension.
    #[test]
    fn long_names_keep_their_extension() {
        let long = component(format!("{}.tar.gz", "x".repeat(400)).as_bytes());
        assert_eq!(long.len(), 255);
        assert!(long.ends_with("x.gz"));
        let wide = component(format!("{}.mkv", "\u{e9}".repeat(200)).as_bytes());
        assert!(wide.len() <= 255 && wide.ends_with("\u{e9}.mkv"));
        assert_eq!(component(&[b'.'; 300]).len(), 255);
        // A leading dot begins no extension, nor does one too far from the end.
        let hidden = format!(".{}", "x".repeat(20));
        assert_eq!(safe_name(hidden.as_bytes(), 10).unwrap(), "_xxxxxxxxx");
        for (kept, len) in [(true, 31), (false, 32)] {
            let name = component(format!("{}.{}", "x".repeat(300), "y".repeat(len)).as_bytes());
            assert_eq!((name.len(), name.ends_with('y')), (255, kept));
        }
    }

    /// A torrent's own name is never hidden. Names below it may be.
    #[test]
    fn no_torrent_has_a_hidden_name() {
        let name = |raw: &str| safe_name(raw.as_bytes(), 255).map(Cow::into_owned);
        assert_eq!(name(".ssh").unwrap(), "_ssh");
        assert_eq!(name(".ecs_torrent").unwrap(), "_ecs_torrent");
        assert_eq!(name("...").unwrap(), "_..");
        assert_eq!(name("\u{202e}.x").unwrap(), "_.x");
        assert_eq!(name("v1.0").unwrap(), "v1.0");
        assert_eq!(name(".."), None);
        assert_eq!(component(b".ssh"), ".ssh");
        assert_eq!(
            safe_name("\u{e9}\u{e9}\u{e9}.txt".as_bytes(), 9).unwrap(),
            "\u{e9}\u{e9}.txt"
        );
    }

    /// Joiners are kept where a script needs them and replaced elsewhere.
    #[test]
    fn joiners_stay_between_what_they_join() {
        for name in [
            "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}.txt", // Persian
            "\u{915}\u{94d}\u{200d}\u{937}",                                 // Hindi
            "\u{0d05}\u{0d35}\u{0d28}\u{0d4d}\u{200d}.pdf",                  // Malayalam, at the end of a word
            "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}.png",               // a family
            "\u{2764}\u{fe0f}\u{200d}\u{1f525}.png",                         // a heart on fire
        ] {
            assert_eq!(component(name.as_bytes()), name);
        }
        assert_eq!(component("pay\u{200d}pal".as_bytes()), "pay_pal");
        assert_eq!(component("\u{200c}\u{645}".as_bytes()), "_\u{645}");
        assert_eq!(
            component("\u{645}\u{200c}\u{200c}\u{645}".as_bytes()),
            "\u{645}__\u{645}"
        );
        let long = format!("{}\u{200c}\u{645}\u{645}.txt", "\u{645}".repeat(124));
        let cut = component(long.as_bytes());
        assert_eq!(cut, format!("{}.txt", "\u{645}".repeat(124)));
    }

    proptest! {
        #[test]
        fn components_are_single_safe_names(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(name) = safe_component(&raw) {
                prop_assert!(!name.is_empty() && name.len() <= MAX_COMPONENT_BYTES);
                prop_assert!(name != "." && name != "..");
                prop_assert!(!name.contains(['/', '\\', '\0']));
                prop_assert_eq!(safe_component(name.as_bytes()), Some(name.clone()), "a safe name stays as it is");
            }
        }

        #[test]
        fn names_of_any_script_stay_as_they_are(
            raw in "[a\u{645}\u{6cc}\u{915}\u{94d}\u{200c}\u{200d}\u{202e}\u{1f468}\u{fe0f}./\\\\]{1,90}", max in 40usize..256,
        ) {
            if let Some(name) = safe_component(raw.as_bytes()) {
                prop_assert_eq!(safe_component(name.as_bytes()), Some(name.clone()));
            }
            if let Some(name) = safe_name(raw.as_bytes(), max) {
                prop_assert!(name.len() <= max && !name.starts_with('.'));
                prop_assert_eq!(safe_name(name.as_bytes(), max), Some(name.clone()));
            }
        }
    }
}
