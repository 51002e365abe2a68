//! Names of the annotations that belong to a port.

/// Setting of a port that an annotation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AnnotationKey {
    DownstreamSecret,
    DownstreamPath,
    UpstreamSecret,
    UpstreamPath,
    SkipVerify,
    ProbeTimeout,
    ServerName,
    CallerCaSecret,
    CallerCaPath,
    CallerAuth,
    IdentityHeader,
}

impl AnnotationKey {
    /// All spellings; the usual one comes first for each key.
    pub(super) const SPELLINGS: [(&str, Self); 15] = [
        ("downstream-tls-secret", Self::DownstreamSecret),
        ("downstream-tls-path", Self::DownstreamPath),
        ("upstream-tls-secret", Self::UpstreamSecret),
        ("upstream-tls-path", Self::UpstreamPath),
        ("downstream-cert-secret", Self::DownstreamSecret),
        ("downstream-cert-path", Self::DownstreamPath),
        ("upstream-cert-secret", Self::UpstreamSecret),
        ("upstream-cert-path", Self::UpstreamPath),
        ("upstream-insecure-skip-verify", Self::SkipVerify),
        ("upstream-probe-timeout", Self::ProbeTimeout),
        ("upstream-server-name", Self::ServerName),
        ("downstream-client-ca-secret", Self::CallerCaSecret),
        ("downstream-client-ca-path", Self::CallerCaPath),
        ("downstream-client-auth", Self::CallerAuth),
        ("forwarded-identity-header", Self::IdentityHeader),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::SPELLINGS
            .iter()
            .find(|(_, key)| *key == self)
            .map_or("", |(name, _)| name)
    }
}
