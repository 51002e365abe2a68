//! Byte movers: listening sockets, connections, their buffers, the relay loop with its `splice(2)`
//! path, and the reserve of file descriptors.

pub mod buffers;
pub mod conn;
pub mod eager;
pub mod fd_reserve;
mod late_reset;
pub mod listen;
pub mod relay;
pub mod splice;
