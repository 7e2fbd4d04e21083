"""The documentation pages: public, complete and consistent with the code."""

import ast
import functools
import html
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from django.contrib.staticfiles import finders
from django.core.management import get_commands
from django.test import Client
from django.urls import Resolver404, resolve, reverse

from deliveries_app.docs import examples, settings_reference, views
from deliveries_app.models import AlertKind, Outcome, Reason, Result, Status, WatchState
from deliveries_app.models.root_causes import RootCause
from deliveries_app.webhooks.payloads import PING_REASON, VERIFY_REASON, RepositoryInfo, file_body
from docora import __version__
from docora.web.error_codes import ErrorCode
from repositories_app.mirror import cache
from tests.support.staff import staff
from tests.wire.clients import SAMPLES, load

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [reverse(name) for name in views.PAGES]


class Reader(HTMLParser):
    """Collect the ids, links, headings, copy buttons and `code` texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[tuple[int, str | None]] = []
        self.copies: list[dict[str, str | None]] = []
        self.code: dict[str, str] = {}
        self._code: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        attributes = dict(attrs)
        if anchor := attributes.get("id"):
            self.ids.append(anchor)
        if tag == "a":
            self.links.append(attributes["href"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), attributes.get("id")))
        if "data-copy" in attributes:
            self.copies.append(attributes)
        if tag == "code" and "id" in attributes:
            self._code = attributes["id"]
            self.code[self._code] = ""

    def handle_data(self, data: str) -> None:
        if self._code:
            self.code[self._code] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "code":
            self._code = None


def read(address: str) -> Reader:
    return Reader(Client().get(address).text)


def text_of(address: str) -> str:
    """Return the text of a page without tags, with whitespace collapsed."""
    return " ".join(html.unescape(re.sub("<[^>]*>", "", Client().get(address).text)).split())


# --- Every page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PAGES)
def test_page_needs_no_session_and_no_database(address: str) -> None:
    answer = Client().get(address)
    assert answer.status_code == 200
    assert answer.cookies == {}
    assert Client().head(address).status_code == 200
    assert Client().post(address).status_code == 405


@pytest.mark.parametrize("address", PAGES)
def test_page_obeys_the_content_security_policy(address: str) -> None:
    answer = Client().get(address)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)|\s(style|on\w+)=|http-equiv|javascript:", answer.text)


@pytest.mark.parametrize("address", PAGES)
def test_headings_are_ordered_and_linked(address: str) -> None:
    page = read(address)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    anchored = [anchor for level, anchor in page.headings if level in {2, 3} and anchor]
    assert len(anchored) > 5
    assert [f"#{anchor}" for anchor in anchored if f"#{anchor}" not in page.links] == []
    assert [anchor for anchor, count in Counter(page.ids).items() if count > 1] == []


@pytest.mark.parametrize("address", PAGES)
def test_links_resolve(address: str) -> None:
    ids_of = functools.cache(lambda page: read(page).ids)
    for link in set(read(address).links):
        target, _, anchor = link.partition("#")
        if target.startswith("/static/"):
            assert finders.find(target.removeprefix("/static/")), link
        elif target.startswith("https://"):
            assert target == "https://www.standardwebhooks.com"
        else:
            resolve(target or address)
            assert not anchor or anchor in ids_of(target or address), link


@pytest.mark.parametrize("address", PAGES)
def test_navigation_links_all_pages_and_marks_the_current_one(address: str) -> None:
    page = Client().get(address).text
    assert set(PAGES) <= set(read(address).links)
    assert re.findall(r'<a href="([^"]+)" aria-current="page">', page) == [address]


@pytest.mark.parametrize("address", PAGES)
def test_copy_buttons(address: str) -> None:
    page = read(address)
    assert [button["data-copy"] for button in page.copies] == list(page.code)
    assert all(button["aria-label"].startswith("Copy ") and "hidden" in button for button in page.copies)


def test_table_of_contents() -> None:
    page = '<h1>T</h1><h2 id="a">A &amp; <code>b</code></h2><h3>no</h3><h3 id="c" data-method="GET">C</h3><h2 id="d">D</h2>'
    first, second = views.table_of_contents(page)
    assert (first.anchor, first.title, second.title, second.below) == ("a", "A & b", "D", [])
    assert [(entry.anchor, entry.title, entry.method) for entry in first.below] == [("c", "C", "GET")]


def test_admin_links_to_the_documentation(db) -> None:
    client = staff("olga", "view_app", "onboard_app")
    assert '<a href="/docs/">Documentation</a>' in client.get("/admin/").text
    values = {"name": "Portal", "base_url": "http://127.0.0.1:9/hooks", "email": "ops@portal.example"}
    page = client.post("/admin/deliveries_app/app/add/", values, follow=True).text
    assert "Add the ID, token and key" in page
    assert 'href="/docs/webhooks/"' in page


# --- The webhook reference ----------------------------------------------------------------------------------------------


def test_samples_are_shown_and_downloadable() -> None:
    page, start = read("/docs/webhooks/"), read("/docs/")
    files = list(SAMPLES.iterdir())
    assert len(files) > 4
    for file in files:
        if file.is_file():
            assert page.code[file.name.replace(".", "-")] == file.read_text().strip("\n")
            assert f"/static/docs/samples/{file.name}" in page.links
    assert {"receiver-py", "receiver-mjs"} <= set(start.code)


def test_samples_are_read_on_request(tmp_path: Path, settings) -> None:
    samples = tmp_path / "static" / "docs" / "samples"
    shutil.copytree(SAMPLES, samples)
    settings.BASE_DIR = tmp_path
    (samples / "verify.py").write_text("print('<another>' & 1)\n")
    assert read("/docs/webhooks/").code["verify-py"] == "print('<another>' & 1)"


def test_example_bodies_are_shown() -> None:
    shown = read("/docs/webhooks/").code
    for event, example in examples.examples().items():
        for number, variant in enumerate(example.variants, 1):
            assert json.loads(shown[f"{event}-body-{number}"]) == json.loads(variant.body)


def test_every_field_and_header_is_explained(client: Client) -> None:
    page = client.get("/docs/webhooks/").text
    fields = {field.name for example in examples.examples().values() for field in example.fields}
    for name in {*fields, *(name for name, _, _ in examples.headers())}:
        assert f"<code>{name}</code>" in page, name
    assert all(field.description for example in examples.examples().values() for field in example.fields)


@pytest.mark.parametrize("event", ["create", "update"])
def test_sha_and_size_of_the_examples(event: str) -> None:
    for variant in examples.examples()[event].variants:
        file = json.loads(variant.body)["file"]
        if "chunk" not in file:
            content = examples._BINARY if "content_encoding" in file else file["content"].encode()
            assert (file["sha"], file["size"]) == (examples._sha(content), len(content))


def test_signature_example_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = read("/docs/webhooks/").code
    values = dict(re.findall(r"(?m)^(\w+)='?(.*?)'?$", shown["vector-values"]))
    standard, signature = re.findall("(?m)^# (.+)$", shown["vector-values"])
    headers = {
        "webhook-id": values["WEBHOOK_ID"],
        "webhook-timestamp": values["TIMESTAMP"],
        "webhook-signature": standard,
        "X-Docora-Timestamp": values["TIMESTAMP"],
        "X-Docora-Signature": signature,
    }
    verify = load("verify")
    monkeypatch.setattr(verify.time, "time", lambda: int(values["TIMESTAMP"]))
    assert verify.verify(headers, values["BODY"].encode(), values["DOCORA_KEY"])
    script = f"{shown['vector-values']}\n{shown['vector-command']}"
    output = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True).stdout
    assert output.splitlines() == [standard, signature]


def test_limits_of_this_instance_are_shown(settings) -> None:
    settings.CHUNK_SIZE_BYTES, settings.MAX_RETRY_ATTEMPTS, settings.CIRCUIT_BREAKER_COOLDOWN_SECONDS = (
        7_654_321,
        77,
        90,
    )
    page = text_of("/docs/webhooks/")
    for sentence in ("pieces of 7,654,321 characters", "up to 77 attempts", "pauses syncing it for 1 min 30 s"):
        assert sentence in page


def test_reasons_and_statuses_are_explained() -> None:
    page = Client().get("/docs/webhooks/").text

    def terms(anchor: str) -> list[str]:
        section = page.partition(f'id="{anchor}"')[2].partition("</dl>")[0]
        return re.findall(r"<dt><code>(\w+)</code></dt>", section)

    assert terms("reasons") == [*Reason.values, VERIFY_REASON, PING_REASON]
    assert terms("statuses") == Status.values


def test_pages_say_that_notifications_under_way_arrive_after_the_end_of_a_watch() -> None:
    """A client that deletes its copy as soon as the API has responded would otherwise store some files of it again."""
    for address in ("/docs/api/", "/docs/webhooks/"):
        assert "that are under way" in text_of(address), address


def test_largest_body_is_not_exceeded(settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES = 100_000
    shown = re.search(r"Body of a request ?Up to ([\d.]+) kB", text_of("/docs/webhooks/"))
    content = b"\1" * settings.CHUNK_THRESHOLD_BYTES
    repository = RepositoryInfo("r" * 50, "https://h/" + "u" * 2000, "o" * 200, "n" * 200)
    body = file_body(repository, "\1" * 1024, "0" * 64, len(content), content, "0" * 64, examples.NOON, "0" * 64)
    assert shown
    assert len(body) < float(shown[1]) * 1000


def test_largest_body_may_be_that_of_a_chunk(settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 1000, 600_000
    shown = re.search(r"Body of a request ?Up to ([\d.]+) kB", text_of("/docs/webhooks/"))
    assert shown
    assert float(shown[1]) * 1000 > settings.CHUNK_SIZE_BYTES


# --- The API reference and the changes ----------------------------------------------------------------------------------


def test_api_page_lists_every_error_code() -> None:
    section = Client().get("/docs/api/").text.partition('id="codes"')[2].partition("</dl>")[0]
    assert re.findall(r"<dt><code>(\w+)</code>(?: <span[^>]*>(retryable)</span>)?", section) == [
        (code.value, "retryable" if code.retryable else "") for code in ErrorCode
    ]


def test_changelog_begins_with_this_version() -> None:
    page = Client().get("/docs/changes/").text.partition('id="changelog"')[2]
    newest = re.search(r"<h3[^>]*>([\d.]+)</h3>", page)
    assert newest
    assert newest[1] == re.match(r"[\d.]+\d", __version__)[0]  # type: ignore[index]


# --- The handbook -------------------------------------------------------------------------------------------------------


def test_handbook_lists_every_setting() -> None:
    page = text_of("/docs/operations/")
    groups = [group for _, groups in settings_reference.sections() for group in groups]
    documented = dict(re.findall(r"(?m)^# ([A-Z_]+)=(.*)$", (PROJECT / ".env.example").read_text()))
    assert {name: default for _, settings in groups for name, default in settings.items()} == documented
    for description, settings in groups:
        assert description, settings
        for name, default in settings.items():
            assert f"{name} {default or 'empty'}" in page


def test_parse_settings() -> None:
    text = "# Of the file.\n# AA=0\n\n# --- One ---\n# Text\n# and more.\n# AA=1\n# B_B=\n# Other.\n# CC=c=d\n# --- Two -\n# DD=\n"
    assert settings_reference.parse(text) == [
        ("One", [("Text and more.", {"AA": "1", "B_B": ""}), ("Other.", {"CC": "c=d"})]),
        ("Two", [("", {"DD": ""})]),
    ]


def test_handbook_without_env_example(settings, tmp_path: Path) -> None:
    settings.BASE_DIR = tmp_path
    assert "was not deployed with this instance" in text_of("/docs/operations/")


def test_handbook_covers_every_state_cause_and_result() -> None:
    page, ids = text_of("/docs/operations/"), read("/docs/operations/").ids
    for kind, values in (("state", WatchState), ("cause", RootCause)):
        for value in values:
            assert f"{kind}-{value.value}" in ids
            assert value.label in page
    assert [result for result in Result if result.label not in page] == []
    assert [status for status in Status.values if status not in page] == []


def test_nginx_of_the_handbook_passes_the_port_on() -> None:
    """Docora takes its own address from `Host`, for example for the redirect URI of OpenID Connect."""
    assert "proxy_set_header Host $http_host;" in text_of("/docs/operations/")


def test_commands_and_probes_in_the_handbook_exist() -> None:
    page = Client().get("/docs/operations/").text
    commands = re.findall(r"<dt><code>(\w+)", page.partition('id="commands"')[2].partition("<h2")[0])
    assert len(commands) > 4
    assert set(commands) <= set(get_commands())
    probes = re.findall(r"<dt><code>(/[\w/]+)", page)
    assert len(probes) == 4
    for probe in probes:
        resolve(probe)
    with pytest.raises(Resolver404):
        resolve("/no-such-probe")


def test_handbook_lists_exactly_the_log_events() -> None:
    logged = {
        node.args[0].value
        for package in ("docora", "repositories_app", "deliveries_app")
        for file in (PROJECT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith(("logger.", "logging_outage", "connection.logging_outage"))
        and isinstance(node.args[0], ast.Constant)
    }
    section = Client().get("/docs/operations/").text.partition('id="logs"')[2].partition("<h2")[0]
    listed = set(re.findall(r"<code>([a-z_]+)</code>", section))
    assert sorted(logged - listed) == []
    others = {"run_id", "request_id", "duration_ms", "operation_id", "sync_failed", "import_docora"}
    assert sorted(name for name in listed - logged - others if "_" in name) == []


def test_handbook_lists_exactly_the_metrics(db, tmp_path: Path, settings) -> None:
    settings.REPOS_DIR = tmp_path
    cache.maintain()  # the mirror metrics exist only after this
    exported = set(re.findall("(?m)^# HELP (\\w+) ", Client().get("/metrics").text)) | {"docora_sweep_age_seconds"}
    section = Client().get("/docs/operations/").text.partition('id="metrics"')[2].partition("<h2")[0]
    listed = set(re.findall(r"<code>((?:docora|process)_\w+)</code>", section))
    assert listed == exported | {"docora_request_duration_seconds"}  # appears with the first request


def test_handbook_lists_the_outcomes_that_label_a_metric() -> None:
    assert f"Finished sync runs, by outcome: {', '.join(Outcome.values)}." in text_of("/docs/operations/")


def test_handbook_lists_the_alerts_of_the_rules() -> None:
    rules = yaml.safe_load((PROJECT / "docora" / "deploy" / "monitoring" / "prometheus-rules.yaml").read_text())
    section = Client().get("/docs/operations/").text.partition('id="alert-rules"')[2].partition("<h2")[0]
    assert re.findall(r"<code>(Docora\w+)</code>", section) == [rule["alert"] for rule in rules["groups"][0]["rules"]]


def test_handbook_lists_exactly_the_kinds_of_alerts() -> None:
    section = Client().get("/docs/operations/").text.partition('id="alerts"')[2].partition("<h2")[0]
    terms = " ".join(re.findall("<dt>(.*?)</dt>", section))
    assert Counter(re.findall("<code>(.*?)</code>", terms)) == Counter(AlertKind.values)
