//! A client with one connection that is kept.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

pub(super) struct Client {
    stream: BufReader<TcpStream>,
    head: String,
}

impl Client {
    pub(super) fn connect(address: SocketAddr, token: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: BufReader::new(stream),
            head: format!(
                "Host: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/x-bittorrent\r\n"
            ),
        }
    }

    pub(super) fn get(&mut self, path: &str) -> (u16, Vec<u8>) {
        self.send("GET", path, b"")
    }

    pub(super) fn post(&mut self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        self.send("POST", path, body)
    }

    fn send(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\n{}Content-Length: {}\r\n\r\n",
            self.head,
            body.len()
        );
        // Everything in one packet.
        let mut bytes = std::mem::take(&mut request).into_bytes();
        bytes.extend_from_slice(body);
        self.stream.get_mut().write_all(&bytes).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (status, body)
    }
}
