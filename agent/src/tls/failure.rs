//! Causes of failed handshakes, with callers and with the app.

use std::io;

use rustls::{AlertDescription, PeerIncompatible};

use crate::telemetry::metrics::TlsFailure;

/// Returns the cause of a handshake that failed in a stream.
#[must_use]
pub fn cause(error: &io::Error) -> TlsFailure {
    let tls = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => classify(tls),
        None if error.kind() == io::ErrorKind::TimedOut => TlsFailure::Timeout,
        None => TlsFailure::Closed,
    }
}

/// Maps a failed handshake to its counter.
pub(crate) fn classify(error: &rustls::Error) -> TlsFailure {
    use PeerIncompatible as P;
    use rustls::Error as E;
    match error {
        E::PeerIncompatible(
            P::Tls12NotOffered
            | P::Tls12NotOfferedOrEnabled
            | P::ServerTlsVersionIsDisabledByOurConfig
            | P::ServerDoesNotSupportTls12Or13
            | P::SupportedVersionsExtensionRequired
            | P::SignatureAlgorithmsExtensionRequired,
        )
        | E::AlertReceived(AlertDescription::ProtocolVersion) => TlsFailure::Version,
        E::PeerIncompatible(_)
        | E::AlertReceived(
            AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity,
        ) => TlsFailure::Cipher,
        E::NoCertificatesPresented
        | E::InvalidCertificate(_)
        | E::General(_)
        | E::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnrecognisedName
            | AlertDescription::AccessDenied,
        ) => TlsFailure::Certificate,
        E::InvalidMessage(_)
        | E::PeerMisbehaved(_)
        | E::InappropriateMessage { .. }
        | E::InappropriateHandshakeMessage { .. }
        | E::DecryptError
        | E::PeerSentOversizedRecord => TlsFailure::Malformed,
        _ => TlsFailure::Other,
    }
}
