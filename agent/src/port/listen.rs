//! Binds with socket options; accepts into a connection and its caller.
