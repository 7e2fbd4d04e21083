from deliveries_app.actors import Actor
from deliveries_app.management.pausing import PausingCommand
from deliveries_app.models import App
from deliveries_app.services import current_pause, resume_syncing


class Command(PausingCommand):
    help = "Lets all syncing go on that was paused, or that of one app."
    paused = False

    def change_all(self) -> str:
        return "Syncing goes on." if resume_syncing(Actor.command()) else "Syncing was not paused."

    def words_of(self, app: App) -> str:
        words = f"{app} is not paused any more."
        if current_pause():
            words += " All syncing is still paused: resume_syncing without an app id lets it go on."
        return words
