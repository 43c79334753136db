//! Words of strangers, made fit to print.

/// The text of `bytes` for logs and terminals: at most `max` characters, nothing that a terminal would obey, and
/// no direction overrides; what cannot be shown is `\u{fffd}`.
#[must_use]
pub fn printable(bytes: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let shown = text.chars().map(|c| match c {
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => char::REPLACEMENT_CHARACTER,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    });
    shown.take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault 55: nothing that a tracker says can drive a terminal.
    #[test]
    fn control_sequences_do_not_survive() {
        assert_eq!(
            printable(b"\x1b[31mred\x07 <script>", 99),
            "\u{fffd}[31mred\u{fffd} <script>"
        );
        assert_eq!(printable("a\u{202e}b\u{e9}".as_bytes(), 99), "a\u{fffd}b\u{e9}");
        assert_eq!(printable(b"\xffabc", 3), "\u{fffd}ab");
    }
}
