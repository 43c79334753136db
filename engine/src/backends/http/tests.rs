//! Tests of requests to a server on loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use bevy_ecs::entity::Entity;

use super::*;
use crate::purpose;

const DEADLINE: Duration = Duration::from_secs(60);

/// A server that hands over its connections, each with the head of its request.
fn server() -> (SocketAddr, Receiver<(String, TcpStream)>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, requests) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            if sender.send((head, stream)).is_err() {
                return;
            }
        }
    });
    (address, requests)
}

struct Client {
    http: ReqwestHttp,
    waker: Waker,
}

impl Client {
    fn new() -> Self {
        let waker = Waker::for_this_thread();
        let runtime = SharedRuntime::start(1).unwrap();
        let http = ReqwestHttp::new(&LocalAddresses::default(), runtime, &waker);
        Self { http, waker }
    }

    fn ask(&mut self, request: HttpRequest) {
        self.http.submit(&mut vec![request]);
    }

    fn next(&mut self) -> HttpPart {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.waker.begin_tick();
            let mut events = Vec::new();
            self.http.poll(1, &mut events);
            if let Some(event) = events.pop() {
                return event.part;
            }
            assert!(Instant::now() < deadline, "no part came");
            self.waker.wait(Duration::from_millis(100));
        }
    }
}

fn tag(number: u64) -> JobTag {
    JobTag {
        purpose: purpose!("test"),
        owner: Entity::PLACEHOLDER,
        number,
    }
}

fn request(number: u64, address: SocketAddr) -> HttpGet {
    HttpGet {
        tag: tag(number),
        url: format!("http://{address}/file"),
        local_paths: LocalPaths::All,
        family: None,
        range: None,
        timeout: DEADLINE,
        max_body_bytes: usize::MAX,
        credit: u64::MAX,
    }
}

#[test]
fn a_range_is_requested_and_found_in_the_head() {
    let (address, requests) = server();
    let mut client = Client::new();
    client.ask(HttpRequest::Get(HttpGet {
        range: Some(5..10),
        ..request(1, address)
    }));
    let (head, mut stream) = requests.recv().unwrap();
    assert!(head.contains("range: bytes=5-9\r\n"), "{head}");
    assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
    let answer = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/100\r\nContent-Length: 5\r\n\r\nhello";
    stream.write_all(answer.as_bytes()).unwrap();
    let expected = ContentRange {
        start: 5,
        total: Some(100),
    };
    assert!(
        matches!(client.next(), HttpPart::Head { status: 206, content, server: Some(_) } if content == Some(expected))
    );
    assert!(matches!(client.next(), HttpPart::Chunk(chunk) if chunk == "hello"));
    assert!(matches!(client.next(), HttpPart::End(Ok(()))));
}

/// The server can send no more than the sockets hold while the world grants nothing, however long that lasts.
#[test]
fn a_response_waits_for_credit() {
    const BODY: usize = 64 << 20;
    let (address, requests) = server();
    let mut client = Client::new();
    let credit = 100_000;
    client.ask(HttpRequest::Get(HttpGet {
        credit,
        ..request(1, address)
    }));
    let (_, mut stream) = requests.recv().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    assert!(matches!(client.next(), HttpPart::Head { status: 200, .. }));
    // The sockets are full when a write has to wait.
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let (block, mut written) = (vec![7; 64 << 10], 0);
    while written < BODY {
        match stream.write(&block[..block.len().min(BODY - written)]) {
            Ok(len) => written += len,
            Err(_) => break,
        }
    }
    assert!(written < BODY, "everything was taken");
    let mut received = 0;
    while received < credit as usize {
        let HttpPart::Chunk(chunk) = client.next() else {
            panic!("the body goes on")
        };
        received += chunk.len();
    }
    assert!(
        client.http.sink.change(|events| events.is_empty()),
        "more than was granted"
    );
    let (tag, bytes) = (tag(1), u64::MAX);
    client.ask(HttpRequest::Grant { tag, bytes });
    let rest = thread::spawn(move || {
        stream.set_write_timeout(None).unwrap();
        stream.write_all(&vec![7; BODY - written]).unwrap();
    });
    loop {
        match client.next() {
            HttpPart::Chunk(chunk) => received += chunk.len(),
            HttpPart::End(result) => break assert_eq!(result, Ok(())),
            HttpPart::Head { .. } => panic!("a second head"),
        }
    }
    rest.join().unwrap();
    assert_eq!(received, BODY);
}

/// A canceled request ends its connection, and delivers nothing more: not even what had arrived.
#[test]
fn a_canceled_request_is_silent() {
    let (address, requests) = server();
    let mut client = Client::new();
    client.ask(HttpRequest::Get(request(1, address)));
    let (_, mut stream) = requests.recv().unwrap();
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        .unwrap();
    assert!(matches!(client.next(), HttpPart::Head { .. }));
    client.ask(HttpRequest::Cancel { tag: tag(1) });
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "the connection is closed");
    client.ask(HttpRequest::Get(request(2, address)));
    let (_, mut stream) = requests.recv().unwrap();
    stream
        .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    assert!(matches!(client.next(), HttpPart::Head { status: 404, .. }));
    assert!(matches!(client.next(), HttpPart::End(Ok(()))));
}

/// A body beyond its limit is an error, also where the credit has no limit.
#[test]
fn a_body_beyond_its_limit_is_an_error() {
    let (address, requests) = server();
    let mut client = Client::new();
    client.ask(HttpRequest::Get(HttpGet {
        max_body_bytes: 10,
        ..request(1, address)
    }));
    let (_, mut stream) = requests.recv().unwrap();
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, world")
        .unwrap();
    assert!(matches!(client.next(), HttpPart::Head { .. }));
    let end = loop {
        if let HttpPart::End(end) = client.next() {
            break end;
        }
    };
    assert_eq!(end, Err(HttpError::TooLarge(10)));
}
