"""The Helm chart: its values, its schema, and what real helm makes of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.names import settings_of
from trio_gateway import __version__
from trio_gateway.cli.main import trunk
from trio_gateway.kept import DRAIN_MARGIN

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "trio-gateway"
TEMPLATES = {path.name: path.read_text("utf-8") for path in (CHART / "templates").iterdir()}
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
HELM = shutil.which("helm")
needs_helm = pytest.mark.skipif(
    HELM is None, reason="helm is not on PATH: the templates of deploy/helm are NOT rendered"
)
CLUSTERS = ("1.27", "1.31", "1.37")

LEAST = {"existingSecret": "made-before", "blobUrl": "s3://bucket/prefix"}
MOST = LEAST | {
    "autoscaling": {"enabled": True},
    "ingress": {"enabled": True, "tlsSecret": "certificate"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "settings": {"MAX_BODY_BYTES": "33554432"},
    "secretKeys": {"metricsToken": "METRICS_TOKEN"},
    "extraEnvSecrets": ["bucket-keys"],
    "imagePullSecrets": [{"name": "registry"}],
    "trustedProxies": "10.0.0.0/8",
    "nodeSelector": {"pool": "web"},
    "tolerations": [{"key": "web", "operator": "Exists"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"name": "apps"}}}],
        "adminClients": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "extraEgress": [{"ports": [{"port": 443}]}],
    },
}
FOLDER = {"existingSecret": "made-before", "persistence": {"enabled": True}}
CASES = {"least": LEAST, "most": MOST, "folder": FOLDER}


def merged(base, over):
    """Lay values over others, as helm does."""
    both = dict(base)
    for name, value in over.items():
        deeper = isinstance(value, dict) and isinstance(both.get(name), dict)
        both[name] = merged(both[name], value) if deeper else value
    return both


def find(values, path):
    """Return the value at a dotted path; raises KeyError."""
    for name in path.split("."):
        values = values[name]
    return values


def helm(values, tmp_path, *words):
    """Run helm on the chart with these values."""
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [str(HELM), *words, "--values", str(tmp_path / "values.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def render(values, tmp_path) -> list[dict[str, Any]]:
    """Return the manifests that helm makes for a release named `release`."""
    words = ("template", "release", str(CHART), "--kube-version", "1.31.0", "--namespace", "place")
    done = helm(values, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


@pytest.fixture(params=CASES)
def manifests(request, tmp_path):
    return render(CASES[request.param], tmp_path)


@pytest.fixture
def rendered(tmp_path):
    return render(MOST, tmp_path)


def of(manifests, kind, ending=""):
    """Return the only manifest of a kind whose name ends so."""
    (one,) = [
        one
        for one in manifests
        if one["kind"] == kind and one["metadata"]["name"] == f"release-trio-gateway{ending}"
    ]
    return one


def pods(manifests):
    """Return every pod's specification."""
    return [
        one["spec"]["template"]["spec"] for one in manifests if "template" in one.get("spec", {})
    ]


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_values_fit_their_schema(values):
    """The defaults, and what a test lays over them."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(merged(VALUES, values), SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": 3},
        {"drain": {"timeout": 3}},
        {"drain": {"marginSeconds": 5}},
        {"settings": {"MAX_BODY_BYTES": 33554432}},
        {"settings": {"DRAIN_TIMEOUT": "30"}},
        {"settings": {"ADMIN_TOKEN": "secret"}},
        {"settings": {"lower": "1"}},
        {"image": {"digest": "latest"}},
        {"admin": {"publicUrl": "https://user:word@host"}},
        {"service": {"type": "Everywhere"}},
        {"ollamaUrl": "ollama:11434"},
        {"networkPolicy": {"ollama": {"to": []}}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_misspelled(wrong):
    """Unknown names, numbers that helm would write as 1e+06, secrets among the settings."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(VALUES, wrong), SCHEMA)


def test_every_value_that_a_template_names_has_a_default_and_each_default_is_used():
    """A misspelled `.Values.x` would render as nothing, without a word."""
    named = set(re.findall(r"\.Values\.([A-Za-z.]+[A-Za-z])", "".join(TEMPLATES.values())))
    for path in named:
        find(VALUES, path)
    aliases = re.findall(r"\$policy\.([A-Za-z.]+)", TEMPLATES["networkpolicy.yaml"])
    named |= {f"networkPolicy.{path}" for path in aliases}
    for path in named:
        find(VALUES, path)

    def leaves(values, before=""):
        for name, value in values.items():
            path = f"{before}{name}"
            if isinstance(value, dict) and value and path not in named:
                yield from leaves(value, f"{path}.")
            else:
                yield path

    assert [path for path in leaves(VALUES) if path not in named] == []


def test_the_schema_knows_each_value():
    """`helm install --set` of a default's own name is never refused."""

    def compare(values, schema, path=""):
        if schema.get("additionalProperties") is False:
            assert values.keys() <= schema["properties"].keys(), path
            for name, value in values.items():
                if isinstance(value, dict):
                    compare(value, schema["properties"][name], f"{path}.{name}")

    compare(VALUES, SCHEMA)
    assert SCHEMA["additionalProperties"] is False


def test_no_value_holds_a_secret():
    """Not a password, a token or an address with one; and no template makes a Secret."""
    everything = "".join(TEMPLATES.values())
    assert VALUES["existingSecret"] == ""
    assert not re.search(r"kind: Secret\b|stringData|b64enc|randAlphaNum|genPrivateKey", everything)
    assert not re.search(r"://[^/\s]*:[^/\s]*@", (CHART / "values.yaml").read_text("utf-8"))


def test_the_settings_of_the_templates_are_the_gateways():
    """A name that the gateway does not know would stop its start."""
    found = settings_of("".join(TEMPLATES.values()))
    assert {"DATABASE_URL", "TRIO_GATEWAY_DRAIN_TIMEOUT", "TRIO_GATEWAY_ADMIN_TOKEN"} <= found


def test_the_chart_is_of_this_release():
    """`appVersion` is the image's tag by default."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["appVersion"] == __version__


@needs_helm
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_helm_finds_no_fault(values, tmp_path):
    """`helm lint --strict`."""
    done = helm(values, tmp_path, "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_helm
def test_the_manifests_are_what_kubernetes_takes(manifests):
    """Each against the schemas of the oldest cluster, a middle one and the newest, strictly."""
    for one in manifests:
        if one["kind"] != "ServiceMonitor":
            for version in CLUSTERS:
                kubernetes_validate.validate(one, version, strict=True)


@needs_helm
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"blobUrl": "s3://bucket"}, "existingSecret is empty"),
        ({"existingSecret": "made"}, "blobUrl is empty"),
        (LEAST | {"ingress": {"enabled": True}}, "ingress.tlsSecret is empty"),
        (
            LEAST | {"serviceMonitor": {"enabled": True}, "admin": {"enabled": False}},
            "needs admin.enabled",
        ),
        (LEAST | {"replica": 3}, "replica"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_helm_refuses_what_would_not_be_safe(values, words, tmp_path):
    """In one sentence that names the value."""
    done = helm(values, tmp_path, "template", "release", str(CHART), "--kube-version", "1.31.0")
    assert done.returncode != 0
    assert words in done.stderr


@needs_helm
def test_every_pod_is_restricted(manifests):
    """As the pod security standard `restricted` has it, and with a read-only root."""
    assert pods(manifests)
    for pod in pods(manifests):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} <= container["resources"].keys()
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


@needs_helm
def test_a_pod_has_time_to_drain(manifests):
    """preStop, the drain and the supervisor's margin end before Kubernetes loses patience."""
    (pod,) = [one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment"]
    (container,) = pod["containers"]
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = next(
        float(one["value"])
        for one in container["env"]
        if one["name"] == "TRIO_GATEWAY_DRAIN_TIMEOUT"
    )
    assert program == "sleep"
    needed = float(seconds) + drain + DRAIN_MARGIN
    assert pod["terminationGracePeriodSeconds"] > needed
    unready = container["readinessProbe"]["periodSeconds"]
    assert float(seconds) > unready * container["readinessProbe"]["failureThreshold"]


@needs_helm
def test_the_probes_ask_what_they_should(manifests):
    """Ready is able to admit; alive is the process, or a store's outage would kill every pod."""
    (pod,) = [one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment"]
    (container,) = pod["containers"]
    asked = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")
    }
    assert asked == {
        "startup": {"path": "/healthz", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
        "liveness": {"path": "/healthz", "port": "http"},
    }


@needs_helm
def test_secrets_reach_a_pod_as_files_of_the_named_secret(manifests):
    """No manifest is a Secret, and no environment variable holds the value of one."""
    assert not [one for one in manifests if one["kind"] == "Secret"]
    for pod in pods(manifests):
        named = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
        assert named == {"made-before"}
        (container,) = pod["containers"]
        assert all("valueFrom" not in one for one in container["env"])
        names = [one["name"] for one in container["env"]]
        assert len(names) == len(set(names))
        keys = {i["path"] for v in pod["volumes"] for i in v.get("secret", {}).get("items", [])}
        files = {one["value"] for one in container["env"] if one["name"].endswith("_FILE")}
        mounted = {f"/run/secrets/trio-gateway/{key}" for key in keys}
        assert files == mounted


@needs_helm
def test_the_migration_runs_first_and_alone(rendered):
    """A hook before install and upgrade, which needs nothing that the release makes."""
    job = of(rendered, "Job", "-migrate")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = job["spec"]["template"]["spec"]
    assert (pod["restartPolicy"], pod["containers"][0]["args"]) == ("Never", ["migrate"])
    assert "serviceAccountName" not in pod
    labels = job["spec"]["template"]["metadata"]["labels"]
    policy = of(rendered, "NetworkPolicy", "-migrate")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert int(policy["metadata"]["annotations"]["helm.sh/hook-weight"]) < int(
        job["metadata"]["annotations"]["helm.sh/hook-weight"]
    )
    # no Service sends calls to it
    selector = of(rendered, "Service")["spec"]["selector"]
    assert not selector.items() <= labels.items()


@needs_helm
def test_the_admin_listener_stays_inside(tmp_path):
    """ClusterIP whatever the public Service is, and on no Ingress."""
    manifests = render(merged(MOST, {"service": {"type": "LoadBalancer"}}), tmp_path)
    assert of(manifests, "Service")["spec"]["type"] == "LoadBalancer"
    admin = of(manifests, "Service", "-admin")["spec"]
    assert admin["type"] == "ClusterIP"
    assert [port["targetPort"] for port in of(manifests, "Service")["spec"]["ports"]] == ["http"]
    (rule,) = of(manifests, "Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {
        "name": "release-trio-gateway",
        "port": {"name": "http"},
    }


@needs_helm
def test_nobody_reaches_the_admin_port_unless_named(tmp_path):
    """With no `adminClients` the policy has no rule for it."""
    for values, expected in ((LEAST, ["http"]), (MOST, ["http", "admin"])):
        policy = of(render(values, tmp_path), "NetworkPolicy")["spec"]
        assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == expected


@needs_helm
def test_the_gateway_reaches_its_stores_and_ollama_alone(tmp_path):
    """Egress has their ports and DNS; only the gateway's pods reach Ollama's."""
    manifests = render(LEAST, tmp_path)
    policy = of(manifests, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [[p["port"] for p in rule["ports"]] for rule in policy["egress"]] == [
        [5432],
        [6379],
        [11434],
        [53, 53],
    ]
    assert all(rule["to"] for rule in policy["egress"])
    ollama = of(manifests, "NetworkPolicy", "-ollama")["spec"]
    labels = of(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    (rule,) = ollama["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert ollama["podSelector"]["matchLabels"]


@needs_helm
def test_selectors_find_their_pods(rendered):
    """Services, the disruption budget, the autoscaler and the monitor name what there is."""
    deployment = of(rendered, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        of(rendered, "Service")["spec"]["selector"],
        of(rendered, "Service", "-admin")["spec"]["selector"],
        of(rendered, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of(rendered, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    target = of(rendered, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    monitor = of(rendered, "ServiceMonitor")["spec"]
    admin = of(rendered, "Service", "-admin")
    assert monitor["selector"]["matchLabels"].items() <= admin["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == admin["spec"]["ports"][0]["name"]
    assert monitor["endpoints"][0]["authorization"]["credentials"]["key"] == "METRICS_TOKEN"


@needs_helm
def test_the_ingress_streams(rendered):
    """Nothing is buffered, nothing sent twice, and nobody is more impatient than the gateway."""
    annotations = of(rendered, "Ingress")["metadata"]["annotations"]
    told = {name.rsplit("/", 1)[1]: value for name, value in annotations.items()}
    assert told["proxy-buffering"] == told["proxy-request-buffering"] == "off"
    assert int(told["proxy-read-timeout"]) > 1800
    assert "non_idempotent" not in told["proxy-next-upstream"]
    assert told["ssl-redirect"] == "true"


def test_the_commands_of_the_notes_exist():
    """What NOTES.txt tells an operator to run is understood."""
    found = re.findall(r"-- trio-gateway (.+)$", TEMPLATES["NOTES.txt"], re.MULTILINE)
    assert len(found) == 2
    for line in found:
        command: click.Command = trunk
        words = shlex.split(line)
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)
