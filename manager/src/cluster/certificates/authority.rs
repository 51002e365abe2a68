//! A new authority and one certificate of it. The authority's key is forgotten at once: nobody can
//! make a second certificate that the API server would believe.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A certificate with its authority, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) authority: String,
}

/// The clocks of API server and manager may differ by so much.
const CLOCK_GRACE: Duration = Duration::from_secs(60);

/// Makes a certificate for names.
pub(crate) fn make(names: &[String], life: Duration) -> Result<Made, String> {
    let failed = |error: rcgen::Error| format!("cannot make a certificate: {error}");
    let authority_key = KeyPair::generate().map_err(failed)?;
    let mut authority = CertificateParams::new(Vec::new()).map_err(failed)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority
        .distinguished_name
        .push(DnType::CommonName, "agent-injector-ca");
    limit(&mut authority, life);
    let authority_certificate = authority.self_signed(&authority_key).map_err(failed)?;
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate().map_err(failed)?;
    let mut leaf = CertificateParams::new(names.to_vec()).map_err(failed)?;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if let Some(name) = names.first() {
        leaf.distinguished_name.push(DnType::CommonName, name);
    }
    limit(&mut leaf, life);
    let certificate = leaf.signed_by(&key, &issuer).map_err(failed)?;
    Ok(Made {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        authority: authority_certificate.pem(),
    })
}

fn limit(parameters: &mut CertificateParams, life: Duration) {
    let now = std::time::SystemTime::now();
    parameters.not_before = (now - CLOCK_GRACE).into();
    parameters.not_after = (now + life).into();
}
