#!/usr/bin/env python3
"""What the manager costs a large cluster, and the webhook a pod. One Markdown table.

    benches/cluster/bench.py [--pods 5000] [--images target/images] [--out target/bench]

Starts a cluster of the rig with the images of `make images`, fills it with objects that no node runs, and looks at the
manager from outside: memory by /proc, admissions over TLS from the node, requests by the API server's audit log. Exits
with 1 when a budget is exceeded.
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RIG = ROOT / "tests/cluster/rig"
BUDGETS = {"webhook p99 at 100 pods/s, ms": 5, "manager RSS, MiB": 40, "API requests a minute, idle, beside leases": 0,
           "intercept to ACTIVE, ms": 150, "later start of a pod, ms": 100}
HOME, SHOP = "ambassador", "shop"
RATE, SECONDS = 100, 30
APP = {"name": "app", "image": "localhost/rig/app:1", "imagePullPolicy": "Never", "args": ["serve", "web"],
       "ports": [{"name": "http", "containerPort": 8080}]}
ENABLED = {"telepresence.io/inject-traffic-agent": "enabled"}


class Cluster:
    def __init__(self, folder, images):
        self.folder = folder
        self.rig("down")
        self.rig("up")
        self.rig("load", *sorted(map(str, images.glob("*/*.tar"))))
        facts = dict(line.split("=", 1) for line in (folder / "facts").read_text().splitlines())
        self.node, self.network = facts["NODE4"], f"rig{facts['NUMBER']}"

    def rig(self, *words):
        return subprocess.run([RIG, "--folder", self.folder, *words], check=True, capture_output=True, text=True).stdout

    def run(self, program, *words, given=None):
        done = subprocess.run([self.folder / program, *words], input=given, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{program} {' '.join(words)}: {done.stderr}")
        return done.stdout

    def apply(self, objects):
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.run("kubectl", "apply", "--server-side", "-f", "-", given=given)

    def get(self, *words):
        return json.loads(self.run("kubectl", "get", *words, "-o", "json"))

    def process(self, name):
        """/proc/PID/status of the one process of this name."""
        script = f'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = {name} ] && cat $p/status; done; true'
        return self.rig("enter", "sh", "-c", script)


def deployment(name, replicas, template):
    labels = {"app": name}
    template = {"metadata": {"labels": labels} | template.pop("metadata", {}), "spec": template}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": SHOP}, "spec": spec}


def service(name, app):
    spec = {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP}, "spec": spec}


def fill(cluster, pods, services=500, workloads=300):
    """Pods that stay pending: a scheduler that is not there is to place them."""
    env = [{"name": f"SETTING_{n}", "value": "of some length, as they have"} for n in range(20)]
    template = lambda: {"schedulerName": "nobody", "containers": [APP | {"env": env}]}
    each = [pods // workloads + (n < pods % workloads) for n in range(workloads)]
    cluster.apply([deployment(f"app-{n}", replicas, template()) for n, replicas in enumerate(each)])
    cluster.apply([service(f"service-{n}", f"app-{n % workloads}") for n in range(services)])
    until(600, "all pods", lambda: len(cluster.run("kubectl", "get", "pods", "-n", SHOP, "-o", "name").split()) >= pods)


def until(seconds, what, check):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(1)
    sys.exit(f"waited {seconds} s for {what}")


def resident(cluster):
    return int(re.search(r"VmRSS:\s*(\d+) kB", cluster.process("traffic-manager")).group(1)) / 1024


# Runs on the node's network: keeps connections to the webhook open as the API server does, and sends at a fixed rate.
SENDER = r"""
import http.client, json, ssl, sys, threading, time
address, rate, seconds, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
context = ssl._create_unverified_context()
body = open(path).read()
took, bad, lock, begin, count = [], [], threading.Lock(), time.monotonic() + 0.5, [0]
def work():
    link = http.client.HTTPSConnection(address, 8443, context=context)
    link.connect()
    while True:
        with lock:
            n = count[0]; count[0] += 1
        if n >= rate * seconds: return
        time.sleep(max(0, begin + n / rate - time.monotonic()))
        sent = time.perf_counter()
        link.request("POST", "/traffic-agent", body, {"content-type": "application/json"})
        answer = link.getresponse().read()
        took.append((time.perf_counter() - sent) * 1000)
        if b'"patch"' not in answer: bad.append(answer)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
if len(took) < rate * seconds or bad: sys.exit(f"{len(took)} answers; {bad}")
print(json.dumps(took))
"""


def admissions(cluster):
    """Milliseconds of single reviews of a pod that gets an agent."""
    sets = cluster.get("replicasets", "-n", SHOP, "-l", "app=marked")["items"]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": True, "name": sets[0]["metadata"]["name"],
             "uid": sets[0]["metadata"]["uid"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": sets[0]["spec"]["template"]["spec"],
           "metadata": sets[0]["spec"]["template"]["metadata"] | {"namespace": SHOP, "generateName": "marked-", "ownerReferences": [owner]}}
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    request = {"uid": "1", "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
               "namespace": SHOP, "operation": "CREATE", "object": pod, "oldObject": None, "dryRun": True,
               "options": None, "userInfo": {"username": "bench"}}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    address = cluster.get("pods", "-n", HOME, "-l", "app=traffic-manager")["items"][0]["status"]["podIP"]
    with tempfile.NamedTemporaryFile("w") as file:
        json.dump(review, file)
        file.flush()
        command = ["ip", "netns", "exec", cluster.network, "python3", "-c", SENDER, address, str(RATE), str(SECONDS), file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"webhook: {done.stderr}")
    return json.loads(done.stdout)


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


def intercepts(cluster, client, times=10):
    """Milliseconds from the client's start until its intercept is active; the agent is there."""
    took = []
    for n in range(times + 1):
        begin = time.monotonic()
        command = [client, "create", f"mine-{n}", "--workload", "live", "--namespace", SHOP, "--port", "9", "--http-header", "x-dev=me",
                   "--kubeconfig", str(cluster.folder / "admin.conf"), "--timeout", "60"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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


def starts(cluster, times=7):
    """Milliseconds from a pod's creation until it is ready, without and with an agent."""
    took = {False: [], True: []}
    for n in range(times * 2):
        wanted = n % 2 == 1
        name = f"start-{n}"
        marked = {"metadata": {"labels": {"app": name}, "annotations": ENABLED}} if wanted else {}
        watch = subprocess.Popen([cluster.folder / "kubectl", "get", "pods", "-n", SHOP, "-l", f"app={name}", "-w", "-o",
                                  "jsonpath={.status.conditions[?(@.type=='Ready')].status}{'\\n'}"], stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        began = time.monotonic()
        cluster.apply([service(name, name), deployment(name, 1, {"containers": [APP]} | marked)])
        applied = time.monotonic()
        for line in watch.stdout:
            if "True" in line:
                break
        took[wanted].append((time.monotonic() - (began + applied) / 2) * 1000)
        watch.kill()
        cluster.run("kubectl", "delete", "deployment,service", "-n", SHOP, name, "--wait=false")
    return statistics.median(took[True]) - statistics.median(took[False])


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def measure(cluster, options):
    cluster.run("kubectl", "create", "namespace", SHOP)
    chart = [str(ROOT / "chart"), "-n", HOME, "--create-namespace", "--wait"]
    cluster.run("helm", "install", "traffic-manager", *chart)
    empty = resident(cluster)
    cluster.apply([deployment("marked", 1, {"schedulerName": "nobody", "containers": [APP], "metadata": {"labels": {"app": "marked"}, "annotations": ENABLED}}),
                   service("marked", "marked"), deployment("live", 1, {"containers": [APP]}), service("live", "live")])
    later = starts(cluster)
    fill(cluster, options.pods)
    time.sleep(10)
    full = resident(cluster)
    active = intercepts(cluster, options.client)
    time.sleep(10)
    idle = idle_requests(cluster)
    took = admissions(cluster)
    rest = {what: n for what, n in idle.items() if "leases" not in what and not what.startswith("watch")}
    rows = [
        ("webhook p99 at 100 pods/s, ms", percentile(took, 0.99), f"median {statistics.median(took):.2f}, {len(took)} reviews"),
        ("manager RSS, MiB", full, f"{options.pods} pods, 500 services, 300 workloads; {empty:.1f} without, {resident(cluster):.1f} after the reviews"),
        ("API requests a minute, idle, beside leases", sum(rest.values()), ", ".join(f"{what} {n:.0f}" for what, n in sorted(idle.items()))),
        ("intercept to ACTIVE, ms", statistics.median(active), f"the whole command, with its port-forward; {min(active):.0f} to {max(active):.0f}"),
        ("later start of a pod, ms", later, "median with an agent less median without"),
    ]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--images", type=pathlib.Path, default=ROOT / "target/images")
    parser.add_argument("--client", type=pathlib.Path, default=ROOT / "target/release/intercept")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/bench")
    options = parser.parse_args()
    cluster = Cluster(ROOT / "target/cluster-bench", options.images)
    try:
        rows = measure(cluster, options)
    finally:
        cluster.rig("down")
    table = ["| what | measured | budget | |", "| --- | --: | --: | --- |"]
    table += [f"| {what} | {value:.1f} | {BUDGETS[what]} | {note} |" for what, value, note in rows]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cluster.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))
    missed = [what for what, value, _ in rows if value > BUDGETS[what]]
    if missed:
        sys.exit(f"over budget: {', '.join(missed)}")


if __name__ == "__main__":
    main()
