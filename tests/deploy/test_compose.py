"""compose.yaml: its rules, and each of its commands run with the environment that Compose would set."""

import html
import json
import re
import urllib.error
import urllib.request

import pytest
import yaml
from django.test import Client
from redis import Redis
from redis.exceptions import AuthenticationError

from docora.server.valkey import bundled_server
from tests.docora.test_docs import text_of
from tests.support.deployment import ENV_FILE, MissingVariable, compose
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.servers import ScratchFolder
from tests.support.valkey import ValkeyServer

SERVICES = compose(ENV_FILE)["services"]
DOCORA_SERVICES = {"web", "worker", "upkeep", "sweep", "migrate"}
RUNNING = sorted(DOCORA_SERVICES - {"migrate"})


@pytest.mark.parametrize(
    "name", ["PUBLIC_URL", "SECRET_KEY", "ENCRYPTION_KEYS", "POSTGRES_PASSWORD", "VALKEY_PASSWORD"]
)
def test_missing_setting_is_a_clear_error(name: str) -> None:
    with pytest.raises(MissingVariable, match=rf"{name} is missing in \.env, "):
        compose({key: value for key, value in ENV_FILE.items() if key != name})


def test_services() -> None:
    assert set(SERVICES) == DOCORA_SERVICES | {"db", "valkey", "proxy"}
    assert SERVICES["proxy"]["profiles"] == ["tls"]
    assert [name for name in SERVICES if "profiles" in SERVICES[name]] == ["proxy"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_write_to_their_volumes_only(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == ("on-failure" if name == "migrate" else "unless-stopped")
    named = {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")}
    assert named <= set(compose(ENV_FILE)["volumes"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_logs_are_limited(name: str) -> None:
    assert SERVICES[name]["logging"]["options"] == {"max-size": "20m", "max-file": "5"}
    assert "keeps the newest 100 MB of each container." in text_of("/docs/operations/")


def test_handbooks_list_of_certificate_authorities_is_mounted_in_every_process() -> None:
    page = Client().get("/docs/operations/").text
    [found] = re.findall(r'id="ca-override"[^>]*>(.*?)</', page, re.DOTALL)
    override = yaml.safe_load(html.unescape(found))["services"]
    assert sorted(override) == RUNNING
    for service in override.values():
        assert service == {"volumes": ["./ca-list.crt:/etc/ssl/certs/ca-certificates.crt:ro"]}
    # Without the override, which mounts the list that is being written.
    assert "docker compose --file compose.yaml run --rm --no-deps -T web cat /etc/ssl/certs/ca-certificates.crt" in page


def test_database_accepts_the_connections_of_ten_workers(settings) -> None:
    assert "PostgreSQL is set up for up to ten." in text_of("/docs/operations/")
    workers = 10 + 1  # and upkeep
    reserved = 3  # PostgreSQL's superuser_reserved_connections
    needed = settings.WEB_CONNECTIONS + settings.SYNCS_PER_WORKER * workers + 2 + reserved
    [allowed] = [word.split("=")[1] for word in SERVICES["db"]["command"] if word.startswith("max_connections=")]
    assert needed < int(allowed) < needed + 20


@pytest.mark.parametrize("name", RUNNING)
def test_processes_wait_for_migrations_database_and_queue(name: str) -> None:
    assert {service: dependency["condition"] for service, dependency in SERVICES[name]["depends_on"].items()} == {
        "migrate": "service_completed_successfully",
        "db": "service_healthy",
        "valkey": "service_healthy",
    }
    assert all(SERVICES[service]["healthcheck"]["test"] for service in ("db", "valkey"))


def test_only_the_web_process_has_a_health_check() -> None:
    assert [name for name in sorted(DOCORA_SERVICES) if SERVICES[name].get("healthcheck") != {"disable": True}] == [
        "web"
    ]


def test_only_the_proxy_is_published() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports.pop("proxy") == ["80:80", "443:443", "443:443/udp"]
    assert ports == {"web": ["127.0.0.1:8000:8000"]}


def test_networks_separate_the_database_from_the_proxy_and_the_outside() -> None:
    networks = compose(ENV_FILE)["networks"]
    assert {name for name, network in networks.items() if (network or {}).get("internal")} == {"internal"}
    joined = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert joined == {
        "proxy": {"front"},
        "web": {"front", "internal"},
        "worker": {"internal", "outbound"},
        "upkeep": {"internal", "outbound"},
        "sweep": {"internal", "outbound"},
        "migrate": {"internal"},
        "db": {"internal"},
        "valkey": {"internal"},
    }
    [subnet] = [entry["subnet"] for entry in networks["front"]["ipam"]["config"]]
    assert all(SERVICES[name]["environment"]["TRUSTED_PROXIES"] == subnet for name in DOCORA_SERVICES)


def test_images_can_be_pinned_by_digest() -> None:
    digest = "sha256:" + "ab" * 32
    names = {"POSTGRES_IMAGE": "db", "VALKEY_IMAGE": "valkey", "CADDY_IMAGE": "proxy"}
    pinned = compose(ENV_FILE | dict.fromkeys((*names, "PYTHON_IMAGE"), f"x@{digest}"))["services"]
    assert {pinned[service]["image"] for service in names.values()} == {f"x@{digest}"}
    assert pinned["web"]["build"]["args"]["PYTHON_IMAGE"] == f"x@{digest}"


def environment_of(name: str, addresses: dict[str, str]) -> dict[str, str]:
    """Return the environment of a service: `.env`, compose.yaml, and the addresses of the test's servers."""
    service = SERVICES[name]
    assert service["env_file"] == ".env"
    return ENV_FILE | service["environment"] | addresses


def readiness(address: str) -> dict[str, object]:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)
    except OSError:
        return {}


def test_every_command_runs_until_it_is_stopped(image: Daemons, addresses: dict[str, str]) -> None:
    base = image.environment
    started = {}
    for name in ["migrate", *RUNNING]:
        python, manage, *arguments = SERVICES[name]["command"]
        assert (python, manage) == ("python", "manage.py")
        image.environment = base | environment_of(name, addresses)
        started[name] = image.start(*arguments)
        if name == "migrate":
            assert started.pop(name).process.wait(60) == 0, image.logs()
    address = f"http://127.0.0.1:{addresses['PORT']}/health/ready"
    found = wait_for(lambda: (answer := readiness(address)).get("ready") and answer, 60, 0.3)
    assert set(found["checks"].values()) == {"ok"}
    for daemon in started.values():
        assert daemon.running, image.logs()
        daemon.terminate()
    assert {name: daemon.process.wait(20) for name, daemon in started.items()} == dict.fromkeys(started, 0)
    assert "Traceback" not in image.logs()


def test_queue_has_a_password_evicts_nothing_and_survives_a_restart() -> None:
    class Queue(ValkeyServer):
        @property
        def url(self) -> str:
            return f"unix://:{ENV_FILE['VALKEY_PASSWORD']}@{self.socket}?db=0"

        def command(self) -> list[str]:
            server, *options = SERVICES["valkey"]["command"]
            assert server == "valkey-server"
            here = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
            return [str(bundled_server()), *options, *here]

    scratch = ScratchFolder()
    try:
        with Queue(scratch) as server:
            client: Redis = server.client()
            with pytest.raises(AuthenticationError):
                Redis(unix_socket_path=str(server.socket)).ping()
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            client.set("kept", 1)
            server.restart()
            assert client.get("kept") == b"1"
    finally:
        scratch.close()
