//! The file service against a real sshfs and a real FTP client, and against clients that try to get
//! out.
#![allow(clippy::unwrap_used)]

mod attacks;
mod client;
mod fixture;
mod ftp;
mod ftp_attacks;
mod ftp_client;
mod lftp;
mod mounted;
