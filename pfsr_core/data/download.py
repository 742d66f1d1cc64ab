"""Downloads of the public datasets, whose terms forbid their redistribution.

ML-100K is looked for in this order: the path given, the cache, the official archive, and the
RecBole wheel on the package index that pip is configured with (only unpacked, never installed).
Whatever the source, its rows must be the rows of ML-100K, in the same order.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import BinaryIO

from pfsr_core.data.errors import DataUnavailableError
from pfsr_core.files import staged

Files = dict[str, bytes]

ML_100K_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ML_1M_URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
# GroupLens publishes the MD5 beside the archive.
ML_1M_MD5 = "c4d9eecfca2ab87c1945afe126590906"
# SHA-256 of the official u.data. RecBole's ml-100k.inter is the same bytes after its header line
# (with it: 4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff), so the file order,
# which decides ties in time, does not depend on the source.
ML_100K_ROWS_SHA256 = "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"
ML_100K_NAMES = ("ml-100k.inter", "u.data")
RECBOLE = "recbole==1.2.1"
CONNECT_SECONDS = 8.0
DOWNLOAD_SECONDS = 120.0
LARGEST_ARCHIVE = 64 * 2**20
FAILURES = (
    OSError,
    ValueError,
    KeyError,
    HTTPException,
    zipfile.BadZipFile,
    subprocess.SubprocessError,
)


def cache_directory() -> Path:
    """$PFSR_CACHE, else $XDG_CACHE_HOME/pfsr, else ~/.cache/pfsr."""
    if os.environ.get("PFSR_CACHE"):
        return Path(os.environ["PFSR_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pfsr"


def fetch_ml_100k(path: str = "") -> Path:
    """File to read, ``u.data`` or ``ml-100k.inter``, with its title file beside it.

    ``path`` may be such a file, its directory, or the zip archive; when it is given, no other
    source is asked. Raises DataUnavailableError with the reason of every source.
    """
    cache_folder = cache_directory() / "ml-100k"
    if path:
        sources = {path: lambda: _from_path(Path(path).expanduser(), cache_folder)}
    else:
        sources = {
            f"cache {cache_folder}": lambda: _find_ml_100k(cache_folder),
            ML_100K_URL: lambda: _install(_archive_files(download(ML_100K_URL)), cache_folder),
            f"{RECBOLE} with pip": lambda: _install(_recbole_files(), cache_folder),
        }
    return _first_available("ml-100k", sources)


def fetch_ml_1m(path: str = "") -> Path:
    """``ratings.dat`` of ML-1M: from ``path`` (file, directory, zip), the cache or the archive."""
    cache_folder = cache_directory() / "ml-1m"
    if path:
        sources = {path: lambda: _ml_1m_from_path(Path(path).expanduser(), cache_folder)}
    else:
        sources = {
            f"cache {cache_folder}": lambda: _find(cache_folder, ("ratings.dat",)),
            ML_1M_URL: lambda: _install_ml_1m(download(ML_1M_URL), cache_folder),
        }
    return _first_available("ml-1m", sources)


def download(url: str) -> bytes:
    """Content behind ``url``; gives up soon where the network does not answer."""
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    downloaded = io.BytesIO()
    with _connect(url) as response:
        while chunk := response.read(1 << 16):
            downloaded.write(chunk)
            if time.monotonic() > deadline or downloaded.tell() > LARGEST_ARCHIVE:
                raise OSError(f"stopped after {downloaded.tell()} bytes: too slow or too large")
    return downloaded.getvalue()


def _connect(url: str) -> BinaryIO:
    # The timeout of urlopen covers neither the name server nor one address after another.
    answer: Queue[BinaryIO | Exception] = Queue()

    def connect() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=CONNECT_SECONDS))
        except Exception as error:
            answer.put(error)

    Thread(target=connect, daemon=True).start()
    try:
        response = answer.get(timeout=CONNECT_SECONDS)
    except Empty:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS:g} seconds") from None
    if isinstance(response, Exception):
        raise response
    return response


def _first_available(dataset_name: str, sources: Mapping[str, Callable[[], Path]]) -> Path:
    attempts: list[tuple[str, str]] = []
    for source, take_from in sources.items():
        try:
            return take_from()
        except FAILURES as error:
            attempts.append((source, str(error) or type(error).__name__))
    fix = (
        f"download {dataset_name}.zip from https://grouplens.org/datasets/movielens and give its "
        f"path (zip, directory or file), or unpack it to {cache_directory() / dataset_name}; "
        f"for other data use the dataset 'file'"
    )
    raise DataUnavailableError(dataset_name, attempts, fix)


def _from_path(path: Path, cache_folder: Path) -> Path:
    if path.suffix == ".zip":
        return _install(_archive_files(path.read_bytes()), cache_folder)
    return _find_ml_100k(path)


def _ml_1m_from_path(path: Path, cache_folder: Path) -> Path:
    if path.suffix == ".zip":
        return _install_ml_1m(path.read_bytes(), cache_folder)
    return _find(path, ("ratings.dat",))


def _find_ml_100k(path: Path) -> Path:
    rating_file = _find(path, ML_100K_NAMES)
    _verify_rows(rating_file.name, rating_file.read_bytes())
    return rating_file


def _find(path: Path, file_names: tuple[str, ...]) -> Path:
    """``path`` itself if it is a file, else the first of ``file_names`` in it or a level below."""
    if path.is_file():
        return path
    candidates = [folder / name for folder in (path, path / path.name) for name in file_names]
    candidates += [found for name in file_names for found in sorted(path.glob(f"*/{name}"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no {' or '.join(file_names)} there")


def _verify_rows(name: str, content: bytes) -> None:
    rows = content.replace(b"\r\n", b"\n")
    if name.endswith(".inter"):
        rows = rows.partition(b"\n")[2]
    digest = hashlib.sha256(rows).hexdigest()
    if digest != ML_100K_ROWS_SHA256:
        raise ValueError(
            f"{name} does not hold the rows of ML-100K in their order "
            f"(SHA-256 {digest[:12]}..., expected {ML_100K_ROWS_SHA256[:12]}...)"
        )


def _archive_files(content: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member_names = {Path(name).name: name for name in archive.namelist() if "ml-100k" in name}
        wanted_names = ("u.item", "ml-100k.item", "u.data", "ml-100k.inter")
        return {
            name: archive.read(member_names[name]) for name in wanted_names if name in member_names
        }


def _recbole_files() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
        # A wheel only: a source distribution would run its own code.
        command += ["--no-binary=:none:", "--only-binary=:all:", "--retries=0", "--timeout=15"]
        command += ["--disable-pip-version-check", "--dest", folder, RECBOLE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        if done.returncode:
            raise OSError((done.stderr.strip() or "pip failed").splitlines()[-1])
        wheel = next(Path(folder).glob("*.whl"))
        return _archive_files(wheel.read_bytes())


def _install(files: Files, cache_folder: Path) -> Path:
    """Writes titles and rows of ML-100K into ``cache_folder``; returns the file of the rows."""
    rating_name = next((name for name in ML_100K_NAMES if name in files), None)
    if rating_name is None:
        raise ValueError("the archive holds neither u.data nor ml-100k.inter")
    _verify_rows(rating_name, files[rating_name])
    return _write_all(files, rating_name, cache_folder)


def _install_ml_1m(content: bytes, cache_folder: Path) -> Path:
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != ML_1M_MD5:
        raise ValueError("the archive is not ML-1M as GroupLens published it (MD5 differs)")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        file_names = ("movies.dat", "ratings.dat")
        return _write_all(
            {n: archive.read(f"ml-1m/{n}") for n in file_names}, "ratings.dat", cache_folder
        )


def _write_all(files: Files, main_name: str, cache_folder: Path) -> Path:
    # The main file comes last: where it exists, the others are complete.
    cache_folder.mkdir(parents=True, exist_ok=True)
    for file_name in sorted(files, key=lambda file_name: file_name == main_name):
        with staged(cache_folder / file_name) as stage:
            stage.write_bytes(files[file_name])
    return cache_folder / main_name
