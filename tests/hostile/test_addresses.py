"""Private addresses in every notation, names that resolve to them and redirects to them: neither webhooks nor git
connect, and both report why."""

import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Status
from deliveries_app.services import watch_repository
from deliveries_app.services.onboarding import unreachable_reason
from deliveries_app.services.pinging import send_ping
from docora.http.client import Cause, HttpClient
from repositories_app.git import process as git
from repositories_app.git.exceptions import GitError
from tests.docora.http_server import ScriptedServer, post, saying, servers
from tests.support.world import World

METADATA = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
LOOPBACK, LINK_LOCAL, PRIVATE, THIS_HOST = "loopback address", "link-local", "private address", "address of this host"

ADDRESSES: dict[str, tuple[str, str]] = {
    "loopback": ("127.0.0.1", LOOPBACK),
    "loopback by name": ("localhost", LOOPBACK),
    "loopback by name in capitals": ("LocalHost", LOOPBACK),
    "loopback in two parts": ("127.1", LOOPBACK),
    "loopback in three parts": ("127.0.1", LOOPBACK),
    "loopback in one number": ("2130706433", LOOPBACK),
    "loopback in hex": ("0x7f000001", LOOPBACK),
    "loopback in hex and parts": ("0x7f.0x0.0x0.0x1", LOOPBACK),
    "loopback in octal": ("017700000001", LOOPBACK),
    "loopback in octal parts": ("0177.0.0.01", LOOPBACK),
    "another of the loopback network": ("127.255.255.254", LOOPBACK),
    "this host": ("0.0.0.0", THIS_HOST),
    "this host as a digit": ("0", THIS_HOST),
    "the metadata service": ("169.254.169.254", LINK_LOCAL),
    "the metadata service in one number": ("2852039166", LINK_LOCAL),
    "the metadata service in hex": ("0xa9fea9fe", LINK_LOCAL),
    "the metadata service in octal": ("0251.0376.0251.0376", LINK_LOCAL),
    "the metadata service in three parts": ("169.254.43518", LINK_LOCAL),
    "a cloud platform service": ("168.63.129.16", "cloud platform service"),
    "a metadata service in the carrier-grade NAT range": ("100.100.100.200", "carrier-grade NAT"),
    "ten": ("10.0.0.1", PRIVATE),
    "ten in two parts": ("10.1", PRIVATE),
    "172.16": ("172.31.255.255", PRIVATE),
    "192.168": ("192.168.1.1", PRIVATE),
    "multicast": ("224.0.0.1", "multicast"),
    "broadcast": ("255.255.255.255", "reserved"),
    "IPv6 loopback": ("[::1]", LOOPBACK),
    "IPv6 loopback in full": ("[0:0:0:0:0:0:0:1]", LOOPBACK),
    "IPv6 loopback with zeros": ("[0000:0000:0000:0000:0000:0000:0000:0001]", LOOPBACK),
    "IPv6 this host": ("[::]", THIS_HOST),
    "IPv4-mapped": ("[::ffff:127.0.0.1]", "IPv4-mapped"),
    "IPv4-mapped in hex": ("[::ffff:7f00:1]", "IPv4-mapped"),
    "IPv4-mapped metadata": ("[::ffff:169.254.169.254]", "IPv4-mapped"),
    "IPv4-mapped public": ("[::ffff:8.8.8.8]", "IPv4-mapped"),
    "IPv4-compatible": ("[::127.0.0.1]", "IPv4-compatible"),
    "IPv4-translated": ("[::ffff:0:127.0.0.1]", "IPv4-translated"),
    "NAT64": ("[64:ff9b::7f00:1]", "NAT64"),
    "NAT64 of a site": ("[64:ff9b:1::10.0.0.1]", "NAT64"),
    "6to4": ("[2002:7f00:1::]", "6to4"),
    "Teredo": ("[2001:0:4136:e378:8000:63bf:80ff:fffe]", "Teredo"),
    "ISATAP": ("[2606:4700::5efe:127.0.0.1]", "ISATAP"),
    "unique local": ("[fd00:ec2::254]", PRIVATE),
    "link-local of IPv6": ("[fe80::1]", LINK_LOCAL),
    "site-local": ("[fec0::1]", "site-local"),
    "multicast of IPv6": ("[ff02::1]", "multicast"),
    "documentation": ("[2001:db8::1]", "documentation"),
    "segment routing": ("[5f00::1]", "segment-routing"),
    "not allocated": ("[4000::1]", "not a public address"),
}


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    with servers() as start:
        yield start


@pytest.fixture
def _no_private_networks(settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = []


def git_error(url: str) -> GitError:
    """Return the error of `git ls-remote`."""
    with pytest.raises(GitError) as raised:
        git.run(["ls-remote", "--", url], remote=git.Remote(url, "ghp_hunter2"), timeout=20)
    return raised.value


@pytest.mark.usefixtures("_no_private_networks")
@pytest.mark.parametrize(("host", "message"), ADDRESSES.values(), ids=ADDRESSES)
def test_private_address_is_blocked_in_every_notation(
    serve: Callable[..., ScriptedServer], app: App, settings, host: str, message: str
) -> None:
    server = serve()
    url = f"http://{host}:{server.port}"
    with HttpClient([], allow_http=True) as client:
        outcome = client.request(post(f"{url}/hooks"))
    assert (outcome.cause, outcome.reached) == (Cause.REFUSED_ADDRESS, False)
    assert message in outcome.message

    assert message in unreachable_reason(url)
    App.objects.filter(pk=app.pk).update(base_url=url)
    ping = send_ping(Actor.command(), app)
    assert (ping.delivered, ping.status) == (False, None)
    assert message in ping.message
    assert "allowed to connect to this address" in ping.hint

    assert message in str(git_error(f"{url}/acme/widgets"))
    settings.ALLOWED_GIT_HOSTS = [f"{host.lower()}:*"]
    with pytest.raises(GitError, match=message):
        watch_repository(Actor.command(), app, f"{url}/acme/widgets", github_token="ghp_hunter2")
    assert not AppRepository.objects.exists()
    assert server.connections == 0


PUBLIC, PUBLIC_V6 = "8.8.8.8", "2606:4700::6810:84e5"
RESOLVED: dict[str, tuple[list[str], str]] = {
    "a private one after a public one": ([PUBLIC, "10.0.0.1"], PRIVATE),
    "a private one before a public one": (["10.0.0.1", PUBLIC], PRIVATE),
    "loopback after many": ([PUBLIC] * 30 + ["127.0.0.2"], LOOPBACK),
    "metadata beside IPv6": ([PUBLIC_V6, "169.254.169.254"], LINK_LOCAL),
    "a mapped one": ([PUBLIC, "::ffff:169.254.169.254"], "IPv4-mapped"),
    "a NAT64 one": ([PUBLIC_V6, "64:ff9b::a9fe:a9fe"], "NAT64"),
    "a link-local one with its zone": ([PUBLIC, "fe80::1%eth0"], "network interface"),
    "private ones alone": (["192.168.0.1", "10.0.0.1"], PRIVATE),
}


@pytest.fixture
def dns(monkeypatch) -> Callable[[list[str]], None]:
    """Make every name resolve to the given addresses."""

    def answer(addresses: list[str]) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    return answer


@pytest.mark.usefixtures("_no_private_networks")
@pytest.mark.parametrize(("addresses", "message"), RESOLVED.values(), ids=RESOLVED)
def test_name_with_one_private_address_is_blocked(
    serve: Callable[..., ScriptedServer], dns: Callable[[list[str]], None], addresses: list[str], message: str
) -> None:
    server = serve()
    dns(addresses)
    error = git_error(f"http://rebind.example:{server.port}/acme/widgets")
    assert "rebind.example resolves to a blocked address" in str(error)
    assert message in str(error)
    with HttpClient([ip_network("127.0.0.1/32")], allow_http=True) as client:  # libcurl parses this itself
        outcome = client.request(post(f"http://127.1:{server.port}/"))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.REFUSED_ADDRESS, False, 0)
    assert message in outcome.message


def test_dns_rebinding(serve: Callable[..., ScriptedServer], dns: Callable[[list[str]], None], settings) -> None:
    server = serve()
    url = f"http://rebind.localhost:{server.port}"  # libcurl always resolves *.localhost to 127.0.0.1
    dns([PUBLIC])
    with HttpClient([], allow_http=True) as client:
        outcome = client.request(post(f"{url}/"))
    assert (outcome.cause, outcome.reached) == (Cause.REFUSED_ADDRESS, False)
    assert LOOPBACK in outcome.message

    settings.ALLOWED_PRIVATE_NETWORKS = [ip_network("127.0.0.2/32")]  # stands for a public address without a server
    dns(["127.0.0.2"])
    assert "Failed to connect to rebind.localhost" in str(git_error(f"{url}/acme/widgets"))
    assert server.connections == 0


# --- Redirects --------------------------------------------------------------------------------------------------------
TARGETS: dict[str, str] = {
    "the metadata service": METADATA,
    "the metadata service, mapped": "http://[::ffff:169.254.169.254]/",
    "the same server": "/elsewhere",
    "a file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "another server": "{other}",
}
STATUSES = ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_webhook_redirect_is_not_followed(world: World, serve: Callable[..., ScriptedServer], target: str) -> None:
    other = serve()
    server = serve(saying("307 Temporary Redirect", b"", f"Location: {target.format(other=other.url)}"))
    App.objects.filter(pk=world.app.pk).update(base_url=server.url)
    _, watch = world.watch()
    assert world.sync(watch).status == Status.PENDING
    assert [failure.status_code for failure in watch.failures.all()] == [307]
    assert all(head.startswith(b"POST /hook/create ") for head, _ in server.requests)
    assert other.connections == 0
    assert "follow redirects" in send_ping(Actor.command(), world.app).hint


@pytest.mark.parametrize("status", STATUSES, ids=lambda status: status[:3])
@pytest.mark.parametrize("target", [METADATA, "{other}/acme/widgets"], ids=["to the metadata service", "elsewhere"])
def test_git_redirect_is_not_followed(app: App, serve: Callable[..., ScriptedServer], status: str, target: str) -> None:
    other = serve()
    server = serve(saying(status, b"", f"Location: {target.format(other=f'http://127.0.0.1:{other.port}')}"))
    url = f"http://127.0.0.1:{server.port}/acme/widgets"
    with pytest.raises(GitError, match="renamed or moved"):
        watch_repository(Actor.command(), app, url, github_token="ghp_hunter2")
    assert "renamed or moved" in str(git_error(url))
    assert not AppRepository.objects.exists()
    assert other.connections == 0
