//! Follows the 9-byte frame headers, to know where a GOAWAY may be put.
