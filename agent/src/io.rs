//! Byte movers: listening sockets, connections, their buffers, the relay loop with its `splice(2)`
//! path, the reserve of file descriptors, and the files the agent leaves for others.

pub mod buffers;
pub mod close;
pub mod conn;
pub mod eager;
pub mod fd_reserve;
pub(crate) mod late_reset;
pub mod listen;
pub mod relay;
mod socket_queues;
pub mod splice;
pub mod state_file;
