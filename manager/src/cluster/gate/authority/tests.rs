use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;

use super::*;

/// An authority of a test.
struct Signing {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Signing {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = name(&[(DnType::CommonName, "kubernetes")]);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Signing {
        pem: certificate.pem(),
        issuer: Issuer::new(params, key),
    }
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, text) in parts {
        name.push(kind.clone(), *text);
    }
    name
}

/// Parameters of Jane's certificate.
fn jane() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&[
        (DnType::CommonName, "jane"),
        (DnType::OrganizationName, "team:shop"),
    ]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A certificate with its key, which makes proofs.
struct Holder {
    chain: Vec<Vec<u8>>,
    key: KeyPair,
}

impl Holder {
    fn new(by: &Signing, params: &CertificateParams, key: KeyPair) -> Self {
        let certificate = params.signed_by(&key, &by.issuer).unwrap();
        Self {
            chain: vec![certificate.der().to_vec()],
            key,
        }
    }

    fn proof(&self, time: u64) -> CertificateProof {
        let der = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let key = default_provider()
            .key_provider
            .load_private_key(der)
            .unwrap();
        let schemes = [
            SignatureScheme::ED25519,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::RSA_PSS_SHA256,
        ];
        let signer = key.choose_scheme(&schemes).unwrap();
        CertificateProof {
            time,
            scheme: signer.scheme().into(),
            signature: signer.sign(&signed(time)).unwrap(),
            chain: self.chain.clone(),
        }
    }
}

#[test]
fn a_certificate_of_the_cluster_names_user_and_groups_with_each_kind_of_key() {
    let by = authority();
    let anchors = anchors(&by.pem).unwrap();
    for kind in [
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let key = KeyPair::generate_for(kind).unwrap();
        let proof = Holder::new(&by, &jane(), key).proof(now_unix());
        let identity = verified(&proof, &anchors, now_unix()).unwrap();
        assert_eq!(identity.user, "jane");
        assert_eq!(identity.groups, ["team:shop", AUTHENTICATED]);
        assert!(!identity.is_agent && identity.pod().is_none());
    }
}

#[test]
fn whatever_else_is_brought_proves_nothing_and_is_told_why() {
    let (by, other) = (authority(), authority());
    let trusted = anchors(&by.pem).unwrap();
    let time = now_unix();
    let holder = |by: &Signing, params: &CertificateParams| {
        Holder::new(by, params, KeyPair::generate().unwrap())
    };
    let good = holder(&by, &jane()).proof(time);
    let changed = |change: &dyn Fn(&mut CertificateProof)| {
        let mut proof = good.clone();
        change(&mut proof);
        proof
    };
    let params = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = jane();
        change(&mut params);
        holder(&by, &params).proof(time)
    };
    let expired = params(&|it| it.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = params(&|it| it.not_before = rcgen::date_time_ymd(4000, 1, 1));
    let server = params(&|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let nameless = params(&|it| it.distinguished_name = name(&[(DnType::OrganizationName, "x")]));
    let empty = params(&|it| it.distinguished_name = name(&[(DnType::CommonName, "")]));
    let stolen = changed(&|it| it.chain = holder(&by, &jane()).chain);
    for (what, proof, said) in [
        (
            "of another authority",
            holder(&other, &jane()).proof(time),
            "does not vouch",
        ),
        ("expired", expired, "does not vouch"),
        ("not yet good", early, "does not vouch"),
        ("for servers", server, "does not vouch"),
        ("without a user", nameless, "no common name"),
        ("with an empty user", empty, "no common name"),
        ("somebody's certificate", stolen, "not by its key"),
        (
            "one bit off",
            changed(&|it| it.signature[9] ^= 1),
            "not by its key",
        ),
        (
            "no signature",
            changed(&|it| it.signature.clear()),
            "not by its key",
        ),
        (
            "another scheme",
            changed(&|it| it.scheme = 0x0807),
            "not by its key",
        ),
        (
            "unknown scheme",
            changed(&|it| it.scheme = 1),
            "not by its key",
        ),
        (
            "of another time",
            changed(&|it| it.time += 1),
            "not by its key",
        ),
        (
            "an old one",
            holder(&by, &jane()).proof(time - 400),
            "off the manager's time",
        ),
        (
            "of the future",
            holder(&by, &jane()).proof(time + 400),
            "off the manager's time",
        ),
        ("no certificate", changed(&|it| it.chain.clear()), "missing"),
        (
            "half a certificate",
            changed(&|it| it.chain[0].truncate(100)),
            "cannot be read",
        ),
        (
            "garbage",
            changed(&|it| it.chain[0] = vec![7; 300]),
            "cannot be read",
        ),
    ] {
        let why = verified(&proof, &trusted, time).unwrap_err();
        assert!(why.contains(said), "{what}: {why}");
    }
    assert!(verified(&good, &trusted, time).is_ok());
}

#[test]
fn an_intermediate_authority_may_stand_between() {
    let root = authority();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = name(&[(DnType::CommonName, "team")]);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &root.issuer).unwrap();
    let between = Signing {
        pem: certificate.pem(),
        issuer: Issuer::new(params, key),
    };
    let trusted = anchors(&root.pem).unwrap();
    let mut holder = Holder::new(&between, &jane(), KeyPair::generate().unwrap());
    assert!(verified(&holder.proof(now_unix()), &trusted, now_unix()).is_err());
    holder.chain.push(certificate.der().to_vec());
    let identity = verified(&holder.proof(now_unix()), &trusted, now_unix()).unwrap();
    assert_eq!(identity.user, "jane");
}

#[test]
fn a_config_map_without_an_authority_says_so() {
    let (one, other) = (authority(), authority());
    assert_eq!(
        anchors(&format!("{}{}", one.pem, other.pem)).unwrap().len(),
        2
    );
    for (text, said) in [
        ("", "takes no client certificates"),
        ("x", "takes no client certificates"),
    ] {
        let why = anchors(text).unwrap_err();
        assert!(why.contains(said), "{why}");
    }
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let why = anchors(broken).unwrap_err();
    assert!(
        why.contains("client-ca-file of ConfigMap kube-system/"),
        "{why}"
    );
}
