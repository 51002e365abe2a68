//! Certificates for the tests, and Secrets as Kubernetes lays them out on disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

static SERIAL: AtomicU64 = AtomicU64::new(0x1000);

pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

#[derive(Clone)]
pub struct Issued {
    pub chain: String,
    pub key: String,
    pub serial: u64,
}

impl Default for Ca {
    fn default() -> Self {
        Self::named("Test CA")
    }
}

impl Ca {
    pub fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |_| {})
    }

    pub fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        self.issue_for(KeyPair::generate().unwrap(), names, change)
    }

    pub fn issue_for(
        &self,
        key: KeyPair,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let (mut params, serial) = leaf(names);
        change(&mut params);
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued {
            chain,
            key: key.serialize_pem(),
            serial,
        }
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        roots
    }
}

fn leaf(names: &[&str]) -> (CertificateParams, u64) {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial.into());
    params
        .distinguished_name
        .push(DnType::CommonName, *names.first().unwrap_or(&"nobody"));
    params.subject_alt_names = names
        .iter()
        .map(|n| SanType::DnsName((*n).try_into().unwrap()))
        .collect();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    (params, serial)
}

/// A certificate that vouches for itself, marked as a CA as many home-made ones are.
pub fn self_signed_ca_leaf(name: &str) -> Issued {
    let (mut params, serial) = leaf(&[name]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    Issued {
        chain: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
        serial,
    }
}

impl Issued {
    pub fn chain_der(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.chain.as_bytes())
            .map(Result::unwrap)
            .collect()
    }

    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// Writes a Secret of type kubernetes.io/tls.
pub fn write_secret(dir: &Path, issued: &Issued, ca: Option<&str>) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("tls.crt"), &issued.chain).unwrap();
    fs::write(dir.join("tls.key"), &issued.key).unwrap();
    if let Some(ca) = ca {
        fs::write(dir.join("ca.crt"), ca).unwrap();
    }
}

/// A mounted Secret that is updated as the kubelet does it: a new directory, then one rename of a
/// symlink.
pub struct Projected {
    pub dir: PathBuf,
    generation: u32,
}

impl Projected {
    pub fn new(dir: &Path, issued: &Issued, ca: Option<&str>) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut projected = Self {
            dir: dir.to_owned(),
            generation: 0,
        };
        projected.update(|new| write_secret(new, issued, ca));
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), dir.join(name)).unwrap();
        }
        projected
    }

    pub fn update(&mut self, write: impl FnOnce(&Path)) {
        let old = self.dir.join(format!("..{}", self.generation));
        self.generation += 1;
        let name = format!("..{}", self.generation);
        let new = self.dir.join(&name);
        fs::create_dir(&new).unwrap();
        write(&new);
        let link = self.dir.join("..data_tmp");
        symlink(&name, &link).unwrap();
        fs::rename(&link, self.dir.join("..data")).unwrap();
        let _ = fs::remove_dir_all(old);
    }
}

/// A client configuration that trusts `ca`.
pub fn client(ca: &Ca, alpn: &[&[u8]], certificate: Option<&Issued>) -> Arc<rustls::ClientConfig> {
    let builder = rustls::ClientConfig::builder_with_provider(traffic_agent::tls::alpn::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(ca.roots());
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(issued) => builder
            .with_client_auth_cert(issued.chain_der(), issued.key_der())
            .unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}
