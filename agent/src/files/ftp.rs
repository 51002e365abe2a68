//! The commands of one FTP connection, answered from the exports (RFC 959, 2428 and 3659). Data
//! connections are passive alone: the agent never calls an address that a client names.

mod control;
mod data;
mod listing;
mod transfer;

use std::io;
use std::net::TcpStream;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use traffic_core::ftp::{BadCommand, Command, Family, parse};
use traffic_core::sftp::Attributes;

use crate::files::export::{EXPORTS, Exports};
use crate::files::path::{absolute, normalised};

pub(crate) use control::IDLE_TIMEOUT;
use control::{Control, FtpReply};
pub(crate) use data::CONNECT_TIMEOUT;
use data::Passive;

/// Features beyond RFC 959, as clients ask for them.
const FEATURES: [&str; 8] = [
    "Features",
    "EPSV",
    "MDTM",
    "MLST type*;size*;modify*;",
    "REST STREAM",
    "SIZE",
    "UTF8",
    "End",
];

/// The state of a connection.
struct FtpSession<'e> {
    exports: &'e Exports,
    control: Control,
    login: Login,
    /// Working directory: elements below the root of all clients, [`EXPORTS`].
    directory: Vec<Vec<u8>>,
    /// Where the next transfer begins.
    restart: u64,
    rename_from: Option<Vec<u8>>,
    passive: Option<Passive>,
    /// The client promised to use EPSV alone.
    only_extended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Login {
    None,
    Named,
    Done,
}

/// A command that failed.
#[derive(Debug)]
enum CommandError {
    Refused(FtpReply),
    /// The control connection is of no use any more.
    Lost(io::Error),
}

impl From<Errno> for CommandError {
    fn from(errno: Errno) -> Self {
        Self::Refused(match errno {
            // The stock client knows these by their texts, and no others.
            Errno::NOENT => FtpReply::line(550, "no such file or directory"),
            Errno::NOTEMPTY => FtpReply::line(550, "directory not empty"),
            Errno::NOSPC | Errno::DQUOT => FtpReply::line(552, "no space left"),
            other => FtpReply::line(550, io::Error::from(other).to_string()),
        })
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

type CommandResult<T = FtpReply> = Result<T, CommandError>;

/// Answers the commands of one connection in order.
pub(crate) fn serve(socket: TcpStream, exports: &Exports) -> io::Result<()> {
    let mut session = FtpSession {
        exports,
        control: Control::new(socket)?,
        login: Login::None,
        directory: Vec::new(),
        restart: 0,
        rename_from: None,
        passive: None,
        only_extended: false,
    };
    let ready = FtpReply::line(220, "volumes of this pod; log in as anonymous");
    session.control.reply(&ready)?;
    while let Some(line) = session.control.next_line()? {
        let command = parse(&line);
        let reply = match command.map_err(refused).and_then(|it| session.perform(it)) {
            Ok(reply) | Err(CommandError::Refused(reply)) => reply,
            Err(CommandError::Lost(error)) => return Err(error),
        };
        session.control.reply(&reply)?;
        if command == Ok(Command::Quit) {
            break;
        }
    }
    Ok(())
}

fn refused(bad: BadCommand) -> CommandError {
    let code = match bad {
        BadCommand::NoVerb => 500,
        BadCommand::Argument | BadCommand::ControlCharacter => 501,
    };
    CommandError::Refused(FtpReply::line(code, bad.to_string()))
}

impl FtpSession<'_> {
    fn perform(&mut self, command: Command<'_>) -> CommandResult {
        let anyone = match command {
            Command::User(name) => self.user(name),
            Command::Pass => self.password(),
            Command::Quit => FtpReply::line(221, "bye"),
            Command::Noop => FtpReply::line(200, "ok"),
            Command::Syst => FtpReply::line(215, "UNIX Type: L8"),
            Command::Feat => FtpReply::lines(211, FEATURES.map(Vec::from).to_vec()),
            Command::Opts | Command::Representation(true) => FtpReply::line(200, "ok"),
            Command::Representation(false) => FtpReply::line(504, "files are sent as they are"),
            Command::Unknown => FtpReply::line(502, "this command is not served"),
            _ if self.login != Login::Done => FtpReply::line(530, "log in as anonymous"),
            of_a_user => return self.perform_of_user(of_a_user),
        };
        Ok(anyone)
    }

    fn perform_of_user(&mut self, command: Command<'_>) -> CommandResult {
        match command {
            Command::Pwd => Ok(FtpReply::line(257, quoted(&absolute(&self.directory)))),
            Command::Cwd(path) => self.change_directory(path),
            Command::Pasv => self.passive(),
            Command::Epsv(family) => self.extended_passive(family),
            Command::Rest(position) => {
                self.restart = position;
                Ok(FtpReply::line(350, "the next transfer begins there"))
            }
            Command::Retr(path) => self.retrieve(path),
            Command::Stor(path) => self.store(path, false),
            Command::Appe(path) => self.store(path, true),
            Command::Abor => Ok(FtpReply::line(226, "there is no transfer")),
            Command::Mlsd(path) => self.list(path, listing::Form::Facts),
            Command::List(path) => self.list(path, listing::Form::Long),
            Command::Nlst(path) => self.list(path, listing::Form::Names),
            Command::Mlst(path) => self.facts(path.unwrap_or_default()),
            Command::Size(path) => {
                let size = self.file_attributes(path)?.size.unwrap_or_default();
                Ok(FtpReply::line(213, size.to_string()))
            }
            Command::Mdtm(path) => {
                let attributes = self.file_attributes(path)?;
                Ok(FtpReply::line(213, listing::time_of(&attributes)))
            }
            other => self.change(other),
        }
    }

    /// Commands that change names.
    fn change(&mut self, command: Command<'_>) -> CommandResult {
        let exports = self.exports;
        match command {
            Command::Mkd(path) => {
                exports.make_directory(&self.path(path), Attributes::default())?;
                let made = absolute(&self.elements(path));
                return Ok(FtpReply::line(257, quoted(&made)));
            }
            Command::Rmd(path) => exports.remove(&self.path(path), AtFlags::REMOVEDIR)?,
            Command::Dele(path) => exports.remove(&self.path(path), AtFlags::empty())?,
            Command::Rnfr(path) => {
                let from = self.path(path);
                // The link itself is renamed, wherever it leads.
                exports.attributes(&from, false)?;
                self.rename_from = Some(from);
                return Ok(FtpReply::line(350, "say RNTO"));
            }
            Command::Rnto(path) => {
                let Some(from) = self.rename_from.take() else {
                    return Ok(FtpReply::line(503, "say RNFR first"));
                };
                exports.rename(&from, &self.path(path), true)?;
            }
            _ => return Ok(FtpReply::line(502, "this command is not served")),
        }
        Ok(FtpReply::line(250, "done"))
    }

    fn user(&mut self, name: &[u8]) -> FtpReply {
        if name.eq_ignore_ascii_case(b"anonymous") {
            self.login = Login::Named;
            return FtpReply::line(331, "any password");
        }
        self.login = Login::None;
        FtpReply::line(530, "log in as anonymous")
    }

    fn password(&mut self) -> FtpReply {
        if self.login == Login::None {
            return FtpReply::line(503, "say USER first");
        }
        self.login = Login::Done;
        FtpReply::line(230, "logged in")
    }

    /// Elements of a path below the root of all clients; `..` is taken off, and stays below it.
    fn elements(&self, path: &[u8]) -> Vec<Vec<u8>> {
        if path.starts_with(b"/") {
            return normalised(path);
        }
        normalised(&[&absolute(&self.directory)[..], b"/", path].concat())
    }

    /// The same as the exports name it.
    fn path(&self, path: &[u8]) -> Vec<u8> {
        [EXPORTS.as_bytes(), &absolute(&self.elements(path))].concat()
    }

    fn change_directory(&mut self, path: &[u8]) -> CommandResult {
        let attributes = self.exports.attributes(&self.path(path), true)?;
        if !is_kind(&attributes, FileType::Directory) {
            return Err(Errno::NOTDIR.into());
        }
        self.directory = self.elements(path);
        Ok(FtpReply::line(250, "done"))
    }

    fn passive(&mut self) -> CommandResult {
        if self.only_extended {
            return Ok(FtpReply::line(503, "EPSV ALL was said"));
        }
        let passive = Passive::open(self.control.socket())?;
        let Some(text) = passive.host_and_port() else {
            return Ok(FtpReply::line(425, "this is no IPv4 connection; say EPSV"));
        };
        self.passive = Some(passive);
        Ok(FtpReply::line(227, text))
    }

    fn extended_passive(&mut self, family: Family) -> CommandResult {
        let is_v4 = self.control.is_v4()?;
        match family {
            Family::All => {
                self.only_extended = true;
                return Ok(FtpReply::line(200, "only EPSV is taken"));
            }
            Family::V6 if is_v4 => return Ok(FtpReply::line(522, "use (1)")),
            Family::V4 if !is_v4 => return Ok(FtpReply::line(522, "use (2)")),
            Family::Other => return Ok(FtpReply::line(522, "use (1,2)")),
            Family::Same | Family::V4 | Family::V6 => {}
        }
        let passive = Passive::open(self.control.socket())?;
        let text = format!("port (|||{}|)", passive.port());
        self.passive = Some(passive);
        Ok(FtpReply::line(229, text))
    }

    fn file_attributes(&self, path: &[u8]) -> CommandResult<Attributes> {
        let attributes = self.exports.attributes(&self.path(path), true)?;
        if is_kind(&attributes, FileType::RegularFile) {
            Ok(attributes)
        } else {
            Err(CommandError::Refused(FtpReply::line(
                550,
                "this is no file",
            )))
        }
    }

    fn facts(&self, path: &[u8]) -> CommandResult {
        let attributes = self.exports.attributes(&self.path(path), true)?;
        let elements = self.elements(path);
        let name = elements.last().map_or(&b"/"[..], Vec::as_slice);
        let mut line = Vec::new();
        listing::Form::Facts.write(name, &attributes, &mut line);
        let facts = line.trim_ascii_end().to_vec();
        let lines = vec![b"facts".to_vec(), facts, b"End".to_vec()];
        Ok(FtpReply::lines(250, lines))
    }
}

fn is_kind(attributes: &Attributes, kind: FileType) -> bool {
    FileType::from_raw_mode(attributes.mode.unwrap_or_default()) == kind
}

/// A path in quotation marks, those in it doubled.
fn quoted(path: &[u8]) -> Vec<u8> {
    let mut text = vec![b'"'];
    for byte in path {
        text.push(*byte);
        if *byte == b'"' {
            text.push(b'"');
        }
    }
    text.push(b'"');
    text
}
