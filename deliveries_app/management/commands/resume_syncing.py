from deliveries_app.actors import Actor
from deliveries_app.management.pausing import PausingCommand
from deliveries_app.models import App, AppRepository
from deliveries_app.services import current_pause, resume_syncing, resume_watches


class Command(PausingCommand):
    help = "Resumes syncing for all apps, one app, or one of its repositories."
    paused = False

    def change_all(self) -> str:
        return "Syncing is resumed." if resume_syncing(Actor.command()) else "Syncing was not paused."

    def change_watch(self, watch: AppRepository) -> str:
        resume_watches(Actor.command(), AppRepository.objects.filter(pk=watch.pk))
        message = f"{watch} is no longer paused."
        if watch.app.paused:
            message += " Its app is still paused: use resume_syncing with only the app's id."
        return message

    def message_for(self, app: App) -> str:
        message = f"{app} is no longer paused."
        if current_pause():
            message += " All syncing is still paused: use resume_syncing without an app id."
        return message
