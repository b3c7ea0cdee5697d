"""`oncue demo`: a detector writes files, and a rule reconstructs each of them.

Server, agent and detector are real processes on this machine; the log is the embedded one.

    oncue up ◄── oncue deploy rules.yaml
    detector ──files──► watched folder ──► tomo.py:reconstruct ──► pictures
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from oncue.client import Client
from oncue.errors import NotReady, OncueError
from oncue.extras import DEMO, SERVER, need

RULES = """\
triggers:
  - {{name: detector, kind: file, path: {frames}, glob: "*.h5", ready: {{any: [close_write, rename]}}}}
rules:
  - name: reconstruct
    on: detector
    match: {{data.name: {{glob: "scan_*.h5"}}, data.size: {{gt: 10KB}}}}
    run: {{function: tomo.py:reconstruct, endpoint: local, args: {{path: "${{data.path}}", out: {pictures}}}}}
    retry: {{max: 2, on: [lost]}}
"""
START_S, OUTCOME_S = 30.0, 60.0


def main(out: Path | None = None, slices: int = 12) -> Path:
    """Run the demo in the folder `out` and return the path of its picture.

    The default folder is ./demo-out. Raises MissingExtra without the extras `server` and `demo`,
    and OncueError if a part fails.
    """
    need("the demo", {**DEMO, **SERVER})
    console = Console(highlight=False)
    folder = (out or Path("demo-out")).absolute()
    frames, pictures = folder / "frames", folder / "pictures"
    shutil.rmtree(folder, ignore_errors=True)
    for made in (frames, pictures):
        made.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("tomo.py"), folder)
    rules = folder / "rules.yaml"
    rules.write_text(RULES.format(frames=json.dumps(str(frames)), pictures=json.dumps(str(pictures))))
    with _server(folder / "data", console) as client:
        _say(console, f"oncue deploy {rules.relative_to(folder.parent)}")
        _run("deploy", str(rules), "--yes", data=folder / "data")
        _say(console, f"python -m oncue.demo.detector {frames.relative_to(folder.parent)} {slices}")
        detector = subprocess.Popen([sys.executable, "-m", "oncue.demo.detector", str(frames), str(slices)])
        try:
            outcomes = _watch(client, slices, console)
        finally:
            _stop(detector)
        picture = _mosaic(pictures, folder / "slices.png")
        starts = sorted(o["started_us"] - o["mark_us"] for o in outcomes)
        console.print(
            f"\n{len(outcomes)} of {slices} files reconstructed; "
            f"closed → started: median {starts[len(starts) // 2] / 1000:.1f} ms\n"
            f"the picture: {picture}",
            markup=False,
        )
    return picture


@contextlib.contextmanager
def _server(data: Path, console: Console) -> Iterator[Client]:
    """Run `oncue up` in a process of its own and yield a client of it."""
    _say(console, f"oncue up --data {data.relative_to(data.parent.parent)}")
    log = (data.parent / "server.log").open("w")
    command = [sys.executable, "-m", "oncue", "up", "--data", str(data), "--port", "0"]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        local = _await_ready(data / "local.json", server, Path(log.name))
        with Client(url=local["url"], token=local["token"]) as client:
            _await_endpoint(client)
            yield client
    finally:
        _stop(server)
        log.close()


def _await_ready(path: Path, server: subprocess.Popen[bytes], log: Path) -> Any:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text())
        time.sleep(0.02)
    raise NotReady("oncue up did not start", remedy=f"its output is in {log}: {log.read_text()[-2000:]}")


def _await_endpoint(client: Client) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if any(e.name == "local" and e.state == "connected" for e in client.endpoints.list()):
            return
        time.sleep(0.02)
    raise NotReady("the local endpoint did not connect", remedy="oncue doctor says more")


def _watch(client: Client, slices: int, console: Console) -> list[dict[str, Any]]:
    """Show each outcome as it arrives."""
    table = Table(box=None, pad_edge=False)
    for title in ("file", "outcome", "closed → started", "ran", "mean ± noise"):
        table.add_column(title, justify="left" if title in ("file", "outcome") else "right")
    seen: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + OUTCOME_S
    from rich.live import Live

    with Live(table, console=console, refresh_per_second=20):
        while len(seen) < slices:
            if time.monotonic() > deadline:
                raise OncueError(f"only {len(seen)} of {slices} files had an outcome in {OUTCOME_S:g} s")
            for task in client.tasks.list(rule="reconstruct", state="closed", limit=slices * 2):
                if task.id not in seen:
                    info = client.tasks.get(task.id)
                    seen[task.id] = {"started_us": info.started_us, "mark_us": info.mark_us}
                    table.add_row(*_row(info))
            time.sleep(0.05)
    failed = list(client.tasks.list(rule="reconstruct", state="failed"))
    if failed:
        raise OncueError(f"{len(failed)} files failed: {failed[0].why}")
    return list(seen.values())


def _row(info: Any) -> list[Text]:
    value = info.value if isinstance(info.value, dict) else {}
    name = f"scan_{value.get('slice', 0):02d}.h5" if value else info.id
    cells = [
        name,
        info.state,
        f"{(info.started_us - info.mark_us) / 1000:.1f} ms",
        f"{(info.ended_us - info.started_us) / 1000:.0f} ms",
        f"{value['mean']:.3f} ± {value['noise']:.3f}" if value else info.why,
    ]
    return [Text(cell) for cell in cells]


def _mosaic(pictures: Path, target: Path) -> Path:
    """Join all slices in one picture, four in a row."""
    from PIL import Image

    images = [Image.open(p) for p in sorted(pictures.glob("slice_*.png"))]
    width, height = images[0].size
    columns = 4
    sheet = Image.new("L", (columns * width, -(-len(images) // columns) * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
        image.close()
    sheet.save(target)
    return target


def _run(*args: str, data: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "oncue", *args],
        env={**os.environ, "ONCUE_DATA": str(data)},
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)
    if done.returncode:
        raise OncueError(f"oncue {args[0]} failed: {done.stderr.strip()}")


def _say(console: Console, command: str) -> None:
    console.print(Text("$ " + command, style="bold"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
