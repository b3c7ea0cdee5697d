"""Settings, merged from a TOML file, the environment and flags.

Flags win over the environment, the environment over the file. The file is `oncue.toml` in the data
folder, or the path in ONCUE_CONFIG. The environment variable of a field is ONCUE_<FIELD IN
CAPITALS>.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, get_args, get_origin

import msgspec

from oncue.errors import Invalid


def default_data() -> Path:
    """Return the default data folder: ONCUE_DATA, or ~/.oncue."""
    return Path(os.environ.get("ONCUE_DATA") or Path.home() / ".oncue")


def make_data_folder(folder: Path) -> None:
    """Create the data folder with mode 700.

    Raises Invalid if it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        why = e.strerror or str(e)
    else:
        if os.access(folder, os.W_OK | os.X_OK):
            return
        why = "it cannot be written"
    raise Invalid(
        f"the data folder {folder} cannot be used: {why}",
        remedy="give a folder that you may write: oncue up --data DIR, or ONCUE_DATA",
    )


Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
AbsolutePath = Annotated[str, msgspec.Meta(pattern="^[/~]")]  # a relative one would depend on where `oncue up` runs
Network = NewType("Network", str)  # an IP address, or a network of them: 10.0.0.0/8
Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Partitions = Annotated[int, msgspec.Meta(ge=1, le=10_000)]  # a broker supports some thousands
Days = Annotated[float, msgspec.Meta(gt=0, le=36_500)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a server. docs/operating.md explains them."""

    data: str = ""  # folder of log, view, blobs, keys; "": default_data()
    log: str = ""  # URL of the log: kafka://host:port,...; "": SQLite in the data folder
    kafka_tls: bool = False  # a kafka_ca_file or kafka_cert_file turns it on as well
    kafka_ca_file: str = ""  # PEM; "": the system's
    kafka_cert_file: str = ""  # PEM, for brokers that require client certificates
    kafka_key_file: str = ""
    kafka_sasl: str = ""  # PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; "": none
    kafka_user: str = ""
    kafka_password: str = ""  # better in a file:
    kafka_password_file: str = ""
    kafka_token_file: str = ""  # OAUTHBEARER: read at each connection
    kafka_token_command: str = ""  # OAUTHBEARER: prints the token; run per connection, no shell
    host: str = "127.0.0.1"
    port: Port = 8765  # HTTP; 0: any free port
    bridge_host: str = ""  # "": same as host
    advertise_host: str = ""  # name of this server for agents and other servers; "": bridge_host
    advertise_url: str = ""  # of the API, for other servers; "": http://, advertise_host and port
    bridge_port: Port = 0  # ZeroMQ; 0: any free port, stored in the data folder
    # Large payloads and functions; "": in the data folder. Servers of one log must share it.
    blobs_folder: str = ""
    # Of the local endpoint; 0: one per core.
    workers: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    max_body_bytes: Positive = 64 * 1024 * 1024  # of a request; larger payloads are sent as blobs
    max_batch: Positive = 65_536  # tasks in one request
    # Requests per second and token; 0: no limit.
    rate_per_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 2_000.0
    # Connections of one address without a token; 0: no limit.
    connections_per_address: Natural = 256
    # Of a peer that pauses within a request's body or an answer.
    http_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=3_600)] = 20.0
    # Proxies whose header names the client of a request; in the environment with ",".
    trusted_proxies: tuple[Network, ...] = ()
    # The header that they set; a client may have sent the other.
    forwarded_header: Literal["X-Forwarded-For", "Forwarded"] = "X-Forwarded-For"
    results_retention_days: Days = 30.0
    events_retention_days: Days = 30.0
    reports_retention_days: Days = 2.0
    # Process that runs stateful rules; stream: `oncue stream`.
    rules_memory: Literal["server", "stream"] = "server"
    without_rules: bool = False  # start no rule and no trigger, to repair them; events are stored
    matches_partitions: Partitions = 8  # of oncue.matches; fixed at the first start
    results_retention_bytes: Natural = 0  # 0: by age only
    # Topics that all endpoints share; 0: one per endpoint. Fixed at the first start.
    task_topics: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    events_partitions: Partitions = 1  # of oncue.events; can only be raised
    events_mode: Literal["structured", "binary"] = "structured"  # of written events; both are read
    # Pending tasks in memory per endpoint; more wait in the view.
    queue_bytes: Positive = 64 * 1024 * 1024
    # Above this usage of the disk, nothing new is accepted.
    disk_stop_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 90.0
    # Share of the blobs' disk that one owner's may take; admins have no limit. 100: nobody has.
    owner_blobs_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 50.0
    # Folders that file triggers of people other than admins may watch; in the environment with ":".
    trigger_roots: tuple[AbsolutePath, ...] = ()
    uvloop: bool = True
    debuggable: bool = False  # debuggers may attach, and core dumps are written: tasks see its memory
    open_metrics: bool = False  # GET /metrics without a token
    admin_token_file: str = ""  # a token in it has the scope admin from the first start on

    @property
    def data_path(self) -> Path:
        return Path(self.data).expanduser().absolute() if self.data else default_data().absolute()

    @property
    def advertised_host(self) -> str:
        """Name of this server for agents and other servers."""
        host = self.advertise_host or self.bridge_host or self.host
        return socket.gethostname() if host in ("", "0.0.0.0", "::") else host

    @property
    def shared_log(self) -> bool:
        """True if other servers may use the same log."""
        return self.log_url.startswith("kafka://")

    @property
    def log_url(self) -> str:
        return self.log or f"sqlite://{self.data_path / 'log'}"


def http_url(host: str, port: int) -> str:
    """Return http://host:port, with brackets around an IPv6 address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_LISTS = {
    AbsolutePath: "a list of absolute paths",
    Network: "a list of IP addresses and networks, as 10.0.0.5, 10.1.0.0/16, fd00::/8",
}
FIELDS = {f.name: f for f in msgspec.structs.fields(Settings)}
# Variables that are no settings: of the client, of this module, of workers.
OTHERS = ("ONCUE_URL", "ONCUE_TOKEN", "ONCUE_CONFIG", "ONCUE_DEBUG", "ONCUE_BLOBS")
OTHER_PREFIXES = ("ONCUE_SECRET_", "ONCUE_TEST_", "ONCUE_BENCH_", "ONCUE_CHAOS_")


def load_settings(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """Merge file, environment and flags. A flag that is None is not given.

    Raises Invalid, which names the file, variable or flag, the field, and the closest valid name.
    """
    environ = os.environ if environ is None else environ
    flags = {k: v for k, v in (flags or {}).items() if v is not None}
    data = flags.get("data") or environ.get("ONCUE_DATA")
    values: dict[str, Any] = {}
    path = file or Path(environ.get("ONCUE_CONFIG") or (Path(data) if data else default_data()) / "oncue.toml")
    if path.exists():
        values |= _from_file(path)
    elif file or environ.get("ONCUE_CONFIG"):
        raise Invalid(f"there is no settings file {path}", remedy="give the right path in ONCUE_CONFIG, or unset it")
    _check_names(environ)
    for name in FIELDS:
        text = environ.get("ONCUE_" + name.upper())
        if text is not None:
            values[name] = _convert(name, text, f"the environment variable ONCUE_{name.upper()}")
    for name, value in flags.items():
        values[name] = _convert(name, value, f"the flag --{name.replace('_', '-')}")
    return Settings(**values)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise Invalid(f"{path}: {e}", remedy="the file is TOML: one `name = value` a line") from None
    for name in found:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            raise Invalid(
                f"{path}: unknown setting {name!r}",
                remedy=f"did you mean {near[0]!r}?" if near else f"the settings are: {', '.join(FIELDS)}",
            )
    return {name: _convert(name, value, f"{path}: {name}") for name, value in found.items()}


def _check_names(environ: Mapping[str, str]) -> None:
    """Raise Invalid for an unknown ONCUE_ variable: it is a misspelt setting."""
    known = (*("ONCUE_" + name.upper() for name in FIELDS), *OTHERS)
    for name in environ:
        if name.startswith("ONCUE_") and name not in known and not name.startswith(OTHER_PREFIXES):
            near = difflib.get_close_matches(name, known, n=1)
            raise Invalid(
                f"the environment variable {name}: there is no such setting",
                remedy=f"did you mean {near[0]}? If not, unset it"
                if near
                else f"unset it; the variables are: {', '.join(known)}",
            )


def _convert(name: str, value: Any, place: str) -> Any:
    field = FIELDS.get(name)
    if field is None:
        raise Invalid(f"{place}: there is no setting {name!r}")
    elements = get_args(field.type)[0] if get_origin(field.type) is tuple else None
    if isinstance(value, str) and elements:
        parts = value.replace(" ", "").split(",") if elements is Network else value.split(os.pathsep)
        value = [part for part in parts if part]
    try:
        found = msgspec.convert(value, field.type, strict=False)
        if elements is Network:
            _check_networks(found)
    except ValueError as e:  # msgspec.ValidationError is one
        raise Invalid(f"{place}: {e}", remedy=f"{name} is {_wanted(field.type)}") from None
    return found


def _check_networks(texts: Sequence[str]) -> None:
    """Raise ValueError if a text is no address or network, or is all addresses."""
    for text in texts:
        if not ipaddress.ip_network(text).prefixlen:
            raise ValueError(f"{text} is everybody")


def _wanted(kind: Any) -> str:
    """Return the valid values in words: "a whole number, at least 0"."""
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return _LISTS[get_args(kind)[0]]
    if get_origin(kind) is not Annotated:
        return _KINDS[kind]
    plain, meta = get_args(kind)
    least = f"more than {meta.gt}" if meta.gt is not None else f"at least {meta.ge}"
    return f"{_KINDS[plain]}, {least}" + (f", at most {meta.le:,g}" if meta.le is not None else "")
