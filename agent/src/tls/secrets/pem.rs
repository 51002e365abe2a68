//! PEM to DER. The only module that names `rustls-pemfile`: the crate is required here but no
//! longer maintained, so tests compare its results with its successor's, and replacing it changes
//! only these lines.

use rustls_pemfile::Item;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Contents of one PEM file. Foreign sections are skipped.
#[derive(Debug, Default)]
pub struct Sections {
    /// Certificates in file order.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The first private key: PKCS#1, PKCS#8 or SEC1. Prints as "elided".
    pub key: Option<PrivateKeyDer<'static>>,
    /// A private key is present in encrypted form, which cannot be opened without its pass phrase.
    pub encrypted: bool,
}

/// Syntax error in PEM. Carries no part of the text, which may be a private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A section without an end.
    #[error("a section has no END line (the file is cut off?)")]
    Unterminated,
    /// A malformed BEGIN line.
    #[error("a BEGIN line is damaged")]
    BadBegin,
    /// A body that is not base64.
    #[error("a section's body is not base64")]
    BadBody,
}

/// Reads every section of `text` (RFC 7468; keys also in the older forms of RFC 1421).
///
/// # Errors
/// The first damage found, unless an encrypted key explains it.
pub fn read(text: &[u8]) -> Result<Sections, Damage> {
    let (text, trusted) = plain_form(text);
    let mut found = Sections {
        encrypted: holds_encrypted_key(&text),
        ..Sections::default()
    };
    let mut trusted = trusted.into_iter();
    let mut rest = &text[..];
    loop {
        match rustls_pemfile::read_one_from_slice(rest) {
            Ok(None) => return Ok(found),
            Ok(Some((item, after))) => {
                rest = after;
                match item {
                    Item::X509Certificate(der) if trusted.next() == Some(true) => {
                        found.certificates.push(first_element(der));
                    }
                    Item::X509Certificate(der) => found.certificates.push(der),
                    Item::Pkcs1Key(key) => found.keep_first(key.into()),
                    Item::Pkcs8Key(key) => found.keep_first(key.into()),
                    Item::Sec1Key(key) => found.keep_first(key.into()),
                    _ => {}
                }
            }
            // The headers of an encrypted RFC 1421 section are not base64; that it is encrypted
            // says more.
            Err(_) if found.encrypted => return Ok(found),
            Err(error) => return Err(damage(&error)),
        }
    }
}

impl Sections {
    fn keep_first(&mut self, key: PrivateKeyDer<'static>) {
        if !self.encrypted {
            self.key.get_or_insert(key);
        }
    }
}

/// Rewrites what other programs take for PEM (OpenSSL's reader, and so nginx and HAProxy) into the
/// strict form: a byte order mark, white space behind lines, older labels, and headers in a section
/// that is not encrypted. Tells for each certificate if trust settings follow in its section.
fn plain_form(text: &[u8]) -> (Vec<u8>, Vec<bool>) {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut plain = Vec::with_capacity(text.len());
    let mut trusted = Vec::new();
    let mut lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end);
    while let Some(line) = lines.next() {
        let label = line
            .strip_prefix(b"-----BEGIN ")
            .and_then(|l| l.strip_suffix(b"-----"));
        if matches!(
            label,
            Some(b"CERTIFICATE" | b"X509 CERTIFICATE" | b"TRUSTED CERTIFICATE")
        ) {
            trusted.push(label == Some(b"TRUSTED CERTIFICATE"));
        }
        push_line(&mut plain, line);
        if label.is_some() {
            let mut first = lines.clone();
            if let Some(headers) = plain_headers(&mut first) {
                lines.nth(headers);
            }
        }
    }
    (plain, trusted)
}

/// Counts the header lines at the front of a section, without the empty line that ends them; none
/// where there are no headers, or they say that the section is encrypted.
fn plain_headers<'t>(lines: &mut impl Iterator<Item = &'t [u8]>) -> Option<usize> {
    for (headers, line) in lines.enumerate() {
        if line.is_empty() {
            return (headers > 0).then_some(headers);
        }
        let continues = headers > 0 && matches!(line.first(), Some(b' ' | b'\t'));
        if line.starts_with(b"-----") || line.ends_with(b"ENCRYPTED") {
            return None;
        }
        if !continues && !line.contains(&b':') {
            return None;
        }
    }
    None
}

fn push_line(plain: &mut Vec<u8>, line: &[u8]) {
    let renamed = [
        (&b"X509 CERTIFICATE-----"[..], &b"CERTIFICATE-----"[..]),
        (b"TRUSTED CERTIFICATE-----", b"CERTIFICATE-----"),
        (b"ANY PRIVATE KEY-----", b"PRIVATE KEY-----"),
    ];
    let border = [&b"-----BEGIN "[..], b"-----END "]
        .into_iter()
        .find(|border| line.starts_with(border));
    let (border, label) = line.split_at(border.map_or(0, <[u8]>::len));
    let label = renamed
        .iter()
        .find(|(old, _)| !border.is_empty() && label == *old)
        .map_or(label, |(_, new)| *new);
    plain.extend_from_slice(border);
    plain.extend_from_slice(label);
    plain.push(b'\n');
}

/// Cuts off what follows the certificate itself (OpenSSL's trust settings).
fn first_element(der: CertificateDer<'static>) -> CertificateDer<'static> {
    let len = match der.as_ref() {
        [0x30, len @ 0..=0x7f, ..] => 2 + usize::from(*len),
        [0x30, 0x81, len, ..] => 3 + usize::from(*len),
        [0x30, 0x82, a, b, ..] => 4 + usize::from(u16::from_be_bytes([*a, *b])),
        [0x30, 0x83, a, b, c, ..] => {
            5 + usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX)
        }
        _ => return der,
    };
    match der.get(..len) {
        Some(certificate) => CertificateDer::from(certificate.to_vec()),
        None => der,
    }
}

fn holds_encrypted_key(text: &[u8]) -> bool {
    let has = |marker: &[u8]| memchr::memmem::find(text, marker).is_some();
    has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED")
}

fn damage(error: &rustls_pemfile::Error) -> Damage {
    match error {
        rustls_pemfile::Error::MissingSectionEnd { .. } => Damage::Unterminated,
        rustls_pemfile::Error::IllegalSectionStart { .. } => Damage::BadBegin,
        rustls_pemfile::Error::Base64Decode(_) => Damage::BadBody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls_pki_types::pem::PemObject;

    const CERT: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
    const OTHER: &str = "-----BEGIN CERTIFICATE-----\nBAUG\n-----END CERTIFICATE-----\n";
    const PKCS8: &str = "-----BEGIN PRIVATE KEY-----\nBwgJ\n-----END PRIVATE KEY-----\n";
    const PKCS1: &str = "-----BEGIN RSA PRIVATE KEY-----\nCgsM\n-----END RSA PRIVATE KEY-----\n";
    const SEC1: &str = "-----BEGIN EC PRIVATE KEY-----\nDQ4P\n-----END EC PRIVATE KEY-----\n";
    const PARAMS: &str =
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    const ENCRYPTED: &str =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAQID\n-----END ENCRYPTED PRIVATE KEY-----\n";

    /// Results of the successor crate: every certificate before the first error, and the first key.
    fn successor(text: &[u8]) -> (Vec<Vec<u8>>, Option<Vec<u8>>, bool) {
        let parsed: Vec<_> = CertificateDer::pem_slice_iter(text).collect();
        let damaged = parsed.iter().any(Result::is_err);
        let certificates = parsed
            .into_iter()
            .filter_map(Result::ok)
            .map(|der| der.to_vec())
            .collect();
        let key = PrivateKeyDer::pem_slice_iter(text)
            .find_map(Result::ok)
            .map(|k| k.secret_der().to_vec());
        (certificates, key, damaged)
    }

    #[track_caller]
    fn agrees(text: &[u8]) {
        let (certificates, key, damaged) = successor(&plain_form(text).0);
        match read(text) {
            Err(_) => assert!(
                damaged,
                "only the old parser refuses {:?}",
                String::from_utf8_lossy(text)
            ),
            Ok(found) if found.encrypted => {}
            Ok(found) => {
                assert!(
                    !damaged,
                    "only the successor refuses {:?}",
                    String::from_utf8_lossy(text)
                );
                assert_eq!(
                    found
                        .certificates
                        .iter()
                        .map(|der| der.to_vec())
                        .collect::<Vec<_>>(),
                    certificates
                );
                assert_eq!(found.key.map(|k| k.secret_der().to_vec()), key);
            }
        }
    }

    #[test]
    fn sections_are_found_in_order_and_the_first_key_wins() {
        let found = read(
            [CERT, PARAMS, PKCS8, OTHER, PKCS1, SEC1]
                .concat()
                .as_bytes(),
        )
        .unwrap();
        assert_eq!(
            found
                .certificates
                .iter()
                .map(|c| c.to_vec())
                .collect::<Vec<_>>(),
            [[1, 2, 3], [4, 5, 6]]
        );
        assert_eq!(found.key.unwrap().secret_der(), [7, 8, 9]);
        for (text, der) in [(PKCS1, [10, 11, 12]), (SEC1, [13, 14, 15])] {
            assert_eq!(
                read(text.as_bytes()).unwrap().key.unwrap().secret_der(),
                der
            );
        }
        let nothing = read(b"").unwrap();
        assert!(nothing.certificates.is_empty() && nothing.key.is_none() && !nothing.encrypted);
    }

    #[test]
    fn what_openssl_takes_is_taken() {
        let trusted = "-----BEGIN TRUSTED CERTIFICATE-----\nMAMCAQcwAA==\n-----END TRUSTED CERTIFICATE-----\n";
        let der = [0x30, 3, 2, 1, 7];
        for (text, want) in [
            (format!("\u{feff}{CERT}"), &[1, 2, 3][..]),
            (CERT.replace("CERT", "X509 CERT"), &[1, 2, 3]),
            (CERT.replace('\n', " \t\r\n"), &[1, 2, 3]),
            (
                CERT.replacen('\n', "\nComment: mine\n and more\n\n", 1),
                &[1, 2, 3],
            ),
            (format!("Bag Attributes\n    a: b\n{CERT}"), &[1, 2, 3]),
            (trusted.to_owned(), &der),
        ] {
            let found = read(text.as_bytes()).unwrap();
            let first = found.certificates.first().map(|c| c.to_vec());
            assert_eq!(first.as_deref(), Some(want), "{text:?}");
        }
        let any = PKCS8.replace("PRIVATE", "ANY PRIVATE");
        assert!(read(any.as_bytes()).unwrap().key.is_some());
    }

    #[test]
    fn encrypted_keys_are_told_apart_from_damage() {
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nCgsM\n\
                   -----END RSA PRIVATE KEY-----\n";
        for text in [ENCRYPTED, old] {
            let found = read(text.as_bytes()).unwrap();
            assert!(found.encrypted && found.key.is_none(), "{text}");
        }
        assert_eq!(
            read(b"-----BEGIN PRIVATE KEY-----\nAQID\n").unwrap_err(),
            Damage::Unterminated
        );
        let word = "-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n";
        assert_eq!(read(word.as_bytes()).unwrap_err(), Damage::BadBody);
    }

    #[test]
    fn old_parser_and_successor_agree_on_every_mixture() {
        let parts = [
            CERT,
            OTHER,
            PKCS8,
            PKCS1,
            SEC1,
            PARAMS,
            ENCRYPTED,
            "text between\n",
            "\r\n",
            "-----BEGIN X",
        ];
        for a in parts {
            for b in parts {
                for c in parts {
                    agrees([a, b, c].concat().as_bytes());
                }
            }
        }
        agrees([CERT, PKCS8].concat().replace('\n', "\r\n").as_bytes());
    }

    proptest! {
        #[test]
        fn old_parser_and_successor_agree_on_damaged_text(at in 0usize..300, byte: u8, cut in 0usize..300) {
            let mut text = [CERT, PKCS8, SEC1, OTHER].concat().into_bytes();
            if let Some(b) = text.get_mut(at) { *b = byte; }
            text.truncate(text.len() - cut.min(text.len()));
            agrees(&text);
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            agrees(&bytes);
        }
    }
}
