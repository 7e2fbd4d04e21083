from deliveries_app.actors import Actor
from deliveries_app.management.pausing import PausingCommand
from deliveries_app.models import App
from deliveries_app.services import current_pause, resume_syncing


class Command(PausingCommand):
    help = "Resumes syncing for all apps or for one."
    paused = False

    def change_all(self) -> str:
        return "Syncing is resumed." if resume_syncing(Actor.command()) else "Syncing was not paused."

    def message_for(self, app: App) -> str:
        message = f"{app} is no longer paused."
        if current_pause():
            message += " All syncing is still paused: use resume_syncing without an app id."
        return message
