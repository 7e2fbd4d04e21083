"""Text from strangers, and numbers for people."""

import pytest

from docora.text import clean_text, counted, format_bytes, format_seconds, new_id


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "less than a second"), (0.6, "1 s"), (59.4, "59 s"), (200, "3 min 20 s"), (120, "2 min"), (7500, "2 h 5 min")],
)
def test_durations_are_told_in_the_two_largest_units(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (9_600_000, "9.6 MB"), (61_200_000, "61 MB"), (9_960, "10 kB")],
)
def test_sizes_are_in_si_units_with_one_decimal_below_ten(count: int, words: str) -> None:
    assert format_bytes(count) == words


def test_foreign_text_is_bounded_and_can_be_stored_anywhere() -> None:
    cleaned = clean_text("a\0b\ud800c\r\nd" + "x" * 1000, limit=50)
    assert len(cleaned) == 50
    assert "\0" not in cleaned
    assert cleaned.encode()
    assert clean_text(b"\xff\xfe caf\xc3\xa9") == "\ufffd\ufffd café"


def test_ids_have_the_forms_of_the_contract() -> None:
    assert len(new_id("repo")) == len("repo_") + 24
    assert len(new_id("bulk", 16)) == len("bulk_") + 16


def test_one_thing_and_many_are_counted_as_such() -> None:
    assert [counted(n, "file", "files") for n in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
