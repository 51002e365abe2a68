//! A tunnel that reads and writes like a socket.
