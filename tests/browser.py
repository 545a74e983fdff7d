"""A real browser without a window, for pages that detrkit writes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without the flags on its network the browser looks for its maker's hosts and waits.
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


def opened(page: Path, script: str, folder: Path) -> str:
    """The document of a page, as HTML, after its own scripts and then `script` have run in the browser.

    An error of any script stands in it as `data-error` of the root element. Skips the test where there is no browser.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(NAMES)})")
    watched = folder / "watched.html"
    told = "window.onerror = message => { document.documentElement.dataset.error = message; };"
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head><script>{told}</script>", 1)
    watched.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [browser, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom", watched.as_uri()]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)}
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout
