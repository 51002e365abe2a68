#!/usr/bin/env python3
"""Whether watching the agent costs its callers anything: full load with and without a scraper, in alternation.

    benches/compare/scrape.py [--rounds 7] [--secs 4] [--out target/bench]

64 connections of HTTP/1 through an agent with an intercept that does not match; beside it /stats/prometheus ten times
and /config_dump once a second. In the rounds without, the same number of answers of the same size is fetched from the
app's own server, so that the machine has the same to do and only the agent does not. Exits with 1 on any error.
"""
import argparse
import http.client
import pathlib
import statistics
import sys
import threading
import time

import compare
import host

P = compare.P
PAGES = {"/stats/prometheus": 0.1, "/config_dump": 1.0}


class Args:
    proxies, rate, gib = [], 0, 0

    def __init__(self, out):
        self.out = out


class Scraper(threading.Thread):
    """Fetches every path at its interval from one port until stopped."""

    def __init__(self, port, paths):
        super().__init__()
        self.port, self.paths = port, paths
        self.ended, self.errors, self.took = threading.Event(), [], []

    def run(self):
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        due = {path: time.monotonic() for path in self.paths}
        while not self.ended.is_set():
            path = min(due, key=due.get)
            if self.ended.wait(max(0.0, due[path] - time.monotonic())):
                return
            due[path] += self.paths[path]
            began = time.monotonic()
            try:
                link.request("GET", path)
                answer = link.getresponse()
                body = answer.read()
                if answer.status != 200 or not body:
                    self.errors.append(f"{path}: {answer.status}, {len(body)} bytes")
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(f"{path}: {error!r}")
                link.close()
            self.took.append(time.monotonic() - began)


def page(path):
    link = http.client.HTTPConnection("127.0.0.1", P["admin"], timeout=5)
    link.request("GET", path)
    return link.getresponse().read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--secs", type=float, default=4)
    parser.add_argument("--out", default=str(compare.REPO / "target/bench"))
    args = parser.parse_args()
    compare.built("traffic-agent") or sys.exit("build it first: cargo build --release --bins")
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    compare.private_network()
    bench = compare.Bench(Args(args.out))
    bench.args.secs = args.secs
    figures, errors = {True: [], False: []}, []
    try:
        agent, everything = bench.proxy("agent-rule")
        bench.running += everything
        url = f"http://127.0.0.1:{P['http']}/small"
        bench.wrk("plain.lua", 64, url, 1)
        alike = {}
        for path, interval in PAGES.items():
            name = path.strip("/").replace("/", "-")
            (bench.run / "www" / name).write_bytes(page(path))
            alike[f"/{name}"] = interval
        sizes = {path: len(page(path)) for path in PAGES}
        for number in range(2 * args.rounds):
            # ABBA, so that a drift of the machine falls on both.
            watched = number % 4 in (1, 2)
            host.wait_quiet(1)
            scraper = Scraper(P["admin"], PAGES) if watched else Scraper(P["a_http"], alike)
            cpu, before, began = host.cpu_ns(agent.pids()), host.busy_seconds(), time.monotonic()
            scraper.start()
            try:
                result = bench.wrk("plain.lua", 64, url, args.secs)
            finally:
                scraper.ended.set()
                scraper.join()
            wall, cpu = time.monotonic() - began, host.cpu_ns(agent.pids()) - cpu
            figures[watched].append((result["units"] / result["secs"], cpu / 1e3 / result["units"],
                                     statistics.median(scraper.took) * 1e3, len(scraper.took) / wall))
            busy, stolen = host.busy_seconds()
            print(f"# {'watched' if watched else 'not watched'}: {figures[watched][-1][0]:.0f}/s, agent "
                  f"{cpu / 1e9 / wall:.2f} cores, machine {(busy - before[0]) / wall:.2f}, "
                  f"stolen {stolen - before[1]:.2f} s", file=sys.stderr)
            errors += scraper.errors + ([f"{result['errors']} requests failed"] if result["errors"] else [])
    finally:
        bench.stop()
    lines = ["| | requests/s | CPU of the agent, us/request | scrape, ms | scrapes/s |", "|---|---|---|---|---|"]
    for watched, title in ((False, "not watched"), (True, "watched")):
        rate, cpu, took, often = (statistics.median(column) for column in zip(*figures[watched]))
        lines.append(f"| {title} | {rate:.0f} | {cpu:.2f} | {took:.2f} | {often:.1f} |")
    ratios = [w[0] / n[0] for w, n in zip(figures[True], figures[False])]
    lines += ["", f"throughput watched / not watched: {statistics.median(ratios):.3f} "
              f"(rounds {min(ratios):.3f} to {max(ratios):.3f}); errors: {len(errors)}; "
              + ", ".join(f"{path} {size} bytes" for path, size in sizes.items())]
    table = "\n".join(lines) + "\n"
    (bench.out / "scrape.md").write_text(table)
    print(table)
    if errors:
        sys.exit("\n".join(errors[:20]))


if __name__ == "__main__":
    main()
