"""The content of the demo's repositories: path → content, always the same.

A first sync covers every case of the contract: UTF-8, Latin-1, UTF-16, a byte order mark, CRLF, an empty file, and text
and binary files above one mebibyte (which are sent in chunks).
"""

import random

Files = dict[str, bytes]

_MEBIBYTE = 1024 * 1024
# fmt: off
_VOCABULARY = (
    "customer", "team", "release", "review", "deploy", "incident", "ticket", "queue", "index", "archive", "draft",
    "design", "budget", "travel", "office", "pager", "branch", "merge", "feature", "metric", "report", "schedule",
    "vendor", "contract", "support", "training", "backup", "restore", "access", "request", "policy",
)
# fmt: on
_CHAPTERS = ("welcome", "engineering", "support", "people", "security", "finance")
_TOPICS = ("overview", "principles", "first-week", "tools", "meetings", "reviews", "on-call", "glossary", "contacts")


def handbook() -> Files:
    """Return about sixty texts in several languages and encodings."""
    rng = _seeded("handbook")
    files = {
        f"{chapter}/{number:02}-{topic}.md": _page(rng, f"{chapter}: {topic}", paragraphs=4)
        for chapter in _CHAPTERS
        for number, topic in enumerate(_TOPICS, 1)
    }
    return files | {
        "README.md": _page(rng, "The Acme handbook", paragraphs=2),
        "translations/français.md": "# Bienvenue\n\nÀ bientôt au café, où l'été dure toute l'année.\n".encode(),
        "translations/日本語.md": "# ようこそ\n\nアクメへようこそ。困ったときは隣の人に聞いてください。\n".encode(),
        "translations/emoji.md": "# Signs we use\n\n🚀 released · 🔥 incident · 🧪 experiment\n".encode(),
        "translations/gruss-latin1.txt": "Schöne Grüße aus Zürich, für 5 £ das Stück\n".encode("latin-1"),
        "translations/windows.txt": "\ufeffSaved by a very old editor.\r\nWith a mark at the start.\r\n".encode(),
        "translations/utf16.txt": "Sixteen bits for every letter\n".encode("utf-16"),
        "empty.txt": b"",
    }


def assets() -> Files:
    """Return icons, and one text and one binary file that are too large for a single request."""
    rng = _seeded("assets")
    files = {f"icons/icon-{number:02}.svg": _icon(number * 20) for number in range(18)}
    rows = (
        f"{number},{rng.choice(_VOCABULARY)}-{rng.choice(_VOCABULARY)},{rng.randrange(10_000)}\n"
        for number in range(70_000)
    )
    files["data/catalogue.csv"] = ("id,name,price\n" + "".join(rows)).encode()
    files["data/recording.bin"] = rng.randbytes(_MEBIBYTE + 300_000)
    return files


def legacy() -> Files:
    """Return the forty or so files of an old program."""
    rng = _seeded("legacy")
    files = {
        f"src/{module}/{name}.c": _source(rng, f"{module}_{name}")
        for module in ("billing", "stock", "print")
        for name in rng.sample(_VOCABULARY, 11)
    }
    return files | {
        "Makefile": b"all:\n\tcc -o legacy src/*/*.c\n",
        "README.TXT": b"LEGACY 3.1\r\n\r\nDo not touch. It works.\r\n",
        "CHANGES": _page(rng, "Changes", paragraphs=3),
        "COPYING": _page(rng, "All rights reserved", paragraphs=2),
        "doc/manual.txt": _page(rng, "Manual", paragraphs=20),
    }


def website() -> Files:
    """Return about four hundred small pages, enough to watch a progress bar."""
    rng = _seeded("website")
    files = {"index.html": _html(rng, "Acme"), "style.css": b"body { font: 1rem/1.5 sans-serif; max-width: 40rem; }\n"}
    for number in range(400):
        slug = f"{rng.choice(_VOCABULARY)}-{rng.choice(_VOCABULARY)}-{number:03}"
        files[f"posts/{2015 + number // 40}/{slug}.html"] = _html(rng, slug.replace("-", " "))
    return files


def _seeded(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - reproducible on purpose


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(_VOCABULARY, k=rng.randint(6, 14))).capitalize() + "."


def _page(rng: random.Random, title: str, *, paragraphs: int) -> bytes:
    text = [" ".join(_sentence(rng) for _ in range(4)) for _ in range(paragraphs)]
    return "\n\n".join([f"# {title.capitalize()}", *text, ""]).encode()


def _html(rng: random.Random, title: str) -> bytes:
    text = "".join(f"<p>{_sentence(rng)}</p>\n" for _ in range(6))
    return f"<!doctype html>\n<title>{title}</title>\n<h1>{title}</h1>\n{text}".encode()


def _source(rng: random.Random, name: str) -> bytes:
    lines = [f"    total += {rng.randrange(1000)}; /* {_sentence(rng)} */" for _ in range(12)]
    return "\n".join([f"long {name}(void)", "{", "    long total = 0;", *lines, "    return total;", "}", ""]).encode()


def _icon(hue: int) -> bytes:
    color = f"hsl({hue} 60% 45%)"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="3" fill="{color}"/></svg>\n'.encode()
