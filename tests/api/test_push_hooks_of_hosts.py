"""Push hooks as each git host sends them, over a real HTTP server.

`tests/fixtures/push_hooks` has one push event of each host: every header and field of a recorded one, with made-up values.
`{sha256}`, `{sha1}`, `{secret}` and `{basic}` stand for what depends on the secret.
"""

import base64
import hashlib
import hmac
import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from deliveries_app.services import watch_settings

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "push_hooks"
HOSTS = sorted(path.stem for path in FOLDER.iterdir())
PROOFS = {
    "azure_devops": {"Authorization"},
    "bitbucket_cloud": {"X-Hub-Signature"},
    "bitbucket_server": {"X-Hub-Signature"},
    "forgejo": {"X-Forgejo-Signature", "X-Gitea-Signature", "X-Hub-Signature-256"},
    "gitea": {"X-Gitea-Signature", "X-Hub-Signature-256"},
    "github": {"X-Hub-Signature-256"},
    "gitlab": {"X-Gitlab-Token"},
}
"""Host → the headers of its fixture, any one of which Docora accepts as proof."""


def push_of(host: str, secret: str) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body with which the host announces a push."""
    head, _, body = (FOLDER / f"{host}.http").read_bytes().partition(b"\n\n")
    values = {
        "sha256": hmac.digest(secret.encode(), body, "sha256").hex(),
        "sha1": hmac.digest(secret.encode(), body, "sha1").hex(),
        "secret": secret,
        "basic": base64.b64encode(f"docora:{secret}".encode()).decode(),
    }
    lines = head.decode().format(**values).splitlines()
    return dict(line.split(": ", 1) for line in lines), body


@pytest.fixture
def secret(watches: list[AppRepository]) -> str:
    """The secret of Portal's watch of acme/docs."""
    return watch_settings.renew_push_secret(Actor.command(), watches[0])


@pytest.fixture
def send(live_server, watches: list[AppRepository]):
    """Post to the push hook of acme/docs."""

    def post(
        headers: dict[str, str], body: bytes, repository_id: str = ""
    ) -> tuple[int, dict[str, str], dict[str, str]]:
        connection = http.client.HTTPConnection(urlsplit(live_server.url).netloc, timeout=30)
        path = f"/api/hooks/push/{repository_id or watches[0].repository.repository_id}"
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content, {name.lower(): value for name, value in answer.getheaders()}

    return post


def requests_of(watches: list[AppRepository]) -> list[int]:
    return [AppRepository.objects.get(pk=watch.pk).request_count for watch in watches]


def test_every_host_has_a_fixture() -> None:
    assert set(PROOFS) == set(HOSTS)


@pytest.mark.parametrize("host", HOSTS)
def test_push_schedules_every_watch_of_the_repository(send, watches, secret: str, host: str) -> None:
    headers, body = push_of(host, secret)
    assert send(headers, body)[:2] == (202, {"message": "Check queued"})
    assert requests_of(watches) == [2, 1, 2]


@pytest.mark.parametrize("host", HOSTS)
def test_any_watch_s_secret_is_accepted(send, watches, secret: str, host: str) -> None:
    second = watch_settings.renew_push_secret(Actor.command(), watches[2])
    assert second != secret
    assert send(*push_of(host, second))[0] == 202


@pytest.mark.parametrize("host", HOSTS)
def test_one_proof_is_enough_and_one_is_required(send, watches, secret: str, host: str) -> None:
    headers, body = push_of(host, secret)
    unsigned = {name: value for name, value in headers.items() if name not in PROOFS[host]}
    assert send(unsigned, body)[0] == 401
    for name in PROOFS[host]:
        assert send(unsigned | {name: headers[name]}, body)[0] == 202, name


@pytest.mark.parametrize("host", HOSTS)
def test_wrong_secret_is_the_same_401_as_an_unknown_repository(send, watches, secret: str, host: str) -> None:
    wrong = send(*push_of(host, "0" * 64))
    unknown = send(*push_of(host, secret), "repo_" + "0" * 24)
    without_secret = send(*push_of(host, secret), watches[1].repository.repository_id)
    nothing = send({}, b"")
    kept = [
        (status, content, answer["www-authenticate"])
        for status, content, answer in (wrong, unknown, without_secret, nothing)
    ]
    assert kept == [kept[0]] * 4
    assert kept[0][0] == 401
    assert "Bearer" not in kept[0][2]
    assert requests_of(watches) == [1, 1, 1]


@pytest.mark.parametrize("host", [host for host in HOSTS if PROOFS[host] & {"X-Hub-Signature", "X-Hub-Signature-256"}])
def test_changed_body_is_refused(send, secret: str, host: str) -> None:
    headers, body = push_of(host, secret)
    assert send(headers, body.replace(b"main", b"evil"))[0] == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Gitlab-Token": ""},
        {"X-Gitlab-Token": "é" * 64},
        {"X-Gitlab-Token": "{digest}"},
        {"X-Gitea-Signature": "sha256={hex}"},
        {"X-Gitea-Signature": "{secret}"},
        {"X-Hub-Signature": "{hex}"},
        {"X-Hub-Signature": "sha1={hex}"},
        {"X-Hub-Signature-256": "{HEX}"},
        {"Authorization": "Bearer {secret}"},
        {"Authorization": "Basic"},
        {"Authorization": "Basic {secret}"},
        {"Authorization": "Basic é"},
        {"Authorization": "Basic /////w=="},
        {"Authorization": "Basic {user_only}"},
        {"Authorization": "Basic {no_password}"},
    ],
    ids=str,
)
def test_malformed_proof_is_refused(send, watches, secret: str, headers: dict[str, str]) -> None:
    hexed = hmac.digest(secret.encode(), b"{}", "sha256").hex()
    values = {
        "secret": secret,
        "digest": hashlib.sha256(secret.encode()).hexdigest(),
        "hex": hexed,
        "HEX": hexed.upper(),
        "user_only": base64.b64encode(f"{secret}:".encode()).decode(),
        "no_password": base64.b64encode(secret.encode()).decode(),
    }
    given = {name: value.format(**values).encode().decode("latin-1") for name, value in headers.items()}
    assert send(given, b"{}")[0] == 401
