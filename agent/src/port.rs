//! START HERE: one listening port, its accept loop, then one connection from end to end.

pub mod listen;
