from deliveries_app.actors import Actor
from deliveries_app.management.pausing import PausingCommand
from deliveries_app.models import App
from deliveries_app.services import pause_syncing


class Command(PausingCommand):
    help = "Pauses all syncing, or that of one app. What becomes due meanwhile waits, and nothing is lost."
    paused = True

    def change_all(self) -> str:
        pause_syncing(Actor.command())
        return "All syncing is paused."

    def words_of(self, app: App) -> str:
        return f"{app} is paused."
