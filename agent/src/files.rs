//! File service: the volumes of the app's containers, for workstations that mount them. Paths are
//! confined to the exported volumes, mount policies hold, and all file work runs on threads of its
//! own, so that neither the data path nor the control path waits for a disk.
//!
//! `export` knows the volumes, `confined` resolves paths in them, `operations` does what clients
//! ask; `sftp` and `ftp` speak with one client, `server` accepts connections.

mod confined;
pub mod export;
pub(crate) mod ftp;
mod operations;
mod path;
pub mod server;
pub(crate) mod sftp;
