//! Bytes to a verdict: HTTP/2 preface, HTTP/1 line, TLS record, neither, or need more.
