//! What a sink is made of, put together from its row and its secret: by the relay that serves it
//! and by `outbox.check()`, which only looks.

use super::plan::{Settings, State};
use crate::config::{Credential, SinkKind, SinkOptions};
use crate::cursor::{Era, Position, Snapshot};
use crate::error::{Error, ErrorKind};
use crate::pg::{cluster, latch};
use crate::sink::Outcome;
use crate::sink::http::{self, Couriers, Hooks, HttpOptions};
use crate::sink::realtime::Realtime;
use crate::store::SinkRow;
use crate::token::Claims;
use std::sync::Arc;

/// A sink's options, with its secret looked up.
#[derive(Clone, PartialEq)]
pub struct Setup {
    options: SinkOptions,
    secret: String,
    /// Of the positions that its messages carry. Asked for once: probes run on a thread.
    era: Era,
    pub memory_bytes_max: usize,
}

impl Setup {
    /// `look_up` reads a secret by its name.
    ///
    /// # Errors
    /// What is wrong with the options, the secret or the position of the sink.
    pub fn of(
        row: &SinkRow,
        memory_bytes_max: usize,
        look_up: impl FnOnce(&str) -> Result<Option<String>, Error>,
    ) -> Result<Setup, Error> {
        if !row.is_at_home {
            return Err(Error::new(
                ErrorKind::ObjectState,
                "this database is a copy of the one that the sink's cursor is of",
            )
            .hint(
                "Nothing is sent from here until you select outbox.resume(), \
                 which sends what was unsent when it was copied and all since.",
            ));
        }
        let options = SinkOptions::parse(SinkKind::parse(&row.kind)?, &row.options)?;
        let secret = match &options.credential {
            Credential::Secret(name) | Credential::JwtSecret(name) => {
                look_up(name)?.ok_or_else(|| missing(name))?
            }
            Credential::KeyFile(path) => read_file(path)?,
        };
        Ok(Setup { options, secret, era: cluster::era(), memory_bytes_max })
    }

    /// Of a sink that nothing is sent by: to look at it from outside. `secret` is what its options
    /// name, if they name one and it is there.
    ///
    /// # Errors
    /// As `of`.
    pub fn to_look_at(kind: &str, options: &str, secret: Option<&str>) -> Result<Setup, Error> {
        let row = SinkRow {
            name: String::new(),
            kind: kind.to_owned(),
            options: options.to_owned(),
            is_paused: false,
            position: Position::at(Snapshot::empty()),
            is_at_home: true,
        };
        Setup::of(&row, 0, |_| Ok(secret.map(str::to_owned)))
    }

    /// # Errors
    /// What is wrong with the secret or the certificate file.
    pub fn couriers(&self) -> Result<Couriers, Error> {
        let hooks = Hooks { spawn: latch::spawn_silent, wake: latch::set_from_thread };
        let endpoint = Arc::new(self.endpoint()?);
        Ok(Couriers::new(endpoint, HttpOptions::new(&self.options)?, hooks))
    }

    /// Paused, until somebody has looked whether it may run.
    pub fn plan(&self, row: &SinkRow) -> State {
        State::new(self.settings(), row.position.clone()).paused()
    }

    pub fn settings(&self) -> Settings {
        Settings::new(&self.options, self.memory_bytes_max)
    }

    /// Asks the sink whether it would take what we send; waits for its answer.
    ///
    /// # Errors
    /// As `couriers`.
    pub fn probe(&self) -> Result<Outcome, Error> {
        Ok(http::probe(&self.endpoint()?, &HttpOptions::new(&self.options)?))
    }

    /// What the token says of itself; `None` when the relay signs its own.
    ///
    /// # Errors
    /// When it is no JWT.
    pub fn claims(&self) -> Result<Option<Claims>, Error> {
        match self.options.credential {
            Credential::JwtSecret(_) => Ok(None),
            Credential::Secret(_) | Credential::KeyFile(_) => {
                Claims::read(self.secret.trim()).map(Some)
            }
        }
    }

    fn endpoint(&self) -> Result<Realtime, Error> {
        Realtime::new(&self.options, &self.secret).map(|sink| sink.in_era(self.era))
    }
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::UnusableSecret, format!("secret \"{name}\" does not exist"))
        .hint("Set it with outbox.set_secret.")
}

fn read_file(path: &str) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| {
        Error::new(ErrorKind::UnusableFile, format!("key_file cannot be read: {}", error.kind()))
            .hint("The server's user must be able to read it.")
    })
}
