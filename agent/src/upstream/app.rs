//! Dials the app so that our own redirect does not catch us; TLS where a secret says so.
