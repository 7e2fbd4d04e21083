"""Which URLs may be watched, and which spellings are one repository."""

import pytest

from repositories_app.exceptions import InvalidUrl
from repositories_app.remote import parse_url


@pytest.fixture(autouse=True)
def _production_rules(settings) -> None:
    settings.ALLOW_HTTP = False
    settings.ALLOWED_GIT_HOSTS = ["github.com", "git.example:8443", "ghe.example"]


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
    assert parse_url(url).canonical == "https://github.com/acme/widgets"


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
def test_names_are_kept_and_case_is_folded_only_where_the_host_ignores_it(
    url: str, canonical: str, owner: str, name: str
) -> None:
    parsed = parse_url(url)
    assert (parsed.canonical, parsed.owner, parsed.name) == (canonical, owner, name)
    assert parsed.spelled == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/acme/widgets",
        "http://github.com/acme/widgets",
        "git://github.com/acme/widgets",
        "ssh://git@github.com/acme/widgets",
        "git@github.com:acme/widgets",
        "file:///etc/passwd",
        "ext::sh -c id",
        "--upload-pack=id",
        "https://github.com",
        "https://github.com/acme",
        "https://github.com/acme/",
        "https://github.com/acme/widgets/tree/main",
        "https://github.com//widgets",
        "https://github.com/../widgets",
        "https://github.com/acme/..",
        "https://github.com/acme/.git",
        "https://github.com/-acme/widgets",
        "https://github.com/acme/wid gets",
        "https://github.com/acme/widgets?x=1",
        "https://github.com/acme/widgets?",
        "https://github.com/acme/widgets#x",
        "https://github.com/acme/wid\x00gets",
        "https://github.com/acme/wid\ngets",
        "https://github.com/acme/wid%2egets",
        "https://user@github.com/acme/widgets",
        "https://user:token@github.com/acme/widgets",
        "https://elsewhere.example/acme/widgets",
        "https://github.com.evil.example/acme/widgets",
        "https://git.example/acme/widgets",
        "https://git.example:8444/acme/widgets",
        "https://github.com:99999/acme/widgets",
        "https://[::1/acme/widgets",
        "https://github.com/acme/" + "w" * 3000,
    ],
)
def test_anything_else_is_refused_in_words(url: str) -> None:
    with pytest.raises(InvalidUrl) as refusal:
        parse_url(url)
    assert str(refusal.value).endswith(".")
    assert "token@" not in str(refusal.value)
