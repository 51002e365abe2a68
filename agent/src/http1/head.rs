//! Bytes to where the head ends, what routing needs, and how the body ends.
