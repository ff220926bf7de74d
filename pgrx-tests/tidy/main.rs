//! The rules of style that a machine can check, and nothing else would.
//!
//! 1. Every file of `src/` stands in one ring, and a core file touches no world: it forbids
//!    `unsafe` and names no Postgres, clock, dice, socket or environment.
//! 2. `unsafe` is in its room alone.
//! 3. Each module says at its head why it exists.
//! 4. Lines, functions and files stay within their sizes; no line ends in a space, no note says
//!    that something is still to be done.
//! 5. The install script makes everything or fails: nothing is made only if it is missing. Every
//!    function in SQL pins its search_path.
//!
//! What would break silently: a core that reads a clock cannot be simulated, a function without a
//! pinned path runs whatever its caller puts in the way.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod source;

use source::{Kind, Source};

/// Decides, and touches nothing.
const CORE: &[&str] = &[
    "src/capture/buffer.rs",
    "src/config.rs",
    "src/cursor.rs",
    "src/envelope.rs",
    "src/error.rs",
    "src/event.rs",
    "src/home.rs",
    "src/json.rs",
    "src/relay/health.rs",
    "src/relay/journal.rs",
    "src/relay/lane.rs",
    "src/relay/ledger.rs",
    "src/relay/pace.rs",
    "src/relay/plan.rs",
    "src/relay/plan/",
    "src/relay/returns.rs",
    "src/relay/time.rs",
    "src/retry.rs",
    "src/sink/mod.rs",
    "src/sink/realtime.rs",
    "src/token.rs",
];

/// Reaches the world; a port may need neither Postgres nor `unsafe` for it.
const PORTS: &[&str] = &[
    "src/gucs.rs",
    "src/pg/",
    "src/relay/clock.rs",
    "src/sink/http.rs",
    "src/sink/resolver.rs",
    "src/status.rs",
    "src/store.rs",
    "src/store/",
];

/// Lives inside Postgres and puts the others together. `mod.rs` of the relay lists all three.
const SHELL: &[&str] = &[
    "src/api.rs",
    "src/capture/",
    "src/catch_up.rs",
    "src/check.rs",
    "src/doorbell.rs",
    "src/entry.rs",
    "src/lib.rs",
    "src/probe.rs",
    "src/relay/",
    "src/schema.rs",
];

/// Where `unsafe` may be written.
const UNSAFE: &[&str] = &["src/pg/", "src/entry.rs", "pgrx-tests/pg_test/"];

/// What a core file must not name, as code.
const WORLD: &[&str] =
    &["pgrx", "Instant", "SystemTime", "std::net", "std::env", "std::fs", "std::thread", "rand::"];

const LINE_CHARS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;

/// Written apart, or this file would find itself.
const NOTES: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Runs `look` over files and fails with everything it found, as `file:line: what`.
fn check(sources: &[Source], look: impl Fn(&Source, &mut dyn FnMut(usize, String))) {
    let mut findings = Vec::new();
    for source in sources {
        look(source, &mut |line, what| findings.push(format!("{}:{line}: {what}", source.path)));
    }
    assert!(!sources.is_empty(), "no file to look at");
    assert!(findings.is_empty(), "{} findings\n{}", findings.len(), findings.join("\n"));
}

fn is_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path == *place || place.ends_with('/') && path.starts_with(place))
}

/// A core file wins over the folder of another ring that it lies in.
fn is_core(source: &Source) -> bool {
    is_in(&source.path, CORE)
}

/// What the server runs; the demo's SQL belongs to its own databases.
fn installed_sql() -> Vec<Source> {
    source::all(Kind::Sql).into_iter().filter(|s| s.path.starts_with("sql/")).collect()
}

fn is_unit_test(source: &Source) -> bool {
    source.path.ends_with("_test.rs")
}

#[test]
fn every_file_stands_in_one_ring() {
    let sources = source::all(Kind::Rust);
    let in_src: Vec<_> =
        sources.into_iter().filter(|s| s.path.starts_with("src/") && !is_unit_test(s)).collect();
    check(&in_src, |source, found| {
        let path = &source.path;
        if !is_core(source) && !is_in(path, PORTS) && !is_in(path, SHELL) {
            found(1, "in no ring: name it in CORE, PORTS or SHELL of this test".to_owned());
        }
        let forbids = source.text.starts_with("#![forbid(unsafe_code)]\n");
        if is_core(source) && !forbids {
            found(1, "a core file starts with #![forbid(unsafe_code)]".to_owned());
        }
    });
    for place in [CORE, PORTS, SHELL].concat() {
        let exists = in_src.iter().any(|source| is_in(&source.path, &[place]));
        assert!(exists, "{place} is in a ring and does not exist");
    }
}

#[test]
fn the_core_touches_no_world() {
    let core: Vec<_> = source::all(Kind::Rust).into_iter().filter(is_core).collect();
    check(&core, |source, found| {
        for (line, code) in source.code_lines() {
            for name in WORLD.iter().filter(|name| names(code, name)) {
                found(line, format!("a core file names {name}"));
            }
        }
    });
}

#[test]
fn unsafe_is_in_its_room() {
    let outside: Vec<_> =
        source::all(Kind::Rust).into_iter().filter(|s| !is_in(&s.path, UNSAFE)).collect();
    check(&outside, |source, found| {
        for (line, code) in source.code_lines().filter(|(_, code)| names(code, "unsafe")) {
            // The attributes that forbid and allow it are `unsafe_code`, another word.
            found(line, format!("unsafe outside src/pg/: {}", code.trim()));
        }
    });
}

/// Whether the code has this name as a whole word.
fn names(code: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        !before.is_some_and(is_word) && (name.ends_with(':') || !after.is_some_and(is_word))
    })
}

#[test]
fn each_module_says_why_it_exists() {
    let modules: Vec<_> =
        source::all(Kind::Rust).into_iter().filter(|s| !is_unit_test(s)).collect();
    check(&modules, |source, found| {
        let head = source.text.lines().find(|line| !line.starts_with("#![") && !line.is_empty());
        if !head.is_some_and(|line| line.starts_with("//! ")) {
            found(1, "no comment at the head".to_owned());
        }
    });
}

#[test]
fn lines_and_files_stay_within_their_sizes() {
    let sources = [Kind::Rust, Kind::Sql, Kind::Shell].map(source::all).concat();
    check(&sources, |source, found| {
        for (line, text) in source.lines() {
            let length = text.chars().count();
            // SQL has no way to break the text of a comment or a hint over two lines.
            let is_text = source.kind == Kind::Sql && text.contains('\'');
            if length > LINE_CHARS_MAX && !is_text {
                found(line, format!("{length} characters, {LINE_CHARS_MAX} at most"));
            }
        }
        let count = source.lines().count();
        if count > FILE_LINES_MAX {
            found(count, format!("{count} lines, {FILE_LINES_MAX} at most: make two files of it"));
        }
    });
}

#[test]
fn no_line_ends_in_a_space_and_no_note_is_left() {
    check(&source::tracked(), |source, found| {
        for (line, text) in source.lines() {
            if text.ends_with([' ', '\t', '\r']) {
                found(line, "the line ends in a space".to_owned());
            }
            for note in NOTES.iter().filter(|note| names(text, note)) {
                found(line, format!("{note}: do it, or take it out"));
            }
        }
        if !source.text.is_empty() && !source.text.ends_with('\n') {
            found(source.lines().count(), "the last line has no end".to_owned());
        }
    });
}

#[test]
fn functions_fit_on_a_screen() {
    check(&source::all(Kind::Rust), |source, found| {
        for (line, name, length) in source.functions() {
            if length > FUNCTION_LINES_MAX {
                found(line, format!("fn {name} has {length} lines, {FUNCTION_LINES_MAX} at most"));
            }
        }
    });
}

#[test]
fn the_install_script_makes_everything_or_fails() {
    check(&installed_sql(), |source, found| {
        for (line, code) in source.code_lines() {
            let code = code.to_lowercase();
            // `if not exists (` is a condition of plpgsql.
            let makes = code
                .match_indices("if not exists")
                .any(|(at, text)| !code[at + text.len()..].trim_start().starts_with('('));
            if makes || code.contains("create or replace") {
                found(line, "an object that is there already may be somebody else's".to_owned());
            }
        }
    });
}

#[test]
fn every_function_in_sql_pins_its_path() {
    check(&installed_sql(), |source, found| {
        for (line, head) in source.sql_functions() {
            let is_in_c = head.contains("\nlanguage c");
            if !is_in_c && !head.contains("\nset search_path = pg_catalog, pg_temp\n") {
                let name = head.lines().next().unwrap_or_default();
                found(line, format!("no pinned search_path: {name}"));
            }
        }
    });
}
