import pytest

from tests.docora.http_server import servers
from tests.support.tls import self_signed


@pytest.fixture
def serve():
    with servers() as start:
        yield start


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return (SSL context of the server, path of the PEM file) of a self-signed certificate for 127.0.0.1."""
    return self_signed(tmp_path_factory.mktemp("tls"))
