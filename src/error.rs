#![forbid(unsafe_code)]
//! The one error of the crate: a kind, what happened, and what to do about it.
//!
//! It becomes an SQL error at the edge: SQLSTATE by kind, message in lower case, DETAIL and HINT.
//! A message names options, counts and lengths; it never quotes a secret, a row or a body.
//! Whether to try again is not decided here: what became of a request is an
//! [`Outcome`](crate::sink::Outcome), not an error.

use std::fmt;

/// What went wrong, as far as it decides the SQLSTATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An option, argument or setting has a value it cannot have.
    InvalidParameter,
    /// A text is not of the form it should have, such as a cursor that was cut.
    InvalidText,
    /// An argument that must be there is null.
    NullNotAllowed,
    /// Something is not in the state that the call needs.
    ObjectState,
    /// A trigger function was called as something else.
    TriggerProtocol,
    /// Nothing failed; somebody should know.
    Warning,
    /// Known, but not built.
    NotSupported,
    /// The caller may not do this.
    NotPermitted,
    /// A name that does not exist.
    UndefinedObject,
    /// A file that is named in an option cannot be used.
    UnusableFile,
    /// A secret is missing or cannot be used.
    UnusableSecret,
    /// The machine refused something that should not fail, such as starting a thread.
    System,
}

impl ErrorKind {
    /// The five characters of the SQLSTATE.
    pub const fn sqlstate(self) -> &'static str {
        match self {
            Self::InvalidParameter => "22023",
            Self::InvalidText => "22P02",
            Self::NullNotAllowed => "22004",
            Self::ObjectState => "55000",
            Self::TriggerProtocol => "39P01",
            Self::Warning => "01000",
            Self::NotSupported => "0A000",
            Self::NotPermitted => "42501",
            Self::UndefinedObject => "42704",
            Self::UnusableFile => "58P01",
            Self::UnusableSecret => "28000",
            Self::System => "58000",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
