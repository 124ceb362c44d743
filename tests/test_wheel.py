"""The wheel holds every file that the package reads at run time."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """File names in a wheel built in this process."""
    out = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(out), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_file_of_the_package(names: set[str]) -> None:
    source = ROOT / "src"
    files = {str(path.relative_to(source)) for path in source.glob("endprompt/**/*.*")}
    kept = {name for name in files if "__pycache__" not in name and ".partial" not in name}
    assert len(kept) > 100
    assert kept - names == set()


@pytest.mark.parametrize(
    "name",
    ["recipes/endprompt.yaml", "report/template/page.html", "eval/tasks/_ruler.yaml",
     "cli/app.py"],
)  # fmt: skip
def test_wheel_holds_what_the_commands_read(name: str, names: set[str]) -> None:
    assert f"endprompt/{name}" in names


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"endprompt"}
    assert not any("__pycache__" in name or name.endswith(".partial") for name in names)


def test_wheel_names_its_command_and_licence(names: set[str]) -> None:
    assert {"entry_points.txt", "METADATA"} <= {name.rpartition("/")[2] for name in names}
    assert any(name.endswith("licenses/LICENSE") for name in names)
