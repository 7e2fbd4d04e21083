"""Fill the database in the settings with generated rows. It must contain no apps."""

import argparse
import os

import django


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "docora.settings")
    django.setup()
    from deliveries_app.models import App
    from tests.bench.crowd.filling import fill
    from tests.bench.crowd.layout import Amounts

    parser = argparse.ArgumentParser(prog="python -m tests.bench.crowd", description=__doc__)
    for name, default in vars(Amounts()).items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default:,}")
    amounts = Amounts(**vars(parser.parse_args()))
    if App.objects.exists():
        # Afterwards, generated rows could not be told from real ones.
        raise SystemExit("This database already contains apps. Choose another one with DATABASE_URL or DATA_DIR.")
    fill(amounts)


if __name__ == "__main__":
    main()
