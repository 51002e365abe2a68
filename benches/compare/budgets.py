#!/usr/bin/env python3
"""What the agent costs while it does nothing: memory, descriptors, start-up, size, wake-ups. One Markdown table.

    benches/compare/budgets.py [--out target/bench]

Runs the release binary under a manager of ours, in front of nginx. Exits with 1 when a budget is exceeded.
"""
import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import compare
import host
import peers

P = compare.P
BUDGETS = {"idle RSS, MiB": 8, "start to listening, ms": 20, "stripped binary, MB": 12,
           "memory per idle HTTP connection, kB": 4, "memory per idle TLS connection, kB": 16}


class Args:
    proxies, rate, gib = [], 0, 0

    def __init__(self, out):
        self.out = out


def start(bench):
    """The agent, and the milliseconds until its ports listened."""
    root = peers.agent_files(bench.run, P)
    env = {"AGENT_WORKERS": "1", "LOG_LEVEL": "warning", "AGENT_DRAIN_LAME_DUCK": "0s", "AGENT_DRAIN_GRACE": "1s",
           "AGENT_ENVOY_SERVER_PORT": str(P["agent_api"]),
           "AGENT_ENVOY_ADMIN_PORT": str(P["admin"])}
    began = time.monotonic()
    agent = bench.start([compare.built("traffic-agent"), "--root", root], "agent", None, env)
    for listener in ("http", "tls", "h2c", "tcp"):
        agent.wait_port(P[listener])
    return agent, (time.monotonic() - began) * 1e3


def settled_rss(agent):
    time.sleep(0.5)
    return host.rss_kib(agent.pids())


def with_connections(bench, listener, wanted):
    """RSS and descriptors gained by idle connections of which each has carried one request."""
    agent, _ = start(bench)
    try:
        rss, fds = settled_rss(agent), host.descriptors(agent.pids())
        if listener == "tls":
            holder = bench.start([sys.executable, pathlib.Path(__file__).with_name("idle_tls.py"), str(P["tls"]),
                                  str(wanted)], "holder", None)
        else:
            holder = bench.start([bench.load, "idle", str(P[listener]), str(wanted)], "holder", None)
        log, end = bench.run / "holder.log", time.monotonic() + 120
        before = host.read(log).count("units")
        while host.read(log).count("units") <= before and holder.child.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        if holder.child.poll() is not None:
            raise RuntimeError(f"connections could not be held: {host.read(log)[-500:]}")
        gained = settled_rss(agent) - rss, host.descriptors(agent.pids()) - fds, rss
        holder.stop()
        return gained
    finally:
        agent.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(compare.REPO / "target/bench"))
    args = parser.parse_args()
    binary = compare.built("traffic-agent") or sys.exit("build it first: cargo build --release -p traffic-agent")
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    manager_binary = compare.built("traffic-manager") or sys.exit("build it first: cargo build --release -p traffic-manager")
    compare.private_network()
    bench = compare.Bench(Args(args.out))
    manager = bench.start([manager_binary, "--listen", f"127.0.0.1:{P['manager']}", "--log-level", "warn"], "manager", None)
    manager.wait_port(P["manager"])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    rows = {}
    try:
        starts = []
        for _ in range(9):
            agent, took = start(bench)
            starts.append(took)
            agent.stop()
        rows["start to listening, ms"] = statistics.median(starts)
        agent, _ = start(bench)
        rows["idle RSS, MiB"] = settled_rss(agent) / 1024
        rows["threads"] = sum(len(os.listdir(f"/proc/{p}/task")) for p in agent.pids())
        rows["descriptors, idle"] = host.descriptors(agent.pids())
        time.sleep(3)
        switches, cpu, began = host.context_switches(agent.pids()), host.cpu_ns(agent.pids()), time.monotonic()
        time.sleep(5)
        wall = time.monotonic() - began
        rows["context switches per second, idle"] = (host.context_switches(agent.pids()) - switches) / wall
        rows["CPU, idle, ms per second"] = (host.cpu_ns(agent.pids()) - cpu) / 1e6 / wall
        agent.stop()
        for wanted in (1_000, 10_000):
            # Each carried connection needs two descriptors; a hard limit may not allow all that are wanted.
            held = min(wanted, (most - 200) // 2)
            gained, fds, idle = with_connections(bench, "http", held)
            rows[f"RSS with {held} idle HTTP connections, MiB"] = (idle + gained) / 1024
            rows["memory per idle HTTP connection, kB"] = gained * 1.024 / held
            rows["descriptors per connection"] = fds / held
        gained, _, _ = with_connections(bench, "tls", 1_000)
        rows["memory per idle TLS connection, kB"] = gained * 1.024 / 1_000
    finally:
        manager.stop()
        bench.stop()
    stripped = bench.out / "traffic-agent.stripped"
    subprocess.run(["strip", "-o", stripped, binary], check=True)
    rows["stripped binary, MB"] = stripped.stat().st_size / 1e6
    lines, exceeded = ["| what | measured | budget | |", "|---|---|---|---|"], []
    for name, value in rows.items():
        budget = BUDGETS.get(name)
        verdict = "" if budget is None else "kept" if value <= budget else "**exceeded**"
        exceeded += [name] if verdict.startswith("*") else []
        lines.append(f"| {name} | {value:.2f} | {'' if budget is None else budget} | {verdict} |")
    table = "\n".join(lines) + "\n"
    (bench.out / "budgets.md").write_text(table)
    print(table)
    if exceeded:
        sys.exit(f"exceeded: {', '.join(exceeded)}")


if __name__ == "__main__":
    main()
