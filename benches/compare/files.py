#!/usr/bin/env python3
"""How fast volumes are copied: through sshfs from the agent's SFTP server, beside OpenSSH's sftp-server in its place.

    benches/compare/files.py [--mib 1024] [--rounds 5] [--out target/bench]

Both are reached by a bare TCP connection (sshfs, directport) and serve the same folder of this machine, in alternation. The
folder is in memory, because a disk that writes back what the round before has left is slower than either. Each round writes a
file of --mib MiB and reads it back; what counts is the best round of each, because other work of the machine only ever slows one
down. Exits with 1 when the agent is slower than 60 % of sftp-server at either.

Programs: sshfs, openssh-sftp-server, nginx, openssl and cc from the distribution; as root, for the mounts.
"""
import argparse
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

import compare
import host
import peers

P = compare.P
LEAST = 0.6
REFERENCE = "/usr/lib/openssh/sftp-server"
CHUNK = bytes(range(256)) * 4096


class Args:
    proxies, rate, gib = [], 0, 0

    def __init__(self, out):
        self.out = out


def reference():
    """Serves sftp-server on a port of this machine: its standard streams are the accepted connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            link, _ = listener.accept()
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            subprocess.Popen([REFERENCE], stdin=link, stdout=link)
            link.close()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def listening_ports(pids):
    """TCP ports on which these processes listen."""
    inodes = set()
    for pid in pids:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in host.read(f"/proc/{pids[0]}/net/{table}").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


def speaks_sftp(port):
    with socket.create_connection(("127.0.0.1", port), 2) as link:
        link.settimeout(1)
        link.sendall(b"\0\0\0\5\1\0\0\0\3")
        try:
            return link.recv(9)[4:] == b"\2\0\0\0\3"
        except OSError:
            return False


class Mount:
    def __init__(self, port, path):
        self.folder = tempfile.mkdtemp()
        options = f"directport={port},follow_symlinks,cache=no"
        self.child = subprocess.Popen(["sshfs", "-f", "-C", "-o", options, f"127.0.0.1:{path}", self.folder])
        end = time.monotonic() + 20
        while not os.path.ismount(self.folder):
            if self.child.poll() is not None or time.monotonic() > end:
                raise RuntimeError("sshfs did not mount")
            time.sleep(0.02)

    def stop(self):
        subprocess.run(["fusermount3", "-u", self.folder], check=True)
        self.child.wait()
        os.rmdir(self.folder)


def copy(folder, mib):
    """MiB per second, written and read."""
    path = pathlib.Path(folder) / "large"
    began = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        for _ in range(mib):
            file.write(CHUNK)
        os.fsync(file.fileno())
    written = mib / (time.monotonic() - began)
    began, count = time.monotonic(), 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(len(CHUNK)):
            count += len(chunk)
    read = mib / (time.monotonic() - began)
    path.unlink()
    if count != mib << 20:
        raise RuntimeError(f"{count} bytes were read of {mib} MiB")
    return written, read


def start_agent(bench):
    root = pathlib.Path(peers.agent_files(bench.run, P))
    (root / "tel_app_mounts/app/data").mkdir(parents=True)
    env = {"AGENT_WORKERS": "1", "LOG_LEVEL": "warning", "AGENT_ENVOY_SERVER_PORT": str(P["agent_api"]),
           "AGENT_ENVOY_ADMIN_PORT": str(P["admin"]), "A_TELEPRESENCE_MOUNTS": "/data"}
    agent = bench.start([compare.built("traffic-agent"), "--root", root], "agent", None, env)
    agent.wait_port(P["http"])
    agent.wait_port(P["admin"])
    port = next((p for p in sorted(listening_ports(agent.pids())) if speaks_sftp(p)), None)
    if port is None:
        raise RuntimeError(f"the agent serves no volumes: {host.read(agent.log)[-1500:]}")
    return agent, port


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default=str(compare.REPO / "target/bench"))
    args = parser.parse_args()
    compare.built("traffic-agent") or sys.exit("build it first: cargo build --release --bins")
    os.path.exists(REFERENCE) or sys.exit(f"{REFERENCE} is missing: apt-get install openssh-sftp-server")
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    compare.private_network()
    memory = tempfile.TemporaryDirectory(dir="/dev/shm")
    bench = compare.Bench(Args(memory.name))
    figures = {"agent": [], "sftp-server": []}
    try:
        agent, port = start_agent(bench)
        bench.running.append(agent)
        folder = bench.run / "pod/tel_app_mounts/app/data"
        places = {"agent": (port, "/tel_app_exports/app/data"), "sftp-server": (reference(), str(folder))}
        for number in range(args.rounds):
            for name in sorted(places, reverse=number % 2 == 1):
                mount = Mount(*places[name])
                try:
                    figures[name].append(copy(mount.folder, args.mib))
                finally:
                    mount.stop()
                print(f"# {name}: %.0f MiB/s written, %.0f read" % figures[name][-1], file=sys.stderr, flush=True)
    finally:
        bench.stop()
        memory.cleanup()
    best = {}
    lines, slow = ["| MiB/s | written | read |", "|---|---|---|"], []
    for name, rounds in figures.items():
        written, read = best[name] = [max(column) for column in zip(*rounds)]
        lines.append(f"| {name} | {written:.0f} | {read:.0f} |")
    for index, what in enumerate(("written", "read")):
        ratio = best["agent"][index] / best["sftp-server"][index]
        lines.append(f"\n{what}: {ratio:.2f} of sftp-server")
        slow += [what] if ratio < LEAST else []
    table = "\n".join(lines) + "\n"
    (out / "files.md").write_text(table)
    print(table)
    if slow:
        sys.exit(f"less than {LEAST:.0%} of sftp-server: {', '.join(slow)}")


if __name__ == "__main__":
    main()
