"""What the comparison asks of the machine: processes, their CPU and memory, quiet moments."""
import os
import pathlib
import re
import socket
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
CPUS = sorted(os.sched_getaffinity(0))


def read(path):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def descendants(pid):
    """`pid` and all processes below it."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read(f"/proc/{entry}/stat")):
            parent = int(stat.rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def cpu_ns(pids):
    """CPU time of whole processes in nanoseconds, from the scheduler's own account (no clock-tick rounding)."""
    total = 0
    for pid in pids:
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for task in tasks:
            total += int((read(f"/proc/{pid}/task/{task}/schedstat") or "0").split()[0])
    return total


def rss_kib(pids):
    return sum(int(m.group(1)) for p in pids if (m := re.search(r"^VmRSS:\s+(\d+)", read(f"/proc/{p}/status"), re.M)))


def descriptors(pids):
    total = 0
    for pid in pids:
        try:
            total += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            pass
    return total


def context_switches(pids):
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            total += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", read(f"/proc/{pid}/task/{task}/status"))))
    return total


def busy_seconds():
    """CPU seconds the machine has worked, and seconds the hypervisor took away."""
    fields = [int(x) / TICKS for x in read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return fields[0] + fields[1] + fields[2] + fields[5] + fields[6], fields[7]


def wait_quiet(limit):
    """Waits until other work has died down, at most `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = busy_seconds()[0]
        time.sleep(0.25)
        if (busy_seconds()[0] - before) / 0.25 / len(CPUS) < 0.08:
            return


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 0.3).close()
        return True
    except OSError:
        return False


class Process:
    """A started program, pinned, with its output in a file; stopped by pid."""

    def __init__(self, argv, log, cpus=None, env=None):
        self.log = log
        pin = (lambda: os.sched_setaffinity(0, cpus)) if cpus else None
        with open(log, "ab") as out:
            self.child = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          preexec_fn=pin, env=env and {**os.environ, **env})

    def wait_port(self, port, limit=15):
        end = time.monotonic() + limit
        while not answers(port):
            if self.child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.child.args[0]} does not answer on {port}:\n{read(self.log)[-2000:]}")
            time.sleep(0.002)

    def pids(self):
        return descendants(self.child.pid)

    def stop(self):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(8)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
