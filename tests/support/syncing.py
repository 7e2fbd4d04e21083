"""One attempt in this process, with a client of its own."""

from django.conf import settings

from deliveries_app.sync import attempt
from repositories_app.git import remote


def sync(watch_pk: int) -> bool:
    with remote.new_client(max_connections=settings.MAX_IN_FLIGHT_LIMIT) as client:
        return attempt.sync(watch_pk, client, alone=True)
