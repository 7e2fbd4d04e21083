"""Fill the database that the settings name with made-up rows. It must hold no apps."""

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
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{default:,} if not given")
    amounts = Amounts(**vars(parser.parse_args()))
    if App.objects.exists():
        # Made-up rows cannot be told from real ones afterwards.
        raise SystemExit("This database holds apps already. Name another one with DATABASE_URL or DATA_DIR.")
    fill(amounts)


if __name__ == "__main__":
    main()
