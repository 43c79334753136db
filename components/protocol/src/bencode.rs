//! Bencode, the format of metainfo, tracker replies and extension messages (BEP 3, "bencoding").
//!
//! A borrowing tokenizer reads untrusted input in one pass, without recursion or copies, within limits on depth, tokens
//! and size. It keeps the byte range of every value, because an info-hash covers the bytes as received. Our own output
//! goes through `bendy`, which produces only the canonical form.

use std::fmt;
use std::ops::Range;

/// Limits on the cost of a document, beyond which it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Deepest nesting of lists and dictionaries. Default 32: metainfo needs 5.
    pub max_depth: usize,
    /// Maximum number of values, including keys, in one document. Default 4 million, 8 bytes of memory each while
    /// parsing.
    pub max_tokens: usize,
    /// Maximum size of one document in bytes. Default 64 MiB: a torrent of 2 million pieces needs 40 MiB.
    pub max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_depth: 32,
            max_tokens: 4_000_000,
            max_bytes: 64 << 20,
        }
    }
}

impl Limits {
    /// Limits for input from a single peer or tracker: `max_bytes` bytes, 64 Ki values, depth 16.
    #[must_use]
    pub const fn small(max_bytes: usize) -> Self {
        Self {
            max_depth: 16,
            max_tokens: 1 << 16,
            max_bytes,
        }
    }
}

/// The reason a document is not bencode, and its position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {offset}")]
pub struct BencodeError {
    /// Offset of the first unacceptable byte.
    pub offset: usize,
    /// The problem at that offset.
    pub problem: Problem,
}

/// The kinds of bencode errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The document ends inside a value.
    #[error("unexpected end of data")]
    UnexpectedEnd,
    /// The byte starts no value.
    #[error("unexpected byte 0x{0:02x}")]
    UnexpectedByte(u8),
    /// Leading zeros, minus zero, an empty or an overflowing integer.
    #[error("malformed integer")]
    BadInteger,
    /// A string length with leading zeros, or longer than the document.
    #[error("bad string length")]
    BadLength,
    /// A dictionary key is not a string.
    #[error("dictionary key is not a string")]
    BadKey,
    /// A key occurs twice in one dictionary.
    #[error("duplicate dictionary key")]
    DuplicateKey,
    /// Bytes after the end of the document.
    #[error("trailing data")]
    TrailingData,
    /// The document exceeds [`Limits::max_depth`].
    #[error("nested too deeply")]
    TooDeep,
    /// The document exceeds [`Limits::max_tokens`].
    #[error("too many values")]
    TooManyTokens,
    /// The document exceeds [`Limits::max_bytes`].
    #[error("document too large")]
    TooLarge,
}

/// One value; a container's children follow it, and `next` is the token after the last of them.
///
/// The kind and content are read from the document again on access, so a token takes only 8 bytes.
#[derive(Debug, Clone, Copy)]
struct Token {
    start: u32,
    next: u32,
}

/// A parsed document. Borrow values from it with [`Document::root`].
///
/// ```
/// use ecs_torrent_protocol::bencode::{Document, Limits};
///
/// let document = Document::parse(b"d5:filesli3ei4ee4:name5:albume", &Limits::default()).unwrap();
/// let root = document.root();
/// assert_eq!(root.get(b"name").and_then(|name| name.as_str()), Some("album"));
/// let sizes = root.get(b"files").unwrap().as_list().unwrap();
/// assert_eq!(sizes.filter_map(|size| size.as_int()).sum::<i64>(), 7);
/// // An error names the offset.
/// assert_eq!(Document::parse(b"i007e", &Limits::default()).unwrap_err().offset, 1);
/// ```
pub struct Document<'a> {
    input: &'a [u8],
    tokens: Vec<Token>,
}

impl fmt::Debug for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({} bytes, {} values)", self.input.len(), self.tokens.len())
    }
}

impl<'a> Document<'a> {
    /// Parses `input`, which must be exactly one value.
    ///
    /// # Errors
    /// Returns the offset and kind of the first violation of the grammar or of `limits`.
    pub fn parse(input: &'a [u8], limits: &Limits) -> Result<Self, BencodeError> {
        let (document, used) = Self::parse_prefix(input, limits)?;
        if used != input.len() {
            return Err(error(used, Problem::TrailingData));
        }
        Ok(document)
    }

    /// Parses the value at the start of `input` and returns the number of bytes it took: an extension message may carry
    /// raw data after its dictionary (BEP 9).
    ///
    /// # Errors
    /// Same as [`Document::parse`], except that data after the value is allowed.
    pub(crate) fn parse_prefix(input: &'a [u8], limits: &Limits) -> Result<(Self, usize), BencodeError> {
        if input.len() > limits.max_bytes.min(u32::MAX as usize) {
            return Err(error(0, Problem::TooLarge));
        }
        let mut tokenizer = Tokenizer {
            input,
            offset: 0,
            limits,
            tokens: Vec::new(),
            open: Vec::new(),
        };
        tokenizer.run()?;
        let (mut tokens, used) = (tokenizer.tokens, tokenizer.offset);
        tokens.shrink_to_fit();
        Ok((Self { input, tokens }, used))
    }

    /// The document's outermost value.
    #[must_use]
    pub fn root(&self) -> Value<'_> {
        Value {
            document: self,
            index: 0,
        }
    }
}

/// A value inside a [`Document`]; cheap to copy.
#[derive(Clone, Copy)]
pub struct Value<'d> {
    document: &'d Document<'d>,
    index: u32,
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.type_name(), self.start())
    }
}

impl<'d> Value<'d> {
    fn token(self) -> &'d Token {
        &self.document.tokens[self.index as usize]
    }

    fn start(self) -> usize {
        self.token().start as usize
    }

    fn first_byte(self) -> u8 {
        self.document.input[self.start()]
    }

    /// The integer, if it is one.
    #[must_use]
    pub fn as_int(self) -> Option<i64> {
        if self.first_byte() != b'i' {
            return None;
        }
        let text = &self.document.input[self.start() + 1..];
        // The tokenizer has checked the grammar and the range.
        let (is_negative, digits) = match text.strip_prefix(b"-") {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
        let value = digits.fold(0u64, |value, byte| {
            value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'))
        }) as i64;
        Some(if is_negative { value.wrapping_neg() } else { value })
    }

    /// The byte string, if it is one.
    #[must_use]
    pub fn as_bytes(self) -> Option<&'d [u8]> {
        let input = self.document.input;
        self.first_byte()
            .is_ascii_digit()
            .then(|| &input[string_content(input, self.start())])
    }

    /// The byte string as text, if it is one and is UTF-8.
    #[must_use]
    pub fn as_str(self) -> Option<&'d str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// Whether this is a dictionary.
    #[must_use]
    pub fn is_dict(self) -> bool {
        self.first_byte() == b'd'
    }

    /// The items, if it is a list.
    #[must_use]
    pub fn as_list(self) -> Option<impl Iterator<Item = Value<'d>> + Clone> {
        (self.first_byte() == b'l').then(|| self.children())
    }

    /// The key-value pairs in document order, if it is a dictionary.
    #[must_use]
    pub fn as_dict(self) -> Option<Pairs<'d>> {
        self.is_dict().then(|| Pairs(self.children()))
    }

    /// The value of `key`, if this is a dictionary with that key.
    #[must_use]
    pub fn get(self, key: &[u8]) -> Option<Value<'d>> {
        self.as_dict()?.find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// The value's bytes exactly as in the document, as info-hashes require.
    #[must_use]
    pub fn raw(self) -> &'d [u8] {
        &self.document.input[self.start()..self.end()]
    }

    /// Offset of the first byte after the value. Visits all children of the last container on each level.
    fn end(self) -> usize {
        let mut last = self;
        let mut closed = 0;
        loop {
            match last.first_byte() {
                b'i' => {
                    let digits = &last.document.input[last.start()..];
                    let len = digits.iter().position(|&byte| byte == b'e');
                    return last.start() + len.map_or(digits.len(), |len| len + 1) + closed;
                }
                b'l' | b'd' => {
                    closed += 1;
                    match last.children().last() {
                        Some(child) => last = child,
                        None => return last.start() + 1 + closed,
                    }
                }
                _ => return string_content(last.document.input, last.start()).end + closed,
            }
        }
    }

    /// Name of the value's type, for error messages.
    #[must_use]
    pub fn type_name(self) -> &'static str {
        match self.first_byte() {
            b'i' => "integer",
            b'l' => "list",
            b'd' => "dictionary",
            _ => "string",
        }
    }

    fn children(self) -> Children<'d> {
        Children {
            document: self.document,
            next: self.index + 1,
            end: self.token().next,
        }
    }
}

/// Iterator over the key-value pairs of a dictionary, in document order.
#[derive(Clone)]
pub struct Pairs<'d>(Children<'d>);

impl fmt::Debug for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.clone()).finish()
    }
}

impl<'d> Iterator for Pairs<'d> {
    type Item = (&'d [u8], Value<'d>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.0.next()?.as_bytes()?;
        Some((key, self.0.next()?))
    }
}

#[derive(Clone)]
struct Children<'d> {
    document: &'d Document<'d>,
    next: u32,
    end: u32,
}

impl<'d> Iterator for Children<'d> {
    type Item = Value<'d>;

    fn next(&mut self) -> Option<Value<'d>> {
        if self.next >= self.end {
            return None;
        }
        let value = Value {
            document: self.document,
            index: self.next,
        };
        self.next = value.token().next;
        Some(value)
    }
}

/// A container whose end has not been reached.
struct Open {
    index: u32,
    is_dict: bool,
    expects_key: bool,
}

struct Tokenizer<'a, 'l> {
    input: &'a [u8],
    offset: usize,
    limits: &'l Limits,
    tokens: Vec<Token>,
    open: Vec<Open>,
}

impl Tokenizer<'_, '_> {
    /// Reads one value. Nesting is tracked in `open`, not on the stack, so deep nesting cannot exhaust the stack.
    fn run(&mut self) -> Result<(), BencodeError> {
        loop {
            match self.peek()? {
                b'e' => self.close()?,
                byte => self.value(byte)?,
            }
            if self.open.is_empty() {
                return Ok(());
            }
        }
    }

    fn value(&mut self, byte: u8) -> Result<(), BencodeError> {
        let start = self.offset;
        let is_key = self.open.last().is_some_and(|open| open.is_dict && open.expects_key);
        if is_key && !byte.is_ascii_digit() {
            return Err(error(start, Problem::BadKey));
        }
        if let Some(open) = self.open.last_mut() {
            open.expects_key = !open.expects_key;
        }
        match byte {
            b'i' => {
                self.offset += 1;
                self.integer(b'e')?;
                self.push(start)
            }
            b'0'..=b'9' => {
                let length = self.integer(b':').map_err(|e| match e.problem {
                    Problem::BadInteger => error(e.offset, Problem::BadLength),
                    _ => e,
                })?;
                let content = self.offset;
                let end = usize::try_from(length)
                    .ok()
                    .and_then(|length| content.checked_add(length));
                self.offset = end
                    .filter(|&end| end <= self.input.len())
                    .ok_or_else(|| error(start, Problem::BadLength))?;
                self.push(start)
            }
            b'l' | b'd' => {
                if self.open.len() >= self.limits.max_depth {
                    return Err(error(start, Problem::TooDeep));
                }
                self.offset += 1;
                self.push(start)?;
                self.open.push(Open {
                    index: self.tokens.len() as u32 - 1,
                    is_dict: byte == b'd',
                    expects_key: true,
                });
                Ok(())
            }
            other => Err(error(start, Problem::UnexpectedByte(other))),
        }
    }

    fn close(&mut self) -> Result<(), BencodeError> {
        let at = self.offset;
        let open = self
            .open
            .pop()
            .ok_or_else(|| error(at, Problem::UnexpectedByte(b'e')))?;
        if open.is_dict && !open.expects_key {
            return Err(error(at, Problem::UnexpectedByte(b'e')));
        }
        self.offset += 1;
        let next = self.tokens.len() as u32;
        self.tokens[open.index as usize].next = next;
        if open.is_dict {
            self.refuse_duplicate_keys(open.index)?;
        }
        Ok(())
    }

    /// Refuses duplicate keys, with which two readers could see two different torrents. BEP 3 requires sorted keys, but
    /// torrents in use do not always comply, so any order is accepted.
    fn refuse_duplicate_keys(&self, dict: u32) -> Result<(), BencodeError> {
        let keys = DictKeys {
            tokens: &self.tokens,
            next: dict + 1,
            end: self.tokens[dict as usize].next,
        };
        let name = |token: &Token| &self.input[string_content(self.input, token.start as usize)];
        if keys.clone().is_sorted_by(|a, b| name(a) < name(b)) {
            return Ok(());
        }
        let mut sorted: Vec<&Token> = keys.collect();
        sorted.sort_unstable_by_key(|token| (name(token), token.start));
        match sorted.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
            Some(pair) => Err(error(pair[1].start as usize, Problem::DuplicateKey)),
            None => Ok(()),
        }
    }

    fn push(&mut self, start: usize) -> Result<(), BencodeError> {
        if self.tokens.len() >= self.limits.max_tokens {
            return Err(error(start, Problem::TooManyTokens));
        }
        self.tokens.push(Token {
            start: start as u32,
            next: self.tokens.len() as u32 + 1,
        });
        Ok(())
    }

    /// Reads digits up to `terminator` and skips it.
    fn integer(&mut self, terminator: u8) -> Result<i64, BencodeError> {
        let start = self.offset;
        let bad = error(start, Problem::BadInteger);
        let negative = self.peek()? == b'-';
        if negative {
            self.offset += 1;
        }
        let digits = self.offset;
        let mut value: i64 = 0;
        while self.peek()?.is_ascii_digit() {
            let digit = i64::from(self.input[self.offset] - b'0');
            let next = value.checked_mul(10).and_then(|value| {
                if negative {
                    value.checked_sub(digit)
                } else {
                    value.checked_add(digit)
                }
            });
            value = next.ok_or_else(|| bad.clone())?;
            self.offset += 1;
        }
        let count = self.offset - digits;
        let leading_zero = count > 1 && self.input[digits] == b'0';
        if count == 0 || leading_zero || (negative && value == 0) || self.peek()? != terminator {
            return Err(bad);
        }
        self.offset += 1;
        Ok(value)
    }

    fn peek(&self) -> Result<u8, BencodeError> {
        let byte = self.input.get(self.offset).copied();
        byte.ok_or_else(|| error(self.input.len(), Problem::UnexpectedEnd))
    }
}

#[derive(Clone)]
struct DictKeys<'t> {
    tokens: &'t [Token],
    next: u32,
    end: u32,
}

impl<'t> Iterator for DictKeys<'t> {
    type Item = &'t Token;

    fn next(&mut self) -> Option<&'t Token> {
        if self.next >= self.end {
            return None;
        }
        let key = &self.tokens[self.next as usize];
        self.next = self.tokens[key.next as usize].next;
        Some(key)
    }
}

/// Range of the content of the byte string at `start`; the tokenizer has checked its length.
fn string_content(input: &[u8], start: usize) -> Range<usize> {
    let mut content = start;
    let mut len = 0usize;
    while input[content] != b':' {
        len = len * 10 + usize::from(input[content] - b'0');
        content += 1;
    }
    content + 1..content + 1 + len
}

fn error(offset: usize, problem: Problem) -> BencodeError {
    BencodeError { offset, problem }
}

#[cfg(test)]
mod tests;
