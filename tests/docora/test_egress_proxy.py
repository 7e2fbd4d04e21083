"""The egress proxy: what goes through it, what Docora refuses beforehand, and what its failures are called."""

import socket
import time
from ipaddress import ip_network

import pytest

from docora.http import transfer
from docora.http.client import Cause, HttpClient
from docora.http.egress import CHECK_PROXY, check_proxy_url
from docora.sign_in.provider_http import provider_session
from repositories_app.checks import check_git_host_answers
from repositories_app.git import process as git
from repositories_app.git.exceptions import AddressNotAllowed, GitError
from repositories_app.git.remote import ls_head, new_client
from tests.docora.http_server import LOOPBACK, post, saying
from tests.support.doctor import problems
from tests.support.git import GitFixture
from tests.support.proxy import Proxy

NAME = "hooks.example"


@pytest.fixture
def dns(monkeypatch):
    """Set what names resolve to in Docora. The proxy and libcurl don't use these addresses."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *more, **options):
        name = (host.decode() if isinstance(host, bytes) else host).rstrip(".")
        if name.rpartition(".")[2].isalpha() and name.lower() != "localhost":
            if name not in known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in known[name]]
        return real(host, port, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_name_that_only_the_proxy_resolves(serve, dns) -> None:
    server = serve(saying("200 OK", b"hello"))
    with Proxy({NAME: server.port}) as proxy, HttpClient([], allow_http=True, proxy=proxy.url) as client:
        outcomes = [client.request(post(f"http://{NAME}/hook")) for _ in range(3)]
    assert [(outcome.status, outcome.body) for outcome in outcomes] == [(200, b"hello")] * 3
    assert "via" not in outcomes[0].headers
    assert proxy.targets == [f"{NAME}:80"]  # one tunnel for all of them
    assert [head.split(b"\r\n")[0] for head, _ in server.requests] == [b"POST /hook HTTP/1.1"] * 3


@pytest.mark.parametrize("host", [NAME, "8.8.8.8", "git.internal"])
def test_public_address_goes_through_the_proxy_too(serve, dns, host: str) -> None:
    dns |= {NAME: ["8.8.8.8"], "git.internal": ["8.8.8.8"]}
    server = serve()
    with Proxy({host: server.port}) as proxy, HttpClient(LOOPBACK, allow_http=True, proxy=proxy.url) as client:
        assert client.request(post(f"http://{host}/")).ok
    assert proxy.targets == [f"{host}:80"]


def test_identity_provider_is_called_through_the_proxy(serve, dns, settings) -> None:
    settings.OIDC_ISSUER, settings.OIDC_ALLOWED_NETWORKS = f"http://{NAME}", []
    server = serve(saying("200 OK", b"{}"))
    with Proxy({NAME: server.port}) as proxy:
        settings.EGRESS_PROXY = proxy.url
        assert provider_session().get(f"http://{NAME}/").json() == {}
    assert proxy.targets == [f"{NAME}:80"]


def test_proxy_sees_neither_headers_nor_bodies(serve, dns) -> None:
    server = serve()
    with Proxy({NAME: server.port}) as proxy, HttpClient([], allow_http=True, proxy=proxy.url) as client:
        assert client.request(post(f"http://{NAME}/secret-path", b"secret-body")).ok
    assert "secret" not in proxy.heads[0]
    assert "application/json" not in proxy.heads[0]


def test_certificate_is_checked_through_the_proxy(serve, certificate, dns) -> None:
    context, ca_file = certificate
    server = serve(tls=context)
    with (
        Proxy({NAME: server.port}) as proxy,
        HttpClient([], ca_file=ca_file, proxy=proxy.url) as client,
    ):
        outcome = client.request(post(f"https://{NAME}/"))  # the certificate is for 127.0.0.1
    assert (outcome.cause, outcome.reached) == (Cause.TLS, False)
    assert proxy.targets == [f"{NAME}:443"]
    assert server.requests == []


def test_allowed_private_networks_are_called_directly(serve, dns) -> None:
    server = serve()
    dns["internal.example"] = ["127.0.0.1"]
    with Proxy({}) as proxy, HttpClient(LOOPBACK, allow_http=True, proxy=proxy.url) as client:
        for host in ("127.0.0.1", "localhost"):
            assert client.request(post(f"http://{host}:{server.port}/")).ok
    assert proxy.heads == []
    assert server.connections == 2


def test_address_that_became_public_is_not_called_directly(serve, dns, monkeypatch: pytest.MonkeyPatch) -> None:
    """libcurl, which resolves the name after Docora, gets 127.0.0.1. Here that counts as a public address."""
    monkeypatch.setattr(transfer, "blocked_reason", lambda *_: None)
    monkeypatch.setattr(transfer.Transfer, "_pin", lambda *_: None)  # libcurl forgets it after a minute
    dns["rebound.localhost"] = ["10.1.2.3"]
    server = serve()
    with Proxy({}) as proxy, HttpClient([ip_network("10.0.0.0/8")], allow_http=True, proxy=proxy.url) as client:
        outcome = client.request(post(f"http://rebound.localhost:{server.port}/"))
    assert (outcome.cause, outcome.reached, server.connections) == (Cause.CONNECT, False, 0)
    assert outcome.message == "rebound.localhost now has an address that must be reached through the egress proxy."


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1", "127.0.0.1", "169.254.169.254", "[::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001",
        "0x7f.1", "0177.0.0.1", "127.1", "8.8.2056", "1.2.3.4.5", "localhost", "LOCALHOST.", "x.localhost",
        "metadata.google.internal", "printer.local", "router", "private.example", "mixed.example", "dotted.example.",
        "127.0.0.1.", "169.254.169.254.",
    ],
)  # fmt: skip
def test_blocked_host_never_reaches_the_proxy(serve, dns, host: str) -> None:
    dns |= {
        "private.example": ["10.1.2.3"],
        "mixed.example": ["8.8.8.8", "127.0.0.1"],
        "dotted.example": ["127.0.0.1"],
    }
    server = serve()
    with Proxy({host: server.port}) as proxy, HttpClient([], allow_http=True, proxy=proxy.url) as client:
        outcome = client.request(post(f"http://{host}/"))
    assert outcome.cause in {Cause.REFUSED_ADDRESS, Cause.DNS}
    assert (outcome.reached, proxy.heads, server.connections) == (False, [], 0)


def test_kept_tunnel_is_not_used_for_another_host(serve, dns) -> None:
    server, other = serve(), serve()
    with (
        Proxy({NAME: server.port, "other.example": other.port}) as proxy,
        HttpClient([], allow_http=True, proxy=proxy.url) as client,
    ):
        for host in (NAME, "10.0.0.1", "other.example", NAME):
            client.request(post(f"http://{host}/"))
    assert proxy.targets == [f"{NAME}:80", "other.example:80"]
    assert (len(server.requests), len(other.requests)) == (2, 1)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("403 Forbidden", " through the egress proxy: it refused to connect (HTTP 403)"),
        (
            "407 Proxy Authentication Required",
            " through the egress proxy: it requires a valid user name and password (HTTP 407)",
        ),
        ("405 Method Not Allowed", " through the egress proxy: it answered CONNECT with HTTP 405"),
        ("502 Bad Gateway", ": the egress proxy couldn't connect to it (HTTP 502)"),
        ("503 Service Unavailable", ": the egress proxy couldn't connect to it (HTTP 503)"),
        ("504 Gateway Timeout", ": the egress proxy couldn't connect to it (HTTP 504)"),
    ],
)
def test_refusal_of_the_proxy(dns, status: str, text: str) -> None:
    with Proxy({}, status=status) as proxy:
        url = proxy.url.replace("http://", "http://docora:hunter2@")
        with HttpClient([], allow_http=True, proxy=url) as client:
            outcome = client.request(post(f"http://{NAME}/"))
    assert (outcome.status, outcome.cause, outcome.reached) == (None, Cause.CONNECT, False)
    assert outcome.message == f"Couldn't reach {NAME}{text}."
    assert "Proxy-Authorization: Basic ZG9jb3JhOmh1bnRlcjI=" in proxy.heads[0]
    assert "hunter2" not in repr(outcome)


def test_connection_that_breaks_behind_the_proxy(serve, dns) -> None:
    server = serve(lambda *_: False)
    with Proxy({NAME: server.port}) as proxy, HttpClient([], allow_http=True, proxy=proxy.url) as client:
        outcome = client.request(post(f"http://{NAME}/"))
    assert (outcome.cause, outcome.reached) == (Cause.NETWORK, True)
    assert "proxy" not in outcome.message


def test_server_that_hangs_behind_the_proxy(serve, dns) -> None:
    """The headers of the proxy's own response are not the beginning of the server's."""
    server = serve(lambda *_: time.sleep(1) or False)
    with Proxy({NAME: server.port}) as proxy, HttpClient([], allow_http=True, proxy=proxy.url) as client:
        outcome = client.request(post(f"http://{NAME}/", timeout=0.3))
    assert (outcome.cause, outcome.reached) == (Cause.TIMEOUT, True)
    assert "didn't respond within 0.3 s" in outcome.message


def test_proxy_that_is_down_or_unknown(dns) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for proxy, text in (
            (down, "the proxy can't be reached (connection refused)"),
            ("http://proxy.invalid:3128", "the proxy's name doesn't resolve"),
        ):
            with HttpClient([], allow_http=True, proxy=proxy) as client:
                outcome = client.request(post(f"http://{NAME}/"))
            assert (outcome.cause, outcome.reached) == (Cause.CONNECT, False)
            assert outcome.message == f"Couldn't reach {NAME} through the egress proxy: {text}."


@pytest.mark.parametrize("url", ["http://proxy.example:3128", "http://a%40b:c@10.0.0.1:8080/", "http://[::1]:3128"])
def test_proxy_url(url: str) -> None:
    check_proxy_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "proxy.example:3128", "http://proxy.example", "https://proxy.example:3128", "socks5://proxy.example:1080",
        "http://proxy.example:0", "http://proxy.example:99999", "http://u:hunter2#@proxy.example:3128", "http://:3128",
        "http://u:hunter2@x@proxy.example:3128", "http://proxy.example:3128/path",
    ],
)  # fmt: skip
def test_malformed_proxy_url(url: str) -> None:
    with pytest.raises(ValueError, match="must look like http:") as caught:
        check_proxy_url(url)
    assert "hunter2" not in str(caught.value)


# --- git ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    with GitFixture(tmp_path / "git") as server:
        yield server


def test_git_and_ls_refs_go_through_the_proxy(host: GitFixture, dns, settings) -> None:
    repo = host.repo("acme/widgets", {"a.txt": b"1"}, token="right")
    with Proxy({"git.example": host.server.port}) as proxy:
        settings.EGRESS_PROXY, settings.ALLOW_HTTP = proxy.url, True
        url = "http://git.example/acme/widgets"
        with new_client(max_connections=1) as client:
            assert ls_head(client, url, "right").commit == repo.head
        assert proxy.targets == ["git.example:80"]
        listed = git.run(["ls-remote", "--", url, "HEAD"], remote=git.Remote(url, "right"), timeout=30)
        assert listed.decode().split()[0] == repo.head
    assert all(target.startswith("http://git.example/acme/widgets/") for target in proxy.targets[1:])
    assert len(proxy.targets) > 1


def test_refusal_names_the_proxy_s_settings(dns, settings) -> None:
    with Proxy({}, status="407 Proxy Authentication Required") as proxy:
        settings.EGRESS_PROXY, settings.ALLOW_HTTP = proxy.url, True
        with new_client(max_connections=1) as client, pytest.raises(GitError) as caught:
            ls_head(client, "http://git.example/acme/widgets")
    assert "(HTTP 407). An administrator should check EGRESS_PROXY, and that" in str(caught.value)
    assert "Check the URL" not in str(caught.value)


@pytest.mark.parametrize("status", ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"])
def test_advice_is_about_the_host_if_the_proxy_works(dns, settings, status: str) -> None:
    with Proxy({}, status=status) as proxy:
        settings.EGRESS_PROXY, settings.ALLOW_HTTP = proxy.url, True
        with new_client(max_connections=1) as client, pytest.raises(GitError) as caught:
            ls_head(client, "http://git.example/acme/widgets")
    assert str(caught.value) == (
        f"Couldn't reach git.example: the egress proxy couldn't connect to it (HTTP {status[:3]}). "
        "Check the URL and this server's network. Docora retries automatically."
    )


@pytest.mark.parametrize(
    ("host", "status", "advice"),
    [
        ("git.example", "407 Proxy Authentication Required", f"(HTTP 407). {CHECK_PROXY}"),
        ("git.example", "502 Bad Gateway", "(HTTP 502). Check the firewall."),
        ("127.0.0.1:1", "407 Proxy Authentication Required", "connection refused. Check the firewall."),
    ],
)
def test_doctor_advises_to_check_the_proxy_only_if_it_failed(
    dns, settings, host: str, status: str, advice: str
) -> None:
    with Proxy({}, status=status) as proxy:
        settings.EGRESS_PROXY, settings.ALLOWED_GIT_HOSTS = proxy.url, [host]
        settings.ALLOWED_PRIVATE_NETWORKS = [ip_network("127.0.0.0/8")]
        assert problems(check_git_host_answers()).endswith(advice)


def test_git_calls_allowed_private_networks_directly(host: GitFixture, dns, settings) -> None:
    repo = host.repo("acme/widgets", {"a.txt": b"1"})
    dns["git.example"] = ["127.0.0.1"]
    with Proxy({}) as proxy:
        settings.EGRESS_PROXY, settings.ALLOW_HTTP = proxy.url, True
        settings.ALLOWED_PRIVATE_NETWORKS = [ip_network("127.0.0.0/8")]
        url = repo.url.replace("127.0.0.1", "git.example")
        assert (
            git.run(["ls-remote", "--", url, "HEAD"], remote=git.Remote(url), timeout=30).decode().split()[0]
            == repo.head
        )
    assert proxy.heads == []


@pytest.mark.parametrize("name", ["169.254.169.254", "0x7f.1", "private.example", "metadata.google.internal"])
def test_git_is_not_started_for_a_blocked_host(dns, settings, name: str) -> None:
    dns["private.example"] = ["10.1.2.3"]
    with Proxy({name: 1}) as proxy:
        settings.EGRESS_PROXY, settings.ALLOW_HTTP, settings.ALLOWED_PRIVATE_NETWORKS = proxy.url, True, []
        url = f"http://{name}/acme/widgets"
        with pytest.raises(GitError) as caught:
            git.run(["ls-remote", "--", url, "HEAD"], remote=git.Remote(url), timeout=30)
    assert isinstance(caught.value, AddressNotAllowed) or "DNS lookup failed" in str(caught.value)
    assert proxy.heads == []


def test_git_s_message_has_no_password(dns, settings) -> None:
    with Proxy({}, status="407 Proxy Authentication Required") as proxy:
        settings.EGRESS_PROXY = proxy.url.replace("http://", "http://docora:hunter2@")
        settings.ALLOW_HTTP = True
        for url in ("http://git.example/acme/widgets", "https://git.example/acme/widgets"):
            with pytest.raises(GitError) as caught:
                git.run(["ls-remote", "--", url, "HEAD"], remote=git.Remote(url), timeout=30)
            assert "hunter2" not in str(caught.value)
