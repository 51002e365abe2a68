"""A cluster of the rig, and objects of a large one that no node runs."""
import contextlib
import datetime
import http.client
import json
import pathlib
import queue
import re
import ssl
import subprocess
import sys
import tarfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RIG = ROOT / "tests/cluster/rig"
HOME, SHOP = "ambassador", "shop"
APP = {"name": "app", "image": "localhost/rig/app:1", "imagePullPolicy": "Never", "args": ["serve", "web"],
       "ports": [{"name": "http", "containerPort": 8080}]}
# The unit of utime and stime in /proc/PID/stat, fixed for every program on Linux.
TICKS_PER_SECOND = 100
# The largest claim to the processors that a group of processes can have.
FIRST = 262144
# Connections that write statuses; the API server takes some hundred requests a second.
WRITERS = 4


class Cluster:
    """A cluster with the images of `make images`."""

    def __init__(self, folder, images):
        self.folder = folder
        self.rig("down")
        self.rig("up")
        self.rig("load", *sorted(map(str, images.glob("*/*.tar"))))
        facts = dict(line.split("=", 1) for line in (folder / "facts").read_text().splitlines())
        self.node, self.network = facts["NODE4"], f"rig{facts['NUMBER']}"
        groups = (folder / "run/cgroups").read_text().split()
        self.cpu = next(pathlib.Path(it) for it in groups if it.split("/")[4] in ("cpu", "cpu,cpuacct"))

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

    def among(self, *command):
        """The command with the same claim to the processors as the parts of the cluster."""
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs"; exec "$@"', self.cpu, *command]

    @contextlib.contextmanager
    def first(self):
        """Its parts compete with each other for the processors, as on any machine, and not with the builds of somebody else."""
        shares = self.cpu / "cpu.shares"
        before = shares.read_text()
        shares.write_text(str(FIRST))
        try:
            yield
        finally:
            shares.write_text(before)

    def on_node(self, *command):
        done = subprocess.run(self.among("ip", "netns", "exec", self.network, *command), capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{command[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def api(self):
        """A connection to the API server with every right."""
        pki = self.folder / "pki"
        context = ssl.create_default_context(cafile=pki / "ca.crt")
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        return http.client.HTTPSConnection(self.node, 6443, context=context)

    def helm(self, verb, *values):
        self.run("helm", verb, "traffic-manager", str(ROOT / "chart"), "-n", HOME, "--create-namespace", "--wait", *values)


class Manager:
    """The manager's process, seen from outside."""

    def __init__(self, cluster):
        self.cluster = cluster

    def pod(self):
        pods = self.cluster.get("pods", "-n", HOME, "-l", "app=traffic-manager")["items"]
        return next(it for it in pods if "deletionTimestamp" not in it["metadata"])

    def _proc(self, file):
        script = f'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = traffic-manager ] && cat $p/{file}; done 2>/dev/null; true'
        return self.cluster.rig("enter", "sh", "-c", script)

    def resident(self):
        """MiB."""
        return int(re.search(r"VmRSS:\s*(\d+) kB", self._proc("status")).group(1)) / 1024

    def peak(self):
        """MiB since the start."""
        return int(re.search(r"VmHWM:\s*(\d+) kB", self._proc("status")).group(1)) / 1024

    def cpu(self):
        """Seconds of CPU time so far."""
        user, system = self._proc("stat").rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / TICKS_PER_SECOND

    def restart(self):
        """Another process in another pod."""
        before = self.pod()["metadata"]["name"]
        self.cluster.run("kubectl", "delete", "pod", "-n", HOME, before, "--wait=true")
        # The Deployment's status may still speak of the pod that is gone.
        end = time.monotonic() + 120
        while not self._is_ready_after(before):
            if time.monotonic() > end:
                sys.exit("the manager is not ready after its restart")
            time.sleep(0.2)

    def _is_ready_after(self, before):
        pods = self.cluster.get("pods", "-n", HOME, "-l", "app=traffic-manager")["items"]
        others = [it for it in pods if it["metadata"]["name"] != before]
        conditions = [each for it in others for each in it["status"].get("conditions", [])]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def first_snapshot(self):
        """Milliseconds from the log's first line until everything there is has been watched, and the line that says so."""
        log = self.cluster.run("kubectl", "logs", "--timestamps", "-n", HOME, self.pod()["metadata"]["name"]).splitlines()
        lines = [line.split(" ", 1) for line in log]
        at = [datetime.datetime.fromisoformat(time) for time, _ in lines]
        watching = next(number for number, (_, text) in enumerate(lines) if "watching" in text)
        return (at[watching] - at[0]).total_seconds() * 1000, lines[watching][1]


def deployment(name, replicas, template):
    labels = {"app": name}
    template = {"metadata": {"labels": labels} | template.pop("metadata", {}), "spec": template}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": SHOP}, "spec": spec}


def service(name, app):
    spec = {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP}, "spec": spec}


def fill(cluster, pods, services=500, workloads=300):
    """Pods that no node runs, because the scheduler that is to place them is not there."""
    env = [{"name": f"SETTING_{n}", "value": "of some length, as they have"} for n in range(20)]
    template = lambda: {"schedulerName": "nobody", "containers": [APP | {"env": env}]}
    each = [pods // workloads + (n < pods % workloads) for n in range(workloads)]
    cluster.apply([deployment(f"app-{n}", replicas, template()) for n, replicas in enumerate(each)])
    cluster.apply([service(f"service-{n}", f"app-{n % workloads}") for n in range(services)])
    waiting = lambda: cluster.run("kubectl", "get", "pods", "-n", SHOP, "-o", "name").split()
    until(600, "all pods", lambda: len(waiting()) >= pods)


def all_ready(cluster):
    """Says of every pod that waits that it runs and is ready, as a node would; returns how many."""
    pods = cluster.get("pods", "-n", SHOP, "--field-selector=spec.nodeName=")["items"]
    waiting = queue.SimpleQueue()
    for number, pod in enumerate(pods):
        waiting.put((pod["metadata"]["name"], f"10.64.{number // 250}.{number % 250 + 1}"))
    refused = []

    def write():
        link = cluster.api()
        while True:
            try:
                name, address = waiting.get_nowait()
            except queue.Empty:
                return
            conditions = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")]
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
            path = f"/api/v1/namespaces/{SHOP}/pods/{name}/status"
            link.request("PATCH", path, json.dumps({"status": status}), {"content-type": "application/merge-patch+json"})
            answer = link.getresponse()
            body = answer.read()
            if answer.status != 200:
                refused.append(body.decode())

    threads = [threading.Thread(target=write) for _ in range(WRITERS)]
    [it.start() for it in threads]
    [it.join() for it in threads]
    if refused:
        sys.exit(f"{len(refused)} statuses are refused: {refused[0]}")
    return len(pods)


def until(seconds, what, check):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(1)
    sys.exit(f"waited {seconds} s for {what}")


def programs(archive):
    """MB of an image's files, without compression."""
    with tarfile.open(archive) as tar:
        read = lambda digest: json.load(tar.extractfile("blobs/" + digest.replace(":", "/")))
        index = json.load(tar.extractfile("index.json"))
        manifest = read(index["manifests"][0]["digest"])
        layer = tar.extractfile("blobs/" + manifest["layers"][0]["digest"].replace(":", "/"))
        with tarfile.open(fileobj=layer) as files:
            return sum(it.size for it in files if it.isfile()) / 1e6
