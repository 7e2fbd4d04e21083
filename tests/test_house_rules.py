"""The architecture rules, checked against the source. A failure names the file and the line."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from django.conf import settings as django_settings

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("docora", "repositories_app", "deliveries_app")

LEVELS = (
    ("receiver",),
    ("models", "permissions"),
    ("progress", "planning", "webhooks", "scheduling", "actors", "audit"),
    ("sync",),
    ("services",),
    ("monitoring", "importing", "demo"),
    ("sweep", "reports"),
    ("admin", "audited_admin", "site", "api", "management", "jobs"),
    ("urls", "docs"),
    ("apps",),
)
"""The packages and modules of deliveries_app, lowest first. A module imports from its own level or from a lower one."""


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (PROJECT / folder).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Return all nodes of a module. Walking a tree takes longer than parsing it."""
    return list(ast.walk(tree_of(path)))


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(PROJECT)}:{line}"


@cache
def imports_of(path: Path) -> list[tuple[str, int]]:
    """Return all imports of a module, at any level, as absolute dotted names with their lines.

    `from a import b` counts as `a` and as `a.b`, since b may be a module.
    """
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found: list[tuple[str, int]] = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found += [(base, node.lineno), *((f"{base}.{alias.name}", node.lineno) for alias in node.names)]
    return found


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_into(files: list[Path], *forbidden: str) -> list[str]:
    """Describe the imports of `forbidden` packages in these files."""
    return sorted(
        {
            f"{where(path, line)} imports {name}"
            for path in files
            for name, line in imports_of(path)
            if is_within(name, *forbidden)
        }
    )


# --- Imports point down -------------------------------------------------------------------------------------------------


@cache
def modules() -> dict[str, Path]:
    """Return dotted name → path of every module of the three packages, except migrations."""
    return {module_name(path): path for path in python_files(*PACKAGES) if "migrations" not in path.parts}


@cache
def import_graph() -> dict[str, dict[str, int]]:
    """Return module → imported module of the project → line. Importing a name counts as importing its module."""
    known = modules()
    graph: dict[str, dict[str, int]] = {}
    for module, path in known.items():
        names = imports_of(path)
        found = {name: line for name, line in names if name in known and name != module}
        submodules = {name.rpartition(".")[0] for name in found}
        graph[module] = {
            name: line for name, line in found.items() if name not in submodules or _imports_names(path, name)
        }
    return graph


def _imports_names(path: Path, package: str) -> bool:
    """Return whether the module imports names that `package/__init__.py` itself defines, not only submodules."""
    known = modules()
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == package
        and any(f"{package}.{alias.name}" not in known for alias in node.names)
        for node in nodes_of(path)
    )


def level_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "receiver"
    levels = [level for level, names in enumerate(LEVELS) if part in names]
    assert levels, f"{module} has no level: add {part!r} to LEVELS here and to the table in CONTRIBUTING.md"
    return levels[0]


def test_docora_imports_no_app() -> None:
    project = {PROJECT / "docora" / f"{name}.py" for name in ("settings", "urls", "wsgi")}
    library = [path for path in python_files("docora") if path not in project]
    assert imports_into(library, "repositories_app", "deliveries_app") == []


def test_repositories_app_does_not_import_deliveries_app() -> None:
    assert imports_into(python_files("repositories_app"), "deliveries_app") == []


def test_imports_inside_deliveries_app_point_down() -> None:
    assert [
        f"{where(modules()[module], line)} imports {imported}"
        for module, found in import_graph().items()
        for imported, line in found.items()
        if is_within(module, "deliveries_app")
        and is_within(imported, "deliveries_app")
        and level_of(imported) > level_of(module)
    ] == []


def test_contributing_has_the_same_levels() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \| (.*?) \|", (PROJECT / "CONTRIBUTING.md").read_text())
    named = {int(level): sorted(re.findall(r"`(\w+)(?:\.py|/)`", names)) for level, names in rows}
    without_apps = LEVELS[:-1]  # Django looks for apps.py
    assert named == {level: sorted(names) for level, names in enumerate(without_apps, 1)}


def test_contributing_names_only_what_exists() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text()
    folders = [PROJECT / name for name in (*PACKAGES, "templates", "static", "tests")]
    paths = [*folders, *(path for folder in folders for path in folder.rglob("*"))]
    places = [f"/{path.relative_to(PROJECT).as_posix()}" for path in paths]
    files = re.findall(r"`(\w[\w./-]*(?:\.py|\.html|/))`", text)
    assert [name for name in files if not any(place.endswith(f"/{name.rstrip('/')}") for place in places)] == []
    words = {word for path in python_files(*PACKAGES, "tests") for word in re.findall(r"\w+", path.read_text())}
    assert [name for name in re.findall(r"`(\w+)`", text) if name not in words] == []


def test_no_import_cycles() -> None:
    sorter = TopologicalSorter({module: set(found) for module, found in import_graph().items()})
    sorter.prepare()  # raises CycleError, which names the modules


def test_every_package_says_what_is_in_it() -> None:
    required_by_django = {"migrations", "commands", "en"}  # the package above says it
    packages = [path for path in python_files(*PACKAGES) if path.name == "__init__.py"]
    described = [path for path in packages if path.parent.name not in required_by_django]
    assert [where(path, 1) for path in described if not ast.get_docstring(tree_of(path))] == []


def test_settings_are_reached_through_django_only() -> None:
    assert imports_into(python_files(*PACKAGES), "docora.settings") == []


@pytest.mark.parametrize("name", ["deliveries_app.webhooks.payloads", "deliveries_app.webhooks.signing"])
def test_wire_contract_does_not_import_django(name: str) -> None:
    everything = {module_name(path): path for path in python_files(*PACKAGES)}
    reached: set[str] = set()
    queue = [module for module in everything if is_within(module, name)]
    assert queue, f"{name} is gone"
    while queue:
        module = queue.pop()
        if module not in reached:
            reached.add(module)
            queue += [imported for imported, _ in imports_of(everything[module]) if imported in everything]
    assert imports_into([everything[module] for module in sorted(reached)], "django") == []


# --- Network and git are each used in one place -------------------------------------------------------------------------


def test_curl_is_used_by_docora_http_only() -> None:
    others = [path for path in python_files(*PACKAGES) if not path.is_relative_to(PROJECT / "docora" / "http")]
    assert imports_into(others, "pycurl") == []


def test_no_second_http_client() -> None:
    clients = ("requests", "httpx", "aiohttp", "urllib3", "urllib.request", "http.client")
    adapter = PROJECT / "docora" / "sign_in" / "provider_http.py"  # sends what `requests` has built through docora.http
    outside = [path for path in python_files(*PACKAGES) if not path.is_relative_to(PROJECT / "deliveries_app" / "demo")]
    assert imports_into([path for path in outside if path != adapter], *clients) == []


def git_commands(path: Path) -> Iterator[int]:
    """Yield the lines of argument lists that begin with `git`."""
    for node in nodes_of(path):
        if isinstance(node, ast.List | ast.Tuple) and node.elts:
            first = node.elts[0]
            if isinstance(first, ast.Constant) and first.value == "git":
                yield node.lineno


def may_run_git(path: Path) -> bool:
    name = path.relative_to(PROJECT).as_posix()
    folders = ("repositories_app/git/", "repositories_app/mirror/", "deliveries_app/demo/")
    return name.startswith(folders) or name == "repositories_app/checks.py"  # only asks git for its version


def test_git_is_run_by_the_git_modules_only() -> None:
    others = [path for path in python_files(*PACKAGES) if not may_run_git(path)]
    assert [where(path, line) for path in others for line in git_commands(path)] == []


# --- Templates obey the content security policy -------------------------------------------------------------------------


class InlineCode(HTMLParser):
    """Collects what the policy would block: scripts and styles in the page, and code in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        line = self.getpos()[0]
        if tag == "script" and "src" not in names:
            self.found.append((line, "a script without src"))
        if tag == "style":
            self.found.append((line, "a style element"))
        for name, value in attrs:
            if name == "style" or name.startswith(("on", "hx-on")):
                self.found.append((line, f"the attribute {name}"))
            if (value or "").strip().lower().startswith(("javascript:", "js:")):
                self.found.append((line, f"code in the attribute {name}"))


def inline_code(template: str) -> list[tuple[int, str]]:
    """Return the inline code of a template with its lines. Django's tags are blanked out first, keeping line breaks."""
    html = re.sub(
        r"{%\s*comment\b.*?{%\s*endcomment\s*%}|{%.*?%}|{{.*?}}|{#.*?#}",
        lambda match: " " + "\n" * match[0].count("\n"),
        template,
        flags=re.DOTALL,
    )
    parser = InlineCode()
    parser.feed(html)
    parser.close()
    return parser.found


def test_no_template_holds_inline_scripts_or_styles() -> None:
    templates = sorted(path for folder in ("templates", *PACKAGES) for path in (PROJECT / folder).rglob("*.html"))
    assert [f"{where(path, line)}: {what}" for path in templates for line, what in inline_code(path.read_text())] == []


def test_inline_code_search_finds_every_kind() -> None:
    template = """{% if a > b %}
        <p {% if c %}style="color: red"{% endif %} onclick='x()'>
        <script>1</script><script src="{% static 'a.js' %}"></script>
        <style>p {}</style><a href="javascript:x()" hx-on:click="y()">{# <style> #}</a>"""
    assert inline_code(template) == [
        (2, "the attribute style"),
        (2, "the attribute onclick"),
        (3, "a script without src"),
        (4, "a style element"),
        (4, "code in the attribute href"),
        (4, "the attribute hx-on:click"),
    ]


# --- Settings are documented --------------------------------------------------------------------------------------------

SETTINGS = PROJECT / "docora" / "settings.py"


def reads() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield (function of `docora.conf.env`, variable, call) for every variable that settings.py reads."""
    functions = {name.rpartition(".")[2] for name, _ in imports_of(SETTINGS) if is_within(name, "docora.conf.env")}
    for node in nodes_of(SETTINGS):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            yield node.func.id, ast.literal_eval(node.args[0]), node


def settings_read() -> dict[str, str | None]:
    """Return every variable that settings.py reads with its default as written in .env, or None if it is computed."""
    read: dict[str, str | None] = {}
    for function, name, node in reads():
        given = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "default")]
        if not given:
            read[name] = "no" if function == "flag" else ""
        elif isinstance(given[0], ast.Constant):
            value = given[0].value
            read[name] = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        else:
            read[name] = None
    return read


def settings_documented() -> dict[str, str]:
    return dict(re.findall(r"(?m)^# ([A-Z_]+)=(.*)$", (PROJECT / ".env.example").read_text()))


def test_env_example_lists_every_setting() -> None:
    documented, read = set(settings_documented()), set(settings_read())
    assert (read - documented, documented - read) == (set(), set()), "(not in .env.example, not in settings.py)"


def test_env_example_states_the_real_defaults() -> None:
    documented = settings_documented()
    stated = {name: documented.get(name) for name, default in settings_read().items() if default is not None}
    real = {name: default for name, default in settings_read().items() if default is not None}
    assert stated == real, "the left side is .env.example, the right side settings.py"


def test_durations_have_their_unit_in_their_names() -> None:
    assert [name for function, name, _ in reads() if function == "seconds" and not name.endswith("_SECONDS")] == []


def test_settings_list_every_job() -> None:
    """A worker refuses a job whose function is not in `settings.JOBS`."""
    module = tree_of(PROJECT / "deliveries_app" / "jobs.py")
    functions = {node.name for node in module.body if isinstance(node, ast.FunctionDef) if node.name[0] != "_"}
    assert {f"deliveries_app.jobs.{name}" for name in functions} == set(django_settings.JOBS)


# --- The folder ---------------------------------------------------------------------------------------------------------


def test_top_level_files() -> None:
    local = {"var", "staticfiles", "dist", "__pycache__"}  # created at run time; ignored by git
    names = {path.name for path in PROJECT.iterdir() if not path.name.startswith(".")} - local
    assert names == {
        *PACKAGES,
        "manage.py",
        "pyproject.toml",
        "templates",
        "static",
        "tests",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "Makefile",
        "Dockerfile",
        "compose.yaml",
        "requirements.txt",
        "requirements-dev.txt",
    }


LOCKS = [PROJECT / "requirements.txt", PROJECT / "requirements-dev.txt", PROJECT / ".ci" / "uv.txt"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_files_name_no_host(lock: Path) -> None:
    text = lock.read_text()
    assert re.findall(r"\S*://\S*", text) == []
    assert re.findall(r"(?m)^\s*--(?!hash=)\S*", text) == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_a_version_and_a_hash(lock: Path) -> None:
    lines = lock.read_text().splitlines()
    packages = [(line, following) for line, following in pairwise([*lines, ""]) if not line.startswith(" ")]
    assert packages
    assert [line for line, following in packages if "==" not in line or "--hash=sha256:" not in following] == []


def test_development_lock_file_includes_the_shipped_one() -> None:
    """The tests run with the package versions that an installation gets."""
    shipped, all_packages = (
        dict(re.findall(r"(?m)^([\w.-]+)==(.*(?:\n .*)*)", (PROJECT / name).read_text()))
        for name in ("requirements.txt", "requirements-dev.txt")
    )
    assert shipped.items() <= all_packages.items()
    assert len(shipped) > 20


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    shipped = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["import"]]
    for lock, wanted in (
        ("requirements.txt", shipped),
        ("requirements-dev.txt", shipped + project["dependency-groups"]["dev"]),
    ):
        locked = set(re.findall(r"(?m)^([\w.-]+)==", (PROJECT / lock).read_text()))
        missing = {re.split(r"[\[<>=;~! ]", name)[0].lower() for name in wanted} - locked
        assert missing == set(), f"run `make lock`: {lock} lacks {missing}"


def test_git_hooks_fetch_nothing() -> None:
    assert "://" not in (PROJECT / ".pre-commit-config.yaml").read_text()
