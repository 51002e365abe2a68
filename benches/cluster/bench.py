#!/usr/bin/env python3
"""What the manager costs a large cluster, and the webhook a pod: every budget of the cluster's side, row by row.

    benches/cluster/bench.py [--pods 5000] [--images target/images] [--out target/bench] [--only webhook,idle]

Starts a cluster of the rig with the images of `make images`, fills it with objects that no node runs, and looks at the
manager from outside: memory and CPU by /proc, admissions over TLS from the node, requests by the API server's audit log.
Prints a Markdown table with limit, figure and verdict, and exits with 1 when a budget is missed.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from cluster import APP, HOME, ROOT, SHOP, Cluster, Manager, all_ready, deployment, fill, programs, service
from pauses import Pauses

ENABLED = {"telepresence.io/inject-traffic-agent": "enabled"}
RATE, SECONDS = 100, 30
AT_ONCE = 500


@dataclasses.dataclass
class Row:
    what: str
    value: float
    # None for a figure that has no budget.
    limit: float | None
    note: str = ""

    def is_missed(self):
        return self.limit is not None and self.value > self.limit

    def line(self):
        limit = "" if self.limit is None else f"{self.limit:g}"
        verdict = "" if self.limit is None else "**missed**" if self.is_missed() else "ok"
        return f"| {self.what} | {limit} | {self.value:.2f} | {verdict} | {self.note} |"


def review(cluster):
    """A review of a pod that gets an agent, as the API server would send it."""
    sets = cluster.get("replicasets", "-n", SHOP, "-l", "app=marked")["items"]
    meta, template = sets[0]["metadata"], sets[0]["spec"]["template"]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": True, "name": meta["name"], "uid": meta["uid"]}
    named = {"namespace": SHOP, "generateName": "marked-", "ownerReferences": [owner]}
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"], "metadata": template["metadata"] | named}
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    request = {"uid": "1", "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
               "namespace": SHOP, "operation": "CREATE", "object": pod, "oldObject": None, "dryRun": False,
               "options": None, "userInfo": {"username": "bench"}}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


class Reviews:
    """Admission reviews, sent to the webhook as the API server does."""

    def __init__(self, cluster, manager):
        self.cluster = cluster
        self.server = f"https://{manager.pod()['status']['podIP']}:8443"
        self.url = f"{self.server}/traffic-agent"
        self.file = tempfile.NamedTemporaryFile("w", suffix=".json")
        json.dump(review(cluster), self.file)
        self.file.flush()
        self.log = tempfile.NamedTemporaryFile("r")

    def answer(self):
        """One answer, which has a patch."""
        said = self.cluster.on_node("curl", "-sSk", "-H", "content-type: application/json", "--data", f"@{self.file.name}", self.url)
        if '"patch"' not in said:
            sys.exit(f"the webhook injects nothing: {said}")
        return said

    def _load(self, count, connections, *options):
        """Milliseconds of each of `count` requests, and what h2load said."""
        pathlib.Path(self.log.name).write_text("")  # h2load appends
        common = ["h2load", "--h1", f"--requests={count}", f"--clients={connections}", f"--log-file={self.log.name}"]
        said = self.cluster.on_node(*common, *options)
        rows = [line.split("\t") for line in pathlib.Path(self.log.name).read_text().splitlines()]
        return [int(row[2]) / 1000 for row in rows if row[1] == "200"], said

    def send(self, count, connections, *options):
        """Milliseconds of each of `count` reviews; the connections are open before the first."""
        length = len(self.answer())
        took, said = self._load(count, connections, f"--data={self.file.name}", "--header=content-type: application/json", *options, self.url)
        # All answers are as long as the one that was looked at.
        if len(took) != count or f"({count * length}) data" not in said.replace(",", ""):
            sys.exit(f"webhook: {len(took)} of {count} answers of {length} bytes: {said}")
        return took

    def greet(self, count, connections, *options):
        """The same for requests that take no decision: what machine, TLS and h2load cost by themselves."""
        took, said = self._load(count, connections, *options, f"{self.server}/healthz")
        if len(took) != count:
            sys.exit(f"webhook: {len(took)} of {count} answers of /healthz: {said}")
        return took


def idle_requests(cluster, seconds=60):
    """Requests of the manager a minute by kind, while nothing happens."""
    log = cluster.folder / "log/audit.jsonl"
    begin = log.stat().st_size
    time.sleep(seconds)
    counts = {}
    with log.open() as file:
        file.seek(begin)
        for line in file:
            asked = json.loads(line)
            if asked["user"]["username"] == f"system:serviceaccount:{HOME}:traffic-manager" and asked["stage"] == "ResponseComplete":
                what = f"{asked['verb']} {asked.get('objectRef', {}).get('resource', '')}"
                counts[what] = counts.get(what, 0) + 60 / seconds
    return counts


def intercepts(cluster, client, times=15):
    """Milliseconds from the client's start until its intercept is active; the agent is there."""
    took = []
    for n in range(times + 1):
        begin = time.monotonic()
        command = [client, "create", f"mine-{n}", "--workload", "live", "--namespace", SHOP, "--port", "9", "--http-header", "x-dev=me",
                   "--kubeconfig", str(cluster.folder / "admin.conf"), "--timeout", "60"]
        process = subprocess.Popen(cluster.among(*command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = []
        for line in process.stdout:
            said.append(line)
            if "Intercepting" in line:
                took.append((time.monotonic() - begin) * 1000)
                break
        else:
            sys.exit("intercept: " + "".join(said))
        process.terminate()
        process.wait()
    return took[1:]  # the first one brings the agent


# Kinds of pods whose starts are compared. What a native sidecar costs by itself, because the kubelet looks once a
# second whether one has started before it goes on, is told by one that does nothing.
IDLE_SIDECAR = {"name": "idle", "image": "localhost/rig/app:1", "imagePullPolicy": "Never", "args": ["pause"], "restartPolicy": "Always"}
STARTS = {
    "plain": {"containers": [APP]},
    "agent": {"containers": [APP], "metadata": {"annotations": ENABLED}},
    "idle sidecar": {"containers": [APP], "initContainers": [IDLE_SIDECAR]},
}


def start(cluster, name, template):
    """Milliseconds from a pod's creation until it is ready."""
    template = template | {"metadata": {"labels": {"app": name}} | template.get("metadata", {})}
    watch = subprocess.Popen([cluster.folder / "kubectl", "get", "pods", "-n", SHOP, "-l", f"app={name}", "-w", "-o",
                              "jsonpath={.status.conditions[?(@.type=='Ready')].status}{'\\n'}"], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    began = time.monotonic()
    cluster.apply([service(name, name), deployment(name, 1, dict(template))])
    applied = time.monotonic()
    for line in watch.stdout:
        if "True" in line:
            break
    took = (time.monotonic() - (began + applied) / 2) * 1000
    watch.kill()
    cluster.run("kubectl", "delete", "deployment,service", "-n", SHOP, name, "--wait=false")
    return took


def starts(cluster, kinds, series, times=5):
    """Medians by kind of pod, in alternation."""
    took = {kind: [] for kind in kinds}
    for n in range(times):
        for kind in kinds:
            took[kind].append(start(cluster, f"start-{series}-{kind.replace(' ', '-')}-{n}", STARTS[kind]))
    return {kind: statistics.median(values) for kind, values in took.items()}


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def spread(values):
    return f"median {statistics.median(values):.2f}, largest {max(values):.2f}"


def busy():
    return f"load {os.getloadavg()[0]:.1f}"


def starting_rows(cluster):
    told = lambda took: ", ".join(f"{kind} {value:.0f}" for kind, value in took.items()) + f"; {busy()}"
    native = starts(cluster, STARTS, "native")
    rows = [
        Row("later start of a pod by the agent, ms", native["agent"] - native["idle sidecar"], 100, f"beside a native sidecar that does nothing; medians to Ready: {told(native)}"),
        Row("later start of a pod by any native sidecar, ms", native["idle sidecar"] - native["plain"], None, "the kubelet's, which looks once a second whether one has started"),
    ]
    cluster.helm("upgrade", "--set=agent.nativeSidecar=never")
    ordinary = starts(cluster, ["plain", "agent"], "ordinary")
    cluster.helm("upgrade", "--set=agent.nativeSidecar=auto")
    return [*rows, Row("the same with the agent as an ordinary container, ms", ordinary["agent"] - ordinary["plain"], None, f"agent.nativeSidecar: never; {told(ordinary)}")]


def watching_rows(cluster, manager, pods):
    """The manager of a full cluster: after the cluster was filled, and begun anew."""
    empty = manager.resident()
    fill(cluster, pods)
    time.sleep(10)
    before = manager.cpu()
    count = all_ready(cluster)
    time.sleep(10)
    cpu = manager.cpu() - before
    grown = manager.resident()
    manager.restart()
    took, line = manager.first_snapshot()
    begun_cpu = manager.cpu()
    time.sleep(10)
    fresh = manager.resident()
    return [
        Row("manager's memory (RSS), MiB", max(grown, fresh), 40,
            f"{pods} pods, 500 Services, 300 workloads; {empty:.1f} without, {grown:.1f} when they had come, {fresh:.1f} begun anew, peak {manager.peak():.1f}"),
        Row("first snapshot of it all, ms", took, None, f"from the manager's first line; {begun_cpu:.2f} s of CPU until ready; {line.split('watching')[-1].strip()}; {busy()}"),
        Row("CPU for a pod that becomes ready, us", cpu / count * 1e6, None, f"{count} pods, with what follows at their workloads; {cpu:.2f} s"),
    ]


def idle_row(cluster):
    idle = idle_requests(cluster)
    rest = {what: n for what, n in idle.items() if "leases" not in what and not what.startswith("watch")}
    seen = ", ".join(f"{what} {n:.0f}" for what, n in sorted(idle.items()))
    return Row("API requests a minute beside leases and watches, idle", sum(rest.values()), 0, seen)


def review_rows(cluster, manager):
    reviews = Reviews(cluster, manager)
    reviews.send(RATE, 4)  # caches and pages are warm, as after the first second of any cluster
    with cluster.first():
        floor = reviews.greet(RATE * SECONDS, 4, f"--rps={RATE // 4}")
        before = manager.cpu()
        with Pauses() as pauses:
            steady = reviews.send(RATE * SECONDS, 4, f"--rps={RATE // 4}")
        cpu = (manager.cpu() - before) / len(steady) * 1e6
        load = busy()
        begin = time.monotonic()
        crowd = reviews.send(AT_ONCE, AT_ONCE)
        took = time.monotonic() - begin
    return [
        Row(f"webhook p99 at {RATE} pods/s, ms", percentile(steady, 0.99), 5, f"{spread(steady)}; {len(steady)} reviews, {cpu:.0f} us of CPU each; {load}; {pauses}"),
        Row("the same of a request without a decision, ms", percentile(floor, 0.99), None, f"/healthz, just before; {spread(floor)}"),
        Row(f"webhook p99 of {AT_ONCE} pods at once, ms", percentile(crowd, 0.99), None, f"{spread(crowd)}; {took:.1f} s with {AT_ONCE} handshakes"),
        Row("manager's memory after the reviews, MiB", manager.resident(), 40, f"peak {manager.peak():.1f}"),
    ]


def intercept_row(cluster, client):
    with cluster.first():
        took = intercepts(cluster, client)
    note = f"the client's whole command, with its way through the API server; {min(took):.0f} to {max(took):.0f}; {busy()}"
    return Row("intercept to ACTIVE, the agent being there, ms", statistics.median(took), 150, note)


def measure(cluster, options):
    cluster.run("kubectl", "create", "namespace", SHOP)
    cluster.helm("install")
    manager = Manager(cluster)
    marked = {"schedulerName": "nobody", "containers": [APP], "metadata": {"labels": {"app": "marked"}, "annotations": ENABLED}}
    cluster.apply([deployment("marked", 1, marked), service("marked", "marked"),
                   deployment("live", 1, {"containers": [APP]}), service("live", "live")])
    wanted = options.only.split(",")
    starting = shown(starting_rows(cluster)) if "start" in wanted else []
    watching = shown(watching_rows(cluster, manager, options.pods))
    active = shown([intercept_row(cluster, options.client)]) if "intercept" in wanted else []
    time.sleep(10)
    idle = shown([idle_row(cluster)]) if "idle" in wanted else []
    reviews = shown(review_rows(cluster, manager)) if "webhook" in wanted else []
    return [*reviews, *watching, *idle, *active, *starting]


def shown(rows):
    """The same rows, once said: the whole takes a quarter of an hour."""
    for row in rows:
        print(f"{row.what}: {row.value:.2f}; {row.note}", file=sys.stderr, flush=True)
    return rows


def image_rows(images):
    limits = {"traffic-agent": ("image of agent and init, MB", 15), "traffic-manager": ("image of the manager, MB", 20)}
    return [Row(f"{what}, {archive.parent.name}", programs(archive), limit, "uncompressed")
            for name, (what, limit) in limits.items() for archive in sorted(images.glob(f"*/{name}.tar"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--images", type=pathlib.Path, default=ROOT / "target/images")
    parser.add_argument("--client", type=pathlib.Path, default=ROOT / "target/release/intercept")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/bench")
    parser.add_argument("--only", default="start,intercept,idle,webhook", help="rows beside those of the watches")
    options = parser.parse_args()
    cluster = Cluster(ROOT / "target/cluster-bench", options.images)
    try:
        rows = measure(cluster, options) + image_rows(options.images)
    finally:
        cluster.rig("down")
    table = ["| what | at most | measured | | |", "| --- | --: | --: | --- | --- |", *(row.line() for row in rows)]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cluster.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))
    missed = [row.what for row in rows if row.is_missed()]
    if missed:
        sys.exit(f"over budget: {', '.join(missed)}")


if __name__ == "__main__":
    main()
