"""`oncue stream`: a worker that runs stateful rules, for a log on Kafka."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from oncue.config import Settings, load_settings, make_data_folder
from oncue.disk.durable_files import replace_file
from oncue.errors import Invalid
from oncue.extras import SERVER, STREAM, need
from oncue.processes.secrecy import hide_from_tasks
from oncue.processes.stop_signals import stop_signals
from oncue.protocol.topics import MATCHES
from oncue.text.log_lines import log_to

if TYPE_CHECKING:
    from oncue.rules.stateful.faust_app import FaustApp
    from oncue.rules.stateful.kafka_runner import KafkaRunner


@click.command()
@click.option("--log", "log_url", help="URL of the log: kafka://host:port,... (default: the setting `log`).")
@click.option(
    "--data",
    type=click.Path(file_okay=False),
    help="Folder of settings, blobs and working files (default: ~/.oncue).",
)
@click.option(
    "--anew", is_flag=True, help="Start with empty state at the log's end if no server can hand over its state."
)
def stream(log_url: str | None, data: str | None, anew: bool) -> None:
    """Run stateful rules (dedupe, batch) beside the servers, until Ctrl-C.

    For a log on Kafka.

    Servers leave these rules to stream workers if their setting rules_memory is "stream". The state
    is in the log, so workers can take over from servers and from each other. Several workers share
    the partitions of oncue.matches; if one is killed, the others continue its windows within ten
    seconds.

    \b
    Example:
      oncue stream --log kafka://broker1:9092,broker2:9092
      ONCUE_RULES_MEMORY=stream oncue up --log kafka://broker1:9092 --detach
    """
    settings = load_settings({"log": log_url, "data": data})
    if not settings.log_url.startswith("kafka://"):
        raise Invalid(
            f"the log is {settings.log_url}: on this log the server runs stateful rules itself",
            remedy="a stream worker is only for a log on Kafka: oncue stream --log kafka://host:port",
        )
    need("a stream worker", {**SERVER, **STREAM})
    make_data_folder(settings.data_path)
    if not settings.debuggable:
        hide_from_tasks()
    log_to()
    # Faust logs under the name of our module, too.
    for name in ("faust", "mode", "oncue.rules.stateful.faust_app"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with asyncio.Runner() as runner:
        runner.run(_serve(settings, _assignment_reporter(settings), anew))


def _assignment_reporter(settings: Settings) -> Callable[[list[int]], None]:
    """Return a callback that prints the assigned partitions and stores them.

    It writes them to a file. The file exists once this worker has its partitions: health checks
    test for it.
    """
    file = settings.data_path / "stream.partitions"
    file.unlink(missing_ok=True)

    def report(partitions: list[int]) -> None:
        names = ", ".join(map(str, partitions)) or "none, others have them all"
        click.echo(f"oncue stream is up on {settings.log_url}, partitions of {MATCHES}: {names}")
        sys.stdout.flush()
        replace_file(file, f"{names}\n".encode(), durable=False)

    return report


async def _serve(settings: Settings, ready: Callable[[list[int]], None], anew: bool) -> None:
    from oncue.rules.stateful.worker import serve

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, stopping.set)

    def make(host: KafkaRunner, partitions: int, placed: Callable[[list[int]], None]) -> FaustApp:
        from oncue.log.kafka.address import parse_address

        with _no_arguments():
            from oncue.rules.stateful.faust_app import FaustApp, KafkaCluster
        address = parse_address(settings.log_url.partition("://")[2], settings)
        cluster = KafkaCluster(address.servers, address.client, address.options.prefix, address.options.session_s)
        return FaustApp(cluster, host, partitions, settings.data_path / "stream", placed)

    def say(text: str) -> None:
        click.echo(text)
        sys.stdout.flush()

    await serve(settings, make, stopping, ready, say, anew)


@contextmanager
def _no_arguments() -> Iterator[None]:
    """Hide the process's arguments: Faust parses them while it is imported."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments
