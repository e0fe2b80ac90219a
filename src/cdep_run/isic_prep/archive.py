"""Step `download`: metadata and originals from the ISIC archive's public API, whole or not at all.

The interface (https://api.isic-archive.com/api/docs/): `images/search/?query=&collections=&limit=`
answers `{"results": [...], "count": ..., "next": URL or null}`, at most 100 images a page; an image
is `{"isic_id", "copyright_license", "attribution", "files": {"full": {"url", "size"}},
"metadata": {"clinical": {...}, "acquisition": {...}}}`. A file's address is signed and expires;
`images/<isic_id>/` gives a fresh one.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from cdep_run.errors import CdepError
from cdep_run.files import read_json, sync_folder, write_json
from cdep_run.isic_prep.settings import Download
from cdep_run.isic_prep.step_report import Report, write_table

PAGE = 100  # images a page; the API gives no more
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}
COLUMNS = ("isic_id", "status", "detail")

Record = dict[str, Any]


class DownloadError(CdepError):
    """The archive did not give what was asked for."""


class Broken(Exception):
    """One attempt at a file failed; another one may succeed."""


class Archive:
    """A polite client: retries with growing pauses, obeys Retry-After, keeps to a rate."""

    def __init__(self, options: Download) -> None:
        self.options = options
        retry = Retry(
            total=options.attempts,
            backoff_factor=options.backoff,
            status_forcelist=(429, 500, 502, 503, 504),
            raise_on_status=False,
        )
        self.session = requests.Session()
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=options.connections)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        self.session.headers["User-Agent"] = "cdep-run data preparation"
        self._turn = threading.Lock()
        self._next = 0.0

    def get(self, url: str, **kwargs: Any) -> requests.Response:
        """GET, not sooner than the rate allows. Raises requests' errors, also for a bad status."""
        with self._turn:
            now = time.monotonic()
            wait, self._next = self._next - now, max(self._next, now) + 1 / self.options.per_second
        time.sleep(max(wait, 0))
        response = self.session.get(url, timeout=self.options.timeout, **kwargs)
        response.raise_for_status()
        return response

    def json(self, url: str, **kwargs: Any) -> Any:
        """The JSON behind an address; a body that is cut off is asked for again."""
        for attempt in range(self.options.attempts + 1):
            try:
                return self.get(url, **kwargs).json()
            except (
                requests.ConnectionError,
                requests.JSONDecodeError,
                requests.exceptions.ChunkedEncodingError,
                requests.Timeout,
            ) as error:
                failure = error
                time.sleep(self.options.backoff * 2**attempt)
            except requests.RequestException as error:
                raise DownloadError(f"{url}: {error}; run again later") from error
        raise DownloadError(f"{url}: {failure}; run again later, it goes on from here")

    def pages(self, folder: Path) -> Iterator[list[Record]]:
        """The search's pages, kept in `folder`; those that are there are not fetched again."""
        options = self.options
        url: str | None = f"{options.api.rstrip('/')}/images/search/"
        first = {"query": options.query, "limit": str(PAGE)}
        if options.collections:
            first["collections"] = ",".join(map(str, options.collections))
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while url:
            path = folder / f"{number:05d}.json"
            page = read_json(path)
            if page is None:
                page = self.json(url, params=first if number == 0 else None)
                if not isinstance(page, dict) or not {"results", "next"} <= page.keys():
                    raise DownloadError(
                        f"{url}: expected an object with 'results' and 'next', as API v2 gives"
                    )
                write_json(path, page)
            yield page["results"]
            url, number = page["next"], number + 1

    def fetch(self, record: Record, folder: Path) -> Path:
        """One original, complete and decodable, under its final name.

        Raises:
            Broken: after the last attempt, with what went wrong.
            requests.HTTPError: the archive does not have the file.
        """
        reason = ""
        for attempt in range(self.options.attempts + 1):
            try:
                return self._attempt(record, folder)
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code not in (401, 403):
                    raise
                reason = str(error)  # the signed address has expired: ask for a fresh one
                fresh = self.json(f"{self.options.api.rstrip('/')}/images/{record['isic_id']}/")
                record = {**record, "files": fresh["files"]}
            except (requests.RequestException, Broken, OSError) as error:
                if isinstance(error, OSError) and error.errno:
                    raise  # a full disk is not the archive's fault
                reason = str(error)
                time.sleep(self.options.backoff * 2**attempt)
        raise Broken(reason)

    def _attempt(self, record: Record, folder: Path) -> Path:
        part = folder / f".{record['isic_id']}.{threading.get_ident()}.part"
        full = record["files"]["full"]
        try:
            with self.get(full["url"], stream=True) as response, open(part, "wb") as file:
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            size = part.stat().st_size
            for said in (response.headers.get("Content-Length"), full.get("size")):
                if said is not None and int(said) != size:
                    raise Broken(f"{size} of {said} bytes came")
            suffix = _decodable(part)
            path = folder / f"{record['isic_id']}{suffix}"
            os.replace(part, path)
            return path
        finally:
            part.unlink(missing_ok=True)


def _decodable(path: Path) -> str:
    """The suffix that fits a picture's format, after decoding it to its last row."""
    try:
        with Image.open(path) as image:
            image.load()
            return SUFFIXES.get(str(image.format), f".{str(image.format).lower()}")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Broken(f"not a whole picture: {error}".replace(str(path), path.name)) from None


def label_of(record: dict[str, Any]) -> str | None:
    """'benign' or 'malignant' from an archive's `diagnosis_1` or `benign_malignant`, else None.

    Blank, 'indeterminate', 'indeterminate/benign' and the like are None; so are two columns that
    contradict each other.
    """
    said = diagnoses(record)
    return said.pop() if len(said) == 1 and said <= {"benign", "malignant"} else None


def diagnoses(record: dict[str, Any]) -> set[str]:
    """What the two columns say, in lower case; what is blank says nothing."""
    columns = ("diagnosis_1", "benign_malignant")
    return {str(record.get(name) or "").strip().lower() for name in columns} - {"", "nan"}


def flat(record: Record) -> dict[str, Any]:
    """One row of metadata: the archive's clinical and acquisition fields side by side."""
    metadata = record.get("metadata") or {}
    row = {key: record.get(key) for key in ("isic_id", "attribution", "copyright_license")}
    return row | (metadata.get("clinical") or {}) | (metadata.get("acquisition") or {})


def wanted(archive: Archive, folder: Path, report: list[dict[str, str]]) -> list[Record]:
    """The records to fetch, in the archive's order; those left out go to the report with why."""
    options = archive.options
    key = json.dumps([options.api, options.query, list(options.collections)])
    pages = archive.pages(folder / f"pages-{hashlib.sha256(key.encode()).hexdigest()[:8]}")
    records: dict[str, Record] = {}
    with tqdm(desc="metadata", total=options.number, unit=" images") as bar:
        for record in (record for page in pages for record in page):
            name, licence = record["isic_id"], record.get("copyright_license")
            reason = None
            if name in records:
                reason = "duplicate", "the archive listed it twice"
            elif options.licences and licence not in options.licences:
                reason = "licence", str(licence)
            elif label_of(flat(record)) is None:
                reason = "no label", "diagnosis_1 is blank, indeterminate or contradicted"
            elif not ((record.get("files") or {}).get("full") or {}).get("url"):
                reason = "no file", "the archive gives no address"
            if reason:
                report.append(dict(zip(COLUMNS, (name, *reason), strict=True)))
                continue
            records[name] = record
            bar.update()
            if len(records) == options.number:
                break
    return list(records.values())


def present(record: Record, folder: Path) -> bool:
    """Whether the original is there, as long as the archive says it is."""
    size = record["files"]["full"].get("size")
    paths = [folder / f"{record['isic_id']}{suffix}" for suffix in SUFFIXES.values()]
    return any(p.is_file() and size in (None, p.stat().st_size) for p in paths)


def download(folder: Path, options: Download) -> None:
    """Fetch what is not there yet into `folder`/raw, and write raw/metadata.csv.

    Raises:
        DownloadError: nothing matches, the archive cannot be reached, or some files did not come.
    """
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for left in raw.glob(".ISIC_*.part"):
        left.unlink()
    archive, rows = Archive(options), list[dict[str, str]]()
    records = wanted(archive, raw, rows)
    if not records:
        raise DownloadError(
            f"no image matches download.query={options.query!r}, collections="
            f"{list(options.collections)}, licences={list(options.licences)}"
        )
    missing = [record for record in records if not present(record, raw)]
    failed = 0
    pool = ThreadPoolExecutor(options.connections)
    try:
        futures = {pool.submit(archive.fetch, record, raw): record for record in missing}
        bar = tqdm(total=len(records), initial=len(records) - len(missing), desc="originals")
        with bar:
            for future in as_completed(futures):
                bar.update()
                name, error = futures[future]["isic_id"], future.exception()
                if error is None:
                    continue
                gone = isinstance(error, requests.HTTPError)
                if not gone and not isinstance(error, (Broken, DownloadError)):
                    raise error
                failed += not gone
                status = "not in the archive" if gone else "failed"
                rows.append({"isic_id": name, "status": status, "detail": str(error)})
    finally:
        pool.shutdown(cancel_futures=True)
    sync_folder(raw)
    Report(folder / "reports" / "download.csv", COLUMNS).replace(rows)
    have = [flat(record) for record in records if present(record, raw)]
    write_table(raw / "metadata.csv", pd.DataFrame(have))
    print(
        f"download: {len(have)} of {len(records)} images are there, {len(rows)} remarks in "
        "reports/download.csv"
    )
    if failed:
        raise DownloadError(
            f"{failed} of {len(records)} images did not come (reports/download.csv says why); "
            "run again, it goes on where it stopped"
        )
