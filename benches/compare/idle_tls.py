#!/usr/bin/env python3
"""Opens TLS connections to a local port, one request each, and holds them: idle_tls.py PORT N"""
import signal
import socket
import ssl
import sys

port, wanted = int(sys.argv[1]), int(sys.argv[2])
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
held = []
for _ in range(wanted):
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="app.test")
    connection.sendall(b"GET /small HTTP/1.1\r\nHost: app.test\r\n\r\n")
    seen = b""
    while not seen.endswith(b"x" * 100):
        chunk = connection.recv(4096)
        if not chunk:
            sys.exit("closed")
        seen += chunk
    held.append(connection)
print(f'{{"units": {wanted}}}', flush=True)
signal.pause()
