"""``slurmbus metrics``."""

from __future__ import annotations

import asyncio
import logging
import signal
from wsgiref.simple_server import WSGIServer

import click

from slurmbus.bearer import Bearer
from slurmbus.board import Board
from slurmbus.commands.boards import filled, open_board
from slurmbus.commands.console import tell
from slurmbus.commands.options import log_options
from slurmbus.metrics import Metrics, OnLoop
from slurmbus.metrics_server import serve_metrics
from slurmbus_protocol import logs
from slurmbus_protocol.errors import InvalidSetting

PORT = 9464
"""OpenTelemetry's default for Prometheus exporters."""


@click.command("metrics")
@click.option("--listen", metavar="HOST", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 is a free one.")
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Whether only who has the token may ask. Every user of this machine reaches the loopback.",
)
@click.option("--once", is_flag=True, help="Write the metrics to stdout and end.")
@log_options
def command(listen: str, port: int, *, private: bool, once: bool, log_format: str) -> None:
    """Serve metrics of all sites, agents and jobs for Prometheus, until Ctrl-C.

    Prometheus brings the token of the home's metrics.token ("authorization: credentials_file" of its scrape_configs).
    Jobs are counted, and their times measured, when they end while this runs.
    """
    logs.set_up(log_format, logging.WARNING if once else logging.INFO)
    board = open_board()
    asyncio.run(_write(board) if once else _serve(board, listen, port, private=private, log_format=log_format))


async def _write(board: Board) -> None:
    async with board:
        await filled(board)
        _, page = Metrics(board).page()
        click.echo(page, nl=False)


async def _serve(board: Board, listen: str, port: int, *, private: bool, log_format: str) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics(board)
    token = board.home.metrics_token() if private else None
    server = _listening(OnLoop(metrics, loop), listen, port, Bearer(token) if token else None)
    async with board:
        counting = asyncio.create_task(metrics.run())
        host = f"[{listen}]" if ":" in listen else listen
        tell(f"metrics are on http://{host}:{server.server_port}/metrics", log_format, bold=True)
        if token:
            tell(f"who asks for them brings the token of {token}", log_format)
        await stop.wait()
        await asyncio.to_thread(server.shutdown)  # a scrape under way needs this loop
        server.server_close()
        counting.cancel()


def _listening(collector: OnLoop, listen: str, port: int, bearer: Bearer | None) -> WSGIServer:
    try:
        return serve_metrics(collector, listen, port, bearer)
    except OSError as error:
        raise InvalidSetting(f"{listen}:{port} can't be listened on: {error.strerror or error}") from error
