//! Sidecar config and environment to what each part needs; every fault reported at once.
