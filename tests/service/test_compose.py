"""Tests of docker-compose.yml, its Dockerfile and docs/how-to/compose.md, without a container engine.

The file is validated against the Compose Specification's schema. Then what each container would run is run: the
command, environment and health check of a service, as the file has them, in a process of its own (a fork: how an
interpreter starts is not the point), with a PostgreSQL that was made as the container makes it and asks everybody for a
password. Only what is different outside a container is replaced: the server's host name, the ports, and the folders of
volumes.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import jsonschema
import psycopg
import pytest
import yaml
from deadlines import deadline, wait_for
from forks import Fork
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from postgresql_server import Server
from study_files import TINY
from typer.main import get_command

from hpo.cli import app

ROOT = Path(__file__).parents[2]
FILES = ["docker-compose.yml", "docker-compose.cuda.yml"]
# github.com/compose-spec/compose-spec, schema/compose-spec.json, as the package check-jsonschema 0.39.0 brings it.
# Apache-2.0, see compose-spec.LICENSE beside it.
SCHEMA = json.loads((ROOT / "tests/service/compose-spec.json").read_text())
PAGE = (ROOT / "docs/how-to/compose.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(:\?|:-)([^}]*)\}")
RESTORING = ["dropdb", "createdb", "pg_restore"]
PASSWORDS = ["POSTGRES_PASSWORD", "HPO_DATABASE_PASSWORD", "HPO_DASHBOARD_PASSWORD"]
BIN = Path(sys.executable).parent


def parsed(name: str, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """Return a Compose file, with its variables replaced if `variables` are given."""
    text = (ROOT / name).read_text()
    if variables is not None:
        text = VARIABLE.sub(lambda found: variables[found[1]] if found[2] == ":?" else found[3], text)
    content: dict[str, Any] = yaml.safe_load(text)
    return content


COMPOSE, CUDA = map(parsed, FILES)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HPO = [name for name in SERVICES if name != "postgres"]


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], text=True, timeout=deadline(120), **options)


# The files


@pytest.mark.parametrize("name", FILES)
def test_it_is_what_the_compose_specification_allows(name: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(parsed(name))


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [("worker", "read-only", True), ("worker", "restart", 1), ("postgres", "healthcheck", {"every": "1s"})],
)
def test_the_schema_finds_a_slip(service: str, key: str, value: object) -> None:
    slipped = parsed(FILES[0])
    slipped["services"][service][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(slipped)


def test_the_services_are_those_that_are_documented() -> None:
    assert list(SERVICES) == ["postgres", "dashboard", "worker", "hpo"]
    assert "version" not in COMPOSE


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_can_do_little(service: str) -> None:
    settings = SERVICES[service]
    user, group = settings["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert not settings.keys() & {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode", "userns_mode"}
    assert not any("docker.sock" in str(volume) for volume in settings["volumes"])
    assert settings["logging"]["options"].keys() == {"max-size", "max-file"}


def test_nothing_of_that_is_undone_for_cuda() -> None:
    added = CUDA["services"]
    assert list(added) == ["worker"]
    assert added["worker"].keys() == {"image", "build", "command", "environment", "deploy"}


def test_only_the_dashboard_has_a_port_and_only_on_this_machine() -> None:
    ports = {service: settings["ports"] for service, settings in SERVICES.items() if "ports" in settings}
    assert list(ports) == ["dashboard"]
    assert all(port.startswith("127.0.0.1:") for port in ports["dashboard"])


def test_the_database_has_no_way_out() -> None:
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert [name for name in SERVICES if SERVICES[name]["networks"] == ["database"]] == ["postgres", "worker"]


def test_no_password_is_written_down_and_none_may_be_missing() -> None:
    text = "".join((ROOT / name).read_text() for name in FILES)
    found = VARIABLE.findall(text)
    assert text.count("$") == len(found)
    assert {name for name, kind, _ in found if kind == ":?"} == set(PASSWORDS)
    assert not any("PASSWORD" in name for name, kind, _ in found if kind != ":?")
    for settings in SERVICES.values():
        for name, value in settings["environment"].items():
            assert "PASSWORD" not in name or VARIABLE.fullmatch(value)
            assert not re.search(r"://[^@/]*:", value)
    assert not re.search(r"^(ARG|ENV)\s.*PASSWORD", DOCKERFILE, re.MULTILINE | re.IGNORECASE)


def test_a_worker_may_end_its_epoch_before_it_is_killed() -> None:
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > 30
    assert SERVICES["worker"]["init"] is True


def test_workers_can_be_many() -> None:
    assert not SERVICES["worker"].keys() & {"container_name", "hostname", "ports"}


def test_what_hpo_keeps_is_on_the_volume() -> None:
    """The folders are in the image too, with hpo's user as owner: an empty volume takes its content from there."""
    for service in HPO:
        assert "data:/data" in SERVICES[service]["volumes"]
        environment = SERVICES[service]["environment"]
        for name in ("HPO_ARTIFACTS", "HPO_DATA_DIR", "XDG_CACHE_HOME"):
            assert re.search(rf"install .*--owner=hpo --group=hpo .*{environment[name]}\b", DOCKERFILE)
    assert COMPOSE["volumes"].keys() == {"postgres-18", "data"}


# The image


def test_the_containers_run_as_the_users_of_their_images() -> None:
    assert "USER postgres\n" in DOCKERFILE
    for service in HPO:
        assert f"USER {SERVICES[service]['user']}\n" in DOCKERFILE


def test_the_base_images_are_pinned() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
    names = {name for _, name in stages}
    bases = [base for base, _ in stages if base not in names]
    assert len(stages) == DOCKERFILE.count("FROM ")
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?-(slim-)?[a-z]+", base) for base in bases)
    assert {SERVICES[service]["build"]["target"] for service in SERVICES} <= names


def test_the_image_has_the_python_and_the_volume_the_postgresql_of_the_tests(server: Server) -> None:
    python = re.search(r"^FROM python:(\d+\.\d+)\.", DOCKERFILE, re.MULTILINE)
    postgres = re.search(r"^FROM postgres:(\d+)\.", DOCKERFILE, re.MULTILINE)
    assert python is not None
    assert postgres is not None
    assert importlib.metadata.metadata("hpo")["Requires-Python"] == f">={python[1]}"
    assert (
        run(server.bin / "postgres", "--version", capture_output=True).stdout.split()[2].startswith(f"{postgres[1]}.")
    )
    assert SERVICES["postgres"]["volumes"] == [f"postgres-{postgres[1]}:/var/lib/postgresql"]


def test_nothing_enters_the_build_but_what_it_copies() -> None:
    first, *others = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert first == "*"
    allowed = {line.removeprefix("!").rstrip("/") for line in others if line.startswith("!")}
    copied = {
        word.split("/")[0]
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
        if not word.startswith("--")
    }
    assert allowed == copied
    assert all((ROOT / name).exists() for name in copied)


def requirements(name: str, extras: frozenset[str], found: set[tuple[str, frozenset[str]]]) -> None:
    """Add what pip would install for a distribution, all the way down, as this environment has it."""
    if (name, extras) in found:
        return
    found.add((name, extras))
    for line in importlib.metadata.requires(name) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ["", *extras]):
            requirements(canonicalize_name(requirement.name), frozenset(requirement.extras), found)


def test_all_that_the_image_installs_is_pinned_to_the_version_tested_here() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    found: set[tuple[str, frozenset[str]]] = set()
    requirements("hpo", frozenset(), found)
    needed = {name for name, _ in found} - {"hpo"}
    assert len(needed) > 30
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in needed}
    assert {name: pins.get(name) for name in needed} == installed


def test_the_cuda_libraries_are_pinned_apart() -> None:
    common, added = (
        {line.split("==")[0] for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")}
        for name in ("constraints.txt", "constraints-cuda.txt")
    )
    assert not common & added
    assert all(re.match("cuda-|nvidia-|triton", name) for name in added)
    assert not any(re.match("cuda-|nvidia-|triton", name) for name in common)


# make env


def make_env(folder: Path) -> subprocess.CompletedProcess[str]:
    return run("make", "-f", ROOT / "Makefile", "env", cwd=folder, capture_output=True, check=True)


def variables(folder: Path) -> dict[str, str]:
    return dict(line.split("=") for line in (folder / ".env").read_text().splitlines())


def test_make_env_writes_random_passwords_for_its_owner_alone(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        printed = make_env(folder)
        assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
        written.append(variables(folder))
        assert not any(value in printed.stdout + printed.stderr for value in written[-1].values())
    assert written[0].keys() == written[1].keys() == set(PASSWORDS)
    values = [value for content in written for value in content.values()]
    assert len(set(values)) == len(values)
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in values)


def test_make_env_never_writes_over_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("mine")
    assert "is not changed" in make_env(tmp_path).stdout
    assert (tmp_path / ".env").read_text() == "mine"


def test_git_never_sees_it() -> None:
    assert "/.env" in (ROOT / ".gitignore").read_text().split()


# What the containers run


@pytest.fixture(scope="module")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("env")
    make_env(folder)
    return variables(folder)


class PasswordServer(Server):
    """Server with the container's arguments to initdb and a password for every user."""

    def __init__(self, folder: Path, passwords: dict[str, str]) -> None:
        self.password_file = folder / "password"
        self.password_file.write_text(passwords["POSTGRES_PASSWORD"])
        super().__init__(folder)

    def start(self) -> None:
        # The image's own last line; a socket, and who may use it, is the container's alone.
        (self.data / "pg_hba.conf").write_text("host all all all scram-sha-256\n")
        super().start()

    def _run(self, program: str, *arguments: str) -> None:
        if program == "initdb":
            given = SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()
            arguments = ("--no-sync", "--username=postgres", f"--pwfile={self.password_file}", *given)
        super()._run(program, *arguments)


@pytest.fixture(scope="module")
def server(passwords: dict[str, str]) -> Iterator[PasswordServer]:
    # Not in pytest's folder, which belongs to its user alone.
    with tempfile.TemporaryDirectory(prefix="hpo-compose-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = PasswordServer(Path(folder), passwords)
        yield server
        server.stop("immediate")


class Stack:
    """Services of docker-compose.yml as processes, with their commands and environments."""

    def __init__(self, server: PasswordServer, passwords: dict[str, str], folder: Path) -> None:
        self.server, self.passwords = server, passwords
        self.work, self.data = folder / "hpo", folder / "data"
        for path in (self.work / "studies", self.data):
            path.mkdir(parents=True)
        (self.work / "studies/tiny.toml").write_text(TINY)
        self.services: dict[str, dict[str, Any]] = parsed(FILES[0], passwords)["services"]
        self.ports = dict(zip(("8080", "9100"), free_ports(2), strict=True))
        self.entrypoint = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[-1])
        assert self.entrypoint == ["hpo"]
        self.started: list[Fork] = []

    def outside(self, text: str) -> str:
        """The text with what is different outside a container replaced."""
        text = text.replace("@postgres/", f"@127.0.0.1:{self.server.port}/").replace("/data", str(self.data))
        return re.sub(r"\b(8080|9100)\b", lambda found: self.ports[found[1]], text)

    def environment(self, service: str) -> dict[str, str]:
        given = {name: self.outside(value) for name, value in self.services[service]["environment"].items()}
        # A single thread: on a busy machine, threads of so small networks wait long.
        return {"PATH": f"{BIN}:{self.server.bin}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **given}

    def command(self, service: str, *words: str) -> list[str]:
        """What a service gives `hpo`; with other words, what `docker compose run` makes it run."""
        return [self.outside(word) for word in words or self.services[service]["command"]]

    def start(self, service: str) -> Fork:
        with (self.work.parent / f"{service}.log").open("a") as log:
            environment = self.environment(service)
            self.started.append(Fork(self.command(service), cwd=self.work, env=environment, stdout=log, stderr=log))
        return self.started[-1]

    def hpo(self, *words: str, service: str = "hpo", **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a one-shot service to its end."""
        environment = {**self.environment(service), **changes}
        return forks.run(self.command(service, *words), cwd=self.work, env=environment)

    def done(self, *words: str) -> str:
        """What the one-shot service prints; it must not fail."""
        ended = self.hpo(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def is_healthy(self, service: str) -> bool:
        kind, program, *arguments = map(self.outside, self.services[service]["healthcheck"]["test"])
        assert kind == "CMD"
        environment = {**self.environment(service), "PGPORT": str(self.server.port)}
        if program != "python":
            return run(program, *arguments, env=environment, capture_output=True).returncode == 0
        option, script = arguments
        assert option == "-c"
        return forks.run([], script=script, env=environment).returncode == 0

    def wait(self, what: str, done: Callable[[], bool]) -> None:
        def look() -> bool:
            assert all(process.poll() is None for process in self.started), f"{what}: {self.logs()}"
            return done()

        wait_for(look, lambda: f"{what}: {self.logs()}")

    def logs(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.work.parent.glob("*.log")}

    def administer(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program of the postgres container as its superuser, who needs no password in there."""
        environment = {
            "PATH": f"{self.server.bin}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.server.port),
            "PGUSER": "postgres",
            "PGPASSWORD": self.passwords["POSTGRES_PASSWORD"],
            "HPO_DATABASE_PASSWORD": self.services["postgres"]["environment"]["HPO_DATABASE_PASSWORD"],
        }
        return run(*command, env=environment, cwd=self.work, check=True, **options)

    def completed(self) -> int:
        with psycopg.connect(self.url, password=self.passwords["HPO_DATABASE_PASSWORD"]) as connection:
            row = connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
        assert row is not None
        return int(row[0])

    @property
    def url(self) -> str:
        return self.environment("hpo")["HPO_STORAGE"]


def free_ports(number: int) -> list[str]:
    """Return different free ports."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [str(taken.getsockname()[1]) for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


@pytest.fixture
def stack(server: PasswordServer, passwords: dict[str, str], tmp_path: Path) -> Iterator[Stack]:
    """Start the stack after `make env`, with an empty postgres volume."""
    stack = Stack(server, passwords, tmp_path)
    stack.administer("psql", "-v", "ON_ERROR_STOP=1", "-f", str(ROOT / "docker/roles.sql"), capture_output=True)
    yield stack
    for process in stack.started:
        with process:
            process.kill()
    stack.administer("dropdb", "--force", "--if-exists", "hpo")
    stack.administer("dropuser", "hpo")


def test_the_server_is_healthy_and_asks_hpo_for_its_password(stack: Stack) -> None:
    assert stack.is_healthy("postgres")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(stack.url, password="another")
    with psycopg.connect(stack.url, password=stack.passwords["HPO_DATABASE_PASSWORD"]) as connection:
        rights = "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        assert connection.execute(rights).fetchone() == (False, False, False)


@pytest.mark.slow
def test_a_worker_trains_what_was_submitted_and_ends_when_asked(stack: Stack) -> None:
    before = sorted(stack.work.rglob("*"))
    worker = stack.start("worker")
    stack.wait("no healthy worker", lambda: stack.is_healthy("worker"))
    stack.done("submit", "studies/tiny.toml")
    stack.wait("not trained", lambda: stack.completed() == 6)
    assert "tiny" in stack.done()
    assert json.loads(stack.done("export", "tiny"))["trials"]["complete"] == 6
    worker.terminate()
    assert worker.wait(deadline()) == 0, stack.logs()
    assert sorted(stack.work.rglob("*")) == before, "something was written outside the volume"


@pytest.mark.slow
def test_the_dashboard_shows_nothing_without_the_password(stack: Stack) -> None:
    stack.start("dashboard")
    stack.wait("no healthy dashboard", lambda: stack.is_healthy("dashboard"))
    address = f"http://127.0.0.1:{stack.ports['8080']}/api/studies"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address, timeout=30)
    refused.value.close()
    assert refused.value.code == 401
    secret = base64.b64encode(f"hpo:{stack.passwords['HPO_DASHBOARD_PASSWORD']}".encode()).decode()
    request = urllib.request.Request(address, headers={"Authorization": f"Basic {secret}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer) == {"study_summaries": []}


@pytest.mark.slow
def test_a_cuda_worker_without_a_gpu_trains_nothing_and_says_so(stack: Stack) -> None:
    stack.done("submit", "studies/tiny.toml")
    command = CUDA["services"]["worker"]["command"]
    ended = stack.hpo(*command, "--until-idle", service="worker", CUDA_VISIBLE_DEVICES="")
    assert ended.returncode != 0
    assert "--device cuda: not available" in ended.stderr
    assert stack.completed() == 0


# What docs/how-to/compose.md tells to do


def shown(service: str, entrypoint: str = "") -> list[str]:
    """Return the commands that the page shows for a container of the service."""
    words = rf"(?: -T| --rm)*{f' --entrypoint {entrypoint}' if entrypoint else ''}"
    return [
        str(line) for line in re.findall(rf"\bdocker compose (?:exec|run){words} {service} (.*)$", PAGE, re.MULTILINE)
    ]


@pytest.mark.slow
def test_what_the_page_backs_up_it_restores(stack: Stack) -> None:
    """Its very lines, with a shell for their redirections; a restore puts back what a study was, whole."""
    stack.done("submit", "studies/tiny.toml")
    stack.done("work", "--until-idle")
    before = stack.done("export", "tiny")
    (stack.data / "artifacts").mkdir(exist_ok=True)
    (stack.data / "artifacts/notes").write_text("kept")
    dump, *restore = [line for line in shown("postgres") if line.split()[0] in ("pg_dump", *RESTORING)]
    assert [line.split()[0] for line in [dump, *restore]] == ["pg_dump", *RESTORING]
    pack, unpack = (f"tar {stack.outside(line)}" for line in shown("hpo", "tar") if "artifacts.tar" in line)
    for line in (dump, pack):
        stack.administer("sh", "-c", line)
    shutil.rmtree(stack.data / "artifacts")
    with psycopg.connect(stack.url, password=stack.passwords["HPO_DATABASE_PASSWORD"]) as connection:
        connection.execute("DROP TABLE trials CASCADE")
    for line in (*restore, unpack):
        stack.administer("sh", "-c", line)
    assert strip_time(stack.done("export", "tiny")) == strip_time(before)
    assert (stack.data / "artifacts/notes").read_text() == "kept"
    stack.done("submit", "studies/tiny.toml", "--set", "name=next")


def strip_time(export: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(export).items() if name != "created"}


@pytest.mark.parametrize("line", shown("hpo"))
def test_a_command_of_the_one_shot_service_exists(line: str) -> None:
    command: Any = get_command(app)
    words = shlex.split(line, comments=True)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    assert all(word in options for word in words if word.startswith("-"))


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^docker compose .*$", PAGE, re.MULTILINE))))
def test_a_shown_line_names_services_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)[2:]
    while words[0] == "-f":
        assert (ROOT / words[1]).exists()
        words = words[2:]
    verb, *rest = words
    plain = [word for word in rest if not word.startswith("-")]
    if verb in {"exec", "run"}:
        assert set(plain) & SERVICES.keys()
    else:
        assert verb in {"build", "down", "logs", "ps", "stop", "up"}
        assert {word for word in plain if "=" not in word} <= SERVICES.keys()
