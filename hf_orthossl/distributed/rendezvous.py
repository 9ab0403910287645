"""Meet the other processes of a run: say who is missing, and give up after minutes.

torch would wait in silence. The processes therefore meet first, at the same address, and only once all are there does
torch connect them, which then takes no time.
"""

import contextlib
import ipaddress
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from . import environment, peers
from .peers import Peers

T = TypeVar("T")

# What a launcher, or the user, sets on every process.
ALL_OF_THEM = "WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT"
PORT = "29500"
# Seconds after which a process says whom it waits for; it says so again after four times as long, and so on.
NOTICE = 3.0
# Seconds for which an address may be unknown or refuse this process: a machine that starts at the same time may not
# have its name yet, and an earlier run may be about to end.
TRANSIENT = 10.0
KEY = "orthossl/peers"


@dataclass(frozen=True)
class Place:
    """A process of a run, and where all of them meet, as the environment states it.

    Args:
        rank (`int`): The number of this process.
        world_size (`int`): How many there are.
        host (`str`): Name or address of the machine of the main process.
        port (`int`): Its port.
    """

    rank: int
    world_size: int
    host: str
    port: int

    @classmethod
    def of_environment(cls) -> "Place":
        """Read the environment.

        Raises:
            ValueError: A variable is missing or cannot be used.
        """
        environment.check_environment()
        world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        os.environ.setdefault("MASTER_PORT", PORT)
        port = os.environ["MASTER_PORT"]
        if not (port.isdecimal() and 0 < int(port) < 1 << 16):
            raise ValueError(f"MASTER_PORT is {port!r}: it must be a number from 1 to 65535, the same on all processes")
        if not os.environ.get("MASTER_ADDR"):
            raise ValueError(
                f"MASTER_ADDR is not set, and WORLD_SIZE is {world_size}: set it to the machine of rank 0, such as "
                "127.0.0.1, or start the command with accelerate launch"
            )
        return cls(rank, world_size, os.environ["MASTER_ADDR"], int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port} (MASTER_ADDR:MASTER_PORT)"


def meet(limit: float) -> None:
    """Wait until all processes of the run are there, and watch over them from then on.

    Args:
        limit (`float`): Seconds to wait for processes, here and later.

    Raises:
        ValueError: The environment does not describe a run of several processes.
        ConnectionError: A process did not come in time, or the address cannot be used.
    """
    place = Place.of_environment()
    waiting = _Waiting(place, limit)
    _resolve(place, min(limit, TRANSIENT))
    watch = _listen(place, limit, waiting) if place.rank == 0 else None
    while watch is None or not watch.complete.wait(0.1):
        if watch is not None and watch.refusal:
            waiting.refusal = watch.refusal
        if place.rank and (watch is None or not watch.peers[0].connected):
            # The main process is not there yet, or was started anew.
            watch = _connect(place, limit, waiting)
        waiting.check([0] if watch is None else watch.missing)


class _Waiting:
    """Count how long this process has waited, and say for whom."""

    def __init__(self, place: Place, limit: float):
        self.place, self.limit, self.began, self.notice = place, limit, time.monotonic(), NOTICE
        self.refusal: str | None = None

    def check(self, missing: list[int]) -> None:
        """Say who is missing if it is time to, and give up if it is too late."""
        waited, place = time.monotonic() - self.began, self.place
        # An earlier run at the same address may be about to end.
        if self.refusal and waited > min(self.limit, TRANSIENT):
            raise ConnectionError(self.refusal)
        who = f"{len(missing)} of {place.world_size} processes (rank{'s' * (len(missing) > 1)} {_list(missing)})"
        if waited > self.limit:
            raise ConnectionError(
                f"{who} did not come to {place} within {self.limit:g} s: start {'it' if len(missing) == 1 else 'them'} "
                f"with the same {ALL_OF_THEM} (but its own RANK), or unset WORLD_SIZE to run one process"
            )
        if waited > self.notice and missing:
            self.notice *= 4
            if peers.speaks(place.rank, place.world_size, missing):
                peers.say(f"waiting for {who} at {place}")


def _listen(place: Place, limit: float, waiting: _Waiting) -> Peers:
    """Open the meeting on the main process."""
    if not environment.is_launched():
        try:
            _serve(place.host, place.port).close()
        except OSError as error:
            raise ConnectionError(
                f"MASTER_PORT is {place.port}, which cannot be used on this machine ({error.strerror}): set it to a "
                "free port, the same on all processes"
            ) from error
    listener = _serve(place.host, 0)
    watch = Peers(place.rank, place.world_size, limit, listener, secrets.token_hex(8))
    watch.start()

    def publish() -> Any:
        store = _open_store(place, limit, server=not environment.is_launched())
        store.set(_key(), f"{listener.getsockname()[1]} {watch.token}")
        return store

    # For as long as the process lives: it may be the server of all.
    watch.store = _in_time(publish, waiting)
    return watch


def _connect(place: Place, limit: float, waiting: _Waiting) -> Peers | None:
    """Connect with the main process, or return `None` if it is not there."""
    try:
        # Asked first, because torch would report each try that fails.
        socket.create_connection((place.host, place.port), timeout=2).close()
    except OSError:
        time.sleep(0.2)
        return None

    def look() -> str:
        return _open_store(place, limit, server=False).get(_key()).decode()

    with contextlib.suppress(OSError):
        port, token = _in_time(look, waiting).split()
        connection = socket.create_connection((place.host, int(port)), timeout=2)
        watch = Peers(place.rank, place.world_size, limit, connection, token)
        watch.start()
        return watch
    return None


def _open_store(place: Place, limit: float, *, server: bool) -> Any:
    """Return torch's store, which it uses again when it connects the processes."""
    from torch.distributed import TCPStore

    return TCPStore(
        place.host,
        place.port,
        is_master=server,
        timeout=timedelta(seconds=limit),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _key() -> str:
    # A launcher that restarts the processes uses the same store again.
    return f"{KEY}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _in_time(function: Callable[[], T], waiting: _Waiting) -> T:
    """Call a function that may wait in torch, where neither Python nor signals reach it, until it is too late."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        if not outcome:
            waiting.check([0])
    value, error = outcome[0]
    if error is not None:
        raise ConnectionError(f"the processes cannot meet at {waiting.place}: {error}") from error
    return value


def _resolve(place: Place, seconds: float) -> None:
    """Check that the address is known."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(place.host, place.port)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > until:
                raise ConnectionError(
                    f"MASTER_ADDR is {place.host!r}, which is not known as a name or address ({error}): set it to the "
                    "machine of rank 0, such as 127.0.0.1"
                ) from error
        time.sleep(0.5)


def _serve(host: str, port: int) -> socket.socket:
    """Return a socket that listens: for this machine alone if its address is that of no other."""
    if _is_loopback(host):
        family = socket.getaddrinfo(host, port)[0][0]
        return socket.create_server((host, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _list(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
