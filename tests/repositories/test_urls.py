"""Which URLs may be watched, and which spellings are one repository."""

import time

import pytest

from repositories_app.git.exceptions import InvalidUrl
from repositories_app.git.url import owner_and_name, parse_url


@pytest.fixture(autouse=True)
def _production_rules(settings) -> None:
    settings.ALLOW_HTTP = False
    settings.ALLOWED_GIT_HOSTS = ["github.com", "git.example:8443", "ghe.example", "ghe.example:9000"]


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/acme/widgets",
        "https://github.com/acme/widgets.git",
        "https://github.com/acme/widgets/",
        "https://github.com/acme/widgets.git/",
        "https://GitHub.com/Acme/Widgets",
        "https://github.com:443/acme/widgets",
    ],
)
def test_every_spelling_is_one_repository(url: str) -> None:
    parsed = parse_url(url)
    assert (parsed.canonical, parsed.spelled) == ("https://github.com/acme/widgets", url)


@pytest.mark.parametrize(
    ("url", "canonical", "owner", "name"),
    [
        ("https://github.com/vercel/next.js", "https://github.com/vercel/next.js", "vercel", "next.js"),
        ("https://github.com/Acme/Widgets", "https://github.com/acme/widgets", "Acme", "Widgets"),
        ("https://ghe.example/Acme/Widgets", "https://ghe.example/Acme/Widgets", "Acme", "Widgets"),
        ("https://ghe.example:9000/a/b", "https://ghe.example:9000/a/b", "a", "b"),
        ("https://git.example:8443/a/b_c-d", "https://git.example:8443/a/b_c-d", "a", "b_c-d"),
    ],
)
def test_case_is_folded_for_case_insensitive_hosts_only(url: str, canonical: str, owner: str, name: str) -> None:
    parsed = parse_url(url)
    assert (parsed.canonical, parsed.owner, parsed.name) == (canonical, owner, name)
    assert parsed.spelled == url


HOSTS = ["gitlab.com", "bitbucket.org", "codeberg.org", "dev.azure.com", "acme.visualstudio.com", "git.example"]
GROUPS = "/".join(f"g{number}" for number in range(20))
ELSEWHERE_URLS = [  # path, owner, name, canonical path if it differs
    ("gitlab.com/group/sub/name", "group/sub", "name", ""),
    ("gitlab.com/group/sub/name.git/", "group/sub", "name", "gitlab.com/group/sub/name"),
    ("gitlab.com/Group/Sub/Name", "Group/Sub", "Name", ""),
    (f"gitlab.com/{GROUPS}/name", GROUPS, "name", ""),
    ("gitlab.com/a/b/c.d/e_f-g", "a/b/c.d", "e_f-g", ""),
    ("bitbucket.org/workspace/repo.git", "workspace", "repo", "bitbucket.org/workspace/repo"),
    ("bitbucket.org/Workspace/repo", "Workspace", "repo", ""),
    ("codeberg.org/acme/widgets", "acme", "widgets", ""),
    ("git.example/scm/PROJ/repo.git", "scm/PROJ", "repo", "git.example/scm/PROJ/repo"),
    ("git.example/scm/~anna/repo", "scm/~anna", "repo", ""),
    ("git.example/~anna/repo", "~anna", "repo", ""),
    ("git.example/acme.git/repo", "acme.git", "repo", ""),  # two parts mean what they always meant
    ("git.example/_git/repo", "_git", "repo", ""),
    ("dev.azure.com/org/project", "org", "project", ""),
    ("dev.azure.com/org/project/_git/repo", "org/project", "repo", ""),
    ("dev.azure.com/Org/Project/_git/Repo", "Org/Project", "Repo", "dev.azure.com/org/project/_git/repo"),
    ("dev.azure.com/org/_git/repo", "org", "repo", ""),
    ("dev.azure.com/org/My%20Project/_git/My%20Repo", "org/My Project", "My Repo",
     "dev.azure.com/org/my%20project/_git/my%20repo"),
    ("dev.azure.com/org/%4dy%20Project/_git/r", "org/My Project", "r", "dev.azure.com/org/my%20project/_git/r"),
    ("dev.azure.com/org/Stra%C3%9Fe/_git/r", "org/Straße", "r", "dev.azure.com/org/stra%c3%9fe/_git/r"),
    ("dev.azure.com/org/project/_git/repo.git", "org/project", "repo.git", ""),  # part of the name there
    ("acme.visualstudio.com/DefaultCollection/p/_git/r", "DefaultCollection/p", "r", ""),
    ("git.example/tfs/Main/My%20Project/_git/r", "tfs/Main/My Project", "r", ""),
]  # fmt: skip


@pytest.mark.parametrize(("url", "owner", "name", "canonical"), ELSEWHERE_URLS)
def test_urls_of_other_hosts(settings, url: str, owner: str, name: str, canonical: str) -> None:
    settings.ALLOWED_GIT_HOSTS = HOSTS
    parsed = parse_url(f"https://{url}")
    assert (parsed.owner, parsed.name) == owner_and_name(parsed.spelled) == (owner, name)
    assert parsed.canonical == f"https://{canonical or url}"
    assert parsed.spelled == f"https://{url}"
    assert parse_url(parsed.canonical).canonical == parsed.canonical


NAMES = "Owner and name can contain"
AZURE = "Names in an Azure DevOps URL"
TOO_LONG = "must have at most 255 characters"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("gitlab.com/group/sub/name/-/tree/main", NAMES),
        ("gitlab.com/group//name", NAMES),
        ("gitlab.com/group/sub//", NAMES),
        ("gitlab.com/group/../name", NAMES),
        ("gitlab.com/group/./name", NAMES),
        ("gitlab.com/group/sub/..", NAMES),
        ("gitlab.com/group/-sub/name", NAMES),
        ("gitlab.com/group/~-sub/name", NAMES),
        ("gitlab.com/group/s~ub/name", NAMES),
        ("gitlab.com/group/sub/~name", NAMES),
        ("gitlab.com/group/%2e%2e/name", NAMES),
        ("gitlab.com/group/my%20sub/name", NAMES),
        ("gitlab.com/group/name.git/info/refs", "only the name can end in .git"),
        ("git.example/acme/widgets/.git/config", "only the name can end in .git"),
        (f"gitlab.com/{'/'.join(['g' * 100] * 3)}/name", TOO_LONG),
        ("bitbucket.org/workspace/repo/src/main", "must name an owner and a repository"),
        ("codeberg.org/acme/widgets/src", "must name an owner and a repository"),
        ("gitlab.com/name", "must name an owner and a repository"),
        ("org@dev.azure.com/org/project/_git/repo", "must not contain credentials"),
        ("dev.azure.com/org/project/_git/", "after /_git/"),
        ("dev.azure.com/org//_git/repo", AZURE),
        ("dev.azure.com/org/../_git/repo", AZURE),
        ("dev.azure.com/org/%2e%2E/_git/repo", AZURE),
        ("dev.azure.com/org/%2e./_git/repo", AZURE),
        ("dev.azure.com/org/p/_git/%2e", AZURE),
        ("dev.azure.com/org/a%2Fb/_git/repo", AZURE),
        ("dev.azure.com/org/a%5Cb/_git/repo", AZURE),
        ("dev.azure.com/org/a%00b/_git/repo", AZURE),
        ("dev.azure.com/org/a%0d%0ab/_git/repo", AZURE),
        ("dev.azure.com/org/a%7fb/_git/repo", AZURE),
        ("dev.azure.com/org/a%E2%80%AEb/_git/repo", AZURE),  # a right-to-left override
        ("dev.azure.com/org/a%C2%A0b/_git/repo", AZURE),  # a no-break space
        ("dev.azure.com/org/a%ffb/_git/repo", AZURE),
        ("dev.azure.com/org/a%ED%A0%80b/_git/repo", AZURE),  # a surrogate
        ("dev.azure.com/org/a%2/_git/repo", AZURE),
        ("dev.azure.com/org/a%zz/_git/repo", AZURE),
        ("dev.azure.com/org/%/_git/repo", AZURE),
        ("dev.azure.com/org/%20/_git/repo", AZURE),
        ("dev.azure.com/org/%2Dx/_git/repo", AZURE),
        ("dev.azure.com/org/$(id)/_git/repo", AZURE),
        (f"dev.azure.com/org/{'%41' * 201}/_git/repo", AZURE),
        (f"dev.azure.com/org/{'%C3%9F' * 200}/{'p' * 100}/_git/repo", TOO_LONG),
    ],
)
def test_other_hosts_accept_no_other_form(settings, url: str, text: str) -> None:
    settings.ALLOWED_GIT_HOSTS = HOSTS
    with pytest.raises(InvalidUrl, match=text) as refusal:
        parse_url(f"https://{url}")
    assert str(refusal.value).isprintable()


FORM = "must look like https://<host>/owner/name"
HOST = "must name a host"
CREDENTIALS = "must not contain credentials"
TWO = "must name an owner and a repository"
PORT = "must be a number from 1 to 65535"
ELSEWHERE = "can't be watched. Allowed hosts"
END = "must end with the repository's name"
REFUSED = [
    ("", FORM),
    (" ", FORM),
    ("github.com/acme/widgets", FORM),
    ("//github.com/acme/widgets", FORM),
    ("https:github.com/acme/widgets", FORM),
    ("https:/github.com/acme/widgets", FORM),
    ("https:///github.com/acme/widgets", HOST),
    ("http://github.com/acme/widgets", "and start with https://"),
    ("HTTPS://github.com/acme/widgets", "and start with https://"),  # git would look for a helper of that name
    ("git://github.com/acme/widgets", FORM),
    ("ssh://git@github.com/acme/widgets", FORM),
    ("git+ssh://git@github.com/acme/widgets", FORM),
    ("git@github.com:acme/widgets", FORM),
    ("github.com:acme/widgets", FORM),
    ("file:///etc/passwd", FORM),
    ("file://github.com/acme/widgets", FORM),
    ("ftp://github.com/acme/widgets", FORM),
    ("javascript://github.com/acme/widgets", FORM),
    ("/etc/passwd", FORM),
    ("../acme/widgets", FORM),
    ("ext::sh -c id", FORM),
    ("ext::https://github.com/acme/widgets", FORM),
    ("fd::17/acme", FORM),
    ("https::https://github.com/acme/widgets", FORM),
    ("--upload-pack=id", FORM),
    ("-uhttps://github.com/acme/widgets", FORM),
    ("--upload-pack=id https://github.com/acme/widgets", FORM),
    ("https://--upload-pack=id/acme/widgets", HOST),
    ("https://-oProxyCommand=id/acme/widgets", HOST),
    ("https://github.com", TWO),
    ("https://github.com/", TWO),
    ("https://github.com/acme", TWO),
    ("https://github.com/acme/", TWO),
    ("https://github.com/acme/widgets/tree/main", TWO),
    ("https://github.com/acme/widgets.git/info/refs", TWO),
    ("https://github.com//widgets", NAMES),
    ("https://github.com//acme/widgets", TWO),
    ("https://github.com/acme//widgets", TWO),
    ("https://github.com/acme/widgets//", TWO),
    ("https://github.com/acme/./widgets", TWO),
    ("https://github.com/acme/../widgets", TWO),
    ("https://github.com/../widgets", NAMES),
    ("https://github.com/./widgets", NAMES),
    ("https://github.com/acme/..", NAMES),
    ("https://github.com/acme/.", NAMES),
    ("https://github.com/acme/...", NAMES),
    ("https://github.com/acme/.git", NAMES),
    ("https://github.com/acme/.git/", NAMES),
    ("https://github.com/acme/..git", NAMES),
    ("https://github.com/-acme/widgets", NAMES),
    ("https://github.com/acme/-x", NAMES),
    ("https://github.com/acme/--upload-pack=id", NAMES),
    ("https://github.com/acme/widgets.git.git", "can end in .git only once"),
    ("https://github.com/acme/widgets.GIT", "can end in .git only once"),
    ("https://github.com/acme/widgets.git.GIT", "can end in .git only once"),
    ("https://github.com/acme/wid gets", "without spaces"),
    ("https://github.com/acme/wid\tgets", "without spaces"),
    ("https://github.com/acme/wid\ngets", "line breaks"),
    ("https://github.com/acme/wid\rgets", "line breaks"),
    ("https://github.com/acme/wid\r\nX-Header: y/gets", "line breaks"),
    ("https://github.com/acme/wid\x00gets", FORM),
    ("https://github.com\x00.evil.example/acme/widgets", FORM),
    ("https://github.com\t/acme/widgets", FORM),
    ("https://github.com/acme/wid\x7fgets", FORM),
    ("https:\\\\github.com\\acme\\widgets", "backslashes"),
    ("https://github.com\\@evil.example/acme/widgets", "backslashes"),
    ("https://evil.example\\@github.com/acme/widgets", "backslashes"),
    ("https://github.com/acme\\widgets", "backslashes"),
    ("https://github.com/acme/widgets?x=1", END),
    ("https://github.com/acme/widgets?", END),
    ("https://github.com/acme/widgets#x", END),
    ("https://github.com/acme/widgets#", END),
    ("https://evil.example?@github.com/acme/widgets", END),
    ("https://evil.example#@github.com/acme/widgets", END),
    ("https://github.com/acme/wid%2egets", NAMES),
    ("https://github.com/%2e%2e/widgets", NAMES),
    ("https://github.com/acme%2fwidgets/x", NAMES),
    ("https://github.com/acme/wid%00gets", NAMES),
    ("https://github.com/acme/wid:gets", NAMES),
    ("https://github.com/acme/widgets;x", NAMES),
    ("https://github.com/acme/$(id)", NAMES),
    ("https://github.com/acme/`id`", NAMES),
    ("https://github.com/~acme/widgets", NAMES),
    ("https://github.com/acme/" + "w" * 201, NAMES),
    ("https://github%2ecom/acme/widgets", HOST),
    ("https://github.com%2f@evil.example/acme/widgets", CREDENTIALS),
    ("https://user@github.com/acme/widgets", CREDENTIALS),
    ("https://user:token@github.com/acme/widgets", CREDENTIALS),
    ("https://:token@github.com/acme/widgets", CREDENTIALS),
    ("https://@github.com/acme/widgets", CREDENTIALS),
    ("https://:@github.com/acme/widgets", CREDENTIALS),
    ("https://github.com@evil.example/acme/widgets", CREDENTIALS),
    ("https://github.com:token@evil.example/acme/widgets", CREDENTIALS),
    ("https://evil.example@github.com@evil.example/acme/widgets", CREDENTIALS),
    ("https://elsewhere.example/acme/widgets", ELSEWHERE),
    ("https://github.com.evil.example/acme/widgets", ELSEWHERE),
    ("https://evilgithub.com/acme/widgets", ELSEWHERE),
    ("https://www.github.com/acme/widgets", ELSEWHERE),
    ("https://xn--gthub-cta.com/acme/widgets", ELSEWHERE),
    ("https://git.example/acme/widgets", ELSEWHERE),  # only its port 8443 is allowed
    ("https://git.example:8444/acme/widgets", ELSEWHERE),
    ("https://127.0.0.1/acme/widgets", ELSEWHERE),
    ("https://2130706433/acme/widgets", ELSEWHERE),
    ("https://0x7f.1/acme/widgets", ELSEWHERE),
    ("https://[::1]/acme/widgets", ELSEWHERE),
    ("https://[::ffff:127.0.0.1]/acme/widgets", ELSEWHERE),
    ("https://169.254.169.254/latest/meta-data", ELSEWHERE),
    ("https://github.com./acme/widgets", HOST),
    ("https://.github.com/acme/widgets", HOST),
    ("https://github.com,evil.example/acme/widgets", HOST),
    ("https://*.github.com/acme/widgets", HOST),
    ("https://[fe80::1%25eth0]/acme/widgets", HOST),
    ("https://[::1/acme/widgets", HOST),
    ("https://::1]/acme/widgets", HOST),
    ("https://[::1]evil/acme/widgets", HOST),
    ("https://[v1.x]/acme/widgets", HOST),
    ("https://::1/acme/widgets", HOST),
    ("https://g\u0456thub.com/acme/widgets", "plain ASCII"),  # a Cyrillic letter
    ("https://github\uff0ecom/acme/widgets", "plain ASCII"),  # a full-width full stop
    ("https://github.com\uff0facme/widgets/x", "plain ASCII"),  # a full-width slash
    ("https://github.com/acme/wid\u202egets", "plain ASCII"),
    ("https://github.com/acme/widgets\u2028", "plain ASCII"),
    ("https://github.com/\uff41cme/widgets", "plain ASCII"),
    ("https://b\u00fccher.example/acme/widgets", "plain ASCII"),
    ("https://github.com:/acme/widgets", PORT),
    ("https://github.com:0/acme/widgets", PORT),
    ("https://github.com:00443/acme/widgets", PORT),
    ("https://github.com:+443/acme/widgets", PORT),
    ("https://github.com:-1/acme/widgets", PORT),
    ("https://github.com:65536/acme/widgets", PORT),
    ("https://github.com:99999/acme/widgets", PORT),
    ("https://github.com:443:443/acme/widgets", PORT),
    ("https://github.com:" + "4" * 1500 + "/acme/widgets", PORT),
    ("https://github.com:https/acme/widgets", PORT),
    ("https://github.com/acme/" + "w" * 3000, "at most 2,048 characters"),
]


def test_other_urls_are_refused_with_a_message(subtests: pytest.Subtests) -> None:
    for url, text in REFUSED:
        with subtests.test(repr(url[:40])):
            with pytest.raises(InvalidUrl) as refusal:
                parse_url(url)
            sentence = str(refusal.value)
            assert text in sentence, sentence
            assert sentence.endswith(".")
            assert len(sentence) < 400
            assert sentence.isprintable()
            assert "token@" not in sentence


@pytest.mark.parametrize(
    "text",
    ["https://github.com/acme/" + "w" * 10_000_000, " " * 10_000_000, "/" * 10_000_000, "https://" + "a:" * 5_000_000],
    ids=["name", "spaces", "slashes", "host"],
)
def test_ten_megabytes_cost_nothing(text: str) -> None:
    started = time.thread_time()
    with pytest.raises(InvalidUrl, match="at most 2,048 characters"):
        parse_url(text)
    assert time.thread_time() - started < 0.01


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("https://[2001:DB8::1]/a/b", "https://[2001:db8::1]/a/b"),
        ("https://[2001:db8::1]:8443/a/b", "https://[2001:db8::1]:8443/a/b"),
        ("http://127.0.0.1:3000/a/b", "http://127.0.0.1:3000/a/b"),
        ("http://ghe.example:80/a/b", "http://ghe.example/a/b"),
        ("https://only.example/a/b", "https://only.example/a/b"),
    ],
)
def test_allowed_hosts_are_accepted(settings, url: str, canonical: str) -> None:
    settings.ALLOW_HTTP = True
    settings.ALLOWED_GIT_HOSTS = ["2001:db8::1", "[2001:db8::1]:*", "127.0.0.1:*", "GHE.example", "only.example:443"]
    parsed = parse_url(url)
    assert parsed.canonical == canonical
    assert parse_url(parsed.canonical).canonical == canonical


@pytest.mark.parametrize(
    "url",
    [
        *("https://ghe.example:22/a/b", "https://ghe.example:8443/a/b", "https://ghe.example:80/a/b"),
        *(
            "http://ghe.example:443/a/b",
            "https://[2001:db8::1]:22/a/b",
            "https://only.example:444/a/b",
            "http://only.example/a/b",
        ),
    ],
)
def test_host_without_a_port_allows_only_the_default_port(settings, url: str) -> None:
    settings.ALLOW_HTTP = True
    settings.ALLOWED_GIT_HOSTS = ["ghe.example", "2001:db8::1", "only.example:443"]
    with pytest.raises(InvalidUrl, match="can't be watched"):
        parse_url(url)
