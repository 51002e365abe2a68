//! Loads a mounted Secret: a certificate with its key, and the CA beside it, or one message naming
//! the secret, the file, the problem and the remedy. No message ever contains a part of a private
//! key.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};

use crate::tls::secrets::pem;
use crate::tls::secrets::pem::Damage;

/// Maximum file size; etcd limits a whole Secret to 1 MiB.
const MAX_FILE: u64 = 1 << 20;

/// A Secret as an annotation names it, with its possible mount directories.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretSource {
    /// The annotation, including its port suffix.
    pub annotation: String,
    /// The annotation's value: the Secret's name, or a directory.
    pub value: String,
    /// Directories to look in; the first with a file of a known layout is used.
    pub dirs: Vec<PathBuf>,
}

/// Parts of a Secret that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    /// A certificate and its key; a CA if there is one.
    Pair,
    /// CA only.
    Ca,
}

/// Contents of a valid Secret.
#[derive(Debug)]
pub struct LoadedSecret {
    /// The chain and its key; always present for [`Want::Pair`].
    pub pair: Option<CertifiedPair>,
    /// The CA beside it.
    pub ca: Option<Ca>,
}

/// A certificate chain with its private key. Its `Debug` does not show the key.
#[derive(Debug)]
pub struct CertifiedPair {
    /// Chain and key for rustls.
    pub certified: Arc<CertifiedKey>,
    /// Facts of the first certificate, for messages and metrics.
    pub facts: Facts,
}

/// Facts of a certificate for messages and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Subject as text.
    pub subject: String,
    /// DNS names of the subject alternative name, in lower case.
    pub dns_names: Vec<String>,
    /// Serial number in hexadecimal with colons.
    pub serial: String,
    /// Seconds since 1970 at which validity begins.
    pub not_before: i64,
    /// Seconds since 1970 at which validity ends.
    pub not_after: i64,
}

/// CA certificates.
#[derive(Debug)]
pub struct Ca {
    /// Trust anchors.
    pub roots: Arc<RootCertStore>,
    /// The same certificates byte for byte: a peer that presents exactly one of these is trusted as
    /// pinned.
    pub pinned: Vec<CertificateDer<'static>>,
}

/// A Secret that cannot be used: one line naming it, the file, the problem and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    source: String,
    file: PathBuf,
    problem: Problem,
}

impl Fault {
    /// Returns the problem.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {}; {}",
            self.source,
            self.file.display(),
            self.problem,
            self.problem.remedy()
        )
    }
}

impl std::error::Error for Fault {}

/// Problem of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The directory is not there.
    #[error("no such directory")]
    NoDirectory,
    /// The directory has none of the known files.
    #[error(
        "the directory has none of tls.crt, tls.key, cert-chain.pem, key.pem, ca.crt, \
        root-cert.pem"
    )]
    EmptyDirectory,
    /// A needed file is not there.
    #[error("the file is missing")]
    Missing,
    /// The file is there but cannot be read.
    #[error("cannot be read ({0})")]
    Unreadable(String),
    /// The path is not a file, or the file is far too large.
    #[error("is not a file of at most 1 MiB")]
    NotAFile,
    /// The file is empty.
    #[error("is empty")]
    Empty,
    /// PEM syntax error.
    #[error("is damaged: {0}")]
    Damaged(Damage),
    /// PEM section of a known kind missing.
    #[error("holds no PEM section")]
    NoPem,
    /// A key in place of certificates.
    #[error("holds a private key instead of certificates")]
    KeyForCertificate,
    /// Certificates in place of the key.
    #[error("holds certificates instead of a private key")]
    CertificateForKey,
    /// A key protected by a pass phrase.
    #[error("the private key is encrypted")]
    EncryptedKey,
    /// PEM that is not a key usable for TLS signatures.
    #[error("the private key is of a kind TLS cannot use, or damaged")]
    UnusableKey,
    /// A certificate that is not X.509.
    #[error("certificate {0} is not valid X.509")]
    BadCertificate(usize),
    /// X.509 version 1 or 2.
    #[error("the certificate is of X.509 version 1 or 2, which TLS libraries refuse")]
    OldVersion,
    /// The validity has not begun.
    #[error("the certificate is not valid before {0}")]
    NotYetValid(String),
    /// The validity is over.
    #[error("the certificate expired on {0}")]
    Expired(String),
    /// Key and certificate do not match.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// The key belongs to a later certificate of the chain.
    #[error("the private key belongs to certificate {0} of the chain, not to the first")]
    LeafNotFirst(usize),
}

impl Problem {
    /// Returns the remedy.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoDirectory => {
                "check that the Secret exists in the pod's namespace, and restart the workload so \
                that it is mounted"
            }
            Self::EmptyDirectory | Self::Missing => {
                "give the Secret tls.crt and tls.key (kubernetes.io/tls) or cert-chain.pem and \
                key.pem (istio.io/key-and-cert); a CA is ca.crt or root-cert.pem"
            }
            Self::Unreadable(_) => {
                "let the agent's user read it (the volume's defaultMode, or fsGroup)"
            }
            Self::NotAFile => "mount the Secret's files themselves",
            Self::Empty | Self::Damaged(_) | Self::NoPem => {
                "store the whole PEM text in the Secret"
            }
            Self::KeyForCertificate | Self::CertificateForKey => {
                "swap the two entries of the Secret"
            }
            Self::EncryptedKey => {
                "store the key without a pass phrase (openssl pkey -in KEY -out PLAIN)"
            }
            Self::UnusableKey => {
                "use an RSA key of at least 2048 bits, ECDSA on P-256, P-384 or P-521, or Ed25519"
            }
            Self::BadCertificate(_) => "issue the certificate again",
            Self::OldVersion => "issue a version 3 certificate with subject alternative names",
            Self::NotYetValid(_) => "wait, or correct the clocks of the issuer and this node",
            Self::Expired(_) => "renew the certificate",
            Self::Mismatch => "store the key the certificate was issued for",
            Self::LeafNotFirst(_) => {
                "put the server's own certificate first, then the intermediates"
            }
        }
    }
}

/// Layouts a Secret may have, the usual one first: certificate, key, CA.
const LAYOUTS: [[&str; 3]; 2] = [
    ["tls.crt", "tls.key", "ca.crt"],
    ["cert-chain.pem", "key.pem", "root-cert.pem"],
];

/// Iterates over all file names whose changes matter.
pub fn file_names() -> impl Iterator<Item = &'static str> {
    LAYOUTS.into_iter().flatten()
}

/// Loads a Secret; `now` is in seconds since 1970.
///
/// # Errors
/// The first fault found.
pub fn load(source: &SecretSource, want: Want, now: i64) -> Result<LoadedSecret, Fault> {
    let fail = |file: &Path, problem| Fault {
        source: source.to_string(),
        file: file.to_owned(),
        problem,
    };
    let (dir, files) = locate(source).map_err(|(dir, problem)| fail(&dir, problem))?;
    let pair = match want {
        Want::Ca => None,
        Want::Pair => Some(
            load_pair(&dir, &files, now)
                .map_err(|(file, problem)| fail(&dir.join(file), problem))?,
        ),
    };
    let ca = load_ca(&dir, &files).map_err(|(file, problem)| fail(&dir.join(file), problem))?;
    // A missing CA is normal beside a pair, but not if the CA is all that is wanted.
    if want == Want::Ca && ca.is_none() {
        return Err(fail(&dir.join(files[2]), Problem::Missing));
    }
    Ok(LoadedSecret { pair, ca })
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "secret {:?} (annotation {})",
            self.value, self.annotation
        )
    }
}

/// Finds the directory and its layout; a CA under the other layout's name is found too.
fn locate(source: &SecretSource) -> Result<(PathBuf, [&'static str; 3]), (PathBuf, Problem)> {
    let mut empty = None;
    for dir in &source.dirs {
        // Not following links: a dangling link still shows the layout, and the fault then names the
        // file.
        let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
        if let Some(layout) = LAYOUTS
            .into_iter()
            .find(|[crt, key, ca]| has(crt) || has(key) || has(ca))
        {
            // Tools mix layouts, such as tls.crt beside root-cert.pem.
            let ca = LAYOUTS
                .into_iter()
                .map(|[_, _, ca]| ca)
                .find(|ca| has(ca))
                .unwrap_or(layout[2]);
            return Ok((dir.clone(), [layout[0], layout[1], ca]));
        }
        if let Err(error) = std::fs::read_dir(dir) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err((dir.clone(), Problem::Unreadable(error.kind().to_string())));
            }
        } else {
            empty.get_or_insert_with(|| dir.clone());
        }
    }
    Err(match (empty, source.dirs.last()) {
        (Some(dir), _) => (dir, Problem::EmptyDirectory),
        (None, last) => (last.cloned().unwrap_or_default(), Problem::NoDirectory),
    })
}

type InFile<T> = Result<T, (&'static str, Problem)>;

fn load_pair(dir: &Path, files: &[&'static str; 3], now: i64) -> InFile<CertifiedPair> {
    let [crt, key, _] = *files;
    let chain = sections(dir, crt)?;
    let secret = sections(dir, key)?;
    // Tells apart swapped files from files without PEM, since the remedies differ.
    if chain.certificates.is_empty() {
        let other = if chain.key.is_some() || chain.encrypted {
            Problem::KeyForCertificate
        } else {
            Problem::NoPem
        };
        return Err((crt, other));
    }
    let private = match secret.key {
        Some(private) => private,
        None if secret.encrypted => return Err((key, Problem::EncryptedKey)),
        None if secret.certificates.is_empty() => return Err((key, Problem::NoPem)),
        None => return Err((key, Problem::CertificateForKey)),
    };
    let facts = check_chain(&chain.certificates, now).map_err(|problem| (crt, problem))?;
    let provider = crate::tls::alpn::provider();
    let signer = provider
        .key_provider
        .load_private_key(private)
        .map_err(|_| (key, Problem::UnusableKey))?;
    let certified = CertifiedKey::new(chain.certificates, signer);
    match certified.keys_match() {
        // Keys of this provider know their public half; one that does not can still sign.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(CertifiedPair {
                certified: Arc::new(certified),
                facts,
            })
        }
        Err(rustls::Error::InconsistentKeys(_)) => Err(match position_of_leaf(&certified) {
            Some(position) => (crt, Problem::LeafNotFirst(position)),
            None => (key, Problem::Mismatch),
        }),
        Err(_) => Err((crt, Problem::BadCertificate(1))),
    }
}

fn load_ca(dir: &Path, files: &[&'static str; 3]) -> InFile<Option<Ca>> {
    let file = files[2];
    let found = match sections(dir, file) {
        Ok(found) => found,
        Err((_, Problem::Missing)) => return Ok(None),
        // cert-manager leaves ca.crt empty when the issuer has no CA to show.
        Err((_, Problem::Empty)) => return Ok(None),
        Err(fault) => return Err(fault),
    };
    if found.certificates.is_empty() {
        let key = found.key.is_some() || found.encrypted;
        return Err((
            file,
            if key {
                Problem::KeyForCertificate
            } else {
                Problem::NoPem
            },
        ));
    }
    let mut roots = RootCertStore::empty();
    for (i, der) in found.certificates.iter().enumerate() {
        roots
            // Rejects what rustls could not use later, during a handshake.
            .add(der.clone())
            .map_err(|_| (file, Problem::BadCertificate(i + 1)))?;
    }
    Ok(Some(Ca {
        roots: Arc::new(roots),
        pinned: found.certificates,
    }))
}

fn sections(dir: &Path, name: &'static str) -> InFile<pem::Sections> {
    let text = read_file(&dir.join(name)).map_err(|problem| (name, problem))?;
    if text.is_empty() {
        return Err((name, Problem::Empty));
    }
    pem::read(&text).map_err(|damage| (name, Problem::Damaged(damage)))
}

/// Reads a whole file of bounded size; never blocks on a pipe in its place.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Problem> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Problem::Missing,
        kind => Problem::Unreadable(kind.to_string()),
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    // Checked before opening, because opening a pipe would block.
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(Problem::NotAFile);
    }
    let mut text = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
    File::open(path)
        .map_err(failed)?
        // The file may grow between the check and the read.
        .take(MAX_FILE)
        .read_to_end(&mut text)
        .map_err(failed)?;
    Ok(text)
}

fn check_chain(chain: &[CertificateDer<'_>], now: i64) -> Result<Facts, Problem> {
    let mut facts = None;
    for (i, der) in chain.iter().enumerate() {
        // Intermediates are parsed too, so that a damaged chain is found now and not by callers.
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| Problem::BadCertificate(i + 1))?;
        if i == 0 {
            facts = Some(check_leaf(&certificate, now)?);
        }
    }
    facts.ok_or(Problem::NoPem)
}

fn check_leaf(certificate: &X509Certificate<'_>, now: i64) -> Result<Facts, Problem> {
    // rustls refuses versions 1 and 2 with a message that names no file.
    if certificate.version() != X509Version::V3 {
        return Err(Problem::OldVersion);
    }
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        return Err(Problem::NotYetValid(validity.not_before.to_string()));
    }
    if now > validity.not_after.timestamp() {
        return Err(Problem::Expired(validity.not_after.to_string()));
    }
    Ok(facts(certificate))
}

fn facts(certificate: &X509Certificate<'_>) -> Facts {
    let names = certificate.subject_alternative_name().ok().flatten();
    let dns = names
        .iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
    Facts {
        subject: certificate.subject().to_string(),
        dns_names: dns.collect(),
        serial: certificate.raw_serial_as_string(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    }
}

fn position_of_leaf(certified: &CertifiedKey) -> Option<usize> {
    // Some tools write the chain root first.
    let position = (1..certified.cert.len()).find(|i| {
        let rest = certified.cert.get(*i..).unwrap_or_default().to_vec();
        CertifiedKey::new(rest, Arc::clone(&certified.key))
            .keys_match()
            .is_ok()
    })?;
    Some(position + 1)
}
