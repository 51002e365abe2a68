//! HTTP/1: where a head ends and what routing needs of it, how the body is framed. Parsers borrow
//! the bytes they describe and change none.

pub mod body;
pub mod head;
