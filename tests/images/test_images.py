#!/usr/bin/env python3
"""What is in the images of `make images`, how large it is, and that it is the same each time.

IMAGES=FOLDER tests/images/test_images.py     another folder than target/images
FRESH=1 tests/images/test_images.py           builds all anew at another place too, and compares the digests
"""

import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARCH = {"aarch64": "arm64"}.get(platform.machine(), "amd64")
FOLDER = pathlib.Path(os.environ.get("IMAGES", ROOT / "target/images")) / ARCH
VERSION = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)

FOLDERS = {"tmp": 0o1777, "usr": 0o755, "usr/local": 0o755, "usr/local/bin": 0o755, "usr/share": 0o755, "usr/share/sbom": 0o755}
# Each path of the image with its mode; everything belongs to root.
CONTENTS = {
    "traffic-agent": FOLDERS
    | {
        "bin": 0o755,
        "bin/stat": 0o777,
        "usr/local/bin/traffic-agent": 0o755,
        "usr/local/bin/agent-init": 0o755,
        "usr/share/sbom/traffic-agent.cdx.json": 0o644,
        "usr/share/sbom/agent-init.cdx.json": 0o644,
    },
    "traffic-manager": FOLDERS
    | {
        "usr/local/bin/traffic-manager": 0o755,
        "usr/share/sbom/traffic-manager.cdx.json": 0o644,
    },
}
# Bytes, uncompressed: every pod pulls the first.
MAX_SIZE = {"traffic-agent": 15_000_000, "traffic-manager": 20_000_000}
USERS = {"traffic-agent": "7439:7439", "traffic-manager": "1000:1000"}
# Version 2 without the effective bit, CAP_NET_ADMIN permitted, nothing inheritable.
NET_ADMIN = bytes.fromhex("00000002" "00100000" "00000000" "00000000" "00000000")
# Programs that other programs would be run with.
SHELLS = re.compile(r"(^|/)(sh|bash|dash|ash|busybox|env|python3?|perl|curl|wget|apk|apt|dpkg)$")


class Image:
    """An archive of mkimage, taken apart."""

    def __init__(self, archive):
        with tarfile.open(archive) as tar:
            read = lambda name: tar.extractfile(name).read()
            index = json.loads(read("index.json"))
            self.digest = index["manifests"][0]["digest"]
            self.manifest = json.loads(self.blob(read, self.digest))
            self.config = json.loads(self.blob(read, self.manifest["config"]["digest"]))
            self.layer = self.blob(read, self.manifest["layers"][0]["digest"])
        with tempfile.TemporaryFile() as file:
            file.write(self.layer)
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                self.entries = {entry.name: entry for entry in tar}
                self.files = {name: tar.extractfile(e).read() for name, e in self.entries.items() if e.isfile()}

    @staticmethod
    def blob(read, digest):
        data = read("blobs/" + digest.replace(":", "/"))
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
        return data

    @classmethod
    def of(cls, name, folder=FOLDER):
        archive = folder / f"{name}.tar"
        if not archive.exists():
            raise AssertionError(f"{archive} is not there: run `make images` first")
        return cls(archive)


class Contents(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.images = {name: Image.of(name) for name in CONTENTS}

    def each(self):
        for name, image in self.images.items():
            with self.subTest(name):
                yield name, image

    def test_there_is_what_is_listed_and_nothing_else(self):
        for name, image in self.each():
            self.assertEqual({path: e.mode for path, e in image.entries.items()}, CONTENTS[name])
            self.assertEqual({(e.uid, e.gid, e.mtime) for e in image.entries.values()}, {(0, 0, 0)})

    def test_no_shell_or_tool_is_there_and_stat_is_the_agent(self):
        for _, image in self.each():
            self.assertEqual([path for path in image.entries if SHELLS.search(path)], [])
        stat = self.images["traffic-agent"].entries["bin/stat"]
        self.assertEqual((stat.issym(), stat.linkname), (True, "/usr/local/bin/traffic-agent"))

    def test_agent_init_alone_has_a_capability(self):
        for name, image in self.each():
            keys = {p: e.pax_headers for p, e in image.entries.items() if e.pax_headers}
            found = {p: h["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape") for p, h in keys.items()}
            expected = {"usr/local/bin/agent-init": NET_ADMIN}
            self.assertEqual(found, expected if name == "traffic-agent" else {})

    def test_programs_are_static_and_stripped(self):
        for _, image in self.each():
            for path, data in image.files.items():
                if "/bin/" not in path:
                    continue
                with tempfile.NamedTemporaryFile() as file:
                    file.write(data)
                    file.flush()
                    shown = subprocess.run(["readelf", "--wide", "--dynamic", "--sections", "--program-headers", file.name], capture_output=True, text=True, check=True).stdout
                self.assertNotIn("NEEDED", shown, path)
                self.assertNotIn("INTERP", shown, path)
                self.assertNotIn(".symtab", shown, path)
                self.assertNotIn(b"/root/", data, path)
                self.assertNotIn(str(ROOT).encode() + b"/", data, path)

    def test_the_sizes_are_within_the_budget(self):
        for name, image in self.each():
            size = sum(len(data) for data in image.files.values())
            self.assertLessEqual(size, MAX_SIZE[name])

    def test_the_configuration_is_non_root_and_labelled(self):
        for name, image in self.each():
            run = image.config["config"]
            self.assertEqual(run["User"], USERS[name])
            self.assertEqual(run["Entrypoint"], [f"/usr/local/bin/{name}"])
            labels = {key.removeprefix("org.opencontainers.image."): value for key, value in run["Labels"].items()}
            self.assertEqual((labels["title"], labels["version"], labels["licenses"]), (name, VERSION, "Apache-2.0"))
            self.assertLessEqual(set(labels), {"title", "description", "version", "licenses", "revision"})
            self.assertTrue(labels["description"])
            self.assertRegex(labels.get("revision", "0" * 40), r"^[0-9a-f]{40}$")

    def test_each_program_has_its_bill_of_materials(self):
        locked = (ROOT / "Cargo.lock").read_text()
        for _, image in self.each():
            for path in image.files:
                if "/bin/" not in path:
                    continue
                program = path.rpartition("/")[2]
                bill = json.loads(image.files[f"usr/share/sbom/{program}.cdx.json"])
                top = bill["metadata"]["component"]
                self.assertEqual((bill["bomFormat"], top["name"], top["version"]), ("CycloneDX", program, VERSION))
                self.assertGreater(len(bill["components"]), 3)
                for part in bill["components"]:
                    self.assertIn(f'name = "{part["name"]}"\nversion = "{part["version"]}"', locked)


class Same(unittest.TestCase):
    def test_the_same_programs_give_the_same_digest(self):
        with tempfile.TemporaryDirectory() as out:
            build = ["images/build", "--programs", FOLDER / "programs", "--out", out]
            subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
            for name in CONTENTS:
                again = Image.of(name, pathlib.Path(out) / ARCH)
                first = Image.of(name)
                # The revision is that of the moment; everything else is the programs'.
                self.assertEqual(again.manifest["layers"], first.manifest["layers"], name)
                for config in (again.config, first.config):
                    config["config"]["Labels"].pop("org.opencontainers.image.revision", None)
                self.assertEqual(again.config, first.config)

    @unittest.skipUnless("FRESH" in os.environ, "FRESH=1 builds everything anew")
    def test_a_clone_at_another_place_gives_the_same_digest(self):
        with tempfile.TemporaryDirectory() as folder:
            clone = pathlib.Path(folder) / "elsewhere"
            subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
            environment = os.environ | {"CARGO_TARGET_DIR": str(clone / "target")}
            subprocess.run([clone / "images/build"], check=True, env=environment)
            for name in CONTENTS:
                self.assertEqual(Image.of(name, clone / "target/images" / ARCH).digest, Image.of(name).digest, name)
            shutil.rmtree(clone)


class Dockerfile(unittest.TestCase):
    """`images/Dockerfile` ends with the images that `images/build` writes."""

    @classmethod
    def setUpClass(cls):
        text = (ROOT / "images/Dockerfile").read_text().replace("\\\n", " ")
        cls.lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        cls.stages, stage = {}, None
        for line in cls.lines:
            word, _, rest = line.partition(" ")
            if word == "FROM":
                stage = cls.stages.setdefault(rest.rpartition(" AS ")[2], [])
            if stage is not None:
                stage.append((word, rest))

    def test_programs_come_from_the_one_build(self):
        steps = [rest for word, rest in self.stages["build"] if word == "RUN"]
        self.assertEqual(len(steps), 1)
        self.assertTrue(steps[0].startswith("images/build --out /out "), steps)
        self.assertIn("--xattrs-include='security.capability'", steps[0])

    def test_each_stage_is_from_scratch_with_the_archives_files_and_configuration(self):
        for name in CONTENTS:
            steps = self.stages[name]
            of = lambda word: [rest for key, rest in steps if key == word]
            run = Image.of(name).config["config"]
            self.assertEqual(of("FROM"), [f"scratch AS {name}"])
            self.assertEqual(of("COPY"), [f"--from=build /roots/{name}/ /"])
            self.assertEqual(of("USER"), [run["User"]])
            self.assertEqual(of("ENV"), run["Env"])
            self.assertEqual(json.loads(of("ENTRYPOINT")[0]), run["Entrypoint"])
            labels = dict(re.findall(r'([\w.]+)=("[^"]*"|\S+)', " ".join(of("LABEL"))))
            labels = {key: value.strip('"') for key, value in labels.items()}
            expected = dict(run["Labels"])
            expected.pop("org.opencontainers.image.revision", None)
            labels = {k: v.replace("${VERSION}", VERSION) for k, v in labels.items() if not k.endswith(".revision")}
            self.assertEqual(labels, expected)

    def test_the_version_is_the_workspaces(self):
        self.assertIn(f"ARG VERSION={VERSION}", self.lines)


if __name__ == "__main__":
    unittest.main()
