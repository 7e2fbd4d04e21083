"""Validate a watch's patterns: the ignore patterns of administrators, and the app's include and exclude patterns."""

import unicodedata

from django.core.exceptions import ValidationError

from deliveries_app.planning.ignore_rules import compile_lines, describe_problems

MAX_CHARACTERS = 10_000
MAX_PATTERNS = 500


def validate_patterns(text: str) -> tuple[str, int]:
    """Return the text as stored and its number of patterns. Raises `ValidationError`."""
    text = text.replace("\r\n", "\n").rstrip("\n")
    if len(text) > MAX_CHARACTERS:
        raise ValidationError(
            f"The patterns have {len(text):,} characters. The limit is {MAX_CHARACTERS:,}.", code="too_long"
        )
    for number, line in enumerate(text.split("\n"), start=1):
        if any(unicodedata.category(character) in {"Cc", "Cs"} and character != "\t" for character in line):
            raise ValidationError(f"Line {number} contains a control character. Remove it.", code="control_character")
    patterns, problems = compile_lines(text.encode())
    if problems:
        raise ValidationError(f"{describe_problems(problems)} Fix or remove it.", code="pattern")
    if len(patterns) > MAX_PATTERNS:
        raise ValidationError(f"There are {len(patterns):,} patterns. The limit is {MAX_PATTERNS:,}.", code="too_many")
    return text, len(patterns)


def validate_list(name: str, text: str) -> str:
    """Return the `include`, `exclude` or `ignore` patterns as stored.

    Raises `ValidationError`, whose message and code name the list.
    """
    try:
        return validate_patterns(text)[0]
    except ValidationError as error:
        message = f"{name.capitalize()} patterns: {' '.join(error.messages)}"
        raise ValidationError(message, code=f"{name}_patterns") from None
