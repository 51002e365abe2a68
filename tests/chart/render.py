"""Renders the chart with a real Helm, and looks into what comes out."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "chart"
FAMILIES = HERE / "families"
VERSION = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)


@functools.cache
def helm_program():
    """Helm from the variable HELM, or the one that the rig builds."""
    if "HELM" in os.environ:
        return os.environ["HELM"]
    built = subprocess.run([ROOT / "tests/cluster/build"], check=True, capture_output=True, text=True).stdout
    return pathlib.Path(built.strip()) / "bin/helm"


def helm(*args, check=True):
    done = subprocess.run([helm_program(), *map(str, args)], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"helm {' '.join(map(str, args))}: {done.stderr.strip()}")
    return done


def sets(values):
    """`a.b=c` as --set, `a.b:=JSON` as --set-json."""
    flags = []
    for value in [values] if isinstance(values, str) else values:
        if ":=" in value:
            flags += ["--set-json", value.replace(":=", "=", 1)]
        else:
            flags += ["--set", value]
    return flags


def template(*args, namespace="ambassador", chart=CHART, **kwargs):
    return helm("template", "traffic-manager", chart, "-n", namespace, *args, **kwargs)


class Rendered:
    """The objects of one rendering, by `Kind/name` or `Kind/name@namespace`."""

    def __init__(self, text):
        self.text = text
        self.objects = [o for o in yaml.safe_load_all(text) if o]

    @classmethod
    def of(cls, *args, **kwargs):
        return cls(template(*args, **kwargs).stdout)

    def names(self):
        return [f"{o['kind']}/{o['metadata']['name']}" for o in self.objects]

    def find(self, name):
        kind, rest = name.split("/", 1)
        name, _, namespace = rest.partition("@")
        for o in self.objects:
            meta = o["metadata"]
            if o["kind"] == kind and meta["name"] == name and namespace in ("", meta.get("namespace")):
                return o
        return None

    def at(self, place):
        """`Kind/name: a.b.0.c`, or `env NAME`, or `pod a.b` for the manager's pod."""
        if place.startswith("env "):
            return self.env().get(place[4:])
        if place.startswith("pod "):
            place = "Deployment/traffic-manager: spec.template." + place[4:]
        name, _, path = place.partition(": ")
        at = self.find(name)
        if not path:
            return at is not None
        for key in re.findall(r"(?:\\.|[^.])+", path):
            key = key.replace("\\.", ".")
            if at is None:
                return None
            if isinstance(at, list):
                at = at[int(key)] if int(key) < len(at) else None
            else:
                at = at.get(key)
        return at

    def env(self):
        container = self.find("Deployment/traffic-manager")["spec"]["template"]["spec"]["containers"][0]
        return {e["name"]: e.get("value", json.dumps(e.get("valueFrom"))) for e in container["env"]}

    def rules(self, name):
        return self.find(name)["rules"]


def notes(*args):
    """NOTES as an install prints them; a template of the chart's own, rendered in a copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "chart"
        shutil.copytree(CHART, copy)
        wrapper = 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  notes: |\n    {{- include "tm.notes" . | nindent 4 }}\n'
        (copy / "templates/notes-test.yaml").write_text(wrapper)
        return Rendered.of(*args, chart=copy).at("ConfigMap/notes: data.notes")
