"""The archive's client against a server on this machine that speaks the API, badly."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cdep_run.isic_prep.archive import DownloadError, download, label_of
from cdep_run.isic_prep.settings import Download


def jpeg(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """12 images in pages of 5; `trouble` says what goes wrong, for each address once or always."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files = {f"ISIC_{n:07d}": jpeg(n) for n in range(12)}
        self.trouble, self.asked, self.waited = {}, [], []
        self.records = [self.record(name) for name in self.files]

    def record(self, name, fresh=""):
        number = int(name[5:])
        return {
            "isic_id": name,
            "copyright_license": "CC-BY-NC" if number == 3 else "CC-0",
            "attribution": "Anonymous",
            "files": {"full": {"url": f"{self.url}/files/{name}.jpg{fresh}",
                               "size": len(self.files[name])}},
            "metadata": {
                "clinical": {"diagnosis_1": "Indeterminate" if number == 4 else
                             "Malignant" if number % 3 == 0 else "Benign",
                             "patient_id": f"IP_{number // 2}", "sex": "female"},
                "acquisition": {"image_type": "dermoscopic", "pixels_x": 50, "pixels_y": 40},
            },
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        address = urlsplit(self.path)
        self.server.asked.append(self.path)
        name = address.path.rsplit("/", 1)[-1].removesuffix(".jpg") or "page"
        troubles = self.server.trouble.get(name, [])
        trouble = troubles.pop(0) if troubles else None
        if address.path.startswith("/files/"):
            if trouble == "expired" or (trouble is None and troubles == ["stays expired"]):
                return self.answer(b"", 403)
            return self.answer(self.server.files[name], trouble=trouble)
        if address.path == "/api/v2/images/search/":
            start = int(parse_qs(address.query).get("cursor", ["0"])[0])
            more = f"{self.server.url}/api/v2/images/search/?cursor={start + 5}&limit=5"
            page = {"results": self.server.records[start : start + 5], "count": 12,
                    "next": more if start + 5 < len(self.server.records) else None}  # fmt: skip
            return self.answer(json.dumps(page).encode(), trouble=trouble)
        name = address.path.rstrip("/").rsplit("/", 1)[-1]
        self.answer(json.dumps(self.server.record(name, "?fresh")).encode())

    def answer(self, body, status=200, trouble=None):
        if trouble == "drop":
            self.close_connection = True
            return
        if trouble in (429, 500, 404):
            self.send_response(trouble)
            if trouble == 429:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(status)
        short = body[: len(body) // 2]
        self.send_header("Content-Length", str(len(short if trouble == "lie" else body)))
        self.end_headers()
        self.wfile.write(short if trouble in ("truncate", "lie") else body)
        if trouble == "truncate":
            self.close_connection = True


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def options(server, **changed):
    values = {
        "api": f"{server.url}/api/v2", "query": "image_type:dermoscopic", "collections": [65],
        "licences": ["CC-0"], "number": None, "connections": 3, "per_second": 1000.0,
        "attempts": 2, "backoff": 0.01, "timeout": 5.0,
    }  # fmt: skip
    return Download(**(values | changed))


def files(folder):
    return {path.stem: path.read_bytes() for path in (folder / "raw").glob("ISIC_*.jpg")}


def test_dropped_and_truncated_answers_are_asked_for_again_until_they_are_whole(server, tmp_path):
    server.trouble = {
        "ISIC_0000000": ["truncate"], "ISIC_0000001": ["drop", "truncate"],
        "ISIC_0000002": ["lie"], "ISIC_0000005": [500], "ISIC_0000006": ["expired"],
        "page": ["drop", "truncate"],
    }  # fmt: skip
    download(tmp_path, options(server))
    wanted = {n: d for n, d in server.files.items() if n not in ("ISIC_0000003", "ISIC_0000004")}
    assert files(tmp_path) == wanted
    table = pd.read_csv(tmp_path / "raw" / "metadata.csv")
    assert set(table["isic_id"]) == set(wanted)
    assert {"diagnosis_1", "patient_id", "image_type", "copyright_license"} <= {*table}
    report = pd.read_csv(tmp_path / "reports" / "download.csv").set_index("isic_id")["status"]
    assert report.to_dict() == {"ISIC_0000003": "licence", "ISIC_0000004": "no label"}
    assert not list((tmp_path / "raw").glob(".*"))
    query = parse_qs(urlsplit(server.asked[0]).query)
    assert query["query"] == ["image_type:dermoscopic"] and query["collections"] == ["65"]
    assert any(path.endswith("?fresh") for path in server.asked)


def test_a_file_that_never_comes_whole_is_reported_and_the_next_run_fetches_it_alone(
    server, tmp_path
):
    server.trouble = {"ISIC_0000002": ["truncate"] * 3}
    with pytest.raises(DownloadError, match=r"1 of 10 images did not come"):
        download(tmp_path, options(server))
    assert "ISIC_0000002" not in files(tmp_path) and len(files(tmp_path)) == 9
    report = pd.read_csv(tmp_path / "reports" / "download.csv").set_index("isic_id")
    assert report.loc["ISIC_0000002", "status"] == "failed"
    server.asked.clear()
    download(tmp_path, options(server))
    assert server.asked == ["/files/ISIC_0000002.jpg"] and len(files(tmp_path)) == 10


def test_a_partial_or_foreign_file_under_the_final_name_is_not_taken_for_whole(server, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "ISIC_0000000.jpg").write_bytes(server.files["ISIC_0000000"][:100])
    (tmp_path / "raw" / ".ISIC_0000001.7.part").write_bytes(b"left by a killed run")
    download(tmp_path, options(server, number=3))
    assert files(tmp_path) == {n: server.files[n] for n in list(server.files)[:3]}
    assert not list((tmp_path / "raw").glob(".*"))


def test_a_server_that_asks_for_patience_gets_it(server, tmp_path):
    server.trouble = {"ISIC_0000001": [429]}
    download(tmp_path, options(server, number=2))
    assert len(files(tmp_path)) == 2


def test_a_file_that_the_archive_lost_does_not_stop_the_rest(server, tmp_path):
    server.trouble = {"ISIC_0000001": [404]}
    download(tmp_path, options(server))
    report = pd.read_csv(tmp_path / "reports" / "download.csv").set_index("isic_id")["status"]
    assert report["ISIC_0000001"] == "not in the archive" and len(files(tmp_path)) == 9


def test_images_listed_twice_count_once(server, tmp_path):
    server.records.insert(1, server.records[0])
    download(tmp_path, options(server, number=2))
    assert set(files(tmp_path)) == {"ISIC_0000000", "ISIC_0000001"}


def test_what_the_archive_says_never_leads_out_of_the_folder(server, tmp_path):
    for name in ("./../../../outside", "/tmp/outside", "..", "a/b", None, 7):
        server.records.insert(0, server.record("ISIC_0000000") | {"isic_id": name})
    server.records.insert(0, server.record("ISIC_0000000") | {"metadata": ["odd"], "files": 3})
    download(tmp_path / "a" / "b" / "c", options(server, number=2))
    assert set(files(tmp_path / "a" / "b" / "c")) == {"ISIC_0000000", "ISIC_0000001"}
    outside = [path for path in tmp_path.rglob("*") if "outside" in path.name]
    assert not outside
    report = pd.read_csv(tmp_path / "a" / "b" / "c" / "reports" / "download.csv")["status"]
    assert report.value_counts().to_dict() == {"no name": 6, "no record": 1}


def test_a_picture_of_a_phone_with_two_frames_is_fetched_once(server, tmp_path):
    buffer = io.BytesIO()
    frames = [Image.fromarray(np.full((40, 50, 3), grey, np.uint8)) for grey in (90, 200)]
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:])
    server.files["ISIC_0000000"] = buffer.getvalue()
    server.records[0] = server.record("ISIC_0000000")
    download(tmp_path, options(server, number=1))
    server.asked.clear()
    download(tmp_path, options(server, number=1))
    assert set(files(tmp_path)) == {"ISIC_0000000"} and not server.asked


def test_errors_name_the_cure(server, tmp_path):
    with pytest.raises(DownloadError, match="no image matches"):
        download(tmp_path / "a", options(server, licences=["CC-NONE"]))
    server.trouble = {"page": ["drop"] * 99}
    with pytest.raises(DownloadError, match="run again"):
        download(tmp_path / "b", options(server))


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"diagnosis_1": "Malignant"}, "malignant"),
        ({"benign_malignant": "benign"}, "benign"),
        ({"diagnosis_1": "Benign", "benign_malignant": "benign"}, "benign"),
        ({"diagnosis_1": "Benign", "benign_malignant": "malignant"}, None),
        ({"diagnosis_1": "Indeterminate"}, None),
        ({"benign_malignant": "indeterminate/benign"}, None),
        ({"diagnosis_1": ""}, None),
        ({}, None),
    ],
)
def test_label(row, label):
    assert label_of(row) == label
