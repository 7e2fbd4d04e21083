from deliveries_app.management.pausing import PausingCommand


class Command(PausingCommand):
    help = "Pauses syncing for all apps, one app, or one of its repositories. Work that becomes due waits until it is resumed."
    paused = True
