//! The token by which a traffic-manager knows an agent: of the pod's service account, bound to the
//! pod, and for the traffic-manager alone.

/// Directory where it is mounted into the agent.
pub const DIRECTORY: &str = "/var/run/secrets/traffic-manager";
/// Name of its file.
pub const FILE: &str = "token";
/// Audience it is made for.
pub const AUDIENCE: &str = "traffic-manager";
/// Metadata in which a manager tells that it asks for proofs, and whether it insists: `permissive` or
/// `enforcing`.
pub const MODE: &str = "x-traffic-manager-authentication";
