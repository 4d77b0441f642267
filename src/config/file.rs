//! The TOML of a file as a tree that knows where everything stands, read so that every fault of it is collected.
//!
//! No text of serde's or of the TOML parser's `Display` reaches a person: those quote the line. A reader opens a
//! [`Table`] with the keys it knows, which reports all the others, and then asks for each key by its type.

use std::{borrow::Cow, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{draft::Written, key, problem::Place, report::Report};

/// What a file may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The config itself.
    Main,
    /// A file of `config.d`: `[tokens.*]` tables and nothing else.
    DropIn,
}

/// One file's text, which the caller has read and whose ownership it has checked. It may hold a secret that somebody
/// pasted, so it does not print.
pub struct SourceFile {
    /// The file, as people call it.
    pub name: Arc<str>,
    /// Its text.
    pub text: String,
    /// What it may hold.
    pub kind: Kind,
}

/// A file's text and where its lines start.
pub(super) struct File<'a> {
    name: Arc<str>,
    text: &'a str,
    lines: Vec<usize>,
}

impl<'a> File<'a> {
    pub(super) fn new(source: &'a SourceFile) -> Self {
        let breaks = source.text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Self {
            name: source.name.clone(),
            text: &source.text,
            lines: std::iter::once(0).chain(breaks).collect(),
        }
    }

    /// Reads the tree; none if the syntax is so broken that what follows would be guesswork. A key that stands twice
    /// is a fault, and the first of them counts.
    pub(super) fn tree(&self, report: &mut Report) -> Option<Spanned<DeTable<'a>>> {
        let (tree, errors) = DeTable::parse_recoverable(self.text);
        let mut whole = true;
        for error in &errors {
            let span = error.span().unwrap_or(self.text.len()..self.text.len());
            let at = span.start;
            if error.message() == "duplicate key" {
                let name = self.text.get(span).map_or("", |name| name.trim_matches(['"', '\'']));
                report.syntax(
                    self.exact(at),
                    key::printable(name),
                    "stands twice".into(),
                    "keep one of the two",
                );
            } else {
                whole = false;
                let wrong = format!("is not TOML: {}", error.message());
                report.syntax(
                    self.exact(at),
                    "",
                    wrong.into(),
                    "mend it; what else the file has is told then",
                );
            }
        }
        whole.then_some(tree)
    }

    /// The line of a byte.
    fn place(&self, at: usize) -> Place {
        Place { file: self.name.clone(), line: u32::try_from(self.line(at)).ok(), column: None }
    }

    /// The line and the character of a byte.
    fn exact(&self, at: usize) -> Place {
        let start = self.lines.get(self.line(at) - 1).copied().unwrap_or_default();
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count()) + 1;
        Place { column: u32::try_from(column).ok(), ..self.place(at) }
    }

    /// From 1: the first line starts at 0, so some line always starts before any byte.
    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at).max(1)
    }
}

/// A key of the tree: where it stands and what it is called in full.
#[derive(Clone)]
pub(super) struct Spot<'a> {
    file: &'a File<'a>,
    at: usize,
    path: String,
}

impl<'a> Spot<'a> {
    /// The file as a whole.
    pub(super) fn root(file: &'a File<'a>) -> Self {
        Self { file, at: 0, path: String::new() }
    }

    pub(super) fn place(&self) -> Place {
        self.file.place(self.at)
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What is written there.
    pub(super) fn written<T>(&self, value: T) -> Written<T> {
        Written::new(self.place(), self.path.clone(), value)
    }

    fn key(&self, key: &Spanned<Cow<'_, str>>, name: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { file: self.file, at: key.span().start, path: format!("{}{dot}{name}", self.path) }
    }

    fn element(&self, index: usize, value: &Spanned<DeValue<'_>>) -> Self {
        Self { file: self.file, at: value.span().start, path: format!("{}[{index}]", self.path) }
    }
}

/// A value with its place.
pub(super) struct Item<'a, T> {
    pub(super) spot: Spot<'a>,
    pub(super) value: T,
}

/// A table of the tree.
pub(super) struct Table<'a> {
    pub(super) spot: Spot<'a>,
    entries: &'a DeTable<'a>,
}

impl<'a> Table<'a> {
    /// A table whose keys are `known`; every other one is reported.
    pub(super) fn open(
        spot: Spot<'a>,
        entries: &'a DeTable<'a>,
        known: &[&'static str],
        report: &mut Report,
    ) -> Self {
        report.note(&spot);
        for (key, value) in entries {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                report.note(&spot.key(key, name));
                continue;
            }
            let at = spot.key(key, key::printable(name));
            match key::meant(name, known) {
                _ if key::looks_secret(name) && !value.get_ref().is_table() => report.secret(&at),
                Some(meant) => report.fault(&at, "is no key of this table", format!("did you mean {meant}?")),
                None if known.is_empty() => report.fault(&at, "is no key of this table", "take it out"),
                None => report.fault(
                    &at,
                    "is no key of this table",
                    format!("the keys here are {}", known.join(", ")),
                ),
            }
        }
        Self { spot, entries }
    }

    /// A table whose keys are names that somebody chose.
    pub(super) fn entries(
        &self,
    ) -> impl Iterator<Item = (&'a str, usize, &'a Spanned<DeValue<'a>>)> + use<'a> {
        self.entries.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span().start, value))
    }

    /// The spot of an entry that may be printed as `name`.
    pub(super) fn entry(&self, at: usize, name: &str) -> Spot<'a> {
        Spot { file: self.spot.file, at, path: format!("{}.{name}", self.spot.path) }
    }

    /// Whether nothing stands in it, known or not.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the key is there, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where the key is, or else the table.
    pub(super) fn spot_of(&self, key: &str) -> Spot<'a> {
        self.get(key).map_or_else(|| self.missing(key), |(spot, _)| spot)
    }

    /// Reports that the key is missing, if it is.
    pub(super) fn require(&self, key: &str, right: impl Into<Cow<'static, str>>, report: &mut Report) {
        if !self.has(key) {
            report.fault(&self.missing(key), "is missing", right);
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<(Spot<'a>, &'a DeValue<'a>)> {
        let (written, value) = self.entries.get_key_value(key)?;
        Some((self.spot.key(written, key), value.get_ref()))
    }

    pub(super) fn string(&self, key: &str, report: &mut Report) -> Option<Item<'a, &'a str>> {
        let (spot, value) = self.get(key)?;
        string(spot, value, report)
    }

    pub(super) fn strings(&self, key: &str, report: &mut Report) -> Option<Vec<Item<'a, &'a str>>> {
        let (spot, value) = self.get(key)?;
        let DeValue::Array(values) = value else {
            report.wrong_type(&spot, "a list of strings", value);
            return None;
        };
        let mut items = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let spot = spot.element(index, value);
            report.note(&spot);
            items.extend(string(spot, value.get_ref(), report));
        }
        Some(items)
    }

    /// A whole number; one that does not fit is as wrong as the nearest that does.
    pub(super) fn integer(&self, key: &str, report: &mut Report) -> Option<Item<'a, i64>> {
        let (spot, value) = self.get(key)?;
        let DeValue::Integer(number) = value else {
            report.wrong_type(&spot, "a whole number", value);
            return None;
        };
        let value = i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX);
        Some(Item { spot, value })
    }

    /// A number; a whole one is one too.
    pub(super) fn float(&self, key: &str, report: &mut Report) -> Option<Item<'a, f64>> {
        let (spot, value) = self.get(key)?;
        let number = match value {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) => number.as_str(),
            _ => {
                report.wrong_type(&spot, "a number", value);
                return None;
            }
        };
        // Not a number lies in no range, so whoever checks the range reports it.
        Some(Item { spot, value: number.parse().unwrap_or(f64::NAN) })
    }

    pub(super) fn boolean(&self, key: &str, report: &mut Report) -> Option<Item<'a, bool>> {
        let (spot, value) = self.get(key)?;
        let DeValue::Boolean(value) = value else {
            report.wrong_type(&spot, "true or false, without quotes", value);
            return None;
        };
        Some(Item { spot, value: *value })
    }

    /// One of a few words, with what it stands for.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&'static str, T)],
        report: &mut Report,
    ) -> Option<Item<'a, T>> {
        let Item { spot, value } = self.string(key, report)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == value) {
            return Some(Item { spot, value: *choice });
        }
        let words: Vec<&'static str> = choices.iter().map(|(word, _)| *word).collect();
        let right = match key::meant(value, &words) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("write \"{}\"", words.join("\" or \"")),
        };
        report.fault(&spot, "is none of the words that it can be", right);
        None
    }

    /// A table inside this one.
    pub(super) fn table(&self, key: &str, known: &[&'static str], report: &mut Report) -> Option<Self> {
        let (spot, value) = self.get(key)?;
        Self::of(spot, value, known, report)
    }

    /// A value that should be a table.
    pub(super) fn of(
        spot: Spot<'a>,
        value: &'a DeValue<'a>,
        known: &[&'static str],
        report: &mut Report,
    ) -> Option<Self> {
        let DeValue::Table(entries) = value else {
            report.wrong_type(&spot, "a table", value);
            return None;
        };
        Some(Self::open(spot, entries, known, report))
    }

    /// A table whose keys are somebody's choice: [`Self::entries`] reads it.
    pub(super) fn free(&self, key: &str, report: &mut Report) -> Option<Self> {
        let (spot, value) = self.get(key)?;
        let DeValue::Table(entries) = value else {
            report.wrong_type(&spot, "a table", value);
            return None;
        };
        Some(Self { spot, entries })
    }

    fn missing(&self, key: &str) -> Spot<'a> {
        let dot = if self.spot.path.is_empty() { "" } else { "." };
        Spot { path: format!("{}{dot}{key}", self.spot.path), ..self.spot.clone() }
    }
}

/// A value that should be a string.
pub(super) fn string<'a>(
    spot: Spot<'a>,
    value: &'a DeValue<'a>,
    report: &mut Report,
) -> Option<Item<'a, &'a str>> {
    let DeValue::String(text) = value else {
        report.wrong_type(&spot, "a string, in quotes", value);
        return None;
    };
    Some(Item { spot, value: text.as_ref() })
}
