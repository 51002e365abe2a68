//! The exchange loop of one HTTP/1 connection.

pub mod body;
pub mod head;
