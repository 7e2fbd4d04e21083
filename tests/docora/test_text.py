"""Cleaning of untrusted text and formatting of numbers."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from django.utils.html import conditional_escape, strip_tags

from docora.templatetags.docora import ago, exact, file_path, upcoming
from docora.text import (
    can_be_id,
    clean_text,
    counted,
    format_bytes,
    format_seconds,
    format_time,
    new_id,
    parse_pk,
    parse_pks,
    visible,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than a second"),
        (0.5, "less than a second"),
        (0.6, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (120, "2 min"),
        (7500, "2 h 5 min"),
        (172_800, "2 d"),
        (90 * 86400 + 10_900, "90 d 3 h"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_times_in_the_hour_that_the_end_of_summer_time_repeats() -> None:
    with timezone.override("America/New_York"):
        times = [exact(datetime(2026, 11, 1, hour, 30, tzinfo=UTC)) for hour in (5, 6)]
    assert times == ["2026-11-01 01:30:00 EDT", "2026-11-01 01:30:00 EST"]


@pytest.mark.parametrize(
    ("seconds", "past", "future"),
    [
        (-3600, "1 h ago", "in a few seconds"),
        (-12, "12 s ago", "in a few seconds"),
        (-5, "just now", "in a few seconds"),
        (5, "just now", "in a few seconds"),
        (12.5, None, "in 12 s"),
        (3605, None, "in 1 h"),
    ],
)
def test_time_of_an_event_and_of_a_next_try(seconds: float, past: str | None, future: str) -> None:
    """An event isn't in the future, even if the clock was ahead: a re-sync was "requested in 59 min"."""
    moment = timezone.now() + timedelta(seconds=seconds)
    assert strip_tags(ago(moment)) == (past or format_time(moment))
    assert strip_tags(upcoming(moment)) == future


def test_time_elements_are_valid_html() -> None:
    """HTML allows at most three digits after the second."""
    assert 'datetime="2026-11-01T05:30:07.123+00:00"' in ago(datetime(2026, 11, 1, 5, 30, 7, 123456, tzinfo=UTC))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (9_600_000, "9.6 MB"),
        (61_200_000, "61 MB"),
        (9_960, "10 kB"),
        (999_700, "1.0 MB"),
        (999_700_000_000_000, "1.0 PB"),
        (2**63 - 1, "9.2 EB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_clean_text() -> None:
    cleaned = clean_text("a\0b\ud800c\r\nd" + "x" * 1000, limit=50)
    assert len(cleaned) == 50
    assert "\0" not in cleaned
    assert cleaned.encode()
    assert clean_text(b"\xff\xfe caf\xc3\xa9", 500) == "\ufffd\ufffd café"


def test_visible() -> None:
    assert visible("größe 😀 👩‍👩‍👧.txt\t\n") == "größe 😀 👩‍👩‍👧.txt\t\n"
    assert visible("\x1b[2J\x00\x7f\x9b\u202e\u2066\u200f\u2028\ud800\r") == (
        r"\x1b[2J\x00\x7f\x9b\u202e\u2066\u200f\u2028\ud800\r"
    )
    assert visible("\ufeffREAD\u200bME\u2060.\xadmd") == r"\ufeffREAD\u200bME\u2060.\xadmd"
    assert visible("می\u200cخواهم.md") == "می\u200cخواهم.md"


def test_new_id() -> None:
    assert len(new_id("repo")) == len("repo_") + 24
    assert len(new_id("bulk", 16)) == len("bulk_") + 16


def test_counted() -> None:
    assert [counted(n, "file", "files") for n in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
    assert [counted(n, "repository") for n in (1, 2)] == ["1 repository", "2 repositories"]
    assert [counted(2, noun) for noun in ("key", "re-sync", "audit log entry")] == [
        "2 keys",
        "2 re-syncs",
        "2 audit log entries",
    ]


def test_primary_keys_are_parsed_up_to_18_digits() -> None:
    assert [parse_pk(text) for text in ("7", "9" * 18, "9" * 19, "-1", "", "x", "1 ")] == [7, 10**18 - 1, *[None] * 5]
    assert parse_pks("3,x,,4") == [3, 4]


def test_invalid_ids_are_not_looked_up() -> None:
    assert [can_be_id(text) for text in ("app_1", "a\0", "\ud800")] == [True, False, False]


@pytest.mark.parametrize(
    ("path", "html"),
    [
        ("docs/a<b.md", "docs/a&lt;b.md"),
        ("docs/é.md", "docs/é.md"),
        ("docs/דף/a&b.md", "<bdi>docs</bdi>/<bdi>דף</bdi>/<bdi>a&amp;b.md</bdi>"),
        ("فصل/مقدمة.md", "<bdi>فصل</bdi>/<bdi>مقدمة.md</bdi>"),
        ("a\u202eb/ע", "<bdi>a\\u202eb</bdi>/<bdi>ע</bdi>"),
        ("a\nb/c\td.md", "a\\nb/c\\td.md"),  # a browser shows both as a space, as in another file's name
    ],
)
def test_folders_of_a_path_stay_in_order(path: str, html: str) -> None:
    """A browser showed `docs/דף/שלום` with the last two names swapped."""
    assert conditional_escape(file_path(path)) == html
