"""Apps share the workers: one with a slow endpoint does not hold up the others."""

import time

from deliveries_app.models import App, AppRepository, Status
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.world import World


def test_slow_app_makes_way_for_another(world: World, daemons: Daemons) -> None:
    """With one worker, whose slow app would need it for more than half a minute."""
    slow, quick = world.app, world.add_app("Quick")
    App.objects.filter(pk=slow.pk).update(max_in_flight=1)
    world.answer(lambda note: time.sleep(0.3) if note.app_id == slow.app_id else None)
    files = {f"{number:03}.txt": b"%d" % number for number in range(60)}
    tenants = [world.watch(files, name=f"acme/slow-{number}")[1] for number in range(2)]
    daemons.sweep()
    worker = daemons.worker()
    wait_for(lambda: len(world.requests()) > 3, 30)
    _, change = world.watch(name="acme/change", app=quick)
    wait_for(lambda: world.copy(change), 30)
    assert not AppRepository.objects.filter(app=slow, status=Status.SYNCED).exists()
    assert 0 < len(world.copy(tenants[0])) + len(world.copy(tenants[1])) < 60
    assert worker.running
