//! Terminated HTTP/2: stream by stream, with trailers, resets and windows.
