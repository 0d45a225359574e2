"""Freed memory is reused while a population trains, and returned afterwards."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from hpo.training.cores.allocator import reused_memory

MB = 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_a_step_maps_no_page_that_an_earlier_step_has_freed() -> None:
    def step() -> None:
        tensors = [torch.empty(12 * MB, dtype=torch.uint8).fill_(1) for _ in range(4)]
        del tensors

    def mapped_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with reused_memory():
        # The first steps may still move to other places of a heap that earlier tests have fragmented.
        assert min(mapped_pages() for _ in range(5)) < 100
    assert mapped_pages() > 48 * MB / resource.getpagesize() / 2  # they were returned at the end
