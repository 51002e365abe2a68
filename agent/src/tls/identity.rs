//! Identity of a verified caller and the request header that carries it: subject, subject
//! alternative names and the certificate's SHA-256, in the syntax of Envoy's
//! `x-forwarded-client-cert`, which many apps already read.

use std::fmt::Write;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Maximum length of the value, so that the request does not exceed the app's header limits.
const MAX_VALUE: usize = 4096;

/// A verified caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerIdentity {
    header_value: String,
}

/// Reason a certificate signed by the CA is rejected after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate is not X.509.
    #[error("the caller's certificate cannot be read")]
    Unreadable,
    /// A resumed session outlived the certificate it was opened with.
    #[error("the caller's certificate has expired since its session began")]
    Expired,
}

impl CallerIdentity {
    /// Reads a verified certificate; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// It cannot be read, or it has expired: a resumed session is not verified again by the
    /// handshake.
    pub fn of(certificate: &CertificateDer<'_>, now: i64) -> Result<Self, IdentityError> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unreadable)?;
        if now > parsed.validity().not_after.timestamp() {
            return Err(IdentityError::Expired);
        }
        let mut value = String::with_capacity(256);
        value.push_str("Hash=");
        for byte in sha256(certificate) {
            // Writing to a string does not fail.
            let _ = write!(value, "{byte:02x}");
        }
        element(&mut value, "Subject", &parsed.subject().to_string());
        let names = parsed.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|san| &san.value.general_names) {
            match name {
                GeneralName::URI(uri) => element(&mut value, "URI", uri),
                GeneralName::DNSName(dns) => element(&mut value, "DNS", dns),
                _ => {}
            }
        }
        Ok(Self {
            header_value: value,
        })
    }

    /// Returns the header's value: visible ASCII.
    #[must_use]
    pub fn header_value(&self) -> &str {
        &self.header_value
    }
}

/// Appends `;Key="value"`, completely or not at all.
fn element(value: &mut String, key: &str, text: &str) {
    let mut quoted = String::with_capacity(text.len() + key.len() + 4);
    let _ = write!(quoted, ";{key}=\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            // A header holds ASCII; everything else is shown as in a URI.
            _ => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(quoted, "%{byte:02X}");
                }
            }
        }
    }
    quoted.push('"');
    if value.len() + quoted.len() <= MAX_VALUE {
        value.push_str(&quoted);
    }
}

fn sha256(data: &[u8]) -> Vec<u8> {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    suite
        .tls13()
        .map(|tls13| tls13.common.hash_provider.hash(data).as_ref().to_vec())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_the_header_are_escaped_and_long_lists_are_cut_between_elements() {
        let mut value = String::from("Hash=00");
        element(&mut value, "Subject", "CN=\"a\\b\"\r\nx: y, O=é");
        assert_eq!(
            value,
            r#"Hash=00;Subject="CN=\"a\\b\"%0D%0Ax: y, O=%C3%A9""#
        );
        for i in 0..1000 {
            element(&mut value, "DNS", &format!("host-{i}.example"));
        }
        assert!(value.len() <= MAX_VALUE && value.ends_with('"'));
    }
}
