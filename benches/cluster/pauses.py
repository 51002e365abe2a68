#!/usr/bin/env python3
"""Pauses of the processors themselves, which no measured program can avoid.

A process at real-time priority on each processor sleeps for a millisecond at a time. Where it wakes up late,
the processor was not available: the kernel or the hypervisor had it.
"""
import os
import signal
import subprocess
import sys
import time

STEP, PRIORITY = 0.001, 50
# Shorter ones are the timer's own.
LEAST_MS = 1.0


class Pauses:
    """Watches all processors within a `with`; afterwards `ms` has every pause of at least a millisecond."""

    def __enter__(self):
        self.processes = [subprocess.Popen([sys.executable, __file__, str(n)], stdout=subprocess.PIPE, text=True)
                          for n in sorted(os.sched_getaffinity(0))]
        for process in self.processes:
            process.stdout.readline()
        self.begin = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.begin
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        self.ms = sorted(float(line) for process in self.processes for line in process.communicate()[0].splitlines())

    def __str__(self):
        most = f", longest {self.ms[-1]:.1f}" if self.ms else ""
        return f"{len(self.ms)} processor pauses of {LEAST_MS:g} ms or more in {self.seconds:.0f} s: {sum(self.ms):.0f} ms{most}"


def watch(processor):
    """Prints each pause of a processor, in milliseconds, until told to end."""
    os.sched_setaffinity(0, [processor])
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    ended, pauses = [], []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    print("watching", flush=True)
    while not ended:
        begin = time.monotonic()
        time.sleep(STEP)
        over = (time.monotonic() - begin - STEP) * 1000
        if over >= LEAST_MS:
            pauses.append(over)
    print(*pauses, sep="\n")


if __name__ == "__main__":
    watch(int(sys.argv[1]))
