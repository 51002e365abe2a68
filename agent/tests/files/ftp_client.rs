//! An FTP client that says any command it likes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

pub(crate) struct FtpClient {
    pub(crate) socket: TcpStream,
    replies: BufReader<TcpStream>,
}

impl FtpClient {
    /// Connects without logging in.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        let replies = BufReader::new(socket.try_clone().unwrap());
        let mut client = Self { socket, replies };
        assert_eq!(client.reply().0, 220);
        client
    }

    /// Connects and enters the volumes of the app.
    pub(crate) fn log_in(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        assert_eq!(client.say("USER anonymous"), 331);
        assert_eq!(client.say("PASS x"), 230);
        assert_eq!(client.say("CWD app"), 250);
        client
    }

    pub(crate) fn send(&mut self, line: &str) {
        self.socket
            .write_all(format!("{line}\r\n").as_bytes())
            .unwrap();
    }

    /// Sends a command; the code of its reply.
    pub(crate) fn say(&mut self, line: &str) -> u16 {
        self.send(line);
        self.reply().0
    }

    /// The next reply: its code and all of its text.
    pub(crate) fn reply(&mut self) -> (u16, String) {
        let mut text = String::new();
        loop {
            let start = text.len();
            assert_ne!(self.replies.read_line(&mut text).unwrap(), 0, "no reply");
            let line = &text[start..];
            if line.as_bytes().get(3) == Some(&b' ') && line[..3].parse::<u16>().is_ok() {
                return (line[..3].parse().unwrap(), text);
            }
        }
    }

    /// Whether the server has ended the connection.
    pub(crate) fn is_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        self.replies.read_to_end(&mut rest).is_ok() && rest.is_empty()
    }

    /// The address of the next data connection.
    pub(crate) fn passive(&mut self) -> SocketAddr {
        self.send("EPSV");
        self.passive_reply()
    }

    fn passive_reply(&mut self) -> SocketAddr {
        let (code, text) = self.reply();
        assert_eq!(code, 229, "{text}");
        let port = text.split('|').nth(3).unwrap().parse().unwrap();
        SocketAddr::new(self.socket.peer_addr().unwrap().ip(), port)
    }

    /// Receives by a command, such as `RETR`; the reply's code where it is refused.
    pub(crate) fn receive(&mut self, command: &str) -> Result<Vec<u8>, u16> {
        let mut data = TcpStream::connect(self.passive()).unwrap();
        match self.say(command) {
            150 => {}
            refused => return Err(refused),
        }
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes).unwrap();
        assert_eq!(self.reply().0, 226, "{command}");
        Ok(bytes)
    }

    /// Receives many files; the port of the next is asked for together with each.
    pub(crate) fn receive_all(&mut self, names: &[String]) -> Vec<Vec<u8>> {
        let mut contents = Vec::new();
        let mut address = self.passive();
        for name in names {
            let mut data = TcpStream::connect(address).unwrap();
            self.send(&format!("RETR {name}\r\nEPSV"));
            let mut content = Vec::new();
            data.read_to_end(&mut content).unwrap();
            contents.push(content);
            assert_eq!((self.reply().0, self.reply().0), (150, 226), "{name}");
            address = self.passive_reply();
        }
        contents
    }

    /// Sends a file's content by a command, such as `STOR`; the code of the last reply.
    pub(crate) fn store(&mut self, command: &str, content: &[u8]) -> u16 {
        let mut data = TcpStream::connect(self.passive()).unwrap();
        match self.say(command) {
            150 => {}
            refused => return refused,
        }
        data.write_all(content).unwrap();
        drop(data);
        self.reply().0
    }
}
