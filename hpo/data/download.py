"""Downloads: a data set from its mirrors into the cache, whole and checked, or not at all.

Promises: each mirror is tried in turn; nothing enters the cache's folder of a data set before every file has arrived
and matched its checksum, and then all of them at once; files that hpo did not download are never replaced.
Knows nothing of pixels and labels: content is bytes here. pooch and tqdm are imported only by a download.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

from hpo.data import digits
from hpo.data.catalogue import CATALOGUE, Catalogue, Dataset, Download, known_dataset
from hpo.data.idx import GZIP_MAGIC
from hpo.data.places import VARIABLE, cache_folder
from hpo.errors import DataError
from hpo.files import temporary_path

TIMEOUT_S = 30  # without a byte, before the next mirror is tried
CHECKSUMS = "SHA256SUMS"  # written beside the files, in the form that `sha256sum -c` reads


class _RefusedError(Exception):
    """A mirror's file is not the one that the catalogue describes."""


def fetch(
    name: str, *, catalogue: Catalogue = CATALOGUE, cache: Path | None = None, progress: bool | None = None
) -> Path:
    """Download a data set into the cache unless it is there unharmed; return its folder.

    `progress` shows a bar a file on stderr; None: where stderr is a terminal.
    """
    dataset = known_dataset(name, catalogue)
    if dataset.format == "scikit-learn":
        folder = digits.place()
        if folder is None:
            raise DataError(f"{name}: comes inside scikit-learn, which is not installed")
        return folder
    target = (cache or cache_folder()) / name
    if _is_whole(target, dataset):
        return target
    if _is_foreign(target):
        raise DataError(f"{target}: holds files that hpo did not download; move them away first")
    show = sys.stderr.isatty() if progress is None else progress
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_path(target.parent, folder=True) as scratch:
            _download(dataset, scratch, show)
            _move_in(scratch, target, dataset)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error}); free or repair the cache") from error
    return target


def _download(dataset: Dataset, scratch: Path, progress: bool) -> None:
    """Fill scratch/ready with every file of the data set and their checksums."""
    import pooch

    ready = scratch / "ready"
    ready.mkdir()
    mirrors = list(dataset.mirrors)
    for download in dataset.downloads:
        good = _from_any(download, mirrors, scratch, progress)
        mirrors.sort(key=lambda mirror: mirror != good)  # the next file asks the mirror that answered first
    lines = [f"{pooch.file_hash(str(ready / name))}  {name}\n" for name in _contents(dataset)]
    (ready / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def _from_any(download: Download, mirrors: list[str], scratch: Path, progress: bool) -> str:
    """Get one file from the first mirror that has it right; return that mirror."""
    failures = []
    for mirror in mirrors:
        packed = scratch / download.file
        try:
            _transfer(mirror + download.file, packed, progress)
            _unpack(download, packed, scratch / "ready")
        except _RefusedError as error:
            failures.append(f"{mirror}: {error}")
        except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile):
            failures.append(f"{mirror}: sent damaged data")
        except OSError as error:
            if error.errno is not None:  # this machine's own failure (a full disk); the network's carry no errno
                raise
            failures.append(f"{mirror}: {_reason(error)}")
        else:
            return mirror
        finally:
            packed.unlink(missing_ok=True)
    raise DataError(
        f"{download.file}: no mirror delivered it ({'; '.join(failures)});"
        f" try again later, or get it by hand and name its folder in {VARIABLE}"
    )


def _transfer(url: str, path: Path, progress: bool) -> None:
    """Copy one address to a file. Network failures are requests' exceptions, all of them OSError."""
    from pooch import HTTPDownloader
    from tqdm import tqdm  # type: ignore[import-untyped]  # tqdm ships no types

    # pooch sets the real total once it knows it; a bar without any would count as no bar. It also resets the bar's
    # clock at the end, so a rate would be nonsense there. The bar of a mirror that failed is wiped away.
    with tqdm(
        desc=path.name,
        total=1,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=not progress,
        ncols=79,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left]",
    ) as bar:
        download = HTTPDownloader(progressbar=bar if progress else False, chunk_size=2**16, timeout=TIMEOUT_S)
        try:
            download(url, str(path), None)
        except OSError:
            bar.leave = False
            raise


def _unpack(download: Download, packed: Path, ready: Path) -> None:
    """Put the content into the ready folder, once its checksum is right."""
    if download.members:
        _check(packed, download.sha256)
        with tarfile.open(packed, "r:gz") as archive:
            # Members are looked up by their last name and copied out one by one: no path of the archive is followed.
            found = {Path(member.name).name: member for member in archive if member.isfile()}
            for name in download.members:
                source = archive.extractfile(found[name]) if name in found else None
                if source is None:
                    raise _RefusedError(f"the archive has no {name}")
                with source, open(ready / name, "wb") as out:
                    shutil.copyfileobj(source, out)
        return
    target = ready / download.contents[0]
    with open(packed, "rb") as raw:
        # A server may undo the compression on the way (Content-Encoding): the content is what counts.
        source_file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP_MAGIC else raw
        with source_file, open(target, "wb") as out:
            shutil.copyfileobj(source_file, out)
    _check(target, download.sha256)


def _check(path: Path, sha256: str) -> None:
    import pooch

    if pooch.file_hash(str(path)) != sha256:
        raise _RefusedError("wrong checksum")


def _reason(error: OSError) -> str:
    """Return a network failure in a few words: requests' own text runs over several lines of internals."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    words = {"ConnectionError": "cannot be reached", "ConnectTimeout": "cannot be reached", "ReadTimeout": "timed out"}
    kind = type(error).__name__
    return words.get(kind, f"broke off ({kind})")


def _contents(dataset: Dataset) -> list[str]:
    return [name for download in dataset.downloads for name in download.contents]


def _is_whole(folder: Path, dataset: Dataset) -> bool:
    """Say whether every file of an earlier download is there and unchanged."""
    import pooch

    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return all(sums.get(name) == pooch.file_hash(str(folder / name)) for name in _contents(dataset))
    except (OSError, UnicodeDecodeError):
        return False


def _is_foreign(folder: Path) -> bool:
    """Say whether something is there that no download has put there."""
    if (folder / CHECKSUMS).is_file() or not os.path.lexists(folder):
        return False
    return not folder.is_dir() or any(folder.iterdir())


def _move_in(scratch: Path, target: Path, dataset: Dataset) -> None:
    """Put the ready folder in place; a damaged earlier download goes, with the scratch folder."""
    if _is_whole(target, dataset):  # another process was quicker
        return
    try:
        if os.path.lexists(target):
            target.rename(scratch / "replaced")
        (scratch / "ready").rename(target)
    except OSError:
        if not _is_whole(target, dataset):
            raise
