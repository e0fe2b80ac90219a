"""Step `download`: fetch metadata and originals from the ISIC archive's public API.

A picture gets its final name only once all of it is there; what the archive says is not trusted.

The interface (https://api.isic-archive.com/api/docs/): `images/search/?query=&collections=&limit=`
answers `{"results": [...], "count": ..., "next": URL or null}`, at most 100 images a page; an image
is `{"isic_id", "copyright_license", "attribution", "files": {"full": {"url", "size"}},
"metadata": {"clinical": {...}, "acquisition": {...}}}`. A file's address is signed and expires;
`images/<isic_id>/` gives a fresh one.
"""

from __future__ import annotations

import hashlib
import io
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
from cdep_run.files import inside, read_json, safe_name, sync_folder, write_json
from cdep_run.isic_prep.decode import UNREADABLE, decode, decoding_error
from cdep_run.isic_prep.settings import Download
from cdep_run.isic_prep.step_report import Report, write_table

PAGE = 100  # images a page; the API gives no more
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp",
            "WEBP": ".webp", "GIF": ".gif", "AVIF": ".avif"}  # fmt: skip
"""Endings of the names of pictures, by what Pillow calls their formats."""
COLUMNS = ("isic_id", "status", "detail")
MOST_BYTES = 1 << 30
"""A file that goes on after so many bytes is given up."""

Record = dict[str, Any]


class DownloadError(CdepError):
    """The archive cannot be reached, or does not give what was asked for."""


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
        """Send a GET request, not sooner than the rate allows.

        Raises:
            requests.RequestException: no answer, or one with an error status.
        """
        with self._turn:
            now = time.monotonic()
            wait, self._next = self._next - now, max(self._next, now) + 1 / self.options.per_second
        time.sleep(max(wait, 0))
        response = self.session.get(url, timeout=self.options.timeout, **kwargs)
        response.raise_for_status()
        return response

    def json(self, url: str, **kwargs: Any) -> Any:
        """Fetch an address and parse it as JSON; an answer that is cut off is asked for again.

        Raises:
            DownloadError: after the last attempt.
        """
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
        """Yield the search's pages of records; `folder` keeps them, so each is fetched once."""
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
                if not isinstance(page, dict) or not isinstance(page.get("results"), list):
                    raise DownloadError(
                        f"{url}: expected an object with a list 'results' and 'next', as API v2 "
                        "gives"
                    )
                write_json(path, page)
            yield [record for record in page["results"] if isinstance(record, dict)]
            url, number = page.get("next"), number + 1

    def fetch(self, record: Record, folder: Path) -> Path:
        """Fetch one original; returns its path once it is complete and can be decoded.

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
        """Try once; an incomplete file is removed."""
        part = inside(folder, f".{record['isic_id']}.{threading.get_ident()}.part")
        full = record["files"]["full"]
        try:
            with self.get(full["url"], stream=True) as response, open(part, "wb") as file:
                expected = [response.headers.get("Content-Length"), full.get("size")]
                sizes = [int(size) for size in expected if size is not None]
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    if file.tell() > min([*sizes, MOST_BYTES]):
                        raise Broken(f"more than {min([*sizes, MOST_BYTES])} bytes came")
                file.flush()
                os.fsync(file.fileno())
            size = part.stat().st_size
            for wanted in sizes:
                if wanted != size:
                    raise Broken(f"{size} of {wanted} bytes came")
            path = inside(folder, f"{record['isic_id']}{_picture_suffix(part)}")
            os.replace(part, path)
            return path
        finally:
            part.unlink(missing_ok=True)


def _picture_suffix(path: Path) -> str:
    """Return the ending that fits a picture's format, after decoding the picture to its last row.

    Raises:
        Broken: it cannot be decoded.
    """
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = str(image.format)
        decode(data)
    except UNREADABLE as error:
        raise Broken(f"not a whole picture: {decoding_error(data, error)}") from None
    return SUFFIXES.get(kind, f".{kind.lower()}")


def label_of(record: dict[str, Any]) -> str | None:
    """Return 'benign' or 'malignant' by the columns `diagnosis_1` and `benign_malignant`, or None.

    None where both are blank, where they contradict each other, and for 'indeterminate',
    'indeterminate/benign' and the like.
    """
    names = diagnoses(record)
    return names.pop() if len(names) == 1 and names <= {"benign", "malignant"} else None


def diagnoses(record: dict[str, Any]) -> set[str]:
    """Return what the two columns of diagnoses hold, in lower case, blank ones left out."""
    columns = ("diagnosis_1", "benign_malignant")
    return {str(record.get(name) or "").strip().lower() for name in columns} - {"", "nan"}


def flat(record: Record) -> dict[str, Any]:
    """Make one row of metadata: the archive's clinical and acquisition fields side by side."""
    metadata = record.get("metadata") or {}
    row = {key: record.get(key) for key in ("isic_id", "attribution", "copyright_license")}
    return row | (metadata.get("clinical") or {}) | (metadata.get("acquisition") or {})


def wanted(archive: Archive, folder: Path, report: list[dict[str, str]]) -> list[Record]:
    """Search the archive; returns the records to fetch, in the archive's order.

    Args:
        archive: what to ask, with the options of the search.
        folder: keeps the pages of the answer.
        report: gets a row, with the reason, for each record that is left out.
    """
    options = archive.options
    key = json.dumps([options.api, options.query, list(options.collections)])
    pages = archive.pages(folder / f"pages-{hashlib.sha256(key.encode()).hexdigest()[:8]}")
    records: dict[str, Record] = {}
    with tqdm(desc="metadata", total=options.number, unit=" images") as bar:
        for record in (record for page in pages for record in page):
            name = str(record.get("isic_id"))
            if reason := _reason_against(record, records, options):
                report.append(dict(zip(COLUMNS, (name, *reason), strict=True)))
                continue
            records[name] = record
            bar.update()
            if len(records) == options.number:
                break
    return list(records.values())


def _reason_against(
    record: Record, records: dict[str, Record], options: Download
) -> tuple[str, str] | None:
    """Why a record is left out, as status and detail; None: it is taken."""
    name, licence = record.get("isic_id"), record.get("copyright_license")
    if not isinstance(name, str) or safe_name(name) != name:
        return "no name", "its isic_id can be no file's name"
    if name in records:
        return "duplicate", "the archive listed it twice"
    if options.licences and licence not in options.licences:
        return "licence", str(licence)
    try:
        if label_of(flat(record)) is None:
            return "no label", "diagnosis_1 is blank, indeterminate or contradicted"
        if not _full(record).get("url"):
            return "no file", "the archive gives no address"
    except (AttributeError, TypeError):
        return "no record", "the archive's answer has another form than API v2 gives"
    return None


def _full(record: Record) -> dict[str, Any]:
    """What a record says of its original: url and size."""
    return (record.get("files") or {}).get("full") or {}


def present(records: list[Record], folder: Path) -> set[str]:
    """Return the names of the records whose original is there and has the right length."""
    sizes: dict[str, set[int]] = {}
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            sizes.setdefault(path.stem, set()).add(path.stat().st_size)
    names = {record["isic_id"]: _full(record).get("size") for record in records}
    return {n for n, size in names.items() if n in sizes and (size is None or size in sizes[n])}


def download(folder: Path, options: Download) -> None:
    """Fetch the originals that are not there yet into `folder`/raw, and write raw/metadata.csv.

    Raises:
        DownloadError: nothing matches, the archive cannot be reached, or some files did not come.
    """
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part in raw.glob(".*.part"):  # of a run that was killed
        part.unlink()
    archive, rows = Archive(options), list[dict[str, str]]()
    records = wanted(archive, raw, rows)
    if not records:
        raise DownloadError(
            f"no image matches download.query={options.query!r}, collections="
            f"{list(options.collections)}, licences={list(options.licences)}"
        )
    there = present(records, raw)
    missing = [record for record in records if record["isic_id"] not in there]
    failed = _fetch_all(archive, missing, raw, rows, len(records))
    sync_folder(raw)
    Report(folder / "reports" / "download.csv", COLUMNS).replace(rows)
    there = present(records, raw)
    have = [flat(record) for record in records if record["isic_id"] in there]
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


def _fetch_all(
    archive: Archive, missing: list[Record], raw: Path, rows: list[dict[str, str]], total: int
) -> int:
    """Fetch several files at a time; returns how many failed, `rows` gets a row for each."""
    failed = 0
    pool = ThreadPoolExecutor(archive.options.connections)
    try:
        futures = {pool.submit(archive.fetch, record, raw): record for record in missing}
        with tqdm(total=total, initial=total - len(missing), desc="originals") as bar:
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
                detail = " ".join(str(error).split())
                rows.append({"isic_id": name, "status": status, "detail": detail})
    finally:
        pool.shutdown(cancel_futures=True)
    return failed
