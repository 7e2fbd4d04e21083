"""The documentation: public, whole, and true because it is made from what it speaks of."""

import ast
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
from django.contrib.staticfiles import finders
from django.core.management import get_commands
from django.test import Client
from django.urls import Resolver404, resolve

from deliveries_app.docs import examples, settings_reference, views
from deliveries_app.models import Outcome, Reason, Status
from deliveries_app.models.root_causes import RootCause
from docora.http import user_agent
from repositories_app.git.exceptions import Cause
from repositories_app.mirror import cache
from tests.support.staff import staff
from tests.wire.bodies import BODIES
from tests.wire.clients import SAMPLES, load

PROJECT = Path(__file__).resolve().parents[2]
PAGES = ["/docs/", "/docs/webhooks/", "/docs/api/", "/docs/operations/"]


class Reader(HTMLParser):
    """What the tests look at: ids, links, headings in their order, copy buttons, and the text of each `code`."""

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
        known = dict(attrs)
        if anchor := known.get("id"):
            self.ids.append(anchor)
        if tag == "a":
            self.links.append(known["href"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), known.get("id")))
        if "data-copy" in known:
            self.copies.append(known)
        if tag == "code" and "id" in known:
            self._code = known["id"]
            self.code[self._code] = ""

    def handle_data(self, data: str) -> None:
        if self._code:
            self.code[self._code] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "code":
            self._code = None


def read(address: str) -> Reader:
    return Reader(Client().get(address).text)


def words(address: str) -> str:
    """The page as it is read: its text without tags, blanks as one."""
    return " ".join(html.unescape(re.sub("<[^>]*>", "", Client().get(address).text)).split())


# --- Every page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PAGES)
def test_a_page_needs_no_account_no_session_and_no_database(address: str) -> None:
    answer = Client().get(address)
    assert answer.status_code == 200
    assert answer.cookies == {}
    assert Client().head(address).status_code == 200
    assert Client().post(address).status_code == 405


@pytest.mark.parametrize("address", PAGES)
def test_a_page_obeys_the_strict_policy(address: str) -> None:
    answer = Client().get(address)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)|\s(style|on\w+)=|http-equiv|javascript:", answer.text)


@pytest.mark.parametrize("address", PAGES)
def test_the_headings_of_a_page_are_in_order_and_its_contents_lead_to_them(address: str) -> None:
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
def test_every_link_leads_somewhere(address: str) -> None:
    for link in set(read(address).links):
        target, _, anchor = link.partition("#")
        if target.startswith("/static/"):
            assert finders.find(target.removeprefix("/static/")), link
        elif target.startswith("https://"):
            assert target == "https://www.standardwebhooks.com"
        else:
            resolve(target or address)
            assert not anchor or anchor in read(target or address).ids, link


@pytest.mark.parametrize("address", PAGES)
def test_the_pages_lead_to_each_other_and_each_knows_itself(address: str) -> None:
    page = Client().get(address).text
    assert set(PAGES) <= set(read(address).links)
    assert re.findall(r'<a href="([^"]+)" aria-current="page">', page) == [address]


@pytest.mark.parametrize("address", PAGES)
def test_what_can_be_copied_has_a_button_with_a_name_that_waits_for_its_script(address: str) -> None:
    page = read(address)
    assert [button["data-copy"] for button in page.copies] == list(page.code)
    assert all(button["aria-label"].startswith("Copy ") and "hidden" in button for button in page.copies)


def test_the_contents_are_the_headings_that_can_be_linked_to() -> None:
    page = '<h1>T</h1><h2 id="a">A &amp; <code>b</code></h2><h3>no</h3><h3 id="c" data-method="GET">C</h3><h2 id="d">D</h2>'
    first, second = views.Contents(page).entries
    assert (first.anchor, first.words, second.words, second.below) == ("a", "A & b", "D", [])
    assert [(entry.anchor, entry.words, entry.method) for entry in first.below] == [("c", "C", "GET")]


def test_the_admin_leads_to_it_and_so_does_the_page_of_a_new_app_s_secrets(db) -> None:
    client = staff("olga", "view_app", "onboard_app")
    assert '<a href="/docs/">Documentation</a>' in client.get("/admin/").text
    facts = {"name": "Portal", "base_url": "http://127.0.0.1:9/hooks", "email": "ops@portal.example"}
    page = client.post("/admin/deliveries_app/app/add/", facts, follow=True).text
    assert "Store the three" in page
    assert 'href="/docs/webhooks/"' in page


# --- The webhook reference ----------------------------------------------------------------------------------------------


def test_every_sample_is_shown_as_it_is_and_can_be_downloaded() -> None:
    page, start = read("/docs/webhooks/"), read("/docs/")
    files = list(SAMPLES.iterdir())
    assert len(files) > 5
    for file in files:
        if file.is_file():
            assert page.code[file.name.replace(".", "-")] == file.read_text().strip("\n")
            assert f"/static/docs/samples/{file.name}" in page.links
    assert {"receiver-py", "receiver-mjs"} <= set(start.code)


def test_a_sample_is_read_when_it_is_asked_for(tmp_path: Path, settings) -> None:
    samples = tmp_path / "static" / "docs" / "samples"
    shutil.copytree(SAMPLES, samples)
    settings.BASE_DIR = tmp_path
    (samples / "verify.py").write_text("print('<another>' & 1)\n")
    assert read("/docs/webhooks/").code["verify-py"] == "print('<another>' & 1)"


def test_every_body_of_an_example_is_shown() -> None:
    shown = read("/docs/webhooks/").code
    for event, example in examples.examples().items():
        for number, variant in enumerate(example.variants, 1):
            assert json.loads(shown[f"{event}-body-{number}"]) == json.loads(variant.body)


def test_the_examples_have_every_field_that_is_ever_sent_and_no_other() -> None:
    sent: dict[str, set[str]] = {}
    for name, body in BODIES.items():
        event = re.split("[: ]", name)[0]
        event = {"chunk": "create", "a": "create"}.get(event, event)
        sent.setdefault(event, set()).update(field for field, _ in examples._flat(json.loads(body)))
    sent["update"] |= {"previous_sha"}
    told = {event: {field.name for field in example.fields} for event, example in examples.examples().items()}
    told["update"] |= {"file.content_encoding"}  # its example is a text, and says so
    assert told == sent
    assert set(examples.MEANINGS) == set().union(*told.values())


def test_the_page_explains_every_field_and_header(client: Client) -> None:
    page = client.get("/docs/webhooks/").text
    for name in {*examples.MEANINGS, *examples.HEADERS}:
        assert f"<code>{name}</code>" in page, name
    assert [name for name, _, _ in examples.headers(user_agent())] == list(examples.HEADERS)


def test_every_reason_and_cause_of_the_wire_is_named() -> None:
    assert re.findall("`(\\w+)`", examples.HEADERS["X-Docora-Reason"]) == Reason.values
    assert re.findall("`(\\w+)`", examples.MEANINGS["error.reason"]) == [cause.value for cause in Cause]


@pytest.mark.parametrize("event", ["create", "update"])
def test_the_examples_say_the_truth_of_their_content(event: str) -> None:
    for variant in examples.examples()[event].variants:
        file = json.loads(variant.body)["file"]
        if "chunk" not in file:
            content = examples._BINARY if "content_encoding" in file else file["content"].encode()
            assert (file["sha"], file["size"]) == (examples._sha(content), len(content))


def test_the_example_to_try_verifies_and_the_command_beside_it_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = read("/docs/webhooks/").code
    found = dict(re.findall(r"(?m)^(\w+)='?(.*?)'?$", shown["vector-values"]))
    signature = shown["vector-values"].rpartition("# ")[2]
    headers = {"X-Docora-Timestamp": found["TIMESTAMP"], "X-Docora-Signature": signature}
    verify = load("verify")
    monkeypatch.setattr(verify.time, "time", lambda: int(found["TIMESTAMP"]))
    assert verify.verify(headers, found["BODY"].encode(), found["DOCORA_KEY"])
    script = f"{shown['vector-values']}\n{shown['vector-command']}"
    output = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True).stdout
    assert signature == f"sha256={output.split()[-1]}"


def test_the_limits_are_those_of_this_instance(settings) -> None:
    settings.CHUNK_SIZE_BYTES, settings.MAX_RETRY_ATTEMPTS, settings.CIRCUIT_BREAKER_COOLDOWN_SECONDS = (
        7_654_321,
        77,
        90,
    )
    page = words("/docs/webhooks/")
    for told in ("pieces of 7,654,321 characters", "77 attempts in all", "left alone for 1 min 30 s"):
        assert told in page


# --- The handbook -------------------------------------------------------------------------------------------------------


def test_the_handbook_lists_every_setting_with_its_default_and_what_it_does() -> None:
    page = words("/docs/operations/")
    groups = [group for section in settings_reference.sections() for group in section.groups]
    documented = dict(re.findall(r"(?m)^# ([A-Z_]+)=(.*)$", (PROJECT / ".env.example").read_text()))
    assert {name: default for group in groups for name, default in group.settings.items()} == documented
    for group in groups:
        assert group.words, group.settings
        for name, default in group.settings.items():
            assert f"{name} {default or 'empty'}" in page


def test_a_comment_explains_the_settings_below_it_up_to_the_next_comment() -> None:
    text = "# Of the file.\n# AA=0\n\n# --- One ---\n# Words\n# and more.\n# AA=1\n# B_B=\n# Other.\n# CC=c=d\n# --- Two -\n# DD=\n"
    one, two = settings_reference.parse(text)
    assert [(group.words, group.settings) for group in one.groups] == [
        ("Words and more.", {"AA": "1", "B_B": ""}),
        ("Other.", {"CC": "c=d"}),
    ]
    assert (two.title, two.groups[0].words) == ("Two", "")


def test_the_handbook_is_there_without_the_file_of_settings(settings, tmp_path: Path) -> None:
    settings.BASE_DIR = tmp_path
    assert "was not deployed with this instance" in words("/docs/operations/")


def test_the_handbook_says_what_to_do_about_every_state_and_cause() -> None:
    page, ids = words("/docs/operations/"), read("/docs/operations/").ids
    for kind, values in (("status", Status), ("cause", RootCause)):
        for value in values:
            assert f"{kind}-{value.value}" in ids
            assert value.label in page
    assert [outcome for outcome in Outcome if outcome.label not in page] == []


def test_the_handbook_names_no_command_probe_or_log_line_that_does_not_exist() -> None:
    page = Client().get("/docs/operations/").text
    commands = re.findall(r"<dt><code>(\w+)", page.partition('id="commands"')[2].partition("<h2")[0])
    assert len(commands) > 4
    assert set(commands) <= set(get_commands())
    probes = re.findall(r"<dt><code>(/[\w/]+)", page)
    assert len(probes) == 3
    for probe in probes:
        resolve(probe)
    with pytest.raises(Resolver404):
        resolve("/no-such-probe")

    logged = {
        node.args[0].value
        for package in ("docora", "repositories_app", "deliveries_app")
        for file in (PROJECT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and getattr(node.func.value, "id", "") == "logger"
        and isinstance(node.args[0], ast.Constant)
    }
    listed = re.findall(r"<code>([a-z]+_[a-z_]*[a-z])</code>", page.partition('id="logs"')[2])
    assert len(listed) > 8
    assert set(listed) - {"run_id", "operation_id", "sync_failed"} <= logged


def test_the_handbook_lists_every_metric_and_no_other(db, tmp_path: Path, settings) -> None:
    settings.REPOS_DIR = tmp_path
    cache.look_after()  # until a worker has, nothing is told of mirrors
    told = set(re.findall("(?m)^# HELP (\\w+) ", Client().get("/metrics").text)) | {"docora_sweep_age_seconds"}
    section = Client().get("/docs/operations/").text.partition('id="metrics"')[2].partition("<h2")[0]
    assert set(re.findall("<code>(docora_\\w+)</code>", section)) == told
    used = set(re.findall(r"docora_\w+", read("/docs/operations/").code["alert-rules"]))
    assert {name.removesuffix("_count") for name in used} <= told
