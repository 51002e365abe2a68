//! Environment and mounts, as the original serves them.
