"""Checks of `hpo doctor`, in order: storage, data sets, packages, torch with its devices and threads, C compiler.

Each finding is yielded as soon as its check ends; a check that fails does not prevent the next ones. No storage is
written without `fix`, which requeues orphaned trials (`hpo.results.doctor.storage`). All checks take a few seconds.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from hpo.data import Listing, list_datasets
from hpo.data.known.folders import VARIABLE
from hpo.errors import HpoError
from hpo.results.doctor.finding import Finding, Verdict, failed, ok, problem, warning
from hpo.results.doctor.storage import storage_findings

if TYPE_CHECKING:
    from hpo.training.devices import DeviceCheck

THREADS = "OMP_NUM_THREADS"
DRIVER = Path("/proc/driver/nvidia/version")
FULL = 0.1
"""The fraction of a device's memory that should be free."""


def findings(url: str | None, fix: bool) -> Iterator[Finding]:
    """Run all checks; with `fix`, requeue orphaned trials."""
    yield from storage_findings(url, fix)
    yield data_folder(os.environ.get(VARIABLE, ""))
    try:
        yield from map(dataset, list_datasets())
    except (HpoError, OSError) as error:
        yield failed("data sets", error)
    yield packages(metadata.requires("hpo") or [])
    yield from _torch()
    yield _compiler()


def data_folder(named: str) -> Finding:
    """Check the folder that HPO_DATA_DIR names."""
    folder = Path(os.path.expanduser(named))
    if not named:
        return ok(VARIABLE, "not set")
    if not folder.is_dir():
        state = "not a folder" if folder.exists() else "no such folder"
        return problem(VARIABLE, f"{named}: {state}", f"set {VARIABLE} to a folder, or `unset {VARIABLE}`")
    if not os.access(folder, os.R_OK | os.X_OK):
        return problem(VARIABLE, f"{named}: cannot be read", f"`chmod u+rx {shlex.quote(str(folder))}`")
    return ok(VARIABLE, named)


def dataset(listing: Listing) -> Finding:
    """Check a data set; a missing one is no problem, a damaged one is."""
    check = f"data {listing.name}"
    if listing.train_images is not None:
        return ok(check, f"{listing.train_images:,} training examples in {listing.place} ({listing.note})")
    if listing.place is None:
        found, _, command = listing.note.partition(": ")
        return Finding(check, Verdict.OK, found, f"`{command}` downloads it" if command else "")
    found, _, advice = listing.note.partition("; ")
    return problem(check, found, advice or f"delete its files, and `hpo data fetch {listing.name}`")


def packages(required: Sequence[str]) -> Finding:
    """Check the versions of installed packages against the requirements of hpo, without importing them."""
    needed = [need for need in map(Requirement, required) if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong: list[str] = []
    for need in needed:
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is not installed")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} is {version}, required is {need.specifier}")
    if not wrong:
        return ok("packages", f"{len(needed)}, all of a version that hpo supports")
    names = {text.split(" ", 1)[0] for text in wrong}
    wanted = " ".join(shlex.quote(f"{need.name}{need.specifier}") for need in needed if need.name in names)
    return problem("packages", ", ".join(wrong), f"`{shlex.quote(sys.executable)} -m pip install {wanted}`")


def threads(cores: int, of_torch: int, variable: str | None) -> Finding:
    """Check the number of CPU threads: one for each core is best, more wait for each other."""
    found = f"{of_torch} threads of torch on {cores} {'core' if cores == 1 else 'cores'}"
    if variable is not None:
        found += f", {THREADS} is {variable}"
        # a list is for nested parallel regions: the first number counts
        number = re.fullmatch(r"\s*0*([1-9]\d*)\s*(,\s*\d+\s*)*", variable)
        if number is None:
            return warning("threads", f"{found}, which is not a number of threads", f"`unset {THREADS}`")
        if int(number[1]) > cores:
            return warning("threads", f"{found}: threads wait for each other", f"`export {THREADS}={cores}`")
    if of_torch > cores:
        return warning("threads", f"{found}: threads wait for each other", f"`export {THREADS}={cores}`")
    return ok("threads", found)


def device(found: DeviceCheck) -> Finding:
    """Return the finding for a tested device."""
    check = f"device {found.name.split(' ', 1)[0]}"
    if found.problem:
        other = "--device cpu" if found.name != "cpu" else "another build of torch, from https://pytorch.org"
        return problem(check, f"{found.name}: {found.problem}", f"until it works, use {other}")
    traits = [found.name, "multiplies correctly"]
    if found.bfloat16 is not None:
        traits.append(f"{'' if found.bfloat16 else 'no '}instructions for bfloat16")
    if found.free_bytes is None or not found.memory_bytes:
        return ok(check, ", ".join(traits))
    traits.append(f"{found.free_bytes / 1e9:.1f} of {found.memory_bytes / 1e9:.1f} GB free")
    if found.free_bytes < FULL * found.memory_bytes:
        return warning(check, ", ".join(traits), "list the processes that use it with `nvidia-smi`")
    return ok(check, ", ".join(traits))


def _torch() -> Iterator[Finding]:
    from hpo.training.devices import check_device, detect_devices

    found = detect_devices()
    build = f"built for CUDA {found.cuda}" if found.cuda else "built without CUDA"
    version = f"{metadata.version('torch')}, {build}"
    if found.warning:
        yield warning("torch", f"{version}; torch warns: {found.warning}", "run `nvidia-smi`, and update the driver")
    elif not found.cuda and DRIVER.exists():
        yield warning(
            "torch", f"{version}, but the driver of a GPU is installed", "install a build from https://pytorch.org"
        )
    else:
        yield ok("torch", version)
    for each in found.devices:
        yield device(check_device(each))
    yield threads(_cores(), found.threads, os.environ.get(THREADS))


def _compiler() -> Finding:
    """Check the C compiler, and compile what training on a CPU needs into the cache, unless it is there."""
    import torch

    from hpo.training.compiled.passes import load_passes

    if missing := load_passes(torch.float32):
        return warning("C compiler", missing, "with one, such as gcc, training on a CPU takes less time")
    return ok("C compiler", "compiles for this processor")


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
