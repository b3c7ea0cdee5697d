"""Invalid input and the answer to it: code, words of message and remedy."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.running import System, system_in


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system without an agent; no test here needs a worker."""
    with system_in(tmp_path_factory.mktemp("bad"), "--no-endpoint") as found:
        found.write("good.py", "def good(x=1):\n    return x\n")
        found.write("wrong.py", "def broken(:\n    pass\n")
        found.write("bytes.yaml", "")
        (found.folder / "bytes.yaml").write_bytes(b"rules: \xff\xfe")
        found.oncue("endpoint", "register", "local")
        found.oncue("functions", "register", "good.py:good")
        yield found


# ---------------------------------------------------------------- the command line

COMMANDS: list[tuple[list[str], int, str, str]] = [
    # words, exit code, in the message, in the remedy
    (["invoke", "nowhere.py:f"], 2, "nowhere.py", ""),
    (["invoke", "good.py:bad"], 2, "bad", "good"),
    (["invoke", "wrong.py:broken"], 2, "wrong.py", ""),
    (["invoke", "good.py"], 2, "no function is named", "good.py:NAME"),
    (["triggers", "explain", "deep", ""], 2, "no file is named", "relative to the watched folder"),
    (["invoke", "no-such-function"], 4, "no-such-function", ""),
    (["invoke", "good.py:good", "--arg", "novalue"], 2, "novalue", "--arg path=/data"),
    (["invoke", "good.py:good", "--arg", "x:=[1"], 2, "not JSON", ""),
    (["invoke", "good.py:good", "--arg", "x=1", "--arg", "x=2"], 2, "twice", "once"),
    (["invoke", "good.py:good", "--timeout", "soon"], 2, "soon", "5m"),
    (["invoke", "good.py:good", "--timeout", "0"], 2, "timeout is 0 s", "leave timeout out for no limit"),
    (["invoke", "good.py:good", "--expires", "0s"], 2, "expires is 0 s", "leave expires out for no limit"),
    (["invoke", "good.py:good", "--endpoint", "polaris"], 4, "polaris", "local"),
    (["tasks", "show", "xyz"], 2, "xyz", "32"),
    (["tasks", "show", "0" * 32], 4, "0" * 32, "oncue tasks list"),
    (["tasks", "list", "--state", "failled"], 2, "failled", "failed"),
    (["tasks", "cancel", "zz"], 2, "zz", "32"),
    (["deploy", "missing.yaml", "--yes"], 2, "missing.yaml", "path"),
    (["deploy", "bytes.yaml", "--yes"], 2, "bytes.yaml", "UTF-8"),
    (["rules", "show", "nope"], 4, "nope", ""),
    (["rules", "history", "nope"], 4, "nope", ""),
    (["rules", "rollback", "nope", "3"], 4, "nope", ""),
    (["rules", "explain", "nope", "0"], 4, "nope", ""),
    (["events", "emit", "--type", "x"], 2, "--source", "--file"),
    (["events", "emit", "--type", "x", "--source", "/y", "--data", "{"], 2, "not JSON", "quotes"),
    (["events", "emit", "--type", "", "--source", "/y"], 2, "--type", ""),
    (["events", "show", "999999"], 4, "999999", "oncue events list"),
    (["dead", "retry", "999999"], 4, "999999", "oncue dead list"),
    (["endpoints", "show", "nope"], 4, "nope", ""),
    (["endpoint", "start", "nope"], 2, "agent.json", "oncue endpoint register"),
    (["endpoint", "start", "lokal"], 2, "agent.json", "did you mean local?"),
    (["endpoint", "status", "nope"], 2, "agent.json", "here are: local"),
    (["endpoint", "restart", "nope"], 2, "agent.json", "here are: local"),
    (["endpoint", "stop", "nope"], 4, "no agent", "here are: local"),
    (["endpoint", "logs", "nope"], 4, "no agent", "here are: local"),
    (["endpoint", "reset", "nope"], 4, "no agent", "here are: local"),
    (["endpoint", "start", "local", "--wait", "soon"], 2, "soon", ""),
    (["endpoint", "start", "local", "--wait", "5s"], 2, "--wait", "--detach"),
    (["endpoint", "register", "a b"], 2, "a b", "letters"),
    (["endpoint", "register", "x", "--label", "y"], 2, "y", "site=alcf"),
    (["tokens", "create", "x", "--expires", "-3d"], 2, "-3d", ""),
    (["tokens", "create", "x", "--expires", "0"], 2, "--expires 0", "leave it out for a token without expiry"),
    (["tokens", "create", " "], 2, "a name", "laptop"),
    (["triggers", "explain", "deep", "\udcff\udcfebad.raw"], 2, "not UTF-8", "rename the file"),
    (["triggers", "explain", "\udcff", "bad.raw"], 4, "", "oncue deploy FILE"),
    (["tokens", "create", "x", "--scope", "root"], 2, "root", ""),
    (["functions", "show", "nope"], 4, "nope", "oncue functions list"),
    (["up", "--port", "99999"], 2, "99999", ""),
]


@pytest.mark.parametrize(("words", "code", "message", "remedy"), COMMANDS, ids=range(len(COMMANDS)))
def test_commands(system: System, words: list[str], code: int, message: str, remedy: str) -> None:
    done = system.oncue(*words, code=code)
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    if remedy:
        assert remedy in done.stderr.partition("→")[2], done.stderr
    assert done.stdout == ""


# ---------------------------------------------------------------- the API

JSON = {"Content-Type": "application/json"}
B64 = base64.b64encode(b"no function").decode()
REQUESTS: list[tuple[str, str, Any, dict[str, str], int, str, str]] = [
    # method, path, body, headers, status, code, in the message or the remedy
    ("GET", "/v1/taskz", None, {}, 404, "not-found", "/v1/tasks"),
    ("PUT", "/v1/tasks", {}, {}, 405, "method-not-allowed", "GET"),
    ("POST", "/v1/tasks", b"{", JSON, 400, "malformed", "JSON"),
    ("POST", "/v1/tasks", b"{}", {"Content-Type": "text/plain"}, 415, "unsupported-type", "application/json"),
    ("POST", "/v1/tasks", {"funktion": "f"}, {}, 422, "invalid", "function"),
    ("POST", "/v1/tasks", {"function": 3}, {}, 422, "invalid", "function"),
    ("POST", "/v1/tasks", {"function": "good", "args": {}}, {}, 422, "invalid", "args"),
    ("POST", "/v1/tasks", {"function": "good", "timeout_ms": -1}, {}, 422, "invalid", "timeout"),
    ("POST", "/v1/tasks", {"function": "good", "timeout_ms": 10**30}, {}, 422, "invalid", ""),
    ("POST", "/v1/tasks", {"function": "good", "retry": {"on": ["bad luck"]}}, {}, 422, "invalid", "lost"),
    ("POST", "/v1/tasks", {"function": "good", "retry": {"max": -1}}, {}, 422, "invalid", "max"),
    ("POST", "/v1/tasks/batch", {"function": "good", "key": "short"}, {}, 422, "invalid", "key"),
    ("POST", "/v1/tasks/batch", {"function": "good", "calls": [1]}, {}, 422, "invalid", "calls"),
    ("GET", "/v1/tasks?stat=open", None, {}, 422, "invalid", "state"),
    ("GET", "/v1/tasks?limit=0", None, {}, 422, "invalid", "limit"),
    ("GET", "/v1/tasks?limit=many", None, {}, 422, "invalid", "limit"),
    ("GET", "/v1/tasks?cursor=zzz", None, {}, 422, "invalid", "cursor"),
    ("GET", "/v1/tasks/abc", None, {}, 422, "invalid", "32"),
    ("GET", "/v1/events/minus", None, {}, 422, "invalid", "digits"),
    ("GET", "/v1/live?kinds=tasks", None, {}, 422, "invalid", "task"),
    ("POST", "/v1/events", {"type": "a"}, {}, 422, "invalid", "source"),
    ("POST", "/v1/events", {"type": "a", "source": "/b", "time": "noon"}, {}, 422, "invalid", "time"),
    ("POST", "/v1/events", b"<a/>", {"Content-Type": "application/cloudevents+xml"}, 422, "invalid", "json"),
    (
        "POST",
        "/v1/events",
        b'{"specversion": "0.3", "id": "1", "source": "/", "type": "t"}',
        {"Content-Type": "application/cloudevents+json"},
        422,
        "invalid",
        "1.0",
    ),
    ("POST", "/v1/events", {"type": "a", "source": "/b", "data": "x" * 2_000_000}, {}, 413, "too-large", "bytes"),
    ("POST", "/v1/functions", {"name": "f", "body": "***"}, {}, 422, "invalid", "body"),
    ("POST", "/v1/functions", {"name": "f", "body": B64}, {}, 422, "invalid", ""),
    ("POST", "/v1/functions", {"name": "", "body": B64}, {}, 422, "invalid", "name"),
    ("POST", "/v1/endpoints", {"name": "x", "public_key": "short"}, {}, 422, "invalid", "40"),
    ("POST", "/v1/rules", {"files": []}, {}, 422, "invalid", "at least one"),
    ("POST", "/v1/rules/nope/explain", {}, {}, 422, "invalid", "offset"),
    ("POST", "/v1/rules/nope/explain", {"offset": 1}, {}, 404, "not-found", "nope"),
    ("POST", "/v1/tokens", {"name": "x", "expires_s": -1}, {}, 422, "invalid", "expires_s"),
    ("PUT", "/v1/blobs/xyz", b"abc", {"Content-Type": "application/octet-stream"}, 422, "invalid", ""),
    ("GET", "/v1/blobs/" + "0" * 64, None, {}, 410, "blob-missing", ""),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "code", "words"), REQUESTS)
def test_requests(
    system: System, method: str, path: str, body: Any, headers: dict[str, str], status: int, code: str, words: str
) -> None:
    answer = system.http(method, path, body, headers)
    assert answer.headers["content-type"].startswith("application/problem+json"), answer
    problem = answer.json
    assert (answer.status, problem["code"]) == (status, code), problem
    assert words in problem["detail"] + " " + problem["remedy"], problem
    assert problem["detail"]
    assert problem["type"] == f"urn:oncue:error:{code}"
    if method == "GET" and path.startswith("/v1/blobs"):
        return
    assert problem["remedy"], problem


# ---------------------------------------------------------------- rule files

HEAD = "rules:\n  - name: a\n    on: {type: x}\n"
RUN = "    run: {function: good.py:good, endpoint: local}\n"
FILES: list[tuple[str, str, str]] = [
    # text, place ("line:" or ""), words
    ("rules:\n  - nmae: a\n", "2:", "name"),
    (HEAD + "    run: {function: f}\n    runs: 1\n", "", "run"),
    (HEAD + RUN + "    match: {data.n: {gte: 3}}\n", "5:", "'gt'"),
    (HEAD + RUN + "    match: {data.n: {regex: '('}}\n", "5:", "regex"),
    (HEAD + RUN + "    when: data.n >\n", "5:", ""),
    (HEAD + RUN + "    retry: {max: many}\n", "5:", "max"),
    (HEAD + RUN + "    timeout: soon\n", "5:", "soon"),
    (HEAD + RUN + "    timeout: 0s\n", "5:", "timeout: none"),
    (HEAD + RUN + RUN, "5:", "run"),
    ("rules: &a []\nother: *a\n", "1:", ""),
    (HEAD.replace("{type: x}", "nowhere") + RUN, "3:", "nowhere"),
    ("triggers:\n  - {name: t, kind: fiel, path: /tmp}\n", "2:", "file"),
    ("triggers:\n  - {name: t, kind: file, path: /tmp, globb: x}\n", "2:", "glob"),
    ("triggers:\n  - {name: t, kind: file, path: /tmp, ready: {}}\n", "2:", "ready"),
    ("triggers:\n  - {name: t, kind: file, path: /tmp, ready: stable}\n", "2:", "ready is a mapping, not a text"),
    ("triggers:\n  - {name: t, kind: webhook}\n", "2:", "verify"),
    ("triggers:\n  - {name: t, kind: webhook, verify: bearer}\n", "2:", 'verify: {bearer: "${secret:NAME}"}'),
    ("triggers:\n  - {name: t, kind: webhook, verify: {bearer: ''}}\n", "2:", ""),
    (HEAD + "    run: {function: good.py:good, endpoint: local, args: {a: ${data.b}}}\n", "4:", '"${'),
    (HEAD + "    run: {function: good.py:good, endpoint: local, args: {a: '${data.'}}\n", "4:", ""),
    ("- 1\n", "1:", ""),
    ("", "", ""),
    ("a: [" * 200, "1:", ""),
]


@pytest.mark.parametrize(("text", "place", "words"), FILES)
def test_rule_files(system: System, text: str, place: str, words: str) -> None:
    system.write("wrong.yaml", text)
    done = system.oncue("deploy", "wrong.yaml", "--yes", code=2)
    assert "Traceback" not in done.stderr
    assert f"wrong.yaml:{place}" in done.stderr if place else "wrong.yaml" in done.stderr, done.stderr
    assert words in done.stderr
    assert "→" in done.stderr
    # By the API the same is refused: the command line is not trusted to have looked.
    file = {"label": "wrong", "text": text, "path": "wrong.yaml"}
    answer = system.http("POST", "/v1/rules", {"files": [file]})
    assert (answer.status, answer.json["code"]) == (422, "rule-file"), answer
    assert system.http("GET", "/v1/rules").json == []


# ---------------------------------------------------------------- settings

SETTINGS: list[tuple[str, dict[str, str], str, str]] = [
    ("prot = 1\n", {}, "'prot'", "'port'"),
    ("port = 'x'\n", {}, "port", ""),
    ("port = \n", {}, "oncue.toml", "TOML"),
    ("", {"ONCUE_PORT": "many"}, "ONCUE_PORT", "a whole number"),
    ("", {"ONCUE_CONFIG": "/nowhere/oncue.toml"}, "/nowhere/oncue.toml", "ONCUE_CONFIG"),
    ("workers = -3\n", {}, "oncue.toml: workers", "at least 0"),
    ("", {"ONCUE_WORKERS": "-3"}, "ONCUE_WORKERS", "at least 0"),
    ("", {"ONCUE_LOG": "mysql://x"}, "mysql", "sqlite"),
    ("", {"ONCUE_HOST": "192.0.2.1"}, "192.0.2.1", "address of this machine"),
]


@pytest.mark.parametrize(("text", "env", "message", "remedy"), SETTINGS)
def test_settings(stopped: System, text: str, env: dict[str, str], message: str, remedy: str) -> None:
    stopped.data.mkdir()
    (stopped.data / "oncue.toml").write_text(text)
    process = stopped.start(
        "up", "--no-endpoint", *(() if "port" in text or "ONCUE_PORT" in env else ("--port", "0")), env=env
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode in (1, 2), (out, err)
    assert "Traceback" not in err
    assert message in err
    assert remedy in err.partition("→")[2], err


def test_no_invalid_input_was_stored(system: System) -> None:
    assert system.tasks() == []
    assert json.loads(system.http("GET", "/v1/rules").body) == []
