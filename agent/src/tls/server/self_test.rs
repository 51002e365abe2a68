//! One handshake with ourselves, in memory, before the first caller comes: it shows that what the
//! secrets hold works, and the caller does not wait for code to be paged in and for the first
//! random numbers to be gathered.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use rustls::{ClientConnection, ConnectionCommon, Error, ServerConfig, ServerConnection, SideData};
use rustls_pki_types::ServerName;

use crate::tls::client::config;

/// TLS 1.3 takes two rounds with its tickets, TLS 1.2 three; a failed handshake has nothing left to
/// say after less.
const ROUNDS: usize = 6;

/// Shakes hands as `config` says, and sends a byte each way. A configuration that asks callers for
/// a certificate ends it where it misses one.
///
/// # Errors
/// What rustls says of the configuration, such as that no caller could agree with it.
pub(crate) fn handshake_self_test(config: Arc<ServerConfig>) -> Result<(), Error> {
    let mut caller = caller()?;
    let mut server = ServerConnection::new(config)?;
    let failed = |error: io::Error| Error::General(error.to_string());
    caller.writer().write_all(b"?").map_err(failed)?;
    server.writer().write_all(b"!").map_err(failed)?;
    for _ in 0..ROUNDS {
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

/// What a caller says first, for [`respond_to`].
///
/// # Errors
/// What rustls says; nothing of it depends on secrets.
pub(crate) fn hello() -> Result<Vec<u8>, Error> {
    let mut said = Vec::new();
    caller()?
        .write_tls(&mut said)
        .map_err(|error| Error::General(error.to_string()))?;
    Ok(said)
}

/// Goes through the server's first and largest step, without a caller.
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
        return Err(Error::General("a hello was not whole".to_owned()));
    }
    server
        .write_tls(&mut io::sink())
        .map(drop)
        .map_err(|error| Error::General(error.to_string()))
}

fn caller() -> Result<ClientConnection, Error> {
    // A name that nobody can have (RFC 6761 section 6.4).
    let name = ServerName::try_from("rehearsal.invalid")
        .map_err(|error| Error::General(error.to_string()))?;
    ClientConnection::new(
        config::anonymous(&[crate::tls::alpn::H2, crate::tls::alpn::HTTP1])?,
        name,
    )
}

/// Hands over what one side has to say.
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
