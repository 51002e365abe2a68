//! HTTP/1: head end, routing data and body framing. Parsers borrow the bytes they describe and
//! change none.

pub mod body;
pub mod h2c;
pub mod head;
