"""The dashboard's server, in a thread of this process."""

from __future__ import annotations

import json
import queue
import socket
import threading
import urllib.request
from collections.abc import Callable

import optuna
import pytest
from stored_studies import trial

from hpo.errors import HpoError
from hpo.results.dashboard import serve
from hpo.storage import Storage

Store = Callable[..., optuna.Study]


def test_it_answers_with_the_studies_once_it_says_where(stored: Store, storage: Storage) -> None:
    stored([trial(0.9)])
    addresses: queue.Queue[str] = queue.Queue()
    threading.Thread(target=serve, args=(storage, "127.0.0.1", 0, addresses.put), daemon=True).start()
    url = addresses.get(timeout=30)
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{url}api/studies", timeout=30) as answer:
        (summary,) = json.load(answer)["study_summaries"]
    assert summary["study_name"] == "digits"
    with urllib.request.urlopen(f"{url}dashboard", timeout=30) as answer:
        assert b"<html" in answer.read().lower()


def test_a_busy_port_is_one_line(storage: Storage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(HpoError, match=rf"^127.0.0.1:{port}: the port is in use; choose another with --port$"):
            serve(storage, "127.0.0.1", port, print)


@pytest.mark.parametrize("host", ["203.0.113.7", "a" * 300])
def test_an_address_that_is_not_here_is_one_line(storage: Storage, host: str) -> None:
    with pytest.raises(HpoError, match="cannot listen there") as caught:
        serve(storage, host, 0, print)
    assert "\n" not in str(caught.value)
