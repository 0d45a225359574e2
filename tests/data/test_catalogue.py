from __future__ import annotations

import re

from hpo.data.known.catalogue import CATALOGUE


def test_every_download_has_two_mirrors_and_a_checksum() -> None:
    for dataset in CATALOGUE.values():
        if dataset.format == "scikit-learn":
            continue
        assert len(set(dataset.mirrors)) >= 2
        assert all(re.fullmatch(r"https?://\S+/", mirror) for mirror in dataset.mirrors)
        assert all(re.fullmatch("[0-9a-f]{64}", download.sha256) for download in dataset.downloads)
    sums = [download.sha256 for dataset in CATALOGUE.values() for download in dataset.downloads]
    assert len(sums) == len(set(sums)) == 9
