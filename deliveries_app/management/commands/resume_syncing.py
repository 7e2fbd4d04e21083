from deliveries_app.management.pausing import PausingCommand


class Command(PausingCommand):
    help = "Resumes syncing for all apps, one app, or one of its repositories."
    paused = False
