from __future__ import annotations

import gzip
import hashlib
import io
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from data_files import TEST, TRAIN, cifar_records, idx_images, idx_labels, some_images, study_of, write_idx

from hpo.data import fetch, load_split, load_test
from hpo.data.known.catalogue import Catalogue, Dataset, Download
from hpo.errors import DataError, UsageError

CONTENTS = {
    TRAIN[0]: idx_images(some_images(50)[0]),
    TRAIN[1]: idx_labels(some_images(50)[1]),
    TEST[0]: idx_images(some_images(20)[0]),
    TEST[1]: idx_labels(some_images(20)[1]),
}
BATCHES = {
    "data_batch_1.bin": cifar_records(30),
    "data_batch_2.bin": cifar_records(20),
    "test_batch.bin": cifar_records(9),
}
LABELS = f"{TRAIN[1]}.gz"


@dataclass
class Mirror:
    """A real server on the loopback interface that sends the files of a folder."""

    files: dict[str, bytes] = field(default_factory=dict)
    missing_bytes: dict[str, int] = field(default_factory=dict)  # announced but never sent
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mirror, Mirror]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pair, servers = (Mirror(), Mirror()), []
    for mirror in pair:
        mirror.files = {f"{name}.gz": gzip.compress(content) for name, content in CONTENTS.items()}
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(mirror))
        server.daemon_threads = False  # so that closing it waits for every answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        mirror.address = f"http://127.0.0.1:{server.server_address[1]}/data/"
    yield pair
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def handler_of(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/data/")
            mirror.asked.append(name)
            content = mirror.files.get(name)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + mirror.missing_bytes.get(name, 0)))
            for key, value in mirror.headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def mnist_at(*addresses: str) -> Catalogue:
    downloads = tuple(Download(f"{name}.gz", hashlib.sha256(text).hexdigest()) for name, text in CONTENTS.items())
    return {"mnist": Dataset("mnist", "idx", (1, 28, 28), mirrors=addresses, downloads=downloads)}


def archive_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def cifar_at(address: str, archive: bytes) -> Catalogue:
    download = Download("cifar.tar.gz", hashlib.sha256(archive).hexdigest(), tuple(BATCHES))
    return {"cifar10": Dataset("cifar10", "cifar", (3, 32, 32), mirrors=(address,), downloads=(download,))}


def refusal(catalogue: Catalogue, cache: Path, name: str = "mnist") -> str:
    with pytest.raises(DataError) as caught:
        fetch(name, catalogue=catalogue)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*")), "something half-written stayed in the cache"
    assert not list(cache.glob(".*"))
    return str(caught.value)


def test_a_complete_download_enters_the_cache_and_loads(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    good, spare = mirrors
    folder = fetch("mnist", catalogue=mnist_at(good.address, spare.address))
    assert folder == cache / "mnist"
    assert [path.name for path in cache.iterdir()] == ["mnist"]
    assert {path.name for path in folder.iterdir()} == {*CONTENTS, "SHA256SUMS"}
    assert all((folder / name).read_bytes() == content for name, content in CONTENTS.items())
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
    split = load_split(study_of("mnist"))
    assert (len(split.train), split.test_size, len(load_test(split))) == (40, 20, 20)
    assert spare.asked == []


def test_a_second_fetch_downloads_nothing(mirrors: tuple[Mirror, Mirror]) -> None:
    good, _ = mirrors
    catalogue = mnist_at(good.address)
    assert fetch("mnist", catalogue=catalogue) == fetch("mnist", catalogue=catalogue)
    assert len(good.asked) == 4


def test_a_damaged_download_is_replaced_by_the_next_fetch(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    catalogue = mnist_at(mirrors[0].address)
    folder = fetch("mnist", catalogue=catalogue)
    (folder / TRAIN[0]).write_bytes(b"damaged")
    fetch("mnist", catalogue=catalogue)
    assert (folder / TRAIN[0]).read_bytes() == CONTENTS[TRAIN[0]]
    assert [path.name for path in cache.iterdir()] == ["mnist"]


def test_files_that_hpo_did_not_download_are_not_replaced(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    own = write_idx(cache / "mnist", 30)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    with pytest.raises(DataError, match="has files that hpo did not download"):
        fetch("mnist", catalogue=mnist_at(mirrors[0].address))
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_an_empty_folder_is_replaced(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    (cache / "mnist").mkdir(parents=True)
    assert (fetch("mnist", catalogue=mnist_at(mirrors[0].address)) / TRAIN[0]).is_file()


def test_a_dead_mirror_is_tried_once(mirrors: tuple[Mirror, Mirror]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        folder = fetch("mnist", catalogue=mnist_at(dead, mirrors[0].address))
    assert (folder / TRAIN[0]).read_bytes() == CONTENTS[TRAIN[0]]


def damage(mirror: Mirror, how: str) -> None:
    if how == "status 404":
        del mirror.files[LABELS]
    elif how == "wrong checksum":
        mirror.files[LABELS] = gzip.compress(CONTENTS[TRAIN[1]][:-1] + b"\x03")
    elif how == "transfer failed":
        mirror.missing_bytes[LABELS] = 1000
    else:
        mirror.files[LABELS] = mirror.files[LABELS][:-12]


DAMAGES = ["status 404", "wrong checksum", "transfer failed", "sent damaged data"]


@pytest.mark.parametrize("how", DAMAGES)
def test_the_next_mirror_is_tried_after_wrong_content(mirrors: tuple[Mirror, Mirror], how: str) -> None:
    bad, good = mirrors
    damage(bad, how)
    folder = fetch("mnist", catalogue=mnist_at(bad.address, good.address))
    assert all((folder / name).read_bytes() == content for name, content in CONTENTS.items())
    assert LABELS in good.asked
    assert bad.asked == [f"{TRAIN[0]}.gz", LABELS]  # the mirror that answered is asked first from then on


@pytest.mark.parametrize("how", DAMAGES)
def test_nothing_is_stored_if_all_mirrors_fail(mirrors: tuple[Mirror, Mirror], cache: Path, how: str) -> None:
    for mirror in mirrors:
        damage(mirror, how)
    message = refusal(mnist_at(*(mirror.address for mirror in mirrors)), cache)
    assert message.startswith(f"{LABELS}: all mirrors failed (")
    assert all(mirror.address in message for mirror in mirrors)
    assert message.count(how) == 2
    assert "HPO_DATA_DIR" in message


def test_decompressed_content_is_accepted(mirrors: tuple[Mirror, Mirror]) -> None:
    """Some servers decompress files, others declare the compression as Content-Encoding."""
    plain, declared = mirrors
    plain.files = {f"{name}.gz": content for name, content in CONTENTS.items()}
    folder = fetch("mnist", catalogue=mnist_at(plain.address))
    assert (folder / TRAIN[0]).read_bytes() == CONTENTS[TRAIN[0]]
    declared.headers = {"Content-Encoding": "gzip"}
    (folder / TRAIN[0]).unlink()
    fetch("mnist", catalogue=mnist_at(declared.address))
    assert (folder / TRAIN[0]).read_bytes() == CONTENTS[TRAIN[0]]


def test_an_archive_is_checked_and_its_members_are_extracted(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    archive = archive_of({**BATCHES, "../../escaped": b"x", "readme.html": b"x"})
    mirrors[0].files["cifar.tar.gz"] = archive
    folder = fetch("cifar10", catalogue=cifar_at(mirrors[0].address, archive))
    assert {path.name for path in folder.iterdir()} == {*BATCHES, "SHA256SUMS"}
    assert [path.name for path in cache.iterdir()] == ["cifar10"]
    assert len(load_split(study_of("cifar10")).train) == 40


def test_an_archive_without_a_member_is_refused(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    archive = archive_of({name: content for name, content in BATCHES.items() if name != "test_batch.bin"})
    mirrors[0].files["cifar.tar.gz"] = archive
    catalogue = cifar_at(mirrors[0].address, archive)
    assert "the archive has no test_batch.bin" in refusal(catalogue, cache, "cifar10")
    mirrors[0].files["cifar.tar.gz"] = archive[:-1] + b"x"
    assert "wrong checksum" in refusal(catalogue, cache, "cifar10")


def test_a_cache_that_cannot_be_written_is_one_line(mirrors: tuple[Mirror, Mirror], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/mnist: cannot be written \((File exists|Not a directory)\)"):
        fetch("mnist", catalogue=mnist_at(mirrors[0].address), cache=tmp_path / "file")


def test_two_processes_may_fetch_at_once(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    catalogue = mnist_at(mirrors[0].address)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch("mnist", catalogue=catalogue, progress=False), range(4)))
    assert set(folders) == {cache / "mnist"}
    assert {path.name for path in folders[0].iterdir()} == {*CONTENTS, "SHA256SUMS"}
    assert [path.name for path in cache.iterdir()] == ["mnist"]


def test_progress_is_shown_on_stderr_when_asked_for(
    mirrors: tuple[Mirror, Mirror], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("mnist", catalogue=mnist_at(mirrors[0].address), cache=tmp_path / "quiet", progress=False)
    assert capsys.readouterr() == ("", "")
    fetch("mnist", catalogue=mnist_at(mirrors[0].address), cache=tmp_path / "shown", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "train-images-idx3-ubyte.gz: 100%" in err


def test_digits_need_no_download_and_unknown_names_are_wrong_usage() -> None:
    assert fetch("digits").name == "sklearn"
    with pytest.raises(UsageError, match="did you mean 'cifar10'"):
        fetch("cifar")
