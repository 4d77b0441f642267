//! What is wrong with a config, as an operator reads it: file, line, key, what is wrong, what would be right.
//!
//! A problem holds no value of the config and no line of it: somebody will paste a secret there. Its texts are made
//! of our own words, of file names, and of keys that [`super::file`] found fit to print.

use std::{borrow::Cow, fmt, sync::Arc};

/// Where in the config something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as people call it.
    pub file: Arc<str>,
    /// The line, from 1; none where the whole file is meant.
    pub line: Option<u32>,
    /// The character in that line, from 1; only where the line alone would not do (broken syntax).
    pub column: Option<u32>,
}

/// `config.toml:12` or `config.toml:12:7`. A control character in a file's name does not reach the terminal.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.file.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        Ok(())
    }
}

/// One fault or one warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// The key, as `tokens.bloom.allow[1]`; empty where a whole file is meant.
    pub path: String,
    /// What is wrong.
    pub wrong: Cow<'static, str>,
    /// What would be right.
    pub right: Cow<'static, str>,
}

impl Problem {
    /// A problem of a whole file: it cannot be read, others can write it.
    pub fn of_file(
        file: impl Into<Arc<str>>,
        wrong: impl Into<Cow<'static, str>>,
        right: impl Into<Cow<'static, str>>,
    ) -> Self {
        let place = Place { file: file.into(), line: None, column: None };
        Self { place, path: String::new(), wrong: wrong.into(), right: right.into() }
    }
}

/// `config.toml:12: tokens.bloom.scopes: is missing; write scopes = ["data-access:all"]`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}; {}", self.wrong, self.right)
    }
}

/// Every fault that was found, in the order of the files and of their lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// None where there is no problem.
    pub fn of(problems: Vec<Problem>) -> Option<Self> {
        if problems.is_empty() { None } else { Some(Self(problems)) }
    }

    /// The problems.
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }

    /// The problems.
    pub fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// One line for each.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_that_says_where_what_and_what_instead() {
        let mut problem = Problem::of_file("/etc/x.toml", "is not UTF-8", "save it as UTF-8");
        assert_eq!(problem.to_string(), "/etc/x.toml: is not UTF-8; save it as UTF-8");
        problem.place.line = Some(12);
        problem.path = "agent.socket".into();
        assert_eq!(problem.to_string(), "/etc/x.toml:12: agent.socket: is not UTF-8; save it as UTF-8");
        problem.place.column = Some(3);
        problem.place.file = "a\u{1b}[1m\n.toml".into();
        assert!(problem.to_string().starts_with("a\\u{1b}[1m\\n.toml:12:3: "));
    }

    #[test]
    fn problems_are_never_none_and_print_a_line_each() {
        assert_eq!(Problems::of(vec![]), None);
        let problem = Problem::of_file("a", "b", "c");
        assert_eq!(Problems::of(vec![problem.clone(), problem]).unwrap().to_string(), "a: b; c\na: b; c");
    }
}
