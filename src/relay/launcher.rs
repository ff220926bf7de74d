//! The launcher: one process that keeps a relay running in every database that wants one.
//!
//! It is connected to no database and asks none: a relay that finds no extension says so and goes.
//! Databases are looked at when the server starts, when somebody creates the extension, and when
//! new ones appear.

use crate::gucs;
use crate::pg::shmem::{self, Shared};
use crate::pg::tx::{self, Durability};
use crate::pg::worker::{self, Database, Started};
use crate::pg::{heap, latch};
use pgrx::log;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it looks for databases that were made without the extension being created in them,
/// such as copies of one that has it.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Between the end of a relay and its next start.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// Before it asks again for a worker when the server had none to spare.
const SCARCE_DELAY: Duration = Duration::from_secs(10);
/// How long a database is kept free for a statement that needs it without connections. The
/// statement itself waits five seconds for others to leave.
const HOLD_US: i64 = 10_000_000;

/// What the launcher knows of a database.
struct Post {
    name: String,
    state: PostState,
    /// Asked for while a relay was running there, which may be just about to leave.
    wanted_again: bool,
}

enum PostState {
    Running(Started),
    /// To be started then.
    Waiting(Instant),
    /// It has no extension.
    Without,
}

/// Runs until the server ends.
pub fn run() -> ! {
    worker::install_signal_handlers();
    worker::connect(None);
    let Some(shared) = shmem::shared() else { worker::exit(1) };
    shared.launcher.bell.take();
    let mut posts = HashMap::new();
    let mut look_at = Instant::now();
    let mut scarce_is_logged = false;
    loop {
        shared.launcher.bell.answer();
        let reloaded = worker::reload_if_asked();
        let wanted = shared.launcher.wanted.take();
        // A new database is unknown until the next look, so asking for one is a reason to look.
        if Instant::now() >= look_at || reloaded || !wanted.is_empty() {
            look(&mut posts);
            look_at = Instant::now() + LOOK_INTERVAL;
        }
        for database in shared.launcher.without_extension.take() {
            if let Some(post) = posts.get_mut(&database) {
                post.state = PostState::Without;
            }
        }
        for database in wanted {
            if let Some(post) = posts.get_mut(&database) {
                post.want();
            }
        }
        let next = posts
            .iter_mut()
            .filter_map(|(&database, post)| tend(shared, database, post, &mut scarce_is_logged))
            .chain([look_at])
            .min();
        latch::wait(next.map(|at| at.saturating_duration_since(Instant::now())));
    }
}

/// A statement needs a database without connections: its relay leaves, and stays away for a
/// while. Called in the backend of that statement.
pub fn make_way(database: u32) {
    let Some(shared) = shmem::shared() else { return };
    let now = heap::now();
    shared.launcher.hold(database, now, now + HOLD_US);
    if let Some(relay) = shared.relay(database) {
        worker::terminate(relay.pid.load(Ordering::Acquire));
    }
    shared.launcher.bell.ring();
}

impl Post {
    fn want(&mut self) {
        match self.state {
            PostState::Running(_) => self.wanted_again = true,
            PostState::Waiting(_) | PostState::Without => {
                self.state = PostState::Waiting(Instant::now());
            }
        }
    }
}

/// Brings the list of databases up to date.
fn look(posts: &mut HashMap<u32, Post>) {
    let databases = tx::run(Durability::Asynchronous, || Ok(worker::databases()));
    let databases = match databases {
        Ok(databases) => databases,
        Err(failure) => {
            log!("pg_outbox: could not list databases: {}", failure.message);
            return;
        }
    };
    posts.retain(|&number, _| databases.iter().any(|database| database.number == number));
    for Database { number, name } in databases {
        let state = PostState::Waiting(Instant::now());
        let post = Post { name: name.clone(), state, wanted_again: false };
        posts.entry(number).or_insert(post).name = name;
    }
}

/// Starts, restarts or ends the relay of one database. Returns when to look at it again; `None`
/// waits to be told.
fn tend(
    shared: &Shared,
    database: u32,
    post: &mut Post,
    scarce_is_logged: &mut bool,
) -> Option<Instant> {
    let is_named = gucs::names_database(&post.name);
    let relay = shared.relay(database);
    if !is_named && let Some(relay) = relay {
        worker::terminate(relay.pid.load(Ordering::Acquire));
    }
    if let PostState::Running(started) = &post.state {
        if !started.has_ended() {
            return None;
        }
        post.state = PostState::Waiting(Instant::now() + RESTART_DELAY);
    }
    if let PostState::Without = post.state {
        if !std::mem::take(&mut post.wanted_again) {
            return None;
        }
        post.state = PostState::Waiting(Instant::now());
    }
    let PostState::Waiting(due) = post.state else { return None };
    // A relay that an earlier launcher has started goes on, and rings when it goes.
    if !is_named || relay.is_some() {
        return None;
    }
    let now = heap::now();
    if let Some(until) = shared.launcher.held_until(database, now) {
        return Some(Instant::now() + Duration::from_micros((until - now).unsigned_abs()));
    }
    if due > Instant::now() {
        return Some(due);
    }
    post.wanted_again = false;
    match Started::relay(database, &post.name) {
        Some(started) => {
            *scarce_is_logged = false;
            post.state = PostState::Running(started);
            None
        }
        None => {
            if !std::mem::replace(scarce_is_logged, true) {
                log!(
                    "pg_outbox: no worker left for database \"{}\"; raise max_worker_processes",
                    post.name
                );
            }
            let due = Instant::now() + SCARCE_DELAY;
            post.state = PostState::Waiting(due);
            Some(due)
        }
    }
}
