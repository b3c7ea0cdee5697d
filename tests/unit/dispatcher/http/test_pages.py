"""The pages in a real browser, if there is one.

Hostile names stay text, the policy allows the page's own scripts, and the live stream arrives.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from oncue.protocol import api as r
from tests.services import missing
from tests.unit.dispatcher.http.api_backend import TOKENS, Client, with_server

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror='document.title=\"owned\"'><script>document.title='owned'</script>[/scan]\u202egpj"


@pytest.fixture(autouse=True)
def needs_browser() -> None:
    """Skip without a browser; fail in CI."""
    if BROWSER is None:
        missing("no chromium here: `make services` installs it")


class Tab:
    """A page of the browser, over the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.console = socket, []  # type: ignore[var-annotated]
        self._ids = itertools.count(1)

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(message["params"]))

    async def evaluate(self, expression: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait in the page until the expression is true."""
        wait = (
            f"new Promise((ok) => {{ const look = () => ({expression}) ? ok(true) : setTimeout(look, 20); look(); }})"
        )
        async with asyncio.timeout(20):
            return await self.evaluate(wait)


@asynccontextmanager
async def browser(session: aiohttp.ClientSession) -> AsyncIterator[Tab]:
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(folder) / "DevToolsActivePort")
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [p for p in await answer.json(content_type=None) if p["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await tab.call(f"{domain}.enable")
                yield tab
        finally:
            process.terminate()
            await process.wait()


async def _port(file: Path) -> int:
    async with asyncio.timeout(20):
        while not (file.exists() and file.read_text().strip()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return int(file.read_text().split()[0])


def test_status_page() -> None:
    async def test(c: Client) -> None:
        await c.ask("POST", "/v1/tasks", json={"function": "f", "endpoint": HOSTILE})
        real = c.backend._endpoint

        async def endpoint(caller: Any, name: str) -> r.EndpointInfo:
            return await real(caller, HOSTILE)

        c.backend._endpoint = endpoint  # type: ignore[method-assign]
        async with browser(c.session) as tab:
            await tab.call("Page.navigate", url=c.serving.url + "/")
            await tab.until("document.getElementById('sign-in')?.hidden === false")
            sign_in = "document.getElementById('token').value = '%s'; document.getElementById('use').click()"
            await tab.evaluate(sign_in % "oncue_wrong")
            await tab.until("document.getElementById('trouble').textContent.includes('not known')")
            await tab.evaluate(sign_in % TOKENS["read"])
            await tab.until("document.querySelectorAll('#endpoints tbody tr').length === 1")
            await tab.until("document.querySelectorAll('#tasks tbody tr').length === 1")
            shown = await tab.evaluate("document.querySelector('#endpoints tbody td').textContent")
            assert shown == HOSTILE.replace("\u202e", "\\u202e")
            await tab.until("document.getElementById('live-state').textContent === 'connected'")
            c.backend.feeds[0].put_nowait(("task", {"name": HOSTILE}))
            await tab.until("document.querySelectorAll('#live li').length === 1")
            assert "onerror" in await tab.evaluate("document.querySelector('#live li').textContent")
            assert await tab.evaluate("document.querySelectorAll('main img, main script').length") == 0
            assert await tab.evaluate("document.title") == "oncue"
            assert await tab.evaluate("sessionStorage.getItem('oncue-token')") == TOKENS["read"]
            assert await tab.evaluate("localStorage.length + document.cookie.length") == 0
            # An attempt of a script in the page's text: the policy blocks it.
            await tab.evaluate(
                "document.body.insertAdjacentHTML('beforeend', `<img src=x onerror=\"document.title='owned'\">`)"
            )
            await tab.evaluate("new Promise((ok) => setTimeout(ok, 100))")
            assert await tab.evaluate("document.title") == "oncue"
            blocked = [s for s in tab.console if "Content Security Policy" in s or "violates" in s]
            others = [s for s in tab.console if s not in blocked and "401" not in s and "404" not in s]
            others = [s for s in others if '"recommendation"' not in s]
            assert blocked
            assert not others, others
            await tab.evaluate("document.getElementById('forget').click()")
            assert await tab.evaluate("sessionStorage.getItem('oncue-token')") is None

    with_server(test)


def test_an_endpoints_row_shows_its_blocks_breaker_and_node_hours() -> None:
    async def test(c: Client) -> None:
        soon = time.time_ns() // 1000 + 24 * 60_000_000
        running = r.BlockInfo("b1", "4711", "running", 2, 16, 3, "job 4711 running", ends_us=soon)
        waiting = r.BlockInfo("b2", "4712", "pending", 1, 8, 0, f"job 4712, PENDING (Resources) {HOSTILE}")
        breaker = "3 blocks in a row ended before a worker had registered"

        async def endpoint(caller: Any, name: str) -> r.EndpointInfo:
            return r.EndpointInfo(
                id="e1", name=name, owner="ada", state="connected", scheduler="slurm", node_hours=12.52, breaker=breaker,
                node_hours_limit=200, node_hours_period_s=7 * 86_400, blocks=[running, waiting], why=breaker,
            )  # fmt: skip

        c.backend._endpoint = endpoint  # type: ignore[method-assign]
        async with browser(c.session) as tab:
            await tab.call("Page.navigate", url=c.serving.url + "/")
            await tab.until("document.getElementById('sign-in')?.hidden === false")
            await tab.evaluate(
                f"document.getElementById('token').value = '{TOKENS['read']}'; document.getElementById('use').click()"
            )
            await tab.until("document.querySelectorAll('#endpoints .blocks li').length === 3")
            shown = await tab.evaluate("[...document.querySelectorAll('#endpoints .blocks li')].map(e => e.innerText)")
            cells = await tab.evaluate("document.querySelector('#endpoints tbody tr').innerText")
            assert breaker in shown[0]
            assert "running" in shown[1]
            assert re.search(r"job 4711 · 2 nodes · 3 of 16 workers busy · 2[234] min left", shown[1])
            assert "pending" in shown[2]
            assert "PENDING (Resources)" in shown[2]
            assert "12.5 of 200 a week" in cells
            assert breaker not in cells
            assert await tab.evaluate("document.title") == "oncue"
            assert not [s for s in tab.console if '"recommendation"' not in s], tab.console

    with_server(test)


def test_docs_page() -> None:
    async def test(c: Client) -> None:
        async with browser(c.session) as tab:
            await tab.call("Page.navigate", url=c.serving.url + "/docs")
            await tab.until("document.querySelectorAll('#schemas section').length > 30")
            assert await tab.evaluate("document.querySelectorAll('#operations details').length") > 40
            await tab.evaluate(
                "document.getElementById('filter').value = 'batch';"
                "document.getElementById('filter').dispatchEvent(new Event('input'))"
            )
            shown = await tab.evaluate(
                "[...document.querySelectorAll('#operations details')].filter(d => !d.hidden).length"
            )
            assert 0 < shown < 10
            links = "[...document.querySelectorAll('#operations a')].every(a => document.querySelector(a.getAttribute('href')))"
            assert await tab.evaluate(links)
            assert not tab.console, tab.console

    with_server(test)
