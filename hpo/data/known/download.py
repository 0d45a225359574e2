"""Download a data set from its mirrors into the cache, completely and with matching checksums, or not at all.

Mirrors are tried in turn. All files of a data set enter the cache at once, after every checksum has matched. Files that
hpo did not download are never replaced. pooch and tqdm are imported only for a download.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

from hpo.data.known import scikit_learn
from hpo.data.known.catalogue import CATALOGUE, Catalogue, Dataset, Download, known_dataset
from hpo.data.known.folders import VARIABLE, cache_folder
from hpo.data.known.idx import GZIP_MAGIC
from hpo.errors import DataError
from hpo.files import temporary_path

TIMEOUT_S = 30  # without data, before the next mirror is tried
CHECKSUMS = "SHA256SUMS"  # beside the files, in the format of `sha256sum -c`


class _WrongFileError(Exception):
    """A mirror's file is not the one in the catalogue."""


def fetch(
    name: str, *, catalogue: Catalogue = CATALOGUE, cache: Path | None = None, progress: bool | None = None
) -> Path:
    """Download a data set into the cache unless it is there and undamaged; return its folder.

    `progress` shows a progress bar for each file on stderr; None: if stderr is a terminal.
    """
    dataset = known_dataset(name, catalogue)
    if dataset.format == "scikit-learn":
        folder = scikit_learn.installed_folder()
        if folder is None:
            raise DataError(f"{name}: is part of scikit-learn, which is not installed")
        return folder
    target = (cache or cache_folder()) / name
    if _is_complete(target, dataset):
        return target
    if _is_foreign(target):
        raise DataError(f"{target}: has files that hpo did not download; move them away first")
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
    """Download all files of the data set and write their checksums into scratch/ready."""
    import pooch

    ready = scratch / "ready"
    ready.mkdir()
    mirrors = list(dataset.mirrors)
    for download in dataset.downloads:
        working = _from_any(download, mirrors, scratch, progress)
        mirrors.sort(key=lambda mirror: mirror != working)  # the next file begins with the mirror that worked
    lines = [f"{pooch.file_hash(str(ready / name))}  {name}\n" for name in _contents(dataset)]
    (ready / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def _from_any(download: Download, mirrors: list[str], scratch: Path, progress: bool) -> str:
    """Download one file from the first mirror with the right content; return that mirror."""
    failures = []
    for mirror in mirrors:
        packed = scratch / download.file
        try:
            _transfer(mirror + download.file, packed, progress)
            _unpack(download, packed, scratch / "ready")
        except _WrongFileError as error:
            failures.append(f"{mirror}: {error}")
        except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile):
            failures.append(f"{mirror}: sent damaged data")
        except OSError as error:
            if error.errno is not None:  # a failure of this machine, such as a full disk; network errors have no errno
                raise
            failures.append(f"{mirror}: {_reason(error)}")
        else:
            return mirror
        finally:
            packed.unlink(missing_ok=True)
    raise DataError(
        f"{download.file}: all mirrors failed ({'; '.join(failures)});"
        f" try again later, or download it yourself and name its folder in {VARIABLE}"
    )


def _transfer(url: str, path: Path, progress: bool) -> None:
    """Download a URL to a file. Network failures are exceptions of requests, all of them OSError."""
    from pooch import HTTPDownloader
    from tqdm import tqdm  # type: ignore[import-untyped]  # tqdm ships no types

    # pooch sets the real total later; without a total it would take the bar for none. It also resets the bar's clock at
    # the end, so no rate is shown. The bar of a mirror that failed is removed.
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
    """Unpack a download into the ready folder and check its checksum."""
    if download.members:
        _check(packed, download.sha256)
        with tarfile.open(packed, "r:gz") as archive:
            # Members are found by file name and copied one by one: paths in the archive are not used.
            found = {Path(member.name).name: member for member in archive if member.isfile()}
            for name in download.members:
                source = archive.extractfile(found[name]) if name in found else None
                if source is None:
                    raise _WrongFileError(f"the archive has no {name}")
                with source, open(ready / name, "wb") as out:
                    shutil.copyfileobj(source, out)
        return
    target = ready / download.contents[0]
    with open(packed, "rb") as raw:
        # A server may have decompressed the file (Content-Encoding).
        source_file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP_MAGIC else raw
        with source_file, open(target, "wb") as out:
            shutil.copyfileobj(source_file, out)
    _check(target, download.sha256)


def _check(path: Path, sha256: str) -> None:
    import pooch

    if pooch.file_hash(str(path)) != sha256:
        raise _WrongFileError("wrong checksum")


def _reason(error: OSError) -> str:
    """Return a network failure in a few words; the text of requests has several lines of internals."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    words = {"ConnectionError": "cannot be reached", "ConnectTimeout": "cannot be reached", "ReadTimeout": "timed out"}
    kind = type(error).__name__
    return words.get(kind, f"transfer failed ({kind})")


def _contents(dataset: Dataset) -> list[str]:
    return [name for download in dataset.downloads for name in download.contents]


def _is_complete(folder: Path, dataset: Dataset) -> bool:
    """Return whether every file of an earlier download exists and is unchanged."""
    import pooch

    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return all(sums.get(name) == pooch.file_hash(str(folder / name)) for name in _contents(dataset))
    except (OSError, UnicodeDecodeError):
        return False


def _is_foreign(folder: Path) -> bool:
    """Return whether the folder has files that hpo did not download."""
    if (folder / CHECKSUMS).is_file() or not os.path.lexists(folder):
        return False
    return not folder.is_dir() or any(folder.iterdir())


def _move_in(scratch: Path, target: Path, dataset: Dataset) -> None:
    """Move the ready folder to its place; a damaged earlier download is removed with the scratch folder."""
    if _is_complete(target, dataset):  # another process was faster
        return
    try:
        if os.path.lexists(target):
            target.rename(scratch / "replaced")
        (scratch / "ready").rename(target)
    except OSError:
        if not _is_complete(target, dataset):
            raise
