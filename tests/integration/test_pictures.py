"""`python -m bench pictures`: each SVG is whole, and its curves are the figures of the run."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import autoscaling, pictures, virtual_agent

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -r requirements/dev.txt")
SVG = "{http://www.w3.org/2000/svg}"
QUICK = ["--quick", "--to"]
SIMULATED = ["strong", "weak", "autoscaling"]
Point = tuple[float, float]


def draw(to: Path, *names: str) -> dict[str, Any]:
    """Run the command; return the figures of the run."""
    assert pictures.main([*names, *QUICK, str(to)]) == 0
    return dict(json.loads((to / pictures.FIGURES).read_text()))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the figures of one run."""
    to = tmp_path_factory.mktemp("pictures")
    return to, draw(to, *SIMULATED)


def curve(svg: Path, gid: str) -> list[Point]:
    """Return the corners of a curve, in the picture's units."""
    (group,) = [g for g in ET.parse(svg).iter(f"{SVG}g") if g.get("id") == gid]
    path = next(group.iter(f"{SVG}path")).get("d") or ""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]


def assert_shows(drawn: list[Point], data: list[Point], scale: Callable[[float], float]) -> None:
    """Check that the corners are the data, up to scale and place of the axes."""
    assert len(drawn) == len(data)
    for axis in (0, 1):
        seen = [p[axis] for p in drawn]
        meant = [scale(p[axis]) for p in data]
        low, high = meant.index(min(meant)), meant.index(max(meant))
        if meant[low] == meant[high]:
            assert max(seen) - min(seen) < 0.01
            continue
        step = (seen[high] - seen[low]) / (meant[high] - meant[low])
        assert step != 0
        for at, value in zip(seen, meant, strict=True):
            assert at == pytest.approx(seen[low] + step * (value - meant[low]), abs=0.05)


def test_curves_of_scaling_are_the_figures_of_the_run(simulated: tuple[Path, dict[str, Any]]) -> None:
    folder, found = simulated

    for name in ("strong", "weak"):
        for one in found[name]["curves"]:
            data = [(p["workers"], p["s"]) for p in one["points"]]
            assert_shows(curve(folder / f"{name}.svg", f"{name}-{one['kind']}"), data, math.log)
    sleep = {p["workers"]: p["s"] for one in found["strong"]["curves"] if one["kind"] == "sleep" for p in one["points"]}
    assert sleep[4] == pytest.approx(200 / 4, rel=0.1), "200 tasks of 1 s at 4 workers"
    assert sleep[64] == pytest.approx(4, rel=0.1)


def test_a_trace_is_that_of_the_run(simulated: tuple[Path, dict[str, Any]]) -> None:
    folder, found = simulated[0], simulated[1]["autoscaling"]

    columns = {name: [row[at] for row in found["rows"]] for at, name in enumerate(found["columns"])}
    for name in ("waiting", "running", "blocks_pending", "blocks_running", "workers"):
        corners = [(columns["s"][0], columns[name][0])]
        for before, at, value in zip(columns[name], columns["s"][1:], columns[name][1:], strict=False):
            corners += [(at, before), (at, value)]
        assert_shows(curve(folder / "autoscaling.svg", f"trace-{name}"), corners, float)
    assert max(columns["blocks_running"]) >= 1
    assert columns["workers"][-1] == columns["blocks_running"][-1] == 0, "blocks are given back"


def test_simulated_pictures_are_the_same_each_time(simulated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = simulated
    draw(tmp_path, "strong", "autoscaling")

    for name in ("strong.svg", "autoscaling.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_other_runs_have_other_figures() -> None:
    assert virtual_agent.completion_s(200, 4, 1_000_000) > 1.9 * virtual_agent.completion_s(100, 4, 1_000_000)
    small = autoscaling.simulated(((10.0, 4, 10.0),), until_s=200.0)
    large = autoscaling.simulated(((10.0, 40, 10.0),), until_s=400.0)
    assert large["jobs"] > small["jobs"]


def test_the_picture_of_real_workers_is_that_of_the_run(tmp_path: Path) -> None:
    found = draw(tmp_path, "real")["real"]

    for name in ("strong", "weak"):
        for one in found[name]:
            data = [(p["workers"], p["s"]) for p in one["points"]]
            drawn = curve(tmp_path / "real.svg", f"real-{name}-{one['kind']}")
            assert len(drawn) == len(data) == 2
            assert (drawn[0][1] > drawn[1][1]) == (data[0][1] < data[1][1]) or data[0][1] == data[1][1]
    ET.parse(tmp_path / "real.svg")


def test_the_pictures_in_the_docs_are_those_of_their_figures(tmp_path: Path) -> None:
    figures = json.loads((pictures.FOLDER / pictures.FIGURES).read_text())

    for name, found in figures.items():
        pictures.draw(name, found, tmp_path / f"{name}.svg")
        stored = ET.parse(pictures.FOLDER / f"{name}.svg")
        gids = {g.get("id") for g in stored.iter(f"{SVG}g") if re.match("(strong|weak|real|trace)-", g.get("id") or "")}
        assert gids
        for gid in gids:
            assert gid is not None
            assert_shows(curve(pictures.FOLDER / f"{name}.svg", gid), curve(tmp_path / f"{name}.svg", gid), float)
