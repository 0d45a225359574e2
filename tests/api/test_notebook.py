"""A real notebook's kernel: live lines in the front end, "interrupt", and the cells of the page about notebooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deadlines import deadline
from jupyter_client.manager import start_new_kernel
from pages import blocks
from tiny import tree

Messages = list[dict[str, Any]]


class Notebook:
    """A notebook's kernel in a folder."""

    def __init__(self, folder: Path) -> None:
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def run(self, code: str, on_message: Callable[[dict[str, Any]], None] = lambda message: None) -> Messages:
        """Run a cell; return its messages to the front end."""
        request = self.client.execute(code)
        messages: Messages = []
        ends = time.monotonic() + deadline()
        while time.monotonic() < ends:
            message = self.client.get_iopub_msg(timeout=deadline())
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["content"].get("execution_state") == "idle":
                return messages
            messages.append(message)
            on_message(message)
        raise AssertionError(f"the cell has not ended: {messages}")

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def notebook(folder: Path) -> Iterator[Notebook]:
    notebook = Notebook(folder)
    yield notebook
    notebook.close()


def of_kind(messages: Messages, kind: str) -> list[Any]:
    return [message["content"] for message in messages if message["msg_type"] == kind]


def printed(messages: Messages) -> str:
    return "".join(content["text"] for content in of_kind(messages, "stream"))


@pytest.mark.slow
def test_a_cell_shows_live_lines_and_can_be_interrupted(notebook: Notebook) -> None:
    notebook.run(f"import hpo, torch; torch.set_num_threads(1); study = hpo.read({tree()!r})")
    shown = notebook.run("found = hpo.launch(study, device='cpu')")
    (first,) = of_kind(shown, "display_data")
    updates = of_kind(shown, "update_display_data")
    assert {update["transient"]["display_id"] for update in updates} == {first["transient"]["display_id"]}
    last = updates[-1]["data"]
    assert "6/6 trials, 0 pruned, 0 failed" in last["text/plain"]
    assert last["text/html"].startswith("<pre>population")
    assert "tiny: 6 trials, 4 at once on cpu" in printed(shown)
    assert "tiny: finished, 6 completed" in printed(shown)
    assert "Best-1 (trial " in printed(shown)

    def interrupt(message: dict[str, Any]) -> None:
        if message["msg_type"] == "update_display_data" and not interrupted:
            interrupted.append(message)
            notebook.manager.interrupt_kernel()

    interrupted: Messages = []
    long = "hpo.read(study, ['training.epochs=100000'], name='long')"
    stopped = notebook.run(f"found = hpo.launch({long}, device='cpu')", interrupt)
    assert not of_kind(stopped, "error")
    assert "long: interrupted, 0 completed" in printed(stopped)
    assert printed(notebook.run("print(found.interrupted)")) == "True\n"


@pytest.mark.slow
def test_what_a_notebook_defines_is_data_and_code(notebook: Notebook) -> None:
    """Run the page's cells, then change a cell, and restart."""
    notebook.run("import torch; torch.set_num_threads(1)")
    cells = [block.body for block in blocks("docs/how-to/notebook.md") if block.language == "python"]
    shown = [notebook.run(cell) for cell in cells]
    assert [of_kind(each, "error") for each in shown] == [[]] * len(cells)
    assert "data.dataset and network.module: in the memory of this process, so no other process" in printed(shown[0])

    (changed,) = of_kind(notebook.run(cells[0].replace("nn.ReLU()", "nn.Tanh()")), "error")
    assert "memory:Net" in changed["evalue"]
    assert "has changed since the study was created" in changed["evalue"]
    (submitted,) = of_kind(notebook.run("hpo.submit(prices)"), "error")
    assert "submit: data.dataset of study 'notebook-houses' is in the memory of this process" in submitted["evalue"]

    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(timeout=deadline())
    (absent,) = of_kind(
        notebook.run("import hpo; print(hpo.load('notebook').best); hpo.load('notebook').verify()"), "error"
    )
    assert "memory:Net was defined in another process" in absent["evalue"]
    again = notebook.run(f"{cells[0]}\nprint(found.verify(1))")
    assert not of_kind(again, "error")
    assert "the largest difference of a score is 0" in printed(again)
