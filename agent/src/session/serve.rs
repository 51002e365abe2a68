//! The agent's own gRPC service: Tunnel, WatchDial, Version, Lookup.
