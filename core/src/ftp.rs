//! FTP commands on the wire (RFC 959, 2389, 2428 and 3659): lines are cut from what arrives, and
//! parsed. Paths are bytes, as in [`crate::sftp`]. Only passive mode is known: the commands by
//! which a client names the host of a data connection are [`Command::Unknown`] like any other that
//! is not served.

mod command;
mod lines;

pub use command::{BadCommand, Command, Family, parse};
pub use lines::{LineTooLong, Lines};

/// Largest length of a command line, its end included: a path of Linux and a verb fit.
pub const MAX_LINE: usize = 8 * 1024;

#[cfg(test)]
mod tests;
