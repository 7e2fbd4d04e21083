"""All settings of Docora, by section. Values come from the environment or `.env` (`docora.conf.installation`).

Docora does not start with an invalid value: the error names the setting. Names include units.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.utils.csp import CSP

from docora.conf import data_dir, installation
from docora.conf.env import (
    count,
    database,
    date,
    flag,
    mailers,
    names,
    networks,
    pairs,
    redis_url,
    seconds,
    text,
    time_zone,
)
from docora.db.connection import PrivateSqlite, check_pooled, postgres_options
from docora.http.egress import check_proxy_url
from docora.http.messages import name_of, url_blocked_reason
from docora.security.redaction import unless_password

BASE_DIR = installation.FILES
installation.read_env_file()
# The module that extends these settings. `docora.conf.installation` has already used it.
DOCORA_SETTINGS = text("DOCORA_SETTINGS")

# --- Files -------------------------------------------------------------------------------------------------------------
DATA_DIR = Path(text("DATA_DIR", default=str(Path.cwd() / "var"))).absolute()
REPOS_DIR = Path(text("REPOS_DIR", default=str(DATA_DIR / "repos"))).absolute()
# No limit by default: only the operator knows how much disk space mirrors may use. If the limit is too small, every sync
# fetches everything again until the git host limits the rate.
REPOS_MAX_BYTES = count("REPOS_MAX_BYTES", 0, 0)

# --- Secrets: from the environment, or generated once into the data directory ------------------------------------------
SECRET_KEY = text("SECRET_KEY") or data_dir.generated_key(DATA_DIR, "secret_key")
ENCRYPTION_KEYS = names("ENCRYPTION_KEYS") or data_dir.generated_key(DATA_DIR, "encryption_keys").split(",")
if any(len(key) < 16 for key in ENCRYPTION_KEYS):
    raise ImproperlyConfigured("Each of the ENCRYPTION_KEYS must have at least 16 characters.")
if len(set(ENCRYPTION_KEYS)) < len(ENCRYPTION_KEYS):
    raise ImproperlyConfigured(
        "ENCRYPTION_KEYS has the same key twice. Put a new key in front of the old ones, or remove the duplicate."
    )

# --- Addresses; an https PUBLIC_URL turns on secure cookies, the redirect to https and HSTS ----------------------------
DEBUG = flag("DEBUG")
if data_dir.is_weak_secret_key(SECRET_KEY) and not DEBUG:
    raise ImproperlyConfigured(
        f"SECRET_KEY is short or repetitive, so sessions signed with it can be forged. Generate one: {data_dir.MAKE_KEY}"
    )
HOST = text("HOST", default="127.0.0.1")
PORT = count("PORT", 8000, maximum=65_535)
_loopback = "[::1]" if HOST in {"::1", "::"} else "127.0.0.1"
PUBLIC_URL = text("PUBLIC_URL", default=f"http://{_loopback}:{PORT}").rstrip("/")
try:
    _public = urlsplit(PUBLIC_URL)
    _is_address = bool(
        url_blocked_reason(PUBLIC_URL, allow_http=True) is None
        and PUBLIC_URL.endswith(f"//{_public.netloc}")  # there is no path and no query
        and _public.hostname
    )
except ValueError:  # a bracket is not closed
    _is_address = False
if not _is_address:
    raise ImproperlyConfigured(
        f"PUBLIC_URL must look like https://docora.example, but is {unless_password(PUBLIC_URL)}."
    )
HTTPS = _public.scheme == "https"
_LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
if not HTTPS and _public.hostname not in _LOOPBACK_NAMES:
    raise ImproperlyConfigured(
        f"PUBLIC_URL {PUBLIC_URL!r} must start with https://. Plain http is accepted for 127.0.0.1 and localhost only."
    )
_public_host = f"[{_public.hostname}]" if ":" in (_public.hostname or "") else _public.hostname
_allowed_hosts = names(
    "ALLOWED_HOSTS",
    pattern=r"[A-Za-z0-9._*-]+|\[[0-9A-Fa-f:.]+\]",
    what="host names such as docora.internal, without ports",
)
ALLOWED_HOSTS = list(dict.fromkeys([_public_host, *(_allowed_hosts or ["localhost", "127.0.0.1", "[::1]"])]))
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL] if HTTPS else []
TRUSTED_PROXIES = networks("TRUSTED_PROXIES")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31536000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
PROBES = ["health", "health/web", "health/ready", "version"]  # called over plain http with any Host header
SECURE_REDIRECT_EXEMPT = [f"^{path}$" for path in (*PROBES, "metrics")]
SECURE_CSP: dict[str, Any] = {
    "default-src": [CSP.NONE],
    "script-src": [CSP.SELF],
    "style-src": [CSP.SELF, CSP.NONCE],  # Django's change list without actions contains a <style> element
    "img-src": [CSP.SELF, "data:"],
    "font-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    "form-action": [CSP.SELF],
    "base-uri": [CSP.NONE],
    "frame-ancestors": [CSP.NONE],
}

# More than concurrent work needs, because a slow git host occupies a thread.
WEB_THREADS = 24
# Plus one for each of the two threads for probes that use the database (`docora.server.web.READINESS_THREADS`).
WEB_CONNECTIONS = WEB_THREADS + 2

# --- Database and Redis ------------------------------------------------------------------------------------------------
_database = database("DATABASE_URL", f"sqlite:///{quote(str(DATA_DIR / 'docora.sqlite3'))}")
DATABASES = {"default": _database}
_options = _database.setdefault("OPTIONS", {})
if _database["ENGINE"] == "django.db.backends.sqlite3":
    # IMMEDIATE, because a DEFERRED transaction that reads and then writes fails at once if another one is writing.
    _options |= {
        "factory": PrivateSqlite,
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
else:
    # Connections are kept. Health checks replace those that broke when the server restarted.
    _database.setdefault("CONN_HEALTH_CHECKS", True)
    if os.environ.get("DOCORA_PROCESS") == "web":
        # There is one connection per thread, so the pool's timeout only matters while the database is down. It is shorter
        # than that of typical probes. The pool doubles the delay between attempts to connect until `reconnect_timeout`;
        # then the next request starts anew.
        _options["pool"] = {
            "min_size": 1,
            "max_size": WEB_CONNECTIONS,
            "timeout": 4,
            "reconnect_timeout": 5,
            "check": check_pooled,
        }
        _database["CONN_MAX_AGE"] = 0  # with a pool, Django refuses any other, such as `conn_max_age` in DATABASE_URL
    else:
        _options.pop("pool", None)  # workers fork, and would not reuse its connections
        _database.setdefault("CONN_MAX_AGE", None)  # a new connection costs more than what the sweep does in a second
REDIS_URL = redis_url("REDIS_URL", data_dir.embedded_redis_url(DATA_DIR))

# --- Jobs --------------------------------------------------------------------------------------------------------------
RQ_QUEUES = {
    name: {"URL": REDIS_URL, "DEFAULT_TIMEOUT": -1, "SERIALIZER": "json"} for name in ("high", "default", "low")
}
RQ = {
    "COMMIT_MODE": "auto",
    "WORKER_CLASS": "docora.server.worker.DocoraWorker",
    "JOB_CLASS": "docora.redis.jobs.DocoraJob",
}
JOBS = [
    f"deliveries_app.jobs.{function}"
    for function in ("clean_up", "prune", "send_alerts", "sync_watch", "sync_watch_alone")
]
RQ_SHOW_ADMIN_LINK = False

# --- Sync engine -------------------------------------------------------------------------------------------------------
SWEEP_INTERVAL_SECONDS = seconds("SWEEP_INTERVAL_SECONDS", 5, 0.1)
RESCAN_INTERVAL_SECONDS = seconds("RESCAN_INTERVAL_SECONDS", 300, 0.1)
RESCAN_MIN_INTERVAL_SECONDS = seconds("RESCAN_MIN_INTERVAL_SECONDS", 30, 0.1)
MAX_RETRY_ATTEMPTS = count("MAX_RETRY_ATTEMPTS", 5, maximum=1_000_000)
RETRY_BASE_DELAY_SECONDS = seconds("RETRY_BASE_DELAY_SECONDS", 1)
CIRCUIT_BREAKER_THRESHOLD = count("CIRCUIT_BREAKER_THRESHOLD", 5)
CIRCUIT_BREAKER_COOLDOWN_SECONDS = seconds("CIRCUIT_BREAKER_COOLDOWN_SECONDS", 1800)
CHUNK_THRESHOLD_BYTES = count("CHUNK_THRESHOLD_BYTES", 1048576)
CHUNK_SIZE_BYTES = count("CHUNK_SIZE_BYTES", 524288)
MAX_IN_FLIGHT_LIMIT = 256  # each takes a connection, and a process can open a few hundred files
MAX_IN_FLIGHT = count("MAX_IN_FLIGHT", 8, maximum=MAX_IN_FLIGHT_LIMIT)
SYNCS_PER_WORKER = count("SYNCS_PER_WORKER", 16)
RECORD_BATCH = count("RECORD_BATCH", 100)
LEASE_SECONDS = seconds("LEASE_SECONDS", 30, 6, 86_400)  # PostgreSQL's timeouts are 32-bit milliseconds
MAX_FILE_BYTES = count("MAX_FILE_BYTES", 104857600)
FILE_TRANSFORMS = names("FILE_TRANSFORMS")
MAX_FILES = count("MAX_FILES", 1_000_000, 1)
MAX_FETCH_BYTES = count("MAX_FETCH_BYTES", 5368709120, 1048576)
FETCH_TIMEOUT_SECONDS = seconds("FETCH_TIMEOUT_SECONDS", 900, 1)
# Quotas of apps whose own settings name none. 0: no quota.
MAX_WATCHES_PER_APP = count("MAX_WATCHES_PER_APP", 0, 0)
MAX_FILES_PER_APP = count("MAX_FILES_PER_APP", 0, 0)
MAX_BYTES_PER_APP = count("MAX_BYTES_PER_APP", 0, 0)
MAX_RESYNCS_PER_HOUR = count("MAX_RESYNCS_PER_HOUR", 0, 0)
if _database["ENGINE"] == "django.db.backends.postgresql":
    _database["OPTIONS"] = postgres_options(_options, LEASE_SECONDS)
    os.environ.pop("PGDATESTYLE", None)  # libpq would set it in each session, in place of the one in these options

# --- History retention; 0 keeps it for ever ----------------------------------------------------------------------------
SYNC_RUN_RETENTION_DAYS = count("SYNC_RUN_RETENTION_DAYS", 90, 0)
BULK_OPERATION_RETENTION_DAYS = count("BULK_OPERATION_RETENTION_DAYS", 365, 0)
TRAFFIC_RETENTION_DAYS = count("TRAFFIC_RETENTION_DAYS", 90, 0)
AUDIT_RETENTION_DAYS = count("AUDIT_RETENTION_DAYS", 730, 0)
ATTEMPT_RETENTION_DAYS = count("ATTEMPT_RETENTION_DAYS", 30, 0)
ATTEMPTS_PER_APP = count("ATTEMPTS_PER_APP", 10_000, 0)  # 0 keeps no further ones

# --- Outbound requests -------------------------------------------------------------------------------------------------
ALLOWED_GIT_HOSTS = names(
    "ALLOWED_GIT_HOSTS", "github.com", pattern=r"[A-Za-z0-9._:\[\]-]+(:\*)?", what="host names such as github.com"
)
ALLOWED_PRIVATE_NETWORKS = networks("ALLOWED_PRIVATE_NETWORKS")
ALLOW_HTTP = flag("ALLOW_HTTP")
EGRESS_PROXY = text("EGRESS_PROXY")
if EGRESS_PROXY:
    try:
        check_proxy_url(EGRESS_PROXY)
    except ValueError as _error:  # the error doesn't repeat the URL, which may hold a password
        raise ImproperlyConfigured(f"EGRESS_PROXY {_error}.") from None

# --- Metrics -----------------------------------------------------------------------------------------------------------
METRICS_TOKEN = text("METRICS_TOKEN")
if METRICS_TOKEN and not re.fullmatch("[!-~]{16,}", METRICS_TOKEN):
    raise ImproperlyConfigured("METRICS_TOKEN must be at least 16 printable ASCII characters without spaces.")

# --- Alerts: off until ALERT_EMAILS or ALERT_WEBHOOK_URL is set --------------------------------------------------------
MAILERS = mailers("EMAIL_URL")
SILENCED_SYSTEM_CHECKS = ["mail.W001"]  # a mail server is optional
DEFAULT_FROM_EMAIL = text("DEFAULT_FROM_EMAIL")
ALERT_EMAILS = names("ALERT_EMAILS", pattern=r"[^\s@<>]+@[^\s@<>]+", what="addresses such as ops@example.org")
ALERT_WEBHOOK_URL = text("ALERT_WEBHOOK_URL")
ALERT_AFTER_SECONDS = seconds("ALERT_AFTER_SECONDS", 900)
ALERT_REPEAT_SECONDS = seconds("ALERT_REPEAT_SECONDS", 86400)
if ALERT_EMAILS and not (MAILERS and DEFAULT_FROM_EMAIL):
    raise ImproperlyConfigured("ALERT_EMAILS needs EMAIL_URL (the mail server) and DEFAULT_FROM_EMAIL (the sender).")
if ALERT_WEBHOOK_URL and (_reason := url_blocked_reason(ALERT_WEBHOOK_URL, ALLOW_HTTP)):
    raise ImproperlyConfigured(f"ALERT_WEBHOOK_URL cannot be called. {_reason}")

# --- security.txt ------------------------------------------------------------------------------------------------------
SECURITY_CONTACTS = names(
    "SECURITY_CONTACTS",
    pattern=r"mailto:[^\s@]+@[^\s@]+|https://\S+|tel:[+0-9-]+",
    what="addresses such as mailto:security@example.org or https://…",
)
SECURITY_CONTACTS_EXPIRE_ON = date("SECURITY_CONTACTS_EXPIRE_ON")
if SECURITY_CONTACTS and SECURITY_CONTACTS_EXPIRE_ON is None:
    raise ImproperlyConfigured("SECURITY_CONTACTS needs SECURITY_CONTACTS_EXPIRE_ON, a date such as 2027-06-30.")

# --- Administrators ----------------------------------------------------------------------------------------------------
ADMIN_USERNAME = text("ADMIN_USERNAME")
ADMIN_PASSWORD = text("ADMIN_PASSWORD")
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{validator}"}
    for validator in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

# --- Sign-in -----------------------------------------------------------------------------------------------------------
LOCAL_SIGN_IN = flag("LOCAL_SIGN_IN", default=True)
OIDC_ISSUER = text("OIDC_ISSUER").rstrip("/")
OIDC_FORMER_ISSUERS = names("OIDC_FORMER_ISSUERS")
OIDC_CLIENT_ID = text("OIDC_CLIENT_ID")
OIDC_CLIENT_SECRET = text("OIDC_CLIENT_SECRET")
OIDC_CLIENT_AUTH = text("OIDC_CLIENT_AUTH", default="client_secret_basic")
OIDC_NAME = text("OIDC_NAME", default="single sign-on")
OIDC_SCOPES = names("OIDC_SCOPES", "openid,profile,email")
OIDC_USERNAME_CLAIM = text("OIDC_USERNAME_CLAIM", default="preferred_username")
OIDC_GROUPS_CLAIM = text("OIDC_GROUPS_CLAIM", default="groups")
OIDC_ROLES = pairs("OIDC_ROLES")
OIDC_ALLOWED_NETWORKS = networks("OIDC_ALLOWED_NETWORKS")
REMOTE_USER_HEADER = text("REMOTE_USER_HEADER")
SECOND_FACTOR_ROLES = names("SECOND_FACTOR_ROLES")
SESSION_ENGINE = "docora.sign_in.sessions"
SESSION_IDLE_SECONDS = seconds("SESSION_IDLE_SECONDS", 28800)
REAUTHENTICATE_AFTER_SECONDS = seconds("REAUTHENTICATE_AFTER_SECONDS", 600, 60)
if OIDC_ISSUER:
    if _reason := url_blocked_reason(OIDC_ISSUER, name_of(OIDC_ISSUER) in _LOOPBACK_NAMES):
        raise ImproperlyConfigured(f"OIDC_ISSUER cannot be called. {_reason}")
    if not (OIDC_CLIENT_ID and OIDC_CLIENT_SECRET and OIDC_ROLES):
        raise ImproperlyConfigured("OIDC_ISSUER also needs OIDC_CLIENT_ID, OIDC_CLIENT_SECRET and OIDC_ROLES.")
if OIDC_CLIENT_AUTH not in {"client_secret_basic", "client_secret_post"}:
    raise ImproperlyConfigured("OIDC_CLIENT_AUTH must be client_secret_basic or client_secret_post.")
if REMOTE_USER_HEADER and not TRUSTED_PROXIES:
    raise ImproperlyConfigured(
        "REMOTE_USER_HEADER needs TRUSTED_PROXIES: the header is trusted only from these addresses."
    )
if not (LOCAL_SIGN_IN or OIDC_ISSUER or REMOTE_USER_HEADER):
    raise ImproperlyConfigured("LOCAL_SIGN_IN is off, so OIDC_ISSUER or REMOTE_USER_HEADER must be set.")

LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "admin:index"
AUTHENTICATION_BACKENDS = ["docora.security.permissions.OneQueryBackend"]
if REMOTE_USER_HEADER:
    AUTHENTICATION_BACKENDS.append("docora.sign_in.proxy.ProxyUserBackend")
CACHES = {
    "default": {
        "BACKEND": "docora.sign_in.cache.SharedCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "docora:sign_in",
        "OPTIONS": {
            "serializer": "docora.sign_in.cache.JsonSerializer",
            "socket_timeout": 2.0,
            "socket_connect_timeout": 1.0,
        },
    }
}
ACCOUNT_ADAPTER = "docora.sign_in.adapters.AccountAdapter"  # documents how guessing is limited
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_RATE_LIMITS = {"login": "60/m/ip", "login_failed": "5/15m/key", "address_failed": "50/15m/ip"}
ACCOUNT_REAUTHENTICATION_TIMEOUT = float("-inf")  # only `docora.sign_in.recency` decides
SOCIALACCOUNT_ADAPTER = "docora.sign_in.adapters.SocialAccountAdapter"
SOCIALACCOUNT_PROVIDERS: dict[str, Any] = {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": []}}
if OIDC_ISSUER:
    SOCIALACCOUNT_PROVIDERS["openid_connect"]["APPS"].append(
        {
            "provider_id": "oidc",
            "name": OIDC_NAME,
            "client_id": OIDC_CLIENT_ID,
            "secret": OIDC_CLIENT_SECRET,
            "settings": {"server_url": OIDC_ISSUER, "scope": OIDC_SCOPES, "token_auth_method": OIDC_CLIENT_AUTH},
        }
    )
MFA_ADAPTER = "docora.sign_in.adapters.MFAAdapter"
MFA_FORMS = {
    "login_webauthn": "docora.sign_in.forms.LoginForm",
    "authenticate_webauthn": "docora.sign_in.forms.AuthenticateForm",
    "reauthenticate_webauthn": "docora.sign_in.forms.ReauthenticateForm",
    "add_webauthn": "docora.sign_in.forms.AddForm",
}
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = LOCAL_SIGN_IN
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_TOTP_ISSUER = "Docora"
MFA_TOTP_TOLERANCE = 1

# --- Django ------------------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "docora.apps.DocoraConfig",
    "docora.apps.DocoraAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "django_rq",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "repositories_app",
    "deliveries_app",
]
OWN_APPS = tuple(INSTALLED_APPS)  # DOCORA_SETTINGS may install others, which get sections of their own in the admin
MIDDLEWARE = [
    "docora.web.middleware.ProbesMiddleware",
    "docora.web.middleware.TrustedProxyMiddleware",
    "docora.web.access_log.AccessLogMiddleware",
    "docora.web.middleware.RefusePlainHttpMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "docora.web.middleware.PageHeadersMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "docora.web.errors.ErrorBodiesMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    *(["docora.sign_in.proxy.ProxyUserMiddleware"] if REMOTE_USER_HEADER else []),
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "docora.web.middleware.ConflictMiddleware",
    "docora.web.middleware.DecryptionErrorMiddleware",
    "docora.web.middleware.RejectInvalidQueryMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "docora.sign_in.middleware.SignInMiddleware",
]
CSRF_FAILURE_VIEW = "docora.web.errors.csrf_failure"
ROOT_URLCONF = "docora.urls"
WSGI_APPLICATION = "docora.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "django.template.context_processors.csp",
                "docora.sign_in.context.accounts_pages",
            ],
            "builtins": ["docora.templatetags.docora"],
        },
    }
]
LANGUAGE_CODE = "en"
USE_I18N = False
FORMAT_MODULE_PATH = "docora.conf.formats"
TIME_ZONE = time_zone("TIME_ZONE", default="UTC")
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True  # no collectstatic: files are served from their source folders
DATA_UPLOAD_MAX_MEMORY_SIZE = 1048576

# --- Logs --------------------------------------------------------------------------------------------------------------
LOG_LEVEL = text("LOG_LEVEL", default="info").upper()
if LOG_LEVEL not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
    raise ImproperlyConfigured(f"LOG_LEVEL must be debug, info, warning, error or critical, but is {LOG_LEVEL!r}.")
LOG_FORMAT = text("LOG_FORMAT", default="console" if sys.stderr.isatty() else "json")
if LOG_FORMAT not in {"json", "console"}:
    raise ImproperlyConfigured(f"LOG_FORMAT must be json or console, but is {LOG_FORMAT!r}.")
DEFAULT_EXCEPTION_REPORTER = "docora.security.error_reports.Reporter"
DEFAULT_EXCEPTION_REPORTER_FILTER = "docora.security.error_reports.ReporterFilter"
LOGGING_CONFIG = "docora.conf.logs.configure"
LOGGING = {"format": LOG_FORMAT, "level": LOG_LEVEL}
