from deliveries_app.management.commands import pause_syncing


class Command(pause_syncing.Command):
    help = "Resumes syncing for all apps, one app, or one of its repositories."
    paused = False
