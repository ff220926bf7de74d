//! The files of the repository, and the little of their languages that the rules need.

use std::fs;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rust,
    Sql,
    Shell,
    Other,
}

#[derive(Clone)]
pub struct Source {
    /// From the root of the repository.
    pub path: String,
    pub kind: Kind,
    pub text: String,
    /// The text with comments and literals blanked out, line by line the same.
    code: String,
}

/// Folders with nothing of ours in them.
const FOREIGN: &[&str] = &["target", "node_modules", "results"];

/// Files of one language, in the order of their paths.
pub fn all(kind: Kind) -> Vec<Source> {
    tracked().into_iter().filter(|source| source.kind == kind).collect()
}

/// Every text file that is ours: what git would track, found without git, because an archive of
/// the sources has none.
pub fn tracked() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    visit(root, root, &mut found);
    found.sort_by(|a: &Source, b| a.path.cmp(&b.path));
    found
}

fn visit(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            let is_foreign = FOREIGN.iter().any(|foreign| name.starts_with(foreign));
            if !is_foreign && (!name.starts_with('.') || name == ".cargo" || name == ".ci") {
                visit(root, &path, found);
            }
        } else if let Some(source) = read(root, path, &name) {
            found.push(source);
        }
    }
}

fn read(root: &Path, path: PathBuf, name: &str) -> Option<Source> {
    let shown = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    let kind = match name.rsplit_once('.').map(|(_, end)| end) {
        Some("rs") => Kind::Rust,
        Some("sql") => Kind::Sql,
        Some("sh") => Kind::Shell,
        None if shown.starts_with("pgrx-tests/bin/") => Kind::Shell,
        Some("lock") => return None,
        Some("json") if name == "package-lock.json" => return None,
        _ => Kind::Other,
    };
    // A file that is no text is none of these rules' business.
    let text = fs::read_to_string(&path).ok()?;
    let code = match kind {
        Kind::Rust => blank(&text, "//", true),
        Kind::Sql => blank(&text, "--", false),
        _ => text.clone(),
    };
    Some(Source { path: shown, kind, text, code })
}

impl Source {
    /// Lines with their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        numbered(&self.text)
    }

    /// The same without comments and literals.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        numbered(&self.code)
    }

    /// Functions of a Rust file: their line, name and length from `fn` to the closing brace.
    pub fn functions(&self) -> Vec<(usize, String, usize)> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("fn ") {
            let starts_word = !self.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let rest = &self.code[at + 3..];
            let name: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // A type such as `fn (i32)` has no name.
            if !starts_word || name.is_empty() {
                continue;
            }
            if let Some(length) = body_end(rest) {
                let line = self.code[..at].matches('\n').count() + 1;
                found.push((line, name, rest[..length].matches('\n').count() + 1));
            }
        }
        found
    }

    /// Functions of an SQL file: their line, and everything from `create` to the body.
    pub fn sql_functions(&self) -> Vec<(usize, &str)> {
        let starts = self.text.match_indices("create function ").map(|(at, _)| at);
        starts
            .map(|at| {
                let rest = &self.text[at..];
                let end = rest.find("\nas $$").or(rest.find(";\n")).unwrap_or(rest.len());
                (self.text[..at].matches('\n').count() + 1, &rest[..end + 1])
            })
            .collect()
    }
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_terminator('\n').enumerate().map(|(index, line)| (index + 1, line))
}

/// Length up to the brace that closes the first one; `None` for a declaration without a body.
fn body_end(code: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            ';' if depth == 0 && !in_brackets(&code[..at]) => return None,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// An array type has a semicolon of its own: `[u8; 16]`.
fn in_brackets(code: &str) -> bool {
    code.matches('[').count() > code.matches(']').count()
}

/// Replaces comments and literals by spaces and keeps the ends of lines.
fn blank(text: &str, comment: &str, is_rust: bool) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with(comment) {
            rest.find('\n').unwrap_or(rest.len())
        } else if is_rust {
            rust_literal(rest, code.chars().next_back())
        } else {
            sql_literal(rest)
        };
        if length == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// Length of the string or character at the beginning; 0 when there is none.
fn rust_literal(rest: &str, before: Option<char>) -> usize {
    let is_in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let raw = rest
        .strip_prefix('r')
        .filter(|_| !is_in_word || before == Some('b') || before == Some('c'));
    if let Some(raw) = raw {
        let hashes = raw.chars().take_while(|c| *c == '#').count();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = 1 + hashes + 1;
            return rest[start..].find(&close).map_or(rest.len(), |end| start + end + close.len());
        }
    }
    if rest.starts_with('"') {
        return escaped(rest, '"');
    }
    // 'a' and '\n' are characters, 'a is a lifetime.
    let mut chars = rest.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('\\'), _) => escaped(rest, '\''),
        (Some('\''), Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

fn escaped(rest: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A doubled quote inside a text ends it and begins another: the same length in the end.
fn sql_literal(rest: &str) -> usize {
    match rest.strip_prefix('\'') {
        Some(text) => text.find('\'').map_or(rest.len(), |end| end + 2),
        None => 0,
    }
}
