"""The page: data as JSON, style and script, all in one file that asks the network for nothing."""

from __future__ import annotations

import json
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from cdep_run.files import write_atomic
from cdep_run.report.collect import Report


def write_page(report: Report, file: Path) -> None:
    """Write the page, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    assets = files("cdep_run.report")
    data = report.data() | {"made": datetime.now().strftime("%Y-%m-%d %H:%M")}
    parts = {
        "STYLE": (assets / "page.css").read_text(encoding="utf-8"),
        "DATA": json.dumps(
            data, allow_nan=False, ensure_ascii=False, separators=(",", ":")
        ).replace("<", "\\u003c"),  # nothing in the data can end the script element
        "SCRIPT": (assets / "page.js").read_text(encoding="utf-8"),
    }
    page = (assets / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, page.encode())
