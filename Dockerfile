# One image for every process: `docker build --tag docora .`, then compose.yaml, or `docker run` for everything in one.
#
# No layer depends on when or where it is built. With the same base image and the same packages of Debian, a commit gives the
# same bytes, timestamps included:
#
#   docker buildx build --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) \
#       --output type=image,name=docora,rewrite-timestamp=true .

# Python 3.13.15 on Debian 13. `make pin-images` prints the newest digest of this tag.
ARG PYTHON_IMAGE=python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
COPY requirements.txt .
# Compiled by content and not by time, so that the same packages make the same layer.
RUN python -m venv /opt/venv && \
    /opt/venv/bin/pip install --no-cache-dir --no-compile --disable-pip-version-check --require-hashes \
        --requirement requirements.txt && \
    /opt/venv/bin/pip uninstall --yes --quiet pip && \
    find /opt/venv -name __pycache__ -prune -exec rm -rf {} + && \
    python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib

FROM ${PYTHON_IMAGE}
ARG SOURCE_DATE_EPOCH=0
# Debian keeps no older versions, so a pinned one could not be installed after its next security update. `useradd` stores the
# day of SOURCE_DATE_EPOCH. The files that end with a hyphen are backups.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends git ca-certificates && \
    groupadd --gid 10001 docora && \
    useradd --uid 10001 --gid docora --no-create-home --home-dir /data --shell /usr/sbin/nologin docora && \
    rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /var/lib/dpkg/*-old \
        /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- && \
    install --directory --owner docora --group docora --mode 0700 /data
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
# With one mode, because the checkout's files may be readable by their owner only.
COPY --chmod=755 manage.py .env.example ./
COPY --chmod=755 templates/ templates/
COPY --chmod=755 static/ static/
COPY --chmod=755 docora/ docora/
COPY --chmod=755 repositories_app/ repositories_app/
COPY --chmod=755 deliveries_app/ deliveries_app/
RUN python -m compileall -q --invalidation-mode unchecked-hash docora repositories_app deliveries_app

# For /version. Last, so that the layers above stay cached.
ARG DOCORA_BUILD_NUMBER=""
ARG DOCORA_BUILD_SHA=""
ARG DOCORA_BUILD_DATE=""
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIR=/data \
    HOST=0.0.0.0 \
    PORT=8000 \
    DOCORA_BUILD_NUMBER=$DOCORA_BUILD_NUMBER \
    DOCORA_BUILD_SHA=$DOCORA_BUILD_SHA \
    DOCORA_BUILD_DATE=$DOCORA_BUILD_DATE

USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=4)"]
CMD ["python", "manage.py", "up"]
