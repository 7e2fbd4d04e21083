"""Git errors: each gets the right cause and a clear message with a remedy, and none contains the token."""

import base64
import signal
import time
from urllib.parse import quote

import pytest

from docora.http.client import Cause as HttpCause
from docora.security.redaction import redact
from repositories_app.git import errors as git_errors
from repositories_app.git.errors import classify, explain, rate_limited, scrub, unreachable
from repositories_app.git.exceptions import Cause, GitError

URL = "https://github.com/acme/widgets/"
TOKEN = "ghp_NeverSeen+/=!42"
BASIC = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
ALONE, HEX = base64.b64encode(TOKEN.encode()).decode(), TOKEN.encode().hex()


def http(status: int) -> str:
    return f"fatal: unable to access '{URL}': The requested URL returned error: {status}"


@pytest.mark.parametrize(
    ("stderr", "cause", "for_every_watcher", "permanent", "text"),
    [
        (f"fatal: Authentication failed for '{URL}'", Cause.AUTH, False, True, "The git host rejected the token: it is invalid"),
        ("fatal: could not read Username for 'https://x': terminal prompts disabled", Cause.AUTH, False, True, "rejected"),
        (http(403), Cause.AUTH, False, True, "it isn't allowed to read this repository"),
        (f"remote: Repository not found.\nfatal: repository '{URL}' not found", Cause.NOT_FOUND, False, True, "Check the URL"),
        (http(410), Cause.NOT_FOUND, False, True, "check that the token can read the repository"),
        ("fatal: couldn't find remote ref HEAD", Cause.NOT_FOUND, False, True, "check that the token can read the repository"),
        (http(301), Cause.NOT_FOUND, True, True, "renamed or moved"),
        (http(308), Cause.NOT_FOUND, True, True, "renamed or moved"),
        (http(429), Cause.NETWORK, False, False, "rate limit for this token is exceeded"),
        (http(500), Cause.NETWORK, True, False, "error: 500"),
        (http(503), Cause.NETWORK, True, False, "Docora retries automatically."),
        ("fatal: unable to access 'x': Could not resolve host: git.example", Cause.NETWORK, True, False, "resolve"),
        ("fatal: unable to access 'x': SSL certificate problem: expired", Cause.NETWORK, True, False, "certificate"),
        ("fatal: unable to access 'x': Failed to connect to h port 443", Cause.NETWORK, True, False, "Check the URL and this server's network."),
        ("fatal: unable to access 'x': Operation too slow", Cause.TIMEOUT, True, False, "The git host timed out"),
        ("fatal: unable to access 'x': Connection timed out", Cause.TIMEOUT, True, False, "The git host timed out"),
        ("error: RPC failed; HTTP 503 curl 22\nfatal: expected flush after ref listing", Cause.NETWORK, True, False, "503"),
        ("fatal: early EOF\nfatal: fetch-pack: invalid index-pack output", Cause.NETWORK, True, False, "early EOF"),
        ("fatal: Server does not support shallow clients\nfatal: the remote end hung up unexpectedly", Cause.OTHER, True, True, "--depth=1 fails"),
        ("fatal: dumb http transport does not support shallow capabilities", Cause.OTHER, True, True, "--depth=1 fails"),
        ("fatal: write error: File too large", Cause.TOO_LARGE, True, True, "larger than MAX_FETCH_BYTES (5.4 GB)"),
        ("fatal: write error: No space left on device", Cause.TOO_LARGE, False, False, "Free up space in REPOS_DIR"),
        ("fatal: attempting to allocate 9 over limit 1", Cause.TOO_LARGE, True, True, "The repository is too large: "),
        ("fatal: Out of memory, realloc failed", Cause.TOO_LARGE, True, True, "The repository is too large: "),
        ("fatal: bad object 1234", Cause.CORRUPT, False, False, "will be rebuilt"),
        ("fatal: pack has 1 unresolved delta\nfatal: fetch-pack: invalid index-pack output", Cause.CORRUPT, False, False, "will be rebuilt"),
        ("fatal: remote error: upload-pack: not our ref 1234", Cause.OTHER, True, False, "not our ref"),
        ("fatal: something new", Cause.OTHER, True, False, "something new"),
        ("", Cause.OTHER, True, False, "no error message"),
    ],
)  # fmt: skip
def test_git_messages_map_to_causes(stderr, cause, for_every_watcher, permanent, text) -> None:
    error = classify(stderr.encode(), token=TOKEN)
    assert (error.cause, error.for_every_watcher, error.permanent) == (cause, for_every_watcher, permanent), str(error)
    assert text in str(error)
    assert str(error).endswith(".")


def test_killed_git_names_the_signal() -> None:
    assert "killed by signal 9" in str(classify(b"", ended=-9))
    assert "killed by signal 9" in str(classify(b"", ended=137))
    after_a_warning = classify(b"warning: unusual object", ended=-9, local=True)
    assert after_a_warning.cause is Cause.OTHER, "the mirror is not damaged"


def test_git_beyond_its_processor_time() -> None:
    error = classify(b"", ended=-signal.SIGXCPU, local=True)
    assert (error.cause, error.permanent) == (Cause.TOO_LARGE, False)
    assert "too much processor time" in str(error)


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        ("remote: fatal: loose object is corrupt\n" + http(503), Cause.NETWORK),
        ("remote: Authentication failed\n" + http(503), Cause.NETWORK),
        ("fatal: remote error: packfile x is corrupt, bad object, timed out, error: 401", Cause.OTHER),
        ("fatal: unable to access 'https://h/acme/corrupt-timeout/': The requested URL returned error: 503", Cause.NETWORK),
        ("fatal: unable to access 'https://h/redirect/error: 429/': Failed to connect", Cause.NETWORK),
        ("remote: error: 429\n" + http(404), Cause.NOT_FOUND),
    ],
)  # fmt: skip
def test_text_from_the_host_does_not_decide_the_cause(stderr: str, cause: Cause) -> None:
    assert classify(stderr.encode()).cause is cause


def test_host_message_is_cleaned_and_shortened() -> None:
    said = b"remote: \x1b[31mClosed for\x00 repairs " + b"x" * 5000 + b"\n" + http(503).encode()
    message = str(classify(said))
    assert "(host message: \ufffd[31mClosed for\ufffd repairs" in message
    assert len(message) < 700
    assert message.isprintable()


ECHOES = [
    TOKEN, BASIC, quote(TOKEN, safe=""), TOKEN.upper(), f"Authorization: Basic {BASIC}", f"https://user:{TOKEN}@h/x",
    f"https://x-access-token:{TOKEN}@github.com/acme", "https://other:secret@h/x", f'{{"token": "{TOKEN}"}}',
    ALONE, HEX, f'<input value="{ALONE}">', quote(TOKEN), TOKEN.replace("/", r"\/"), TOKEN.replace("+", r"\u002B"),
    TOKEN.replace("=", "&#x3D;"), quote(TOKEN, safe="").lower(), quote(BASIC),
]  # fmt: skip
SECRETS = [TOKEN, BASIC, quote(TOKEN, safe=""), TOKEN.upper(), "NeverSeen", BASIC[:40], ALONE, HEX, "other:secret"]


@pytest.mark.parametrize("echo", ECHOES, ids=range(len(ECHOES)))
def test_token_repeated_by_the_host_is_removed(echo: str) -> None:
    long = "x" * 285  # so that the message is cut in the middle of the token
    errors = [
        classify(f"{prefix}{padding}{echo} end\n{rest}".encode(), token=TOKEN)
        for prefix in ("remote: ", "fatal: ", "fatal: remote error: ", "error: ", "fatal: unable to access ", "")
        for padding in ("", long)
        for rest in ("", http(503), http(401))
    ]
    errors += [explain(cause, padding + echo, token=TOKEN) for cause in Cause for padding in ("", long)]
    errors += [unreachable(cause, padding + echo, token=TOKEN) for cause in HttpCause for padding in ("", long)]
    for error in errors:
        assert not [secret for secret in SECRETS if secret in str(error)]


@pytest.mark.parametrize(
    ("url", "token", "user", "password"),
    [
        ("https://github.com/acme/docs", "ghp_1", "x-access-token", "ghp_1"),
        ("https://gitlab.com/acme/sub/docs", "glpat-1", "oauth2", "glpat-1"),
        ("https://bitbucket.org/acme/docs", "ATCTT1", "x-token-auth", "ATCTT1"),
        ("https://dev.azure.com/acme/p/_git/docs", "pat", "x-access-token", "pat"),
        ("https://git.example:8443/acme/docs", "pat", "x-access-token", "pat"),
        (
            "https://bitbucket.org/acme/docs",
            "x-bitbucket-api-token-auth:ATATT1",
            "x-bitbucket-api-token-auth",
            "ATATT1",
        ),
        ("https://gitlab.com/acme/docs", "gitlab+deploy-token-7:gldt-1", "gitlab+deploy-token-7", "gldt-1"),
        ("https://git.example/acme/docs", "anna:pass:word", "anna", "pass:word"),
        ("https://git.example/acme/docs", ":pat", "", "pat"),
    ],
)
def test_user_name_for_the_hosts_tokens(url: str, token: str, user: str, password: str) -> None:
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert git_errors.basic_authorization(url, token) == f"Authorization: Basic {basic}"
    assert scrub(f"a {basic} b {password} c", token) == "a … b … c"


@pytest.mark.parametrize("user", ["oauth2", "x-token-auth", "x-access-token"])
def test_encoded_credentials_are_masked_by_pattern(user: str) -> None:
    for token in ("a", "secret-1", "~~~?", "ATCTT3xFfGN0"):
        assert redact(f"said {base64.b64encode(f'{user}:{token}'.encode()).decode()}") == "said [redacted]"


def test_scrubbing_changes_nothing_else() -> None:
    assert scrub(f"a {TOKEN} b https://u:p@h/x?y@z", TOKEN) == "a … b https://h/x?y@z"
    assert scrub("https://h/a@b user@example.org", "") == "https://h/a@b user@example.org"


@pytest.mark.parametrize("text", ["n" * 100_000, "n" * 100_000 + "://h/", "https://" + "n" * 100_000, "://" * 30_000])
def test_long_text_is_read_once(text: str) -> None:
    started = time.process_time()  # a worker that is busy for half a minute would lose its lease
    assert TOKEN not in git_errors.quoted(f"{text}{TOKEN}", TOKEN)
    assert redact(text) == text
    assert time.process_time() - started < 2


@pytest.mark.parametrize(("asked", "cooldown"), [(None, 60.0), (0.0, 1.0), (7.0, 7.0), (3600.0, 3600.0), (1e9, 3600.0)])
def test_rate_limit_wait_is_bounded(asked, cooldown) -> None:
    assert rate_limited(asked, token=TOKEN).cooldown == cooldown


def test_rate_limit_applies_to_the_host_or_the_token() -> None:
    assert rate_limited(None, token="").for_every_watcher
    assert "Adding a token usually raises the limit." in str(rate_limited(None, token=""))
    assert "Adding a token" not in str(rate_limited(None, token=TOKEN))
    assert not rate_limited(None, token=TOKEN).for_every_watcher


def test_blocked_address_names_the_setting() -> None:
    error = unreachable(HttpCause.REFUSED_ADDRESS, "git.example leads to 10.0.0.1, a private address.")
    assert isinstance(error, GitError)
    assert error.cause is Cause.NETWORK
    assert str(error).endswith("An administrator can allow it with ALLOWED_PRIVATE_NETWORKS.")


def test_every_cause_has_its_own_message() -> None:
    said = {cause: str(explain(cause, "detail", token=token)) for cause in Cause for token in ("", "t")}
    assert len(set(said.values())) == len(Cause)
    assert git_errors.moved("").for_every_watcher
