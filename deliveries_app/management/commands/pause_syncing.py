from deliveries_app.actors import Actor
from deliveries_app.management.pausing import PausingCommand
from deliveries_app.models import App
from deliveries_app.services import pause_syncing


class Command(PausingCommand):
    help = "Pauses syncing for all apps or for one. Work that becomes due waits until it is resumed."
    paused = True

    def change_all(self) -> str:
        pause_syncing(Actor.command())
        return "All syncing is paused."

    def message_for(self, app: App) -> str:
        return f"{app} is paused."
