from argparse import SUPPRESS
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from docora.installation import program
from docora.management import completing


class Command(BaseCommand):
    help = "Prints a script that completes commands, options and ids in bash, zsh or fish."
    requires_system_checks = []  # somebody waits with a finger on the key

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("shell", choices=(*completing.SHELLS, "words"), metavar="bash|zsh|fish")
        parser.add_argument("words", nargs="*", help=SUPPRESS)  # the scripts ask: completion words -- WORD …
        parser.epilog = f"In ~/.bashrc: source <({program(in_full=True)} completion bash)"

    def handle(self, *args: Any, **options: Any) -> None:
        if options["shell"] != "words":
            self.stdout.write(completing.script(options["shell"], completing.this_program()))
            return
        for word, about in completing.candidates(options["words"]):
            self.stdout.write(f"{word}\t{' '.join(about.split())}")
