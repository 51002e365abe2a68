//! A handshake with ourselves, in memory, before the first caller: it verifies the secrets, and the
//! first caller does not wait for code to be paged in or for the first random numbers.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use rustls::{ClientConnection, ConnectionCommon, Error, ServerConfig, ServerConnection, SideData};
use rustls_pki_types::ServerName;

use crate::tls::client::config;

/// Maximum of rounds: TLS 1.3 takes two with its tickets, TLS 1.2 three.
const MAX_ROUNDS: usize = 6;

/// Performs a handshake as `config` says and sends a byte each way. A configuration that requires
/// client certificates ends it at the missing one.
///
/// # Errors
/// The error of rustls about the configuration, such as that no caller could agree with it.
pub(crate) fn handshake_self_test(config: Arc<ServerConfig>) -> Result<(), Error> {
    let mut caller = caller()?;
    let mut server = ServerConnection::new(config)?;
    let failed = |error: io::Error| Error::General(error.to_string());
    caller.writer().write_all(b"?").map_err(failed)?;
    server.writer().write_all(b"!").map_err(failed)?;
    for _ in 0..MAX_ROUNDS {
        match pass(&mut caller, &mut server) {
            Err(Error::NoCertificatesPresented) => return Ok(()),
            passed => passed?,
        }
        pass(&mut server, &mut caller)?;
    }
    let mut byte = [0];
    server
        .reader()
        .read_exact(&mut byte)
        .and_then(|()| caller.reader().read_exact(&mut byte))
        .map_err(failed)
}

/// Builds a caller's ClientHello, for [`respond_to`].
///
/// # Errors
/// The error of rustls; it does not depend on secrets.
pub(crate) fn hello() -> Result<Vec<u8>, Error> {
    let mut said = Vec::new();
    caller()?
        .write_tls(&mut said)
        .map_err(|error| Error::General(error.to_string()))?;
    Ok(said)
}

/// Runs the server's first and largest step without a caller.
///
/// # Errors
/// As [`handshake_self_test`].
pub(crate) fn respond_to(config: Arc<ServerConfig>, mut hello: &[u8]) -> Result<(), Error> {
    let mut server = ServerConnection::new(config)?;
    server
        .read_tls(&mut hello)
        .map_err(|error| Error::General(error.to_string()))?;
    server.process_new_packets()?;
    if !server.wants_write() {
        return Err(Error::General("the ClientHello is incomplete".to_owned()));
    }
    server
        .write_tls(&mut io::sink())
        .map(drop)
        .map_err(|error| Error::General(error.to_string()))
}

fn caller() -> Result<ClientConnection, Error> {
    // A name that cannot exist (RFC 6761 section 6.4).
    let name = ServerName::try_from("rehearsal.invalid")
        .map_err(|error| Error::General(error.to_string()))?;
    ClientConnection::new(
        config::anonymous(&[crate::tls::alpn::H2, crate::tls::alpn::HTTP1])?,
        name,
    )
}

/// Passes one side's output to the other.
fn pass<A: SideData, B: SideData>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
) -> Result<(), Error> {
    let failed = |error: io::Error| Error::General(error.to_string());
    let mut said = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut said).map_err(failed)?;
    }
    let mut rest = &said[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).map_err(failed)?;
        to.process_new_packets()?;
    }
    Ok(())
}
