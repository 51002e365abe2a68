"""The proxies that are compared, each with the same job: `x-dev: a` to the second application, all else to the first;
TLS 1.3 ended at the proxy; h2c on both sides; plain TCP. Pooled upstream connections, no access log, one thread."""
import json
import os
import pathlib
import shutil

PORTS = dict(a_http=18101, a_http_tls=18103, b_http=18102, a_h2=18111, b_h2=18112, sink=18121,
             http=19101, tls=19102, h2c=19103, tcp=19104, manager=18181, agent_api=18191, admin=18192)

HAPROXY = """
global
    nbthread 1
    maxconn 6000
    {more}
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
defaults
    mode http
    timeout connect 2s
    timeout client 120s
    timeout server 120s
    http-reuse always
    maxconn 6000
frontend http
    bind 127.0.0.1:{http}
    use_backend b_http if {{ req.hdr(x-dev) -m str a }}
    default_backend a_http
frontend tls
    bind 127.0.0.1:{tls} ssl crt {pem} ssl-min-ver TLSv1.3
    use_backend b_http if {{ req.hdr(x-dev) -m str a }}
    default_backend a_http
frontend h2c
    bind 127.0.0.1:{h2c} proto h2
    use_backend b_h2 if {{ req.hdr(x-dev) -m str a }}
    default_backend a_h2
frontend tcp
    mode tcp
    {splice}
    bind 127.0.0.1:{tcp}
    default_backend tcp
backend a_http
    server s 127.0.0.1:{a_http}
backend b_http
    server s 127.0.0.1:{b_http}
backend a_h2
    server s 127.0.0.1:{a_h2} proto h2
backend b_h2
    server s 127.0.0.1:{b_h2} proto h2
backend tcp
    mode tcp
    {splice}
    server s 127.0.0.1:{sink}
"""

# What makes nginx keep connections to the app for whichever caller comes next.
POOL = " keepalive 256; keepalive_requests 1000000000;"

NGINX = """
daemon off;
worker_processes 1;
pid {run}/nginx.pid;
error_log {run}/nginx.err;
events {{ worker_connections 9000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_request_buffering off;
    {temp}
    upstream a {{ server 127.0.0.1:{a_http}; keepalive 256; keepalive_requests 1000000000; }}
    upstream b {{ server 127.0.0.1:{b_http}; keepalive 256; keepalive_requests 1000000000; }}
    upstream ga {{ server 127.0.0.1:{a_h2}; keepalive 256; keepalive_requests 1000000000; }}
    upstream gb {{ server 127.0.0.1:{b_h2}; keepalive 256; keepalive_requests 1000000000; }}
    map $http_x_dev $to {{ default a; a b; }}
    map $http_x_dev $gto {{ default ga; a gb; }}
    server {{
        listen 127.0.0.1:{http};
        listen 127.0.0.1:{tls} ssl;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_session_tickets off;
        location / {{ proxy_pass http://$to; }}
    }}
    server {{
        listen 127.0.0.1:{h2c} http2;
        location / {{ grpc_pass grpc://$gto; }}
    }}
}}
stream {{
    server {{ listen 127.0.0.1:{tcp}; proxy_pass 127.0.0.1:{sink}; }}
}}
"""

ORIGIN = """
daemon off;
user root;
worker_processes 1;
pid {run}/origin-{name}.pid;
error_log {run}/origin.err;
events {{ worker_connections 9000; }}
http {{
    access_log off;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    {temp}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {also}
        root {www};
        location = /small {{ return 200 "{small}"; }}
        # Reads the whole body before it answers, as an application would.
        location = /post {{
            client_body_buffer_size 2m;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_pass http://127.0.0.1:{port}/small;
        }}
    }}
}}
"""


def temp_paths(run, name):
    return " ".join(f"{kind}_temp_path {run}/{name}-{kind};"
                    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


def stream_module():
    for folder in ("/usr/lib/nginx/modules", "/usr/share/nginx/modules"):
        module = pathlib.Path(folder) / "ngx_stream_module.so"
        if module.exists():
            return f"load_module {module};\n"
    return ""


def envoy_config(p, tls):
    """Envoy with its usual HTTP filters cut down to the router."""
    def address(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def cluster(name, port, h2=False):
        c = {"name": name, "type": "STATIC", "connect_timeout": "2s",
             "load_assignment": {"cluster_name": name,
                                 "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]},
             "circuit_breakers": {"thresholds": [{"max_connections": 60000, "max_pending_requests": 60000,
                                                  "max_requests": 60000}]}}
        if h2:
            c["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}}
        return c

    def http(a, b, codec):
        match = {"prefix": "/", "headers": [{"name": "x-dev", "string_match": {"exact": "a"}}]}
        return {"name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "s", "codec_type": codec, "generate_request_id": False,
            "server_header_transformation": "PASS_THROUGH",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": match, "route": {"cluster": b, "timeout": "0s"}},
                {"match": {"prefix": "/"}, "route": {"cluster": a, "timeout": "0s"}}]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                "suppress_envoy_headers": True, "dynamic_stats": False}}]}}

    def listener(name, port, chain):
        return {"name": name, "address": address(port), "filter_chains": [chain]}

    secure = {"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": {"filename": tls["cert"]},
                                  "private_key": {"filename": tls["key"]}}]}}}
    tcp = {"name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t", "cluster": "tcp"}}
    return json.dumps({"static_resources": {
        "listeners": [
            listener("http", p["http"], {"filters": [http("a", "b", "HTTP1")]}),
            listener("tls", p["tls"], {"filters": [http("a", "b", "HTTP1")], "transport_socket": secure}),
            listener("h2c", p["h2c"], {"filters": [http("ga", "gb", "HTTP2")]}),
            listener("tcp", p["tcp"], {"filters": [tcp]})],
        "clusters": [cluster("a", p["a_http"]), cluster("b", p["b_http"]), cluster("ga", p["a_h2"], True),
                     cluster("gb", p["b_h2"], True), cluster("tcp", p["sink"])]}})


def agent_files(run, p):
    """The agent's configuration as a manager's injector would write it, below a root of its own."""
    root = pathlib.Path(run) / "pod"
    entries = [("http", p["a_http"], p["http"], "http"), ("h2c", p["a_h2"], p["h2c"], "h2c"),
               ("tcp", p["sink"], p["tcp"], "tcp"), ("tls", p["a_http_tls"], p["tls"], "http")]
    (root / "certs").mkdir(parents=True, exist_ok=True)
    (root / "etc/podinfo").mkdir(parents=True, exist_ok=True)
    shutil.copy(p["cert"], root / "certs/tls.crt")
    shutil.copy(p["key"], root / "certs/tls.key")
    config = {"agentName": "bench", "namespace": "default", "workloadName": "bench", "workloadKind": "Deployment",
              "managerHost": "127.0.0.1", "managerPort": p["manager"],
              "containers": [{"name": "app", "envPrefix": "A_", "mountPoint": "/tel_app_mounts/app", "intercepts": [
                  {"containerPortName": name, "serviceName": "bench", "serviceUID": "bench", "servicePort": container,
                   "servicePortName": name, "protocol": "TCP", "appProtocol": protocol, "containerPort": container,
                   "agentPort": agent} for name, container, agent, protocol in entries]}]}
    annotations = {"telepresence.io/agent-config": json.dumps(config),
                   f"telepresence.io/downstream-tls-path.{p['a_http_tls']}": "/certs"}
    (root / "etc/podinfo/annotations").write_text(
        "".join(f"{key}={json.dumps(value)}\n" for key, value in annotations.items()))
    return root
