"""The sources of ML-100K, one after another, with the network replaced."""

from __future__ import annotations

import hashlib
import io
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pfsr_core.data import download as fetch
from pfsr_core.data.errors import DataUnavailableError

DOWNLOAD = fetch.download  # before the fixture replaces it
ROWS = b"1\t2\t3\t4\n2\t1\t5\t6\n"
INTER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + ROWS


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


OFFICIAL = zipped({"ml-100k/u.data": ROWS, "ml-100k/u.item": b"1|Heat\n", "ml-100k/README": b""})
WHEEL = zipped(
    {
        "recbole/dataset_example/ml-100k/ml-100k.inter": INTER,
        "recbole/dataset_example/ml-100k/ml-100k.item": b"item_id:token\ttitle:token\n1\tHeat\n",
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no network, and two rows that stand for ML-100K."""
    monkeypatch.setenv("PFSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "ML_100K_ROWS_SHA256", hashlib.sha256(ROWS).hexdigest())
    monkeypatch.setattr(fetch, "download", refuse)
    monkeypatch.setattr(subprocess, "run", pip(b"", "ERROR: No matching distribution found"))
    return tmp_path / "cache" / "ml-100k"


def refuse(url: str) -> bytes:
    raise OSError("the network is down")


def pip(wheel: bytes, error: str = "") -> Callable[..., subprocess.CompletedProcess[str]]:
    """A subprocess.run that stands for ``pip download``."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if wheel:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, int(not wheel), "", error)

    return run


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFSR_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert fetch.cache_directory() == Path("/a")
    monkeypatch.delenv("PFSR_CACHE")
    assert fetch.cache_directory() == Path("/b/pfsr")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.cache_directory() == Path.home() / ".cache" / "pfsr"


def test_the_official_archive_is_installed_and_found_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "download", lambda url: OFFICIAL)
    assert fetch.fetch_ml_100k() == cache / "u.data"
    assert sorted(path.name for path in cache.iterdir()) == ["u.data", "u.item"]
    monkeypatch.setattr(fetch, "download", refuse)
    assert fetch.fetch_ml_100k() == cache / "u.data"


def test_the_wheel_is_used_when_the_archive_is_out_of_reach(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", pip(WHEEL))
    assert fetch.fetch_ml_100k() == cache / "ml-100k.inter"
    assert (cache / "ml-100k.item").read_bytes().endswith(b"1\tHeat\n")


def test_an_archive_with_other_rows_is_passed_over(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "download", lambda url: zipped({"ml-100k/u.data": b"1\t1\t1\t1\n"}))
    monkeypatch.setattr(subprocess, "run", pip(WHEEL))
    assert fetch.fetch_ml_100k() == cache / "ml-100k.inter"


def test_a_damaged_cache_is_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    (cache / "u.data").write_bytes(ROWS[:8])
    monkeypatch.setattr(fetch, "download", lambda url: OFFICIAL)
    assert fetch.fetch_ml_100k().read_bytes() == ROWS


def test_all_sources_fail(cache: Path) -> None:
    with pytest.raises(DataUnavailableError) as caught:
        fetch.fetch_ml_100k()
    assert caught.value.attempts == (
        (f"cache {cache}", "no ml-100k.inter or u.data there"),
        (fetch.ML_100K_URL, "the network is down"),
        ("recbole==1.2.1 with pip", "ERROR: No matching distribution found"),
    )
    for _, reason in caught.value.attempts:
        assert reason in str(caught.value)
    assert "Fix: download ml-100k.zip from https://grouplens.org" in str(caught.value)
    assert str(cache) in caught.value.fix


def test_pip_that_hangs_is_one_more_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired("pip", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DataUnavailableError, match="pip.* timed out after 90 seconds"):
        fetch.fetch_ml_100k()


class Response(io.BytesIO):
    """What urlopen returns, as far as a download looks at it."""


def test_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(b"x" * 70_000))
    assert DOWNLOAD("https://example.org/a.zip") == b"x" * 70_000


def test_a_download_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(b"x" * 70_000))
    monkeypatch.setattr(fetch, "LARGEST_ARCHIVE", 100)
    with pytest.raises(OSError, match="stopped after 65536 bytes: too slow or too large"):
        DOWNLOAD("https://example.org/a.zip")


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: time.sleep(0.5))
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.02)
    with pytest.raises(TimeoutError, match=r"no answer within 0.02 seconds"):
        DOWNLOAD("https://example.org/a.zip")


def test_a_server_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, timeout: float) -> None:
        raise urllib.error.URLError("refused")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(OSError, match="refused"):
        DOWNLOAD("https://example.org/a.zip")


@pytest.mark.parametrize("place", ["ml-100k.inter", "u.data", ".", "..", "../ml-100k.zip"])
def test_the_path_of_the_user(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "mine" / "ml-100k"
    folder.mkdir(parents=True)
    name = place if place.endswith("inter") else "u.data"
    (folder / name).write_bytes(INTER if name.endswith("inter") else ROWS)
    (folder.parent / "ml-100k.zip").write_bytes(OFFICIAL)
    found = fetch.fetch_ml_100k(str(folder / place))
    assert found.name == name
    assert found.is_file()


def test_windows_line_ends_do_not_make_other_rows(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_bytes(ROWS.replace(b"\n", b"\r\n"))
    assert fetch.fetch_ml_100k(str(tmp_path)) == tmp_path / "u.data"


def test_a_given_path_is_the_only_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "download", lambda url: OFFICIAL)
    with pytest.raises(DataUnavailableError, match="no ml-100k.inter or u.data there") as caught:
        fetch.fetch_ml_100k(str(tmp_path))
    assert len(caught.value.attempts) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("u.data", ROWS[9:] + ROWS[:9], "does not hold the rows of ML-100K in their order"),
        ("a.zip", b"PK", "File is not a zip file"),
        ("a.zip", zipped({"ml-100k/README": b""}), "holds neither u.data nor ml-100k.inter"),
    ],
)
def test_a_path_to_something_else(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataUnavailableError, match=reason):
        fetch.fetch_ml_100k(str(tmp_path / name))


def test_nothing_half_written_is_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(fetch, "download", lambda url: OFFICIAL)
    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(DataUnavailableError, match="disk full"):
        fetch.fetch_ml_100k()
    assert not (cache / "u.data").exists()


def test_ml_1m_from_path_and_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped({"ml-1m/ratings.dat": b"1::2::3::4\n", "ml-1m/movies.dat": b"2::Heat::A\n"})
    (tmp_path / "ml-1m.zip").write_bytes(archive)
    with pytest.raises(DataUnavailableError, match="MD5 differs"):
        fetch.fetch_ml_1m(str(tmp_path / "ml-1m.zip"))
    monkeypatch.setattr(fetch, "ML_1M_MD5", hashlib.md5(archive).hexdigest())
    found = fetch.fetch_ml_1m(str(tmp_path / "ml-1m.zip"))
    assert found.read_bytes() == b"1::2::3::4\n"
    assert fetch.fetch_ml_1m() == found
    assert fetch.fetch_ml_1m(str(found.parent)) == found


def test_ml_1m_out_of_reach() -> None:
    with pytest.raises(DataUnavailableError, match=r"ml-1m is not available.*\n.*\n.*network is"):
        fetch.fetch_ml_1m()
