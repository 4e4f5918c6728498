"""The compose file starts what there is, with options that there are."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_helpers import run_cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def test_the_commands_are_there_with_their_options(compose: dict[str, Any]) -> None:
    commands = {
        name: service["command"].split()
        for name, service in compose["services"].items()
        if service.get("command", "").startswith("qa-hpo")
    }
    assert set(commands) == {"run", "worker", "dashboard"}
    for _, command, *rest in commands.values():
        help_text = run_cli(command, "--help")
        assert help_text.code == 0
        for option in (part for part in rest if part.startswith("--")):
            assert option in help_text.out


def test_who_can_reach_what(compose: dict[str, Any]) -> None:
    services = compose["services"]
    # The dashboard has no login, and the database only a password.
    assert services["dashboard"]["ports"] == ["127.0.0.1:8080:8080"]
    assert services["db"]["ports"] == ["${POSTGRES_LISTEN:-127.0.0.1}:5432:5432"]
    # No password is written down: it comes from the environment, and is asked for.
    assert services["db"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")


def test_all_share_one_storage(compose: dict[str, Any]) -> None:
    services = compose["services"]
    urls = {services[name]["environment"]["QA_HPO_STORAGE"] for name in ("run", "worker")}
    assert urls == {services["dashboard"]["environment"]["QA_HPO_STORAGE"]}
    (url,) = urls
    assert url.startswith("postgresql+psycopg://qa_hpo:${POSTGRES_PASSWORD")
    for name in ("run", "dashboard"):
        assert services[name]["depends_on"] == {"db": {"condition": "service_healthy"}}


def test_the_image_has_what_its_services_need() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = " ".join(line for line in lines if line.startswith("COPY")).split()
    for name in copied[1:]:
        if name not in {"COPY", "./"}:
            assert (ROOT / name).exists()
    assert any(".[postgres,s3]" in line for line in lines)
