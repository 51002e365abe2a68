#!/usr/bin/env python3
"""The chart, rendered by a real Helm. HELM=PROGRAM tests/chart/test_chart.py"""

import concurrent.futures
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import yaml

from render import CHART, FAMILIES, ROOT, VERSION, Rendered, helm, notes, sets, template
from rows import CLIENT, NO_ROW, ROWS

STATIC = ["managerRbac.namespaced=true", "managerRbac.namespaces={ambassador,shop}"]
CLUSTER_KINDS = {"ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration", "ClusterIssuer", "Namespace"}


def in_parallel(function, items):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(function, items))


class Values(unittest.TestCase):
    def test_every_value_reaches_its_field(self):
        def try_row(row):
            values, place, want = row
            got = Rendered.of(*sets(values)).at(place)
            if isinstance(want, str):
                want = want.replace("@@", VERSION + "@").replace(":@", ":" + VERSION)
                if want.startswith("*"):
                    got, want = want[1:] in (got or ""), True
            return None if got == want else f"{values} -> {place}: {got!r}, not {want!r}"

        wrong = [w for w in in_parallel(try_row, ROWS) if w]
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    def test_every_known_key_has_a_row(self):
        known = yaml.safe_load((CHART / "files/known.yaml").read_text())
        rows = [re.split(r":?=", v)[0] for row in ROWS for v in ([row[0]] if isinstance(row[0], str) else row[0])]
        without = [
            path
            for path, kind in known.items()
            if kind != "map" and path not in NO_ROW and not any(r == path or r.startswith((path + ".", path + "[")) for r in rows)
        ]
        self.assertEqual(without, [])

    def test_complete_values_files_of_all_families_render_without_unknown_keys(self):
        for family in sorted(FAMILIES.glob("*.yaml")):
            with self.subTest(family.name):
                Rendered.of("-f", family)
                self.assertNotIn("unknown to this chart", notes("-f", family))

    def test_an_unknown_key_is_named_and_does_no_harm(self):
        said = notes("--set", "agent.reources.limits=1", "--set", "hooks.curl.tag=8", "--set", "licenseKey.create=true")
        self.assertIn("agent.reources", said)
        self.assertIn("hooks.curl: the uninstall hook runs the manager's own image", said)
        self.assertIn("licenseKey: no licence is needed", said)
        self.assertNotIn("no effect", notes())

    def test_a_wrong_type_or_word_is_refused_with_its_key(self):
        for values, said in [
            ("agentInjector.injectPolicy=Sometimes", "/agentInjector/injectPolicy"),
            ("replicaCount=many", "/replicaCount"),
            ("agentInjector.certificate.method=magic", "/agentInjector/certificate/method"),
        ]:
            done = template(*sets(values), check=False)
            self.assertNotEqual(done.returncode, 0, values)
            self.assertIn(said, done.stderr)

    def test_a_refusal_names_value_and_remedy(self):
        for values, said in [
            (["clientRbac.create=true"], "clientRbac.subjects is empty: name who may intercept"),
            (["managerRbac.namespaced=true"], "managerRbac.namespaces is empty"),
            (["namespaces={a}", "namespaceSelector.matchLabels.a=b"], "keep one"),
            (["agentInjector.certificate.method=helm", "rbac.webhook=true"], "use method manager, supplied or certmanager"),
        ]:
            done = template(*sets(values), check=False)
            self.assertNotEqual(done.returncode, 0, values)
            self.assertIn(said, done.stderr)


class Text(unittest.TestCase):
    def test_lint_is_strict_and_quiet(self):
        for values in [(), ("-f", FAMILIES / "2.20.yaml"), ("-f", FAMILIES / "2.31.yaml"), ("-f", FAMILIES / "vendor.yaml")]:
            done = helm("lint", "--strict", CHART, *values)
            self.assertNotIn("[WARNING]", done.stdout)

    def test_rendering_twice_gives_the_same_text(self):
        for values in [[], STATIC, ["agentInjector.certificate.method=certmanager"]]:
            self.assertEqual(template(*sets(values)).stdout, template(*sets(values)).stdout)

    def test_no_template_asks_the_cluster(self):
        for path in CHART.glob("templates/**/*"):
            if path.is_file():
                self.assertNotRegex(path.read_text(), r"\blookup\b", path.name)

    def test_no_image_but_ours_is_named(self):
        text = template(*sets([*CLIENT, "prometheus.port=1"])).stdout
        images = set(re.findall(r"image: \"?([^\"\n]+)", text))
        self.assertEqual(images, {f"localhost/traffic-manager:{VERSION}"})

    def test_generated_files_are_up_to_date(self):
        done = subprocess.run([CHART / "generate", "--check"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_version_is_the_workspace_s(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((chart["version"], chart["appVersion"]), (VERSION, VERSION))

    def test_the_package_stays_small_enough_for_helms_secret(self):
        with tempfile.TemporaryDirectory() as folder:
            helm("package", CHART, "-d", folder)
            size = next(pathlib.Path(folder).glob("*.tgz")).stat().st_size
        self.assertLess(size, 128 * 1024)

    def test_older_api_servers_get_a_probe_they_know(self):
        old = Rendered.of("--kube-version", "1.22.0")
        self.assertEqual(old.at("pod spec.containers.0.readinessProbe.tcpSocket.port"), "api")


class Rights(unittest.TestCase):
    def test_a_namespaced_install_has_no_cluster_objects_but_webhook_and_its_role(self):
        cluster = [n for n in Rendered.of(*sets(STATIC)).names() if n.split("/")[0] in CLUSTER_KINDS]
        self.assertEqual(
            sorted(cluster),
            ["ClusterRole/traffic-manager-ambassador", "ClusterRoleBinding/traffic-manager-ambassador", "MutatingWebhookConfiguration/agent-injector-webhook-ambassador"],
        )
        rules = Rendered.of(*sets(STATIC)).rules("ClusterRole/traffic-manager-ambassador")
        asked = [["tokenreviews"], ["subjectaccessreviews"]]
        self.assertEqual([r["resources"] for r in rules], [["servicecidrs"], *asked, ["mutatingwebhookconfigurations"]])
        off = Rendered.of(*sets([*STATIC, "security.authentication.mode=disabled"]))
        self.assertEqual([r["resources"] for r in off.rules("ClusterRole/traffic-manager-ambassador")], [["servicecidrs"], ["mutatingwebhookconfigurations"]])
        bare = Rendered.of(*sets([*STATIC, "managerRbac.clusterRole=false"]))
        self.assertEqual([n for n in bare.names() if n.split("/")[0] in CLUSTER_KINDS], ["MutatingWebhookConfiguration/agent-injector-webhook-ambassador"])
        self.assertEqual(bare.at("env AUTHENTICATION_MODE"), "disabled")
        strict = template(*sets([*STATIC, "managerRbac.clusterRole=false", "security.authentication.mode=enforcing"]), check=False)
        self.assertIn("set managerRbac.clusterRole to true", strict.stderr)

    def test_whose_certificates_count_is_read_unless_nobody_is_asked(self):
        binding = "RoleBinding/traffic-manager-ambassador"
        for settings, reads in (
            ([], True),
            (["security.authentication.mode=enforcing"], True),
            (["security.authentication.mode=disabled"], False),
            (["security.authentication.x509.enabled=false"], False),
        ):
            for scope in ([], STATIC):
                made = Rendered.of(*sets([*scope, *settings]))
                self.assertEqual(binding in made.names(), reads, (scope, settings))
                if reads:
                    bound = made.find(binding)
                    self.assertEqual(bound["metadata"]["namespace"], "kube-system")
                    self.assertEqual(bound["roleRef"]["name"], "extension-apiserver-authentication-reader")

    def test_rights_to_ask_who_calls_come_with_the_mode(self):
        for mode, asks in (("disabled", False), ("permissive", True), ("enforcing", True)):
            made = Rendered.of(*sets([*CLIENT, f"security.authentication.mode={mode}"]))
            groups = {g for r in made.rules("ClusterRole/traffic-manager-ambassador") for g in r["apiGroups"]}
            self.assertEqual("authentication.k8s.io" in groups, asks, mode)
            self.assertEqual("authorization.k8s.io" in groups, asks, mode)
            for role in ("ClusterRole/traffic-manager-clients-ambassador", "Role/traffic-manager-connect"):
                groups = {g for r in made.rules(role) for g in r["apiGroups"]}
                self.assertEqual("telepresence.io" in groups, asks, (mode, role))

    def test_helms_certificate_stands_in_secret_and_webhook(self):
        made = Rendered.of(*sets("agentInjector.certificate.method=helm"))
        bundle = made.at("MutatingWebhookConfiguration/agent-injector-webhook-ambassador: webhooks.0.clientConfig.caBundle")
        self.assertEqual(bundle, made.at("Secret/mutator-webhook-tls: data.ca\\.crt"))
        self.assertTrue(made.at("Secret/mutator-webhook-tls: data.tls\\.key"))

    def test_the_two_passes_share_no_object_and_make_the_whole(self):
        for extra in [[], STATIC, ["rbac.webhook=true"]]:
            users = [*extra, *CLIENT]
            keys = lambda r: {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in r.objects}
            first = keys(Rendered.of(*sets([*users, "rbac.only=true"])))
            second = keys(Rendered.of(*sets([*extra, "managerRbac.create=false", "clientRbac.create=false"])))
            whole = keys(Rendered.of(*sets([v for v in users if v != "rbac.webhook=true"])))
            self.assertEqual(first & second, set())
            self.assertEqual(first | second, whole)

    def test_rights_only_pass_holds_nothing_but_rights(self):
        kinds = {n.split("/")[0] for n in Rendered.of(*sets([*CLIENT, "rbac.only=true"])).names()}
        self.assertEqual(kinds, {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"})

    def test_without_the_injector_nothing_is_written_to_workloads(self):
        rules = Rendered.of(*sets("agentInjector.enabled=false")).rules("ClusterRole/traffic-manager-ambassador")
        asking = ["tokenreviews"], ["subjectaccessreviews"]
        writing = {verb for rule in rules if rule["resources"] not in asking for verb in rule["verbs"]} - {"get", "list", "watch"}
        self.assertEqual(writing, set())

    def test_istio_rights_come_with_istio(self):
        rules = Rendered.of(*sets("trafficManager.serviceMesh.type=istio")).rules("ClusterRole/traffic-manager-ambassador")
        self.assertIn(["sidecars"], [r["resources"] for r in rules])

    def test_disabled_kinds_are_not_asked_for(self):
        off = [f"workloads.{kind}.enabled=false" for kind in ("deployments", "replicaSets")]
        rules = Rendered.of(*sets(off)).rules("ClusterRole/traffic-manager-ambassador")
        self.assertIn(["statefulsets"], [r["resources"] for r in rules])
        # The way from a Deployment's pods to it.
        rules = Rendered.of(*sets("workloads.replicaSets.enabled=false")).rules("ClusterRole/traffic-manager-ambassador")
        self.assertIn(["deployments", "replicasets", "statefulsets"], [r["resources"] for r in rules])

    def test_no_rule_has_a_wildcard(self):
        made = Rendered.of(*sets([*CLIENT, "workloads.argoRollouts.enabled=true"]))
        for o in made.objects:
            for rule in o.get("rules", []) if o["kind"] in ("Role", "ClusterRole") else []:
                self.assertNotIn("*", rule["verbs"] + rule["resources"] + rule["apiGroups"])


class ParentChart(unittest.TestCase):
    def test_parent_chart_templates_are_included(self):
        with tempfile.TemporaryDirectory() as folder:
            parent = pathlib.Path(folder) / "parent"
            (parent / "templates").mkdir(parents=True)
            shutil.copytree(CHART, parent / "charts/traffic-manager")
            (parent / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
            (parent / "templates/_more.tpl").write_text(
                '{{ define "more-env" }}\n- {name: MORE, value: "1"}\n{{ end }}'
                '{{ define "more-mounts" }}\n- {name: more, mountPath: /more}\n{{ end }}'
                '{{ define "more-volumes" }}\n- {name: more, emptyDir: {}}\n{{ end }}'
                '{{ define "clientRbac-ruleExtras" }}\n- {apiGroups: [x], resources: [y], verbs: [get]}\n{{ end }}'
            )
            values = {
                "traffic-manager": {
                    "trafficManager": {"envTemplate": "more-env", "mountsTemplate": "more-mounts", "volsTemplate": "more-volumes"},
                    "clientRbac": {"create": True, "ruleExtras": True, "subjects": [{"kind": "User", "name": "a"}]},
                }
            }
            (parent / "values.yaml").write_text(yaml.safe_dump(values))
            made = Rendered.of(chart=parent)
        self.assertEqual(made.env()["MORE"], "1")
        self.assertEqual(made.at("pod spec.volumes.0.name"), "more")
        self.assertEqual(made.at("pod spec.containers.0.volumeMounts.0.mountPath"), "/more")
        self.assertEqual(made.rules("ClusterRole/traffic-manager-clients-ambassador")[-1]["apiGroups"], ["x"])


if __name__ == "__main__":
    unittest.main()
