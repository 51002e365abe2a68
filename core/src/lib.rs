//! Decisions of the data path without I/O: protocol of a connection, end of an HTTP message,
//! intercept of a request, answer of the local REST API. No module uses a socket, a runtime or a clock, so each is fuzzed and
//! measured in instructions as shipped.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod ftp;
pub mod http1;
pub mod http2;
pub mod rest_api;
pub mod routing;
pub mod sftp;
pub mod sniff;
