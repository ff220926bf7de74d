//! The threads against real sockets on the loopback.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use crate::config::SinkKind;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server does with a request.
#[derive(Clone, Copy)]
enum Conduct {
    Answer(u16),
    /// A redirect to the server itself.
    Redirect,
    /// An answer with a body of so many bytes.
    Long(usize),
    /// Closes the connection without an answer.
    HangUp,
    /// Half an answer, and then nothing.
    Stall,
}

/// A server that behaves as it is told and counts.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: mpsc::Receiver<Request>,
    conduct: Arc<Mutex<Conduct>>,
}

struct Request {
    head: String,
    body: Vec<u8>,
}

impl Server {
    fn start(conduct: Conduct) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let conduct = Arc::new(Mutex::new(conduct));
        let (sender, requests) = mpsc::channel();
        let (count, shared) = (connections.clone(), conduct.clone());
        // The thread ends with the process of the test.
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let (sender, conduct) = (sender.clone(), shared.clone());
                thread::spawn(move || serve(stream.unwrap(), &sender, &conduct));
            }
        });
        Self { address, connections, requests, conduct }
    }

    fn behave(&self, conduct: Conduct) {
        *self.conduct.lock().unwrap() = conduct;
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(stream: TcpStream, requests: &Sender<Request>, conduct: &Mutex<Conduct>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader) {
        let _ = requests.send(request);
        let conduct = *conduct.lock().unwrap();
        let answer = match conduct {
            Conduct::Answer(status) => {
                format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\nok")
            }
            Conduct::Redirect => {
                "HTTP/1.1 307 x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n".into()
            }
            Conduct::Long(bytes) => {
                format!("HTTP/1.1 202 x\r\ncontent-length: {bytes}\r\n\r\n{}", "x".repeat(bytes))
            }
            Conduct::HangUp => return,
            Conduct::Stall => "HTTP/1.1 202 x\r\ncontent-len".into(),
        };
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A server that takes a first flight of TLS for something else.
fn serve_plain_text() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 64]).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // Until the other side hangs up, so that nothing is reset before it is read.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    address
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_lowercase();
    let length = lower.split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { head: lower, body })
}

/// A sink whose body is the number of messages, and which may panic.
struct Plain {
    url: String,
    panics: bool,
}

impl Endpoint for Plain {
    fn url(&self) -> &str {
        &self.url
    }

    fn headers(&self, _: u64) -> Vec<(&'static str, String)> {
        vec![("apikey", "k".into())]
    }

    fn write_body(&self, body: &mut Vec<u8>, batch: &Batch) -> Tally {
        assert!(!self.panics, "as the test wants it");
        body.extend(format!("{} messages", batch.messages.len()).bytes());
        Tally {
            messages: batch.messages.len() as u64,
            bytes: body.len() as u64,
            ..Tally::default()
        }
    }

    fn outcome(&self, status: u16, _body: &[u8]) -> Outcome {
        match status {
            202 => Outcome::Delivered,
            _ => Outcome::Refused(Failure::with_status(FailureKind::UnexpectedStatus, status)),
        }
    }

    fn named(&self, _status: u16, body: &[u8]) -> Vec<usize> {
        body.first().map(|byte| usize::from(*byte)).into_iter().collect()
    }

    fn probe_body(&self) -> &'static [u8] {
        b"probe"
    }

    fn probe_outcome(&self, status: u16, body: &[u8]) -> Outcome {
        self.outcome(status, body)
    }
}

fn options(more: &str) -> HttpOptions {
    let json = format!(r#"{{"url":"http://h","secret":"s"{more}}}"#);
    HttpOptions::new(&SinkOptions::parse(SinkKind::Realtime, &json).unwrap()).unwrap()
}

fn spawn(builder: thread::Builder, body: ThreadBody) -> io::Result<()> {
    builder.spawn(body).map(drop)
}

fn couriers(url: String, panics: bool, timeout_ms: u64) -> Couriers {
    let endpoint = Arc::new(Plain { url, panics });
    let options = options(&format!(r#","timeout_ms":{timeout_ms}"#));
    Couriers::new(endpoint, options, Hooks { spawn, wake: || {} })
}

fn empty() -> Arc<Batch> {
    Arc::new(Batch { messages: Vec::new() })
}

/// Waits for the next answer.
fn answer(couriers: &mut Couriers) -> Answer {
    couriers.answers.recv_timeout(PATIENCE).unwrap()
}

fn send(couriers: &mut Couriers, lane: usize, number: u64) -> Outcome {
    couriers.send(lane, RequestId(number), empty());
    let answer = answer(couriers);
    assert_eq!(answer.request, RequestId(number));
    answer.outcome
}

fn failure(outcome: Outcome) -> FailureKind {
    match outcome {
        Outcome::Delivered => panic!("delivered"),
        Outcome::Refused(failure) | Outcome::Unknown(failure) => failure.kind,
    }
}

#[test]
fn a_lane_keeps_its_connection() {
    let server = Server::start(Conduct::Answer(202));
    let mut couriers = couriers(server.url(), false, 5_000);
    for number in 0..20 {
        assert_eq!(send(&mut couriers, 0, number), Outcome::Delivered);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(send(&mut couriers, 3, 20), Outcome::Delivered);
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
    let request = server.requests.recv_timeout(PATIENCE).unwrap();
    assert!(request.head.starts_with("post / http/1.1\r\n"), "{}", request.head);
    for header in ["content-type: application/json\r\n", "apikey: k\r\n", "user-agent: pg_outbox/"]
    {
        assert!(request.head.contains(header), "{}", request.head);
    }
    assert_eq!(request.body, b"0 messages");
}

#[test]
fn a_refusal_and_a_body_keep_the_connection_too() {
    let server = Server::start(Conduct::Answer(401));
    let mut couriers = couriers(server.url(), false, 5_000);
    for conduct in [Conduct::Answer(401), Conduct::Long(60_000), Conduct::Answer(500)] {
        server.behave(conduct);
        send(&mut couriers, 0, 1);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    server.behave(Conduct::Long(1_000_000));
    assert_eq!(send(&mut couriers, 0, 2), Outcome::Delivered, "the status has decided");
    server.behave(Conduct::Answer(202));
    assert_eq!(send(&mut couriers, 0, 3), Outcome::Delivered);
    assert_eq!(server.connections.load(Ordering::SeqCst), 2, "the rest was not read");
}

#[test]
fn a_redirect_is_not_followed() {
    let server = Server::start(Conduct::Redirect);
    let mut couriers = couriers(server.url(), false, 5_000);
    let expected = Failure::with_status(FailureKind::UnexpectedStatus, 307);
    assert_eq!(send(&mut couriers, 0, 1), Outcome::Refused(expected));
    assert_eq!(server.requests.try_iter().count(), 1);
}

#[test]
fn each_way_to_fail_has_its_name() {
    let server = Server::start(Conduct::HangUp);
    let lost = Outcome::Unknown(Failure::of(FailureKind::AnswerLost));
    assert_eq!(send(&mut couriers(server.url(), false, 5_000), 0, 1), lost);

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = Outcome::Refused(Failure::of(FailureKind::Unreachable));
    assert_eq!(send(&mut couriers(format!("http://{closed}"), false, 5_000), 0, 1), unreachable);

    let by_name = format!("http://localhost:{}", server.address.port());
    assert_eq!(send(&mut couriers(by_name, false, 5_000), 0, 1), lost);

    let nowhere = "http://no-such-host.invalid".to_string();
    let unknown = send(&mut couriers(nowhere, false, 5_000), 0, 1);
    assert_eq!(failure(unknown), FailureKind::HostUnknown);

    let not_tls = format!("https://{}", serve_plain_text());
    let tls = Outcome::Refused(Failure::of(FailureKind::Tls));
    assert_eq!(send(&mut couriers(not_tls, false, 5_000), 0, 1), tls);

    let broken = send(&mut couriers("http://h/ x".into(), false, 5_000), 0, 1);
    assert_eq!(broken, Outcome::Refused(Failure::of(FailureKind::Unsendable)));
}

#[test]
fn the_deadline_is_for_all_of_a_request() {
    let server = Server::start(Conduct::Stall);
    let mut couriers = couriers(server.url(), false, 300);
    let began = Instant::now();
    let timed_out = Outcome::Unknown(Failure::of(FailureKind::TimedOut));
    assert_eq!(send(&mut couriers, 0, 1), timed_out);
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
    assert!(began.elapsed() < PATIENCE / 4, "{:?}", began.elapsed());
    server.behave(Conduct::Answer(202));
    assert_eq!(send(&mut couriers, 0, 2), Outcome::Delivered, "the lane goes on");
}

#[test]
fn a_dead_thread_is_an_answer_and_is_replaced() {
    let server = Server::start(Conduct::Answer(202));
    let mut couriers = couriers(server.url(), true, 5_000);
    for number in 1..=30 {
        // The second is what a thread has in its queue that is about to be gone.
        let kind = failure(send(&mut couriers, 0, number));
        assert!(matches!(kind, FailureKind::AnswerLost | FailureKind::NoThread), "{kind:?}");
    }
    assert!(couriers.answer().is_none(), "one answer for each request");
}

#[test]
fn no_thread_is_an_answer() {
    let endpoint = Arc::new(Plain { url: "http://h".into(), panics: false });
    let spawn = |_, _| Err(io::ErrorKind::WouldBlock.into());
    let mut couriers = Couriers::new(endpoint, options(""), Hooks { spawn, wake: || {} });
    let refused = Outcome::Refused(Failure::of(FailureKind::NoThread));
    assert_eq!(send(&mut couriers, 0, 1), refused);
}

#[test]
fn each_answer_wakes_once_it_is_there() {
    static WAKES: AtomicUsize = AtomicUsize::new(0);
    let server = Server::start(Conduct::Answer(202));
    let endpoint = Arc::new(Plain { url: server.url(), panics: false });
    let wake = || {
        WAKES.fetch_add(1, Ordering::SeqCst);
    };
    let mut couriers = Couriers::new(endpoint, options(""), Hooks { spawn, wake });
    couriers.send(0, RequestId(1), empty());
    let began = Instant::now();
    while WAKES.load(Ordering::SeqCst) == 0 {
        assert!(began.elapsed() < PATIENCE, "no wake");
        thread::yield_now();
    }
    assert_eq!(couriers.answer().map(|answer| answer.request), Some(RequestId(1)));
}

#[test]
fn letting_go_does_not_wait() {
    let server = Server::start(Conduct::Stall);
    let mut couriers = couriers(server.url(), false, 20_000);
    couriers.send(0, RequestId(1), empty());
    assert!(server.requests.recv_timeout(PATIENCE).is_ok(), "it is on the way");
    let began = Instant::now();
    drop(couriers);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn a_probe_asks_with_its_own_body() {
    let server = Server::start(Conduct::Answer(202));
    let endpoint = Plain { url: server.url(), panics: true };
    assert_eq!(probe(&endpoint, &options("")), Outcome::Delivered);
    assert_eq!(server.requests.recv_timeout(PATIENCE).unwrap().body, b"probe");
}

#[test]
fn a_ca_file_must_hold_certificates() {
    let directory = std::env::temp_dir().join(format!("pg_outbox-ca-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_string();
    let read = |name: &str| read_roots(&path(name)).map(drop);
    fs::write(path("empty"), "").unwrap();
    fs::write(path("text"), "no certificate at all").unwrap();
    fs::write(path("broken"), "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n")
        .unwrap();
    for name in ["missing", "empty", "text", "broken"] {
        let error = read(name).unwrap_err();
        assert_eq!(error.kind, ErrorKind::UnusableFile, "{name}");
        assert!(error.detail.is_some() && error.hint.is_some());
    }
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    fs::write(path("one"), pem).unwrap();
    assert!(read("one").is_ok());
    fs::remove_dir_all(directory).unwrap();
}
