"""The command line of detrkit; `main` is the `detrkit` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line and exits: 0 for success, 2 for a mistake in the input, 130 when interrupted."""
    from rich.console import Console
    from rich.text import Text

    from detrkit.errors import UserError

    from .app import app

    try:
        app(prog_name="detrkit")
    except UserError as error:
        # As plain text: a message may hold brackets, which rich would read as markup.
        Console(stderr=True, soft_wrap=True).print(Text(str(error), style="red"))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone. What Python flushes on its way out must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
