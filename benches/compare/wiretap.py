#!/usr/bin/env python3
"""What a wiretap costs the callers of the app: p99 of an open loop without one, beside one, and beside one that stalls.

    benches/compare/wiretap.py [--rounds 7] [--secs 4] [--rate 1000] [--stall 60] [--out target/bench]

Every round measures the same agent four times: alone and beside a wiretap of all its requests, as A B B A, and every other
round as B A A B, so that a drift of the machine falls on both. Two measurements alone differ by the machine's noise, which is
what the wiretap is compared with. Then the client of the wiretap is stopped (SIGSTOP) for --stall seconds under the same
load: it may cost counted copies and 16 MiB at most. Exits with 1 when it costs more.
"""
import argparse
import json
import pathlib
import re
import signal
import statistics
import sys
import threading
import time
import urllib.request

import compare
import host

P = compare.P
MOST_MIB = 16


class Args:
    proxies, gib = [], 0

    def __init__(self, args):
        self.out, self.rate, self.secs = args.out, args.rate, args.secs


def stat(name):
    """The sum of the agent's counters of this name, over all their labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{P['admin']}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


class Wiretap:
    def __init__(self, bench):
        before = stat("traffic_agent_wiretap_copies_total")
        self.client = bench.start(
            [compare.built("intercept"), "wiretap", "bench-tap", "--manager", f"127.0.0.1:{P['manager']}", "--workload", "bench",
             "--client", "dev-tap@bench", "--port", f"{P['b_http']}:{P['a_http']}", "--agent", f"127.0.0.1:{P['agent_api']}"],
            "wiretap", bench.other_cpus)
        end = time.monotonic() + 20
        # Listed is not enough: what is measured are copies.
        while stat("traffic_agent_wiretap_copies_total") == before:
            if time.monotonic() > end:
                self.client.stop()
                raise RuntimeError(f"no copy was made: {host.read(bench.run / 'wiretap.log')[-1500:]}")
            urllib.request.urlopen(f"http://127.0.0.1:{P['http']}/small", timeout=5).read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.stop()


def p99(bench, secs=None):
    host.wait_quiet(1)
    result = json.loads(bench.client([bench.load, "rate", P["http"], secs or bench.args.secs, 32, bench.args.rate]))
    if result["errors"]:
        raise RuntimeError(f"{result['errors']} requests failed")
    return result["p99_us"]


def beside(bench):
    with Wiretap(bench):
        return p99(bench)


def paired(bench, rounds):
    """Of every round: p99 alone (two) and beside a wiretap (two)."""
    figures = []
    for number in range(rounds):
        alone, tapped = [], []
        for letter in "ABBA" if number % 2 == 0 else "BAAB":
            (alone if letter == "A" else tapped).append((p99 if letter == "A" else beside)(bench))
        figures.append((alone, tapped))
        print(f"# round {number}: alone {alone[0]:.0f} and {alone[1]:.0f} us, beside {tapped[0]:.0f} and {tapped[1]:.0f} us",
              file=sys.stderr, flush=True)
    return figures


def stalled(bench, agent, seconds):
    """The load's p99 while the wiretap's client stands still, MiB that the agent grew by, copies that were dropped."""
    with Wiretap(bench) as tap:
        p99(bench)
        before, dropped = host.rss_kib(agent.pids()), stat("traffic_agent_wiretap_copies_dropped_total")
        most, most_dropped, ended = [before], [dropped], threading.Event()

        def watch():
            while not ended.wait(0.25):
                most[0] = max(most[0], host.rss_kib(agent.pids()))
                # The series goes with the wiretap, which the manager ends when its client is away for too long.
                most_dropped[0] = max(most_dropped[0], stat("traffic_agent_wiretap_copies_dropped_total"))

        watcher = threading.Thread(target=watch)
        tap.client.child.send_signal(signal.SIGSTOP)
        watcher.start()
        try:
            latency = p99(bench, seconds)
        finally:
            ended.set()
            watcher.join()
            tap.client.child.send_signal(signal.SIGCONT)
        return latency, (most[0] - before) / 1024, most_dropped[0] - dropped


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--secs", type=float, default=4)
    parser.add_argument("--rate", type=float, default=1000, help="requests a second of the open loop")
    parser.add_argument("--stall", type=float, default=60, help="seconds for which the wiretap's client is stopped")
    parser.add_argument("--out", default=str(compare.REPO / "target/bench"))
    args = parser.parse_args()
    compare.built("traffic-agent") or sys.exit("build it first: cargo build --release --bins")
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    compare.private_network()
    bench = compare.Bench(Args(args))
    try:
        agent, everything = bench.proxy("agent")
        bench.running += everything
        p99(bench)
        figures = paired(bench, args.rounds)
        # As long as the stall, because an open loop on a busy machine falls behind with time.
        long_alone = p99(bench, args.stall)
        latency, grown, dropped = stalled(bench, agent, args.stall)
    finally:
        bench.stop()
    mean = statistics.mean
    ratios = [mean(tapped) / mean(alone) for alone, tapped in figures]
    noise = max(max(alone) / min(alone) for alone, _ in figures)
    alone = statistics.median(mean(a) for a, _ in figures)
    lines = ["| | p99, us |", "|---|---|", f"| alone | {alone:.0f} |",
             f"| alone, for {args.stall:.0f} s | {long_alone:.0f} |", f"| beside a wiretap | {statistics.median(mean(t) for _, t in figures):.0f} |",
             f"| beside one that stalls for {args.stall:.0f} s | {latency:.0f} |", "",
             f"beside / alone: {statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f}); two "
             f"measurements alone differ by a factor of up to {noise:.3f}; stalled: {dropped:.0f} copies dropped, "
             f"{grown:.1f} MiB more memory"]
    table = "\n".join(lines) + "\n"
    (bench.out / "wiretap.md").write_text(table)
    print(table)
    faults = []
    if statistics.median(ratios) > max(noise, 1.1):
        faults.append("a wiretap costs more than noise")
    if latency > long_alone * max(noise, 1.1):
        faults.append("a stalled wiretap costs more than noise")
    if grown > MOST_MIB or not dropped:
        faults.append(f"a stalled wiretap: {grown:.1f} MiB ({MOST_MIB} allowed), {dropped:.0f} copies dropped")
    if faults:
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
