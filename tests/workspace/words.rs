//! American spelling and the field's standard words in everything that people read.

use std::path::Path;

use walkdir::{DirEntry, WalkDir};

/// Kinds of files that are read. Names without an extension are read too (`Dockerfile`).
const KINDS: [&str; 8] = ["rs", "md", "toml", "json", "ron", "service", "yml", "sh"];

/// Folders without prose: build output, and recorded results.
const SKIPPED: [&str; 3] = ["target", "results", "seeds"];

/// Beginnings of words that have another spelling in American English, with endings that make the word fine.
const BRITISH: [(&str, &[&str]); 40] = [
    ("cancell", &["ation", "ations"]),
    ("labell", &[]),
    ("modell", &[]),
    ("signall", &[]),
    ("travell", &[]),
    ("colour", &[]),
    ("behaviour", &[]),
    ("neighbour", &[]),
    ("favour", &[]),
    ("honour", &[]),
    ("optimis", &["m", "t", "tic", "tically"]),
    ("serialis", &[]),
    ("initialis", &[]),
    ("normalis", &[]),
    ("synchronis", &[]),
    ("recognis", &[]),
    ("organis", &["m", "ms"]),
    ("summaris", &[]),
    ("utilis", &[]),
    ("finalis", &["t"]),
    ("randomis", &[]),
    ("analyse", &["s"]),
    ("acknowledgement", &[]),
    ("judgement", &[]),
    ("artefact", &[]),
    ("towards", &[]),
    ("afterwards", &[]),
    ("whilst", &[]),
    ("licence", &[]),
    ("catalogue", &[]),
    ("centre", &[]),
    ("defence", &[]),
    ("dialled", &[]),
    ("dialling", &[]),
    ("fulfils", &[]),
    ("grey", &[]),
    ("learnt", &[]),
    ("levell", &[]),
    ("programme", &["d", "r", "rs"]),
    ("tunnell", &[]),
];

/// Words that this project once used for things that have a standard word.
const PRIVATE: [(&str, &str); 19] = [
    ("platter", "durable, synced, stable storage"),
    ("confess", "what is recorded"),
    ("anew", "again"),
    ("lately", "recently"),
    ("besides", "also, in addition to"),
    ("clerk", "what the parameters are for"),
    ("court", "what the parameters are for"),
    ("happening", "event"),
    ("unheard", "what failed"),
    ("hitherto", "until now"),
    ("thereby", "so, by that"),
    ("misfortune", "fault"),
    ("desk", "queue, what the type is for"),
    ("judge", "what is decided"),
    ("hears", "handles, receives"),
    ("folk", "users, peers"),
    ("told", "sent, reported, received"),
    ("tells", "sends, reports, shows"),
    ("hearsay", "unconfirmed"),
];

/// Words with which no comment begins, because they hide its subject.
const HIDDEN_SUBJECTS: [&str; 5] = ["Who ", "What ", "Whatever ", "Those ", "Which "];

/// Most columns of a line of a comment.
const MAX_COLUMNS: usize = 120;

#[test]
fn words_are_american_and_standard() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_read = |entry: &DirEntry| {
        let name = entry.file_name().to_string_lossy();
        let is_skipped = name.starts_with('.') || (entry.file_type().is_dir() && SKIPPED.contains(&&*name));
        entry.depth() == 0 || !is_skipped
    };
    let entries = WalkDir::new(root).into_iter().filter_entry(is_read).map(Result::unwrap);
    let mut faults = Vec::new();
    let mut count = 0;
    for entry in entries.filter(|entry| entry.file_type().is_file() && has_prose(entry.path())) {
        let path = entry.path().strip_prefix(root).unwrap();
        if path == Path::new("tests/workspace/words.rs") {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).unwrap();
        count += 1;
        if path.extension().is_some_and(|extension| extension == "rs") {
            let hidden = (1..)
                .zip(comment_starts(&text))
                .filter(|(_, start)| start.is_some_and(hides_subject));
            let why = "the comment does not begin with its subject";
            faults.extend(hidden.map(|(number, _)| format!("{}:{number}: {why}", path.display())));
            let wide = wide_comments(&text).map(|number| format!("{}:{number}: too wide", path.display()));
            faults.extend(wide);
        }
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = words(line).filter_map(|word| Some((fault_of(&word)?, word)));
            faults.extend(wrong.map(|(why, word)| format!("{}:{number}: {word}: {why}", path.display())));
        }
    }
    assert!(count > 300, "only {count} files read");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn has_prose(path: &Path) -> bool {
    match path.extension() {
        Some(extension) => KINDS.iter().any(|kind| extension == *kind),
        None => path.file_name().is_some_and(|name| name == "Dockerfile"),
    }
}

/// Returns the words of a line in lowercase. An identifier consists of several: `MaxCancelled` of `max` and
/// `cancelled`.
fn words(line: &str) -> impl Iterator<Item = String> {
    let parts = line.split(|c: char| !c.is_alphabetic()).filter(|part| !part.is_empty());
    parts.flat_map(|part| {
        let mut words = vec![String::new()];
        let mut was_lowercase = false;
        for c in part.chars() {
            if c.is_uppercase() && was_lowercase {
                words.push(String::new());
            }
            was_lowercase = c.is_lowercase();
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
        words
    })
}

/// Returns the text of each line that begins a comment, `None` for other lines.
fn comment_starts(text: &str) -> impl Iterator<Item = Option<&str>> {
    let comment = |line: &'_ str| line.trim_start().starts_with("//");
    let mut was_comment = false;
    text.lines().map(move |line| {
        let is_comment = comment(line);
        let starts = is_comment && !was_comment;
        was_comment = is_comment;
        starts.then(|| line.trim_start().trim_start_matches(['/', '!']).trim_start())
    })
}

/// Whether a comment begins with a pronoun in place of its subject.
fn hides_subject(comment: &str) -> bool {
    HIDDEN_SUBJECTS.iter().any(|word| comment.starts_with(word))
}

/// Returns the numbers of the lines of comments that are too wide. Tables and code in comments cannot be wrapped.
fn wide_comments(text: &str) -> impl Iterator<Item = usize> {
    let mut is_code = false;
    let lines = (1..).zip(text.lines().map(str::trim_end));
    lines.filter_map(move |(number, line)| {
        let comment = line.trim_start().strip_prefix("//")?;
        let comment = comment.trim_start_matches(['/', '!']).trim_start();
        is_code ^= comment.starts_with("```");
        let is_wide = line.chars().count() > MAX_COLUMNS && !is_code && !comment.starts_with('|');
        is_wide.then_some(number)
    })
}

fn fault_of(word: &str) -> Option<&'static str> {
    let is_british = BRITISH.iter().any(|(stem, fine)| {
        let rest = word.strip_prefix(stem);
        rest.is_some_and(|rest| !fine.contains(&rest))
    });
    let standard = PRIVATE.iter().find(|(private, _)| word == *private);
    standard
        .map(|(_, standard)| *standard)
        .or(is_british.then_some("British spelling"))
}

#[test]
fn wrong_words_are_found_in_prose_and_identifiers() {
    let found = |line: &str| words(line).filter(|word| fault_of(word).is_some()).collect::<Vec<_>>();
    assert_eq!(
        found("/// Cancelled requests; isCancelled, MAX_COLOURS"),
        ["cancelled", "cancelled", "colours"]
    );
    assert_eq!(found("it is optimised anew"), ["optimised", "anew"]);
    assert_eq!(found("the optimistic cancellation of 3 analyses; canceled"), [""; 0]);
}

#[test]
fn comments_that_hide_their_subject_are_found() {
    let text = "    /// What becomes of it.\nlet what = \"What \";\n// Two lines.\n// Those count as one.\n\n//! Whether\nx\n/// What is";
    let found: Vec<_> = comment_starts(text)
        .map(|start| start.is_some_and(hides_subject))
        .collect();
    assert_eq!(found, [true, false, false, false, false, false, false, true]);
}

#[test]
fn wide_comments_are_found() {
    let wide = "x".repeat(MAX_COLUMNS - 2);
    let text = format!("// {wide}\n//{wide}\n//! | {wide}\n\"{wide}\"\n//! ```\n//! {wide}\n//! ```\n    /// {wide}");
    assert_eq!(wide_comments(&text).collect::<Vec<_>>(), [1, 8]);
}
