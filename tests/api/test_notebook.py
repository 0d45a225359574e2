"""A launch in a real notebook's kernel: live lines in the front end, and "interrupt"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deadlines import deadline
from jupyter_client.manager import start_new_kernel
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
