//! Verification of the app's certificate: by the CA of the client certificate's secret and the name
//! the caller asked for. Exactly pinned certificates are accepted as they are; without a CA an app
//! in the same pod is not verified. Handshake signatures are always verified.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::secrets::secret::LoadedSecret;

/// Verifies the app's certificate.
#[derive(Debug)]
pub struct AppVerifier {
    /// The secret whose CA signs the app's certificate; `None` verifies only signatures.
    trust: Option<Arc<LoadedSecret>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AppVerifier {
    /// Trusts certificates of the secret's CA, or any without one.
    #[must_use]
    pub fn new(trust: Option<Arc<LoadedSecret>>) -> Self {
        Self {
            trust,
            algorithms: crate::tls::alpn::provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for AppVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(ca) = self.trust.as_ref().and_then(|loaded| loaded.ca.as_ref()) else {
            return Ok(ServerCertVerified::assertion());
        };
        // The user put this very certificate into the secret. A self-signed one often says CA:TRUE
        // and lacks the app's name, so path validation would reject it.
        if ca.pinned.iter().any(|pinned| pinned == end_entity) {
            return pinned_is_current(end_entity, now);
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &ca.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        // An address means that no name was asked for: then the CA alone decides.
        if matches!(server_name, ServerName::DnsName(_)) {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn pinned_is_current(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, Error> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(ServerCertVerified::assertion())
}
