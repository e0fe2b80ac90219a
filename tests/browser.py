"""Open a page in Chromium, without a window, and return what its script made of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


def dump_dom(page: Path, state: str = "", clock: str = "--virtual-time-budget=2000") -> str:
    """Return the page as HTML after its script ran; it can reach no network.

    Args:
        page: the file.
        state: the part of the address after `#`.
        clock: Chromium's option for time; by default two seconds that pass at once.
    """
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            clock,
            "--dump-dom",
            f"file://{page}#{state}",
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout


def without_script(text: str) -> str:
    """Return HTML without its style and script elements."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
