"""Malicious repository URLs are rejected by `parse_url`, the API and the admin, with the same message."""

import pytest
from django.test import Client

from deliveries_app.models import App, AppRepository
from repositories_app.git.exceptions import InvalidUrl
from repositories_app.git.url import parse_url
from repositories_app.models import Repository
from tests.hostile.conftest import Api

ASCII, FORM, SCHEME = "plain ASCII", "must look like https://<host>/owner/name", "and start with https://"
CREDENTIALS, HOST, NAME_A_HOST = "must not contain credentials", "can't be watched. Allowed hosts", "must name a host"
OWNER_AND_NAME, SEGMENT, END = "must name an owner and a repository", "Owner and name can contain", "must end with"
PORT = "must be a number from 1 to 65535"

URLS: dict[str, tuple[str, str]] = {
    "an option of git": ("--upload-pack=touch /tmp/pwned", FORM),
    "an option of git without spaces": ("--upload-pack=id", SCHEME),
    "another option": ("-c", SCHEME),
    "an option after the scheme": ("https://--upload-pack=id/a/b", NAME_A_HOST),
    "an option as owner": ("https://github.com/--upload-pack=id/b", SEGMENT),
    "an option as name": ("https://github.com/acme/-upload-pack", SEGMENT),
    "the ext transport": ("ext::sh -c id", FORM),
    "the ext transport without spaces": ("ext::sh%20-c%20id", SCHEME),
    "the ext transport in capitals": ("EXT::id", SCHEME),
    "the fd transport": ("fd::17", SCHEME),
    "a transport before https": ("ext::https://github.com/acme/widgets", SCHEME),
    "a helper": ("transport-helper::https://github.com/acme/widgets", SCHEME),
    "a file": ("file:///etc/passwd", SCHEME),
    "a file on a host": ("file://github.com/acme/widgets", SCHEME),
    "a path": ("/etc/passwd", SCHEME),
    "a path with dots": ("../../etc/passwd", SCHEME),
    "ssh": ("ssh://git@github.com/acme/widgets", SCHEME),
    "ssh with an option as host": ("ssh://-oProxyCommand=id/acme/widgets", SCHEME),
    "ssh in its short form": ("git@github.com:acme/widgets", SCHEME),
    "the git protocol": ("git://github.com/acme/widgets", SCHEME),
    "plain http": ("http://github.com/acme/widgets", SCHEME),
    "ftp": ("ftp://github.com/acme/widgets", SCHEME),
    "javascript": ("javascript:alert(1)//github.com/acme/widgets", SCHEME),
    "a scheme in capitals": ("HTTPS://github.com/acme/widgets", SCHEME),
    "no scheme": ("//github.com/acme/widgets", SCHEME),
    "one slash": ("https:/github.com/acme/widgets", SCHEME),
    "three slashes": ("https:///github.com/acme/widgets", NAME_A_HOST),
    "a user": ("https://user@github.com/acme/widgets", CREDENTIALS),
    "a user and a password": ("https://user:hunter2@github.com/acme/widgets", CREDENTIALS),
    "an empty user": ("https://@github.com/acme/widgets", CREDENTIALS),
    "a host that looks like a user": ("https://github.com@evil.example/acme/widgets", CREDENTIALS),
    "an escaped at sign": ("https://github.com%40evil.example/acme/widgets", NAME_A_HOST),
    "a host that only begins right": ("https://github.com.evil.example/acme/widgets", HOST),
    "a host that only ends right": ("https://evilgithub.com/acme/widgets", HOST),
    "another host": ("https://evil.example/acme/widgets", HOST),
    "a sub-domain": ("https://api.github.com/acme/widgets", HOST),
    "a dot after the host": ("https://github.com./acme/widgets", NAME_A_HOST),
    "the loopback name": ("https://localhost/acme/widgets", HOST),
    "the loopback address": ("https://127.0.0.1/acme/widgets", HOST),
    "the loopback address of IPv6": ("https://[::1]/acme/widgets", HOST),
    "the metadata service": ("https://169.254.169.254/latest/meta-data", HOST),
    "the metadata service in one number": ("https://2852039166/latest/meta-data", HOST),
    "the metadata service in hex": ("https://0xa9fea9fe/latest/meta-data", HOST),
    "the metadata service, mapped": ("https://[::ffff:169.254.169.254]/latest/meta-data", HOST),
    "a zone": ("https://[fe80::1%25eth0]/acme/widgets", NAME_A_HOST),
    "a bracket that is not closed": ("https://[::1/acme/widgets", NAME_A_HOST),
    "homoglyphs": ("https://gіthub.com/acme/widgets", ASCII),
    "a full-width dot": ("https://github。com/acme/widgets", ASCII),
    "an invalid port": ("https://github.com:x/acme/widgets", PORT),
    "no port after the colon": ("https://github.com:/acme/widgets", PORT),
    "port 0": ("https://github.com:0/acme/widgets", PORT),
    "a port out of range": ("https://github.com:65979/acme/widgets", PORT),
    "a line break": ("https://github.com/acme/wid\r\ngets", FORM),
    "a header": ("https://github.com/acme/x\r\nHost: evil.example", FORM),
    "NUL": ("https://github.com/acme/wid\0gets", FORM),
    "a tab": ("https://github.com/acme/wid\tgets", FORM),
    "a space": ("https://github.com/acme/wid gets", FORM),
    "a backslash for a slash": ("https://github.com\\@evil.example/acme/widgets", FORM),
    "a right-to-left override": ("https://github.com/acme/\u202estegdiw", ASCII),
    "a query": ("https://github.com/acme/widgets?x=1", END),
    "an empty query": ("https://github.com/acme/widgets?", END),
    "a fragment": ("https://github.com/acme/widgets#main", END),
    "two dots for the owner": ("https://github.com/../widgets", SEGMENT),
    "two dots for the name": ("https://github.com/acme/..", SEGMENT),
    "two dots and .git": ("https://github.com/acme/...git", SEGMENT),
    "dots inside": ("https://github.com/acme/../../evil/widgets", OWNER_AND_NAME),
    "escaped dots": ("https://github.com/acme/%2e%2e", SEGMENT),
    "an escaped slash": ("https://github.com/acme%2fwidgets/x", SEGMENT),
    "nothing but .git": ("https://github.com/acme/.git", SEGMENT),
    ".git twice": ("https://github.com/acme/widgets.git.git", "can end in .git only once"),
    "git's own folder": ("https://github.com/acme/widgets/.git/config", OWNER_AND_NAME),
    "no owner": ("https://github.com//widgets", SEGMENT),
    "nothing after the host": ("https://github.com", OWNER_AND_NAME),
    "a deeper page": ("https://github.com/acme/widgets/tree/main", OWNER_AND_NAME),
    "two slashes at the end": ("https://github.com/acme/widgets//", OWNER_AND_NAME),
    "a shell's command": ("https://github.com/acme/$(id)", SEGMENT),
    "markup": ("https://github.com/acme/<script>", SEGMENT),
    "an owner of 300 letters": (f"https://github.com/{'a' * 300}/b", SEGMENT),
}


@pytest.fixture(autouse=True)
def _production_rules(settings) -> None:
    settings.ALLOW_HTTP = False
    settings.ALLOWED_GIT_HOSTS = ["github.com"]
    settings.ALLOWED_PRIVATE_NETWORKS = []


def test_malicious_url_is_rejected_everywhere(app: App, api: Api, root: Client, subtests: pytest.Subtests) -> None:
    for name, (url, message) in URLS.items():
        with subtests.test(name):
            with pytest.raises(InvalidUrl, match=message) as raised:
                parse_url(url)
            assert "hunter2" not in str(raised.value)

            answer = api("POST", "repositories", {"github_url": url})
            assert (answer.status_code, answer.json()["error"]) == (422, str(raised.value).removesuffix("."))

            page = root.post("/admin/deliveries_app/apprepository/add/", {"app": app.pk, "github_url": url})
            assert page.status_code == 200
            assert "errorlist" in page.text
            assert not AppRepository.objects.exists()
            assert not Repository.objects.exists()


LONG = {
    "empty": "",
    "blanks": "   ",
    "2 kB": "https://github.com/acme/" + "w" * 2048,
    "50 kB": "https://github.com/acme/" + "w" * 50_000,
    "50 kB of slashes": "https://github.com" + "/" * 50_000,
    "50 kB of colons": "https://" + ":" * 50_000,
}


@pytest.mark.parametrize("url", LONG.values(), ids=LONG)
def test_empty_or_overlong_url_is_rejected(app: App, api: Api, root: Client, url: str) -> None:
    with pytest.raises(InvalidUrl, match="must look like"):
        parse_url(url)
    answer = api("POST", "repositories", {"github_url": url})
    assert answer.status_code == 422
    assert len(answer.json()["error"]) < 500
    page = root.post("/admin/deliveries_app/apprepository/add/", {"app": app.pk, "github_url": url})
    assert (page.status_code, "errorlist" in page.text) == (200, True)
    assert not AppRepository.objects.exists()
