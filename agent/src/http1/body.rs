//! Follows a body by length, chunks or close, rewriting nothing.
