from deliveries_app.actors import Actor
from deliveries_app.management.pausing import PausingCommand
from deliveries_app.models import App, AppRepository
from deliveries_app.services import pause_syncing, pause_watches


class Command(PausingCommand):
    help = "Pauses syncing for all apps, one app, or one of its repositories. Work that becomes due waits until it is resumed."
    paused = True

    def change_all(self) -> str:
        pause_syncing(Actor.command())
        return "All syncing is paused."

    def change_watch(self, watch: AppRepository) -> str:
        pause_watches(Actor.command(), AppRepository.objects.filter(pk=watch.pk))
        return f"{watch} is paused."

    def message_for(self, app: App) -> str:
        return f"{app} is paused."
