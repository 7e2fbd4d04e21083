"""The page that explains one file, and the two forms that link to it."""

import os
from html import unescape
from urllib.parse import quote

import pytest
from django.test import Client

from deliveries_app.models import AppRepository, DeliveryFailure
from tests.support.git import Entry
from tests.support.histories import refusing, sha
from tests.support.staff import make_app, make_watch, staff
from tests.support.world import World

ADMIN = "/admin/deliveries_app"


def why(client: Client, watch: AppRepository, path: str) -> str:
    answer = client.get(f"{ADMIN}/apprepository/{watch.pk}/why/", {"path": path})
    assert answer.status_code == 200
    return unescape(answer.text)


def test_refused_file_is_explained(world: World) -> None:
    viewer = staff("vera", "view_apprepository")
    repo, watch = world.watch({"a b.md": b"1"})
    world.answer(refusing("a b.md"))
    world.sync(watch)
    text = why(viewer, watch, "a b.md")
    blob = world.rows(watch)["a b.md"].source_key
    for said in (
        "Not delivered: the app returned HTTP 500.",
        "Next try",
        "1 byte",
        repo.head,
        blob,
        "100644",
        sha(b"1"),
    ):
        assert said in text
    assert "<dd>None</dd>" in text  # acknowledged
    world.answer(None)
    world.sync(watch)
    text = why(viewer, watch, "a b.md")
    assert "Delivered: the client has acknowledged the current version" in text
    assert "<p>None.</p>" in text


def test_every_state_has_a_label(world: World, admin: Client) -> None:
    files = {"link": Entry.symlink("x"), "module": Entry.submodule("1" * 40), "d/x": b"", ".docoraignore": b"*.log\n"}
    _, watch = world.watch({**files, "x.log": b"1"})
    world.settle()
    for path, expected in {
        "link": "Symbolic link",
        "module": f"Submodule at commit <code>{'1' * 40}</code>",
        "d": "Directory",
        "nothing": "No record",
        "x.log": 'Line 1 of .docoraignore ("*.log") ignores it.',
        "d/x": "0 bytes",
    }.items():
        assert expected in why(admin, watch, path), path


@pytest.mark.parametrize(
    "path",
    ["<script>x</script>", '"><b>', "%00", "a\tb", " ", "é/ü", "x" * 3000, "&path=y", "\\xff", "9" * 30, "w " * 400],
)
def test_odd_paths_are_escaped(admin: Client, path: str) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    answer = admin.get(f"{ADMIN}/apprepository/{watch.pk}/why/?path={quote(path, safe='')}")
    assert answer.status_code == 200
    assert answer.context["path"] == path
    assert "<script>x" not in answer.text
    assert "<b>" not in answer.text


def test_invalid_bytes_are_harmless(admin: Client) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    for path in ("%ff%fe", "%00"):
        assert admin.get(f"{ADMIN}/apprepository/{watch.pk}/why/?path={path}").status_code in {200, 400}


def test_non_utf_8_path_is_reachable_by_link(world: World, admin: Client) -> None:
    _, watch = world.watch({os.fsdecode(b"caf\xe9 & co.md"): b"1"})
    world.settle()
    listed = unescape(admin.get(f"{ADMIN}/apprepository/{watch.pk}/change/").text)
    link = f"{ADMIN}/apprepository/{watch.pk}/why/?path=caf%5Cxe9%20%26%20co.md"
    assert link in listed
    assert "path is not valid UTF-8" in unescape(admin.get(link).text)


def test_page_without_a_path_shows_the_form(admin: Client) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    text = admin.get(f"{ADMIN}/apprepository/{watch.pk}/why/").text
    assert "Enter the path of a file" in text
    assert "decision-text" not in text
    assert (
        f'action="{ADMIN}/apprepository/{watch.pk}/why/"' in admin.get(f"{ADMIN}/apprepository/{watch.pk}/change/").text
    )


def test_app_form_redirects_to_the_watch(admin: Client) -> None:
    app, other = make_app("Portal"), make_app("Search")
    watch, twin = make_watch(app, "docs"), make_watch(app, "twin")
    make_watch(other, "site")
    twin.repository.name = "docs"
    twin.repository.owner = "Other"
    twin.repository.save()

    def ask(repository: str):
        return admin.get(f"{ADMIN}/app/{app.pk}/why/", {"repository": repository, "path": "a b/é.md"}, follow=True)

    for name in ("acme/docs", " ACME/Docs ", "https://github.com/acme/docs"):
        answer = ask(name)
        assert answer.redirect_chain[-1][0].startswith(f"{ADMIN}/apprepository/{watch.pk}/why/")
        assert answer.context["path"] == "a b/é.md"
    assert ask("other/docs").context["watch"] == twin
    for name in ("acme/site", "docs", ""):
        answer = ask(name)
        assert answer.redirect_chain[-1][0] == f"{ADMIN}/app/{app.pk}/change/"
        assert f"watch a repository named “{name}”." in answer.text
    twin.repository.owner = "acme"
    twin.repository.save()
    assert "several repositories named acme/docs" in ask("acme/docs").text


def test_app_form_prefills_the_only_repository(admin: Client) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    page = f"{ADMIN}/app/{app.pk}/change/"
    assert 'placeholder="owner/name" value="acme/docs"' in admin.get(page).text
    make_watch(app, "site")
    assert 'placeholder="owner/name" value=""' in admin.get(page).text


def test_page_needs_permission_to_view_watches(db, client: Client) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    pages = [
        f"{ADMIN}/apprepository/{watch.pk}/why/?path=a",
        f"{ADMIN}/app/{watch.app_id}/why/?repository=acme/docs&path=a",
    ]
    blind, viewer = staff("bob", "view_app"), staff("vera", "view_app", "view_apprepository")
    for page in pages:
        assert client.get(page).status_code == 302
        assert "/admin/login/" in client.get(page).url  # type: ignore[attr-defined]
        assert blind.get(page).status_code == 403
        assert viewer.get(page, follow=True).status_code == 200
        assert viewer.post(page).status_code == 405
    assert not DeliveryFailure.objects.exists()


def test_ended_watch_has_no_page(admin: Client) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    AppRepository.objects.update(ended_at="2026-01-01T00:00:00Z")
    assert admin.get(f"{ADMIN}/apprepository/{watch.pk}/why/?path=a").status_code == 302


def test_query_count_is_constant(world: World, django_assert_max_num_queries) -> None:
    viewer = staff("vera", "view_apprepository")
    _, watch = world.watch({f"{number}.md": b"1" for number in range(300)})
    world.settle()
    with django_assert_max_num_queries(14):
        why(viewer, watch, "250.md")
