//! Variables that other managers know and this one does not need.

use crate::cluster::env::reader::Reader;

/// Variables of other managers that have no effect here, with the reason; the last word of each row
/// is the value that asks for nothing.
const IGNORED: [(&str, &str, &str); 15] = [
    (
        "AUTH_X509_PORT",
        "client certificates come with the calls of our client: there is no port for them",
        "0",
    ),
    (
        "AUTHORIZATION_GATE",
        "rights are those on resources of group telepresence.io",
        "telepresence",
    ),
    (
        "AGENT_INJECTOR_MUTATION_AWARE",
        "pods are compared by what we put in, always",
        "true",
    ),
    (
        "AGENT_MESH_DIAL_SUBNETS",
        "the agent's own connections leave the mesh alone by its group",
        "",
    ),
    (
        "INTERCEPT_INACTIVE_BLOCK_TIMEOUT",
        "a silent workstation is skipped at once",
        "",
    ),
    (
        "MAX_NAMESPACE_SPECIFIC_WATCHERS",
        "one watch for each namespace, or one for all",
        "",
    ),
    (
        "LOG_STREAM_CHUNK_SIZE",
        "logs are not streamed: kubectl logs",
        "",
    ),
    (
        "LOG_STREAM_POD_CONCURRENCY",
        "logs are not streamed: kubectl logs",
        "",
    ),
    (
        "LOG_STREAM_POD_BYTE_LIMIT",
        "logs are not streamed: kubectl logs",
        "",
    ),
    (
        "LOG_STREAM_DEADLINE",
        "logs are not streamed: kubectl logs",
        "",
    ),
    ("TUNNEL_QUIC_PORT", "tunnels are gRPC streams", "0"),
    ("TUNNEL_QUIC_ENABLED", "tunnels are gRPC streams", "false"),
    ("NODE_AGENT_ENABLED", "agents are put into pods", "false"),
    ("NODE_AGENT_CRI_SOCKET", "agents are put into pods", ""),
    ("USAGE_ENABLED", "nothing is ever reported", "false"),
];

impl Reader<'_> {
    /// Variables that are set and mean nothing here.
    pub(super) fn ignored(&mut self) -> Vec<String> {
        let rows = IGNORED.iter();
        rows.filter_map(|(name, reason, nothing)| {
            let value = self.text(name).filter(|it| it != nothing)?;
            Some(format!("{name}={value} has no effect: {reason}"))
        })
        .collect()
    }
}
