//! A connection nobody needs to read.
