//! Sanitizing of untrusted text for display.

/// Returns `bytes` as text safe for logs and terminals: at most `max` characters, without control characters or
/// direction overrides. Each character that cannot be shown becomes `\u{fffd}`.
#[must_use]
pub fn printable(bytes: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut before = None;
    let mut rest = text.chars();
    let shown = std::iter::from_fn(|| {
        let c = rest.next()?;
        let is_shown = !c.is_control() && !is_deceptive(before, c, rest.clone().next());
        before = Some(c);
        Some(if is_shown { c } else { char::REPLACEMENT_CHARACTER })
    });
    shown.take(max).collect()
}

/// Rewrites the text of an error about a value of another type for users: serde names types of Rust, and positions that
/// a user of a form or of a command never sees.
///
/// ```
/// use ecs_torrent_protocol::text::plain_type_error;
///
/// let text = "invalid type: string \"x\", expected u64 at line 1 column 34";
/// assert_eq!(plain_type_error(text), "a whole number from 0 on is expected, not the text \"x\"");
/// let text = "invalid value: integer `0`, expected a nonzero u32";
/// assert_eq!(plain_type_error(text), "a whole number from 1 on is expected, not 0");
/// assert_eq!(plain_type_error("unknown field `x`, expected `y`"), "unknown field `x`, expected `y`");
/// ```
#[must_use]
pub fn plain_type_error(text: &str) -> String {
    let is_place = |place: &str| {
        place
            .bytes()
            .all(|c| c.is_ascii_digit() || c == b' ' || c.is_ascii_lowercase())
    };
    let text = match text.rsplit_once(" at line ") {
        Some((text, place)) if is_place(place) => text,
        _ => text,
    };
    let found = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|head| text.strip_prefix(head));
    match found.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => format!("{} is expected, not {}", plain_type(expected), plain_value(found)),
        None => text.to_owned(),
    }
}

/// Returns the name of a type for users.
fn plain_type(name: &str) -> &str {
    let (is_positive, plain) = match name.strip_prefix("a nonzero ") {
        Some(plain) => (true, plain),
        None => (false, name),
    };
    match plain {
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" if is_positive => "a whole number from 1 on",
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => "a whole number from 0 on",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "a borrowed string" | "string" => "a text",
        "a sequence" => "a list",
        "a map" => "an object",
        _ if name.starts_with("struct ") => "an object",
        _ => name,
    }
}

/// Returns the description of a value for users.
fn plain_value(found: &str) -> String {
    let quoted = |kind| found.strip_prefix(kind)?.strip_suffix('`').map(str::to_owned);
    let number = ["integer `", "floating point `", "boolean `"]
        .into_iter()
        .find_map(quoted);
    let text = || Some(format!("the text {}", found.strip_prefix("string ")?));
    number.or_else(text).unwrap_or_else(|| match found {
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        "unit value" => "null".to_owned(),
        other => other.to_owned(),
    })
}

/// Whether `c` is an invisible or direction-changing character that can make one text look like another.
///
/// The joiners U+200C and U+200D are not deceptive where they affect rendering: between letters of cursive and Indic
/// scripts, after a virama, and in emoji sequences.
#[must_use]
pub(crate) fn is_deceptive(before: Option<char>, c: char, after: Option<char>) -> bool {
    match c {
        '\u{200c}' | '\u{200d}' => !is_joined(before, c, after),
        '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' => true,
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => true,
        _ => false,
    }
}

/// Whether a joiner affects rendering, similar to the rules for domain names (RFC 5892, A.1 and A.2) and emoji
/// (UTS 51).
fn is_joined(before: Option<char>, joiner: char, after: Option<char>) -> bool {
    let Some(before) = before else {
        return false;
    };
    let is_between = |is_kind: fn(char) -> bool| is_kind(before) && after.is_some_and(is_kind);
    is_virama(before)
        || is_between(is_cursive)
        || is_between(is_indic)
        || (joiner == '\u{200d}' && is_between(is_pictograph))
}

/// Letters and marks of cursive scripts: Arabic, Syriac, Thaana, N'Ko, Mandaic, Mongolian, Phags-pa, Adlam.
fn is_cursive(c: char) -> bool {
    matches!(c,
        '\u{620}'..='\u{65f}' | '\u{66e}'..='\u{6d3}' | '\u{6d5}'..='\u{6dc}' | '\u{6df}'..='\u{6e8}' |
        '\u{6ea}'..='\u{6ef}' | '\u{6fa}'..='\u{7ff}' | '\u{840}'..='\u{8ff}' | '\u{1820}'..='\u{18aa}' |
        '\u{a840}'..='\u{a873}' | '\u{fb50}'..='\u{fdff}' | '\u{fe70}'..='\u{fefc}' |
        '\u{1e900}'..='\u{1e94b}')
}

/// Letters and marks of Brahmic scripts.
fn is_indic(c: char) -> bool {
    matches!(c,
        '\u{900}'..='\u{df4}' | '\u{f00}'..='\u{109f}' | '\u{1700}'..='\u{17d3}' | '\u{1900}'..='\u{1cff}' |
        '\u{a8e0}'..='\u{a8ff}' | '\u{a980}'..='\u{aadf}' | '\u{abc0}'..='\u{abff}' | '\u{11000}'..='\u{1193f}')
}

/// Viramas of Brahmic scripts (canonical combining class 9).
fn is_virama(c: char) -> bool {
    matches!(
        c,
        '\u{94d}'
            | '\u{9cd}'
            | '\u{a4d}'
            | '\u{acd}'
            | '\u{b4d}'
            | '\u{bcd}'
            | '\u{c4d}'
            | '\u{ccd}'
            | '\u{d3b}'
            | '\u{d3c}'
            | '\u{d4d}'
            | '\u{dca}'
            | '\u{f84}'
            | '\u{1039}'
            | '\u{103a}'
            | '\u{1714}'
            | '\u{17d2}'
            | '\u{1b44}'
            | '\u{1baa}'
            | '\u{1bab}'
            | '\u{a8c4}'
            | '\u{a953}'
            | '\u{a9c0}'
            | '\u{aaf6}'
            | '\u{abed}'
            | '\u{11046}'
            | '\u{110b9}'
            | '\u{11133}'
            | '\u{111c0}'
    )
}

/// Emoji, skin tone modifiers and the emoji variation selector.
fn is_pictograph(c: char) -> bool {
    matches!(c, '\u{2190}'..='\u{2bff}' | '\u{fe0f}' | '\u{1f000}'..='\u{1faff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault 55: text from a tracker cannot control a terminal.
    #[test]
    fn control_sequences_do_not_survive() {
        assert_eq!(
            printable(b"\x1b[31mred\x07 <script>", 99),
            "\u{fffd}[31mred\u{fffd} <script>"
        );
        assert_eq!(printable("a\u{202e}b\u{e9}".as_bytes(), 99), "a\u{fffd}b\u{e9}");
        assert_eq!(printable(b"\xffabc", 3), "\u{fffd}ab");
    }

    /// Joiners are shown where a script needs them.
    #[test]
    fn needed_joiners_are_kept() {
        let persian = "\u{645}\u{6cc}\u{200c}\u{62e}";
        assert_eq!(printable(persian.as_bytes(), 99), persian);
        assert_eq!(printable("a\u{200d}b\u{feff}".as_bytes(), 99), "a\u{fffd}b\u{fffd}");
        // Between Bengali letters, without a virama.
        let bengali = "\u{995}\u{200c}\u{996}";
        assert_eq!(printable(bengali.as_bytes(), 99), bengali);
    }

    #[test]
    fn invisible_characters_are_shown_as_replaced() {
        for c in "\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}\u{202a}\u{202e}\u{2060}\u{206f}\u{feff}".chars() {
            assert_eq!(printable(format!("a{c}b").as_bytes(), 99), "a\u{fffd}b", "{c:?}");
        }
        for c in "\u{61b}\u{2010}\u{2027}\u{202f}\u{2070}".chars() {
            assert_eq!(printable(c.to_string().as_bytes(), 99), c.to_string());
        }
    }
}
