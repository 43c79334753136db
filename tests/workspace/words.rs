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
const PRIVATE: [(&str, &str); 52] = [
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
    ("platters", "durable, synced, stable storage"),
    ("confesses", "records"),
    ("confessed", "recorded"),
    ("confessing", "what is recorded"),
    ("clerks", "what the parameters are for"),
    ("desks", "queues"),
    ("judges", "decides, what is decided"),
    ("judging", "the decision"),
    ("happenings", "events"),
    ("hear", "handle, receive, apply"),
    ("heard", "handled, received"),
    ("hearing", "handling"),
    ("telling", "sending, reporting"),
    ("guided", "follows suggestions"),
    ("people", "users"),
    ("folks", "users, peers"),
    ("misfortunes", "faults"),
    ("whoever", "the peer, the user"),
    ("upon", "on"),
    ("amongst", "among"),
    ("amid", "among"),
    ("whence", "from which"),
    ("whither", "to which"),
    ("hence", "so"),
    ("henceforth", "from now on"),
    ("therein", "in it"),
    ("thereof", "of it"),
    ("erstwhile", "former"),
    ("naught", "nothing"),
    ("heed", "respect, regard"),
    ("bestow", "give, assign"),
    ("suffer", "fail, be delayed"),
    ("judged", "evaluated, checked, measured"),
];

/// Words with which no sentence of a comment begins, because they hide its subject.
const HIDDEN_SUBJECTS: [&str; 6] = ["Who", "What", "Whatever", "Whoever", "Those", "Which"];

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
            let why = "the sentence does not begin with its subject";
            let hidden = hidden_subjects(&text).into_iter();
            faults.extend(hidden.map(|(number, word)| format!("{}:{number}: {word}: {why}", path.display())));
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

/// Returns each pronoun in place of the subject of a sentence in a comment, with the number of its line.
fn hidden_subjects(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut begins_sentence = true;
    for (number, line) in (1..).zip(text.lines()) {
        let comment = line.trim_start().strip_prefix("//");
        let Some(comment) = comment.map(|comment| comment.trim_start_matches(['/', '!'])) else {
            begins_sentence = true;
            continue;
        };
        begins_sentence |= comment.trim().is_empty();
        for word in comment.split_whitespace() {
            if begins_sentence && HIDDEN_SUBJECTS.contains(&word) {
                found.push((number, word));
            }
            begins_sentence = word.ends_with(['.', '?', '!']);
        }
    }
    found
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
    let text = "    /// What becomes of it.\nlet what = \"What \";\n// Two lines. It is so.\n// Those count as one.\n\n//! Whether\nx\n\
                /// Returns\n/// What is. Who\n/// asks?";
    assert_eq!(hidden_subjects(text), [(1, "What"), (4, "Those"), (9, "Who")]);
}

#[test]
fn wide_comments_are_found() {
    let wide = "x".repeat(MAX_COLUMNS - 2);
    let text = format!("// {wide}\n//{wide}\n//! | {wide}\n\"{wide}\"\n//! ```\n//! {wide}\n//! ```\n    /// {wide}");
    assert_eq!(wide_comments(&text).collect::<Vec<_>>(), [1, 8]);
}
