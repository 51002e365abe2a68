//! Messages as real programs write them.

#![allow(dead_code, unreachable_pub)]

/// A request of curl.
pub const CURL: &[u8] =
    b"GET /api/items?page=3 HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";

/// A request of a browser: about 900 bytes in 16 lines.
pub const BROWSER: &[u8] = b"GET /catalogue/items?page=4&sort=name HTTP/1.1\r\n\
Host: shop.test\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
Accept-Language: en-US,en;q=0.5\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Referer: https://shop.test/catalogue?page=3&sort=name\r\n\
Connection: keep-alive\r\n\
Cookie: sid=9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c9f3c; theme=dark; consent=yes\r\n\
Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9eyJzdWIiOiIxMjM0NTY3ODkwIn0eyJhbGciOiJIUzI1NiJ9abcdefgh\r\n\
Upgrade-Insecure-Requests: 1\r\n\
Sec-Fetch-Dest: document\r\n\
Sec-Fetch-Mode: navigate\r\n\
Sec-Fetch-Site: same-origin\r\n\
X-Request-Id: 0af7651916cd43dd8448eb211c80319c\r\n\
X-Dev: nobody\r\n\r\n";

/// A request of a gRPC gateway to its service.
pub const GATEWAY: &[u8] = b"POST /v1/orders:place HTTP/1.1\r\n\
Host: orders.shop.svc.cluster.local:8080\r\n\
User-Agent: grpc-gateway/2.19 Go-http-client/1.1\r\n\
Content-Type: application/json\r\n\
Content-Length: 312\r\n\
Grpc-Metadata-Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9\r\n\
Grpc-Metadata-Tenant: 4711\r\n\
Grpc-Timeout: 5S\r\n\
Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
X-Forwarded-For: 10.1.2.3\r\n\
X-Forwarded-Host: shop.test\r\n\
Accept-Encoding: gzip\r\n\r\n";

/// A usual response head.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
Content-Type: application/json\r\nContent-Length: 100\r\nConnection: keep-alive\r\nX-Backend: a\r\n\r\n";

/// A head of 8 KiB, most of it cookies.
pub fn large() -> Vec<u8> {
    let mut head = b"GET / HTTP/1.1\r\nHost: shop.test\r\n".to_vec();
    let mut n = 0;
    while head.len() < 8 * 1024 - 2 {
        head.extend_from_slice(format!("Cookie: key{n}={}\r\n", "v".repeat(180)).as_bytes());
        n += 1;
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// A body of 64 KiB in chunks of 4 KiB.
pub fn chunked() -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..16 {
        body.extend_from_slice(b"1000;note=x\r\n");
        body.extend_from_slice(&[b'x'; 4096]);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\nChecksum: 1\r\n\r\n");
    body
}
