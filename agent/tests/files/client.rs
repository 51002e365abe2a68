//! A client that sends any packet it likes, one request at a time.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

pub(crate) const OK: u32 = 0;
pub(crate) const NO_SUCH_FILE: u32 = 2;
pub(crate) const PERMISSION_DENIED: u32 = 3;

pub(crate) struct Client(pub(crate) TcpStream);

/// The answer: its type and what follows the request number.
pub(crate) struct Answer(u8, Vec<u8>);

impl Answer {
    /// The status; an answer with content counts as success.
    pub(crate) fn status(&self) -> u32 {
        match self.0 {
            101 => u32::from_be_bytes(self.1[..4].try_into().unwrap()),
            _ => OK,
        }
    }

    /// Number of names in the answer to READDIR.
    pub(crate) fn count(&self) -> usize {
        assert_eq!(self.0, 104, "NAME");
        u32::from_be_bytes(self.1[..4].try_into().unwrap()) as usize
    }

    /// The first string of the answer: a handle, or data.
    pub(crate) fn string(&self) -> Vec<u8> {
        assert!(matches!(self.0, 102 | 103), "status {}", self.status());
        let length = u32::from_be_bytes(self.1[..4].try_into().unwrap()) as usize;
        self.1[4..4 + length].to_vec()
    }
}

pub(crate) fn text(value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap();
    [&length.to_be_bytes()[..], value].concat()
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let mut client = Self(TcpStream::connect(address).unwrap());
        client.0.write_all(&[0, 0, 0, 5, 1, 0, 0, 0, 3]).unwrap();
        let (kind, _) = client.packet();
        assert_eq!(kind, 2, "VERSION");
        client
    }

    pub(crate) fn ask(&mut self, kind: u8, fields: &[&[u8]]) -> Answer {
        let body = [&[kind][..], &7_u32.to_be_bytes(), &fields.concat()].concat();
        let length = u32::try_from(body.len()).unwrap();
        self.0.write_all(&length.to_be_bytes()).unwrap();
        self.0.write_all(&body).unwrap();
        let (kind, rest) = self.packet();
        assert_eq!(rest[..4], 7_u32.to_be_bytes());
        Answer(kind, rest[4..].to_vec())
    }

    /// Opens a path; `flags` as on the wire.
    pub(crate) fn open(&mut self, path: &str, flags: u32) -> Answer {
        self.ask(3, &[&text(path.as_bytes()), &flags.to_be_bytes(), &[0; 4]])
    }

    /// The content of a file, or the status that refuses it.
    pub(crate) fn read(&mut self, path: &str) -> Result<Vec<u8>, u32> {
        let opened = self.open(path, 1);
        if opened.status() != OK {
            return Err(opened.status());
        }
        let handle = text(&opened.string());
        let data = self.ask(5, &[&handle, &[0; 8], &1000_u32.to_be_bytes()]);
        let read = match data.status() {
            OK => Ok(data.string()),
            refused => Err(refused),
        };
        assert_eq!(self.ask(4, &[&handle]).status(), OK, "CLOSE");
        read
    }

    /// The contents of files of at most 100 bytes, every step for all of them at once.
    pub(crate) fn read_all(&mut self, paths: &[String]) -> Vec<Vec<u8>> {
        let asked = |path: &String| [&text(path.as_bytes())[..], &[0, 0, 0, 1], &[0; 4]].concat();
        let opened = self.ask_all(3, paths.iter().map(asked).collect());
        let handles: Vec<_> = opened.iter().map(|answer| text(&answer.string())).collect();
        let wanted = |handle: &Vec<u8>| [&handle[..], &[0; 8], &[0, 0, 0, 100]].concat();
        let read = self.ask_all(5, handles.iter().map(wanted).collect());
        let closed = self.ask_all(4, handles);
        assert!(closed.iter().all(|answer| answer.status() == OK), "CLOSE");
        read.iter().map(Answer::string).collect()
    }

    /// Sends many requests before the first answer is read.
    fn ask_all(&mut self, kind: u8, bodies: Vec<Vec<u8>>) -> Vec<Answer> {
        let mut bytes = Vec::new();
        for body in &bodies {
            let length = u32::try_from(body.len() + 5).unwrap();
            bytes.extend([&length.to_be_bytes()[..], &[kind], &[0; 4], body].concat());
        }
        self.0.write_all(&bytes).unwrap();
        let packets = bodies.iter().map(|_| self.packet());
        packets
            .map(|(kind, rest)| Answer(kind, rest[4..].to_vec()))
            .collect()
    }

    /// An operation on one path.
    pub(crate) fn on_path(&mut self, kind: u8, path: &str) -> Answer {
        self.ask(kind, &[&text(path.as_bytes())])
    }

    fn packet(&mut self) -> (u8, Vec<u8>) {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut bytes).unwrap();
        (bytes[0], bytes[1..].to_vec())
    }
}
