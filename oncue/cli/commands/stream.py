"""`oncue stream`: a worker of rules with memory, for a log on Kafka."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from oncue.config import Settings, load_settings, make_data_folder
from oncue.errors import Invalid
from oncue.extras import SERVER, STREAM, STREAM_PIP, need
from oncue.protocol.topics import MATCHES

if TYPE_CHECKING:
    from oncue.rules.stateful.faust_app import FaustApp
    from oncue.rules.stateful.kafka_runner import KafkaRunner


@click.command()
@click.option("--log", "log_url", help="URL of the log: kafka://host:port,... (default: the setting `log`).")
@click.option(
    "--data",
    type=click.Path(file_okay=False),
    help="Folder of the settings, blobs and its own work (default: ~/.oncue).",
)
@click.option("--anew", is_flag=True, help="Begin at the log's end where no server can hand over what it had.")
def stream(log_url: str | None, data: str | None, anew: bool) -> None:
    """Run rules with memory (dedupe, batch) beside the servers, until Ctrl-C. For a log on Kafka.

    Servers leave them to stream workers where their setting rules_memory is "stream". What is remembered is in the log, so it
    goes along. Several workers share the partitions of oncue.matches; when one is killed, the others go on with its
    windows within ten seconds.

    \b
    Example:
      oncue stream --log kafka://broker1:9092,broker2:9092
      ONCUE_RULES_MEMORY=stream oncue up --log kafka://broker1:9092 --detach
    """
    settings = load_settings({"log": log_url, "data": data})
    if not settings.log_url.startswith("kafka://"):
        raise Invalid(
            f"the log is {settings.log_url}: on such a log the server runs rules with memory itself",
            remedy="nothing more is needed there; a stream worker is for a log on Kafka: oncue stream --log kafka://host:port",
        )
    need("a stream worker", {**SERVER, **STREAM}, STREAM_PIP)
    make_data_folder(settings.data_path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in (
        "faust",
        "mode",
        "oncue.rules.stateful.faust_app",
    ):  # Faust tells of its own under our module's name, too
        logging.getLogger(name).setLevel(logging.ERROR)
    with asyncio.Runner() as runner:
        runner.run(_serve(settings, _told(settings), anew))


def _told(settings: Settings) -> Callable[[list[int]], None]:
    place = settings.data_path / "stream.partitions"  # there once this worker has its place: for health checks
    place.unlink(missing_ok=True)

    def told(partitions: list[int]) -> None:
        which = ", ".join(map(str, partitions)) or "none, others have them all"
        click.echo(f"oncue stream is up on {settings.log_url}, partitions of {MATCHES}: {which}")
        sys.stdout.flush()
        place.write_text(f"{which}\n")

    return told


async def _serve(settings: Settings, ready: Callable[[list[int]], None], anew: bool) -> None:
    from oncue.rules.stateful.worker import serve

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    def make(host: KafkaRunner, partitions: int, placed: Callable[[list[int]], None]) -> FaustApp:
        from oncue.log.kafka.address import parse

        with _no_arguments():
            from oncue.rules.stateful.faust_app import FaustApp, KafkaCluster
        address = parse(settings.log_url.partition("://")[2], settings)
        cluster = KafkaCluster(address.servers, address.client, address.options.prefix, address.options.session_s)
        return FaustApp(cluster, host, partitions, settings.data_path / "stream", placed)

    def say(text: str) -> None:
        click.echo(text)
        sys.stdout.flush()

    await serve(settings, make, stopping, ready, say, anew)


@contextmanager
def _no_arguments() -> Iterator[None]:
    """Faust reads the process's arguments while it is imported, and would take ours for its own."""
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = kept
