//! The kernel's shortcut between two sockets.
