#!/usr/bin/env python3
"""Counts the instructions of single operations with callgrind and compares them with benches/counts.json.

    benches/counts.py            compare; exit code 1 when an operation costs more than the tolerance allows
    benches/counts.py --update   write what is counted to the file

Instructions are stable where times are not, so this can hold the line on any machine of the same architecture. Needs
valgrind. A new compiler may move everything a little: update then, in a change of its own.
"""
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
KEPT = HERE / "counts.json"
TOLERANCE = 0.05
# Operations that may cost hardly more than others: many rules with exact values, and one.
RATIOS = {("decide_200_exact", "decide_1_exact"): 1.03}
TIMES = 100


def build():
    """The counting program, optimised like the product, with names, so that callgrind finds the counted function."""
    done = subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--message-format=json"],
                          cwd=HERE / "counts", stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "counts":
            return message["executable"]
    sys.exit("cargo did not say where it put the program")


def operations():
    return re.findall(r'^        "(\w+)" =>', (HERE / "counts/src/main.rs").read_text(), re.M)


def count(binary, operation):
    done = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
                           "--toggle-collect=*counted*", binary, operation, str(TIMES)],
                          capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found or found.group(1) == "0":
        sys.exit(f"{operation}: callgrind counted nothing:\n{done.stderr[-2000:]}")
    return round(int(found.group(1)) / TIMES)


def main():
    binary = os.environ.get("COUNTS_BIN") or build()
    counted = {name: count(binary, name) for name in operations()}
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if "--update" in sys.argv[1:]:
        KEPT.write_text(json.dumps({"architecture": platform.machine(), "instructions": counted}, indent=2) + "\n")
    elif kept.get("architecture") != platform.machine():
        print(f"{KEPT.name} was made on {kept.get('architecture')}: there is nothing to compare with on this machine")
        return
    before, worse = kept.get("instructions", {}), []
    print("| operation | instructions | kept | |\n|---|---|---|---|")
    for name, now in counted.items():
        was = before.get(name)
        change = f"{now / was - 1:+.1%}" if was else "not in the file"
        print(f"| {name} | {now} | {was or '–'} | {change} |")
        if "--update" not in sys.argv[1:] and (was is None or now > was * (1 + TOLERANCE)):
            worse.append(name)
    for (many, one), most in RATIOS.items():
        if counted[many] > counted[one] * most:
            sys.exit(f"{many} costs {counted[many]} instructions, more than {most} times those of {one}, {counted[one]}")
    if worse:
        sys.exit(f"more than {TOLERANCE:.0%} above benches/counts.json: {', '.join(worse)}; "
                 "make it cheaper, or justify it and run benches/counts.py --update")


if __name__ == "__main__":
    main()
