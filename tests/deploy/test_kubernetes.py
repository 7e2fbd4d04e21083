"""The Kubernetes manifests: kustomize renders them, the API schemas accept them, and they run what compose.yaml runs."""

import re
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml
from django.test import Client

from tests.deploy.test_compose import SERVICES
from tests.deploy.test_image import FINAL, values
from tests.docora.test_docs import read, text_of
from tests.support.commands import manage
from tests.support.deployment import ENV_FILE, PROJECT, UNITS

OLDEST = "1.32"
"""The oldest version of Kubernetes that the handbook names."""
PODS = {"docora-migrate", "docora-web", "docora-worker", "docora-upkeep", "docora-sweep"}
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@cache
def rendered(folder: str = "overlays/example") -> list[dict[str, Any]]:
    path = UNITS / "kubernetes" / folder
    text = subprocess.run(["kustomize", "build", path], capture_output=True, text=True, timeout=60, check=True).stdout
    return list(yaml.safe_load_all(text))


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in rendered() if one["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """Return name → pod template of every workload."""
    found = [one for kind in ("Deployment", "StatefulSet", "Job") for one in named(kind).values()]
    return {one["metadata"]["name"]: one["spec"]["template"] for one in found}


def container(name: str) -> dict[str, Any]:
    [only] = pods()[name]["spec"]["containers"]
    return only


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


def settings_of_the_pods() -> dict[str, str]:
    [config] = named("ConfigMap").values()
    return config["data"]


@pytest.mark.parametrize("version", [OLDEST, "newest"])
@pytest.mark.parametrize("folder", ["base", "overlays/example"])
def test_schemas_of_kubernetes_accept_every_object(folder: str, version: str) -> None:
    import kubernetes_validate  # takes a second, and all processes of a run import this module

    wanted = kubernetes_validate.latest_version() if version == "newest" else version
    for one in rendered(folder):
        kubernetes_validate.validate(one, wanted, strict=True)


def test_handbook_names_the_oldest_supported_version() -> None:
    assert f"Kubernetes {OLDEST} or newer" in Client().get("/docs/operations/").text


def test_handbook_names_enough_connections_for_the_example(settings) -> None:
    replicas = {
        one["metadata"]["name"]: one["spec"]["replicas"] for one in rendered() if "replicas" in one.get("spec", {})
    }
    web = replicas["docora-web"] + named("Deployment")["docora-web"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    workers = replicas["docora-worker"] + replicas["docora-upkeep"]
    reserved = 3  # PostgreSQL's superuser_reserved_connections
    needed = (
        settings.WEB_CONNECTIONS * web + settings.SYNCS_PER_WORKER * workers + 2 * replicas["docora-sweep"] + reserved
    )
    stated = re.search(r"a max_connections of at least (\d+)", text_of("/docs/operations/"))
    assert stated
    assert needed <= int(stated[1]) < needed + 20


def test_workloads_run_what_compose_runs() -> None:
    services = {name.removeprefix("docora-"): container(name) for name in pods()}
    assert {f"docora-{name}" for name in services} == PODS
    for name, one in services.items():
        assert "command" not in one  # the image has no entry point either
        assert one["args"] == SERVICES[name]["command"], name
    assert values(FINAL, "ENTRYPOINT") == []


def test_settings_are_valid_and_secrets_come_from_the_secret() -> None:
    given = settings_of_the_pods()
    secrets = {name: ENV_FILE[name] for name in ("SECRET_KEY", "ENCRYPTION_KEYS")}
    secrets |= {"DATABASE_URL": "postgres://docora@db:5432/docora", "REDIS_URL": "redis://queue:6379/0"}
    assert set(secrets) == set(re.findall(r"(?m)^(\w+)=", read("/docs/operations/").code["kubernetes-secret"]))
    assert given.keys().isdisjoint(secrets)
    environment = {"PATH": "/usr/bin:/bin", "DOCORA_ENV_FILE": "/dev/null"} | given | secrets
    assert manage("check", environment=environment).returncode == 0
    [config] = named("ConfigMap")
    for name in pods():
        assert container(name)["envFrom"] == [
            {"configMapRef": {"name": config}},
            {"secretRef": {"name": "docora"}},
        ]
        assert "env" not in container(name)
    assert named("Secret") == {}


def test_pods_are_unprivileged_and_write_to_their_volumes_only() -> None:
    [user] = values(FINAL, "USER")
    for name, template in pods().items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container(name)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["mountPath"] for mount in container(name)["volumeMounts"]} == {"/data", "/tmp"}
    assert settings_of_the_pods()["DATA_DIR"] == "/data"


def test_each_worker_has_a_volume_with_room_for_mirrors_and_a_fetch(settings) -> None:
    workers = named("StatefulSet")
    assert workers.keys() == {"docora-worker", "docora-upkeep"}
    for worker in workers.values():
        [claim] = worker["spec"]["volumeClaimTemplates"]
        assert claim["metadata"]["name"] == "data"
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
        room = size(claim["spec"]["resources"]["requests"]["storage"])
        assert int(settings_of_the_pods()["REPOS_MAX_BYTES"]) + settings.MAX_FETCH_BYTES < room
    for name in PODS - workers.keys():
        volumes = {volume["name"]: volume for volume in pods()[name]["spec"]["volumes"]}
        assert volumes["data"] == {"name": "data", "emptyDir": {}}


def test_web_has_probes_of_its_own(client: Client) -> None:
    web = container("docora-web")
    probes = {name: web[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/health/web"}
    assert client.get("/health", headers={"Host": "10.1.2.3:8000"}).status_code == 200
    for name in PODS - {"docora-web"}:
        assert not [key for key in container(name) if key.endswith("Probe")], name
    [service] = [one for name, one in named("Service").items() if name == "docora-web"]
    assert service["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}]


def test_processes_have_time_to_end() -> None:
    """A worker hands over within 8 seconds. The web process drains for 10, after the five of its hook."""
    for name, template in pods().items():
        if name != "docora-migrate":
            assert template["spec"]["terminationGracePeriodSeconds"] >= 5 + 10 + 2


def test_every_pod_requests_what_the_handbook_measured() -> None:
    page = Client().get("/docs/operations/").text.partition('id="scaling-needs"')[2].partition("</dl>")[0]
    measured = {
        name: int(found[1]) * 1_000_000
        for name, subject in (("web", "The web process"), ("worker", "A worker"), ("sweep", "The sweep"))
        if (found := re.search(rf"<dt>{subject}</dt><dd>(\d+) MB", page))
    }
    assert measured.keys() == {"web", "worker", "sweep"}
    for name in pods():
        resources = container(name)["resources"]
        needed = measured.get(name.removeprefix("docora-"), measured["worker"] if "upkeep" in name else 0)
        assert size(resources["requests"]["memory"]) > needed, name
        assert size(resources["limits"]["memory"]) >= size(resources["requests"]["memory"])
        assert "cpu" in resources["requests"]
        assert "cpu" not in resources["limits"]  # it would only slow syncs down


def test_network_policies_allow_only_named_connections() -> None:
    policies = named("NetworkPolicy")
    every = policies["docora"]["spec"]
    assert every["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "docora"}}
    assert every["policyTypes"] == ["Ingress", "Egress"]
    assert every.get("ingress", []) == []
    closed = {network for rule in every["egress"] for to in rule.get("to", []) for network in to["ipBlock"]["except"]}
    assert {"10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "fc00::/7"} <= closed
    assert policies.keys() == {"docora", "docora-web"}
    [rule] = policies["docora-web"]["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]
    allowed = [one["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for one in rule["from"]]
    assert allowed == ["ingress-nginx", "monitoring"]
    assert pods()["docora-web"]["metadata"]["labels"]["app.kubernetes.io/component"] == "web"
    for name, template in pods().items():
        assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "docora", name


def rollout_restart() -> str:
    [command] = re.findall(r"rollout restart ([^<]*)</code>", Client().get("/docs/operations/").text)
    return command


def test_commands_of_the_handbook_name_what_exists() -> None:
    commands = read("/docs/operations/").code["kubernetes-commands"]
    namespace, overlay = re.findall(r"--(?:filename|kustomize) (\S+)", commands)
    example = UNITS / "kubernetes" / "overlays" / "example"
    assert PROJECT / overlay == example.with_name("production")  # the copy, which does not exist yet
    assert (PROJECT / namespace).parent == PROJECT / overlay
    assert [one["kind"] for one in yaml.safe_load_all((example / "namespace.yaml").read_text())] == ["Namespace"]
    for kind, name in re.findall(r"\b(job|deployment|statefulset)/(docora-\w+)", commands):
        assert name in named({"statefulset": "StatefulSet"}.get(kind, kind.capitalize())), name
    assert "--namespace docora" in commands
    for command in (read("/docs/operations/").code["stop-kubernetes"], rollout_restart()):
        assert set(re.findall(r"\w+/(docora-\w+)", command)) == PODS - {"docora-migrate"}
    assert named("Namespace").keys() == {"docora"}
