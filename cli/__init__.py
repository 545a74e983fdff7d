"""The command line of detrkit; `main` is the `detrkit` command."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Runs the command line and exits: 0 for success, 2 for a mistake in the input, 130 at Ctrl-C, 143 at SIGTERM."""
    from .before_torch import set_environment

    set_environment()

    from detrkit.c_memory import keep_freed_memory

    keep_freed_memory()

    from rich.text import Text

    from detrkit.engine.interrupt import stop_signals
    from detrkit.errors import UserError
    from detrkit.writing import explain

    from .app import app
    from .console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold what is no UTF-8

    if "RANK" not in os.environ:  # torchrun's processes may wait in each other's calls, where no handler runs
        for each in stop_signals():
            if each != signal.SIGINT:  # Python's own does the same
                signal.signal(each, _leave)

    def end(message: str) -> None:
        # As plain text: a message may hold brackets, which rich would read as markup.
        Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))
        sys.exit(2)

    try:
        if "" in sys.argv[1:]:  # as a path it would be the folder that one is in
            raise UserError("an argument is empty: a shell's variable without a value, perhaps")
        app(prog_name="detrkit")
    except UserError as error:
        end(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone. What Python flushes on its way out must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        end(f"{explain(error)}.\nFiles are written whole or not at all: once that is mended, give the command again.")
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported to look
            end(f"the GPU has not enough memory. Fewer or smaller images at once need less.\n{error}")
        if not str(error).startswith("Symlink loop"):  # what Python up to 3.12 makes of one
            raise
        end(f"{error}: these links go in a circle")


def _leave(number: int, frame: FrameType | None) -> None:
    """What was half done is taken away on the way out, as after Ctrl-C."""
    sys.exit(128 + number)
