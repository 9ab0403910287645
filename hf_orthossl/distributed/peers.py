"""Know whether each process of a run lives, works or has ended, and end this one when another cannot be waited for.

Every process holds one connection to the main one, over which each says once a second where it is. A process that ends,
however it does, closes its connection: all know within a second. One that is stopped falls silent. One that computes
for hours while the others wait, such as the main one for a linear probe, keeps saying so. The thread that does this
runs while the main thread is inside of a collective, in which no Python code runs, and ends the process from there.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from dataclasses import astuple, dataclass
from typing import Any

from . import ending, environment
from .progress import here

# Seconds between two messages.
INTERVAL = 1.0
# Seconds that the main thread has to end by itself, with the error of its collective, once a peer is known to be lost.
GRACE = 5.0
# The share of one core below which a process does nothing: a thread that waits takes none.
IDLE = 0.01
# Bytes of messages that may be kept for a process that does not read them.
BACKLOG = 1 << 20


@dataclass
class Sign:
    """State the progress of a process, and for how many seconds it has computed nothing."""

    arrivals: int = 0
    step: int | None = None
    training: bool = False
    busy: bool = False
    idle: float = 0.0


@dataclass
class Peer:
    """Keep what is known of another process: its last sign and when it came, whether it is connected or has left."""

    sign: Sign
    heard: float
    connected: bool = False
    left: bool = False

    @property
    def ended(self) -> bool:
        """Return whether it is gone without having left."""
        return not self.connected and not self.left


class Line:
    """A connection that carries JSON values, one a line, and never blocks."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        self.connection, self._incoming, self._outgoing = connection, b"", b""
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message, now or with the next one.

        Raises:
            OSError: The other end is gone.
        """
        with self._lock:
            if len(self._outgoing) < BACKLOG:
                self._outgoing += json.dumps(message).encode() + b"\n"
            with contextlib.suppress(BlockingIOError):
                while self._outgoing:
                    self._outgoing = self._outgoing[self.connection.send(self._outgoing) :]

    def receive(self) -> list[Any]:
        """Return the messages that have arrived.

        Raises:
            OSError: The other end is gone, or sends no messages.
        """
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        self._incoming += data
        *lines, self._incoming = self._incoming.split(b"\n")
        if not data or len(self._incoming) > BACKLOG:
            raise ConnectionResetError("the connection has ended")
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise ConnectionResetError("the other end sends something else") from error


class Peers(threading.Thread):
    """The watch of one process over the others of its run.

    Args:
        rank (`int`): The number of this process.
        world_size (`int`): How many there are.
        limit (`float`): Seconds for which a process that does not answer is waited for.
        connection (`socket`): On the main process the socket that listens; on the others, that to the main process.
        token (`str`): The secret that the processes of the run have in common.
    """

    def __init__(self, rank: int, world_size: int, limit: float, connection: socket.socket, token: str):
        super().__init__(name="orthossl-peers", daemon=True)
        now = time.monotonic()
        self.rank, self.world_size, self.limit, self.token = rank, world_size, limit, token
        self.peers = {number: Peer(Sign(), now) for number in range(world_size)}
        self.peers[rank].connected = True
        self.complete = threading.Event()
        self.lost: str | None = None
        self.refusal: str | None = None
        self._interval = min(INTERVAL, limit / 5) + world_size / 100
        self._notice = self._first_notice = min(60.0, limit / 3)
        self._parent = os.getppid() if environment.is_launched() else None
        self._work, self._worked, self._children, self._asked = 0.0, now, 0.0, now
        self.store: Any = None
        self._left = False
        self._ends: float | None = None
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, Line] = {}
        self._strangers: list[Line] = []
        if rank == 0:
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)
            self.listener: socket.socket | None = connection
        else:
            self.listener = None
            self._lines[0] = Line(connection)
            self.peers[0].connected = True
            self._lines[0].send({"rank": rank, "world_size": world_size, "token": token})
            self._selector.register(connection, selectors.EVENT_READ, self._lines[0])
        global _watch
        _watch = self

    @property
    def missing(self) -> list[int]:
        """Return the processes that have not come yet."""
        return [rank for rank, peer in self.peers.items() if not peer.connected]

    def run(self) -> None:
        """Listen and speak until this process leaves, and end it when a peer is lost."""
        last = time.monotonic()
        while not self._left:
            due = last + self._interval
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                self._hear(key)
            now = time.monotonic()
            if now < due:
                continue
            if now - due > 5 * self._interval:
                # This process was stopped itself, and has heard nobody meanwhile.
                self._worked += now - due
                for peer in self.peers.values():
                    peer.heard += now - due
            last = now
            self._say(now)
            if self.complete.is_set() and not self._left:
                self._judge(now)
        self._close()

    def leave(self) -> None:
        """Tell the others that this process needs them no more: its end is then no failure."""
        if self._left:
            return
        self._left = True
        for line in list(self._lines.values()):
            with contextlib.suppress(OSError):
                line.send({"left": self.rank})

    def seek_lost(self, within: float) -> str | None:
        """Return which peer is lost, if one is: wait until every other has given a new sign of life, or one has not."""
        began = time.monotonic()
        while time.monotonic() < began + within and self.lost is None and not self._left:
            others = self._others()
            if ended := [rank for rank, peer in others.items() if peer.ended]:
                self._lose(ended, "ended")
            # The last message of a process may arrive after its end is felt.
            elif all(peer.heard > began + 1.5 * self._interval for peer in others.values()):
                break
            time.sleep(0.05)
        quiet = [rank for rank, peer in self._others().items() if peer.heard <= began]
        if self.lost is None and not self._left and quiet and within > 3 * self._interval:
            quiet = [0] if 0 in quiet else quiet
            self._lose(quiet, "does not answer" if len(quiet) == 1 else "do not answer")
        return self.lost

    def _others(self) -> dict[int, Peer]:
        """Return the processes that this one may have to wait for."""
        return {rank: peer for rank, peer in list(self.peers.items()) if rank != self.rank and not peer.left}

    def _hear(self, key: selectors.SelectorKey) -> None:
        if key.data is None:
            with contextlib.suppress(OSError):
                stranger = Line(key.fileobj.accept()[0])  # type: ignore[union-attr]
                self._strangers.append(stranger)
                self._selector.register(stranger.connection, selectors.EVENT_READ, stranger)
            return
        line: Line = key.data
        rank = next((rank for rank, known in self._lines.items() if known is line), None)
        try:
            for message in line.receive():
                if rank is None:
                    rank = self._admit(line, message)
                elif "left" in message:
                    self.peers[rank].left = True
                    self._left = self._left or self.rank != 0
                elif self.rank == 0:
                    self._heard(rank, message["sign"], time.monotonic())
                else:
                    self._read_table(message)
        except (OSError, KeyError, TypeError, ValueError):
            self._selector.unregister(line.connection)
            line.connection.close()
            if line in self._strangers:
                self._strangers.remove(line)
            elif rank is not None:
                del self._lines[rank]
                self.peers[rank].connected = False

    def _admit(self, line: Line, message: Any) -> int | None:
        """Take a process in, on the main one; those that do not belong here are told why."""
        rank, world_size = int(message["rank"]), int(message["world_size"])
        if message["token"] != self.token:
            raise ConnectionResetError("not of this run")
        self._strangers.remove(line)
        if world_size != self.world_size:
            reason = f"WORLD_SIZE is {world_size} on rank {rank} and {self.world_size} on rank 0: set all to the same"
            self.refusal = reason
        elif not 0 < rank < world_size or self.peers[rank].connected or self.complete.is_set():
            reason = f"RANK is {rank} on two processes: set it to another on each, from 0 to {world_size - 1}"
        else:
            self._lines[rank] = line
            self.peers[rank] = Peer(Sign(), time.monotonic(), connected=True)
            if not self.missing:
                self.complete.set()
            return rank
        line.send({"refusal": reason})
        raise ConnectionRefusedError(reason)

    def _heard(self, rank: int, sign: list[Any], when: float) -> None:
        self.peers[rank].sign, self.peers[rank].heard = Sign(*sign), when

    def _read_table(self, message: Any) -> None:
        """Take over what the main process knows of all."""
        now = time.monotonic()
        if "refusal" in message:
            self.refusal = str(message["refusal"])
            return
        for rank, (connected, left, silence, sign) in enumerate(message["table"]):
            if rank != self.rank:
                self.peers[rank].connected, self.peers[rank].left = connected, left
                self._heard(rank, sign, now - silence)
        if message["complete"]:
            self.complete.set()

    def _say(self, now: float) -> None:
        """Tell the others, or the main process, where this one is."""
        if not self.complete.is_set():
            # Until all are here, nobody is late.
            self._worked = now
        # What this process has computed, without this thread.
        work = time.process_time() - time.thread_time()
        if work - self._work > _worth(now - self._worked):
            self._work, self._worked = work, now
        elif now - self._worked > self.limit / 2 and now - self._asked > self.limit / 20:
            # It may wait for the processes of a data loader, which are found by looking at all of the machine.
            self._asked = now
            children = ending.children_work()
            if children - self._children > _worth(now - self._worked):
                self._children, self._worked = children, now
        sign = Sign(here.arrivals, here.step, here.training, bool(here.busy), now - self._worked)
        self._heard(self.rank, list(astuple(sign)), now)
        if self.rank == 0:
            table = [(p.connected, p.left, now - p.heard, astuple(p.sign)) for p in self.peers.values()]
            message: dict[str, Any] = {"table": table, "complete": self.complete.is_set()}
        else:
            message = {"sign": astuple(sign)}
        for line in list(self._lines.values()):
            # Its end is noticed by reading.
            with contextlib.suppress(OSError):
                line.send(message)

    def _judge(self, now: float) -> None:
        """Notice who cannot be waited for, and tell who is waited for."""
        if self._ends is not None:
            if now > self._ends:
                ending.end_now(2, lambda: tell_lost(str(self.lost)))
            return
        others = self._others()
        silent = {rank: now - peer.heard for rank, peer in others.items()}
        if self.rank and silent.get(0, 0.0) > 2 * self._interval:
            # Of the others, this process hears from the main one.
            silent = {0: silent[0]}
        present = {rank: peer.sign for rank, peer in self.peers.items() if not peer.left}
        fewest = min(sign.arrivals for sign in present.values())
        late = {rank: sign for rank, sign in present.items() if sign.arrivals == fewest}
        if ended := [rank for rank, peer in others.items() if peer.ended]:
            self._lose(ended, "ended")
        elif gone := [rank for rank, seconds in silent.items() if seconds > self.limit]:
            self._lose(gone, f"{_has(gone)} not answered for {self.limit:g} s", grace=0.0)
        elif all(sign.training for sign in present.values()) and all(
            sign.idle > self.limit and not sign.busy for sign in late.values()
        ):
            self._lose(list(late), f"{_has(list(late))} done nothing for {self.limit:g} s", grace=0.0)
        elif self._parent is not None and os.getppid() != self._parent:
            self._parent = None
            if self.rank == 0:
                say("the launcher has ended, and so do its processes")
            ending.send_to_self()
        else:
            self._tell_waiting(silent, late)

    def _tell_waiting(self, silent: dict[int, float], late: dict[int, Sign]) -> None:
        """Print whom this process waits for: after a minute, then after twice as long each time."""
        own = self.peers[self.rank].sign
        quiet = {rank: seconds for rank, seconds in silent.items() if seconds > self._first_notice}
        if quiet:
            seconds, ranks = max(quiet.values()), list(quiet)
            what = f"{_has(ranks)} not answered for {seconds:.0f} s"
        elif own.idle > self._first_notice and self.rank not in late:
            seconds, ranks = own.idle, list(late)
            works = min(sign.idle for sign in late.values()) < seconds / 2
            what = f"{_has(ranks)} {'computed alone' if works else 'done nothing'} for {seconds:.0f} s"
        else:
            self._notice = self._first_notice
            return
        if seconds >= self._notice:
            self._notice = 2 * seconds
            if speaks(self.rank, self.world_size, ranks):
                say(f"waiting for {len(ranks)} of {self.world_size} processes: {_named(ranks)} {what}")

    def _lose(self, ranks: list[int], what: str, grace: float = GRACE) -> None:
        """Give processes up; the main thread has some seconds to end with the error of its collective."""
        step = "" if here.step is None else f" at step {here.step}"
        numbers = ", ".join(map(str, ranks))
        self.lost = f"process{'es' * (len(ranks) > 1)} {numbers} of {self.world_size} {what}{step}: {here.remedy()}"
        self._ends = time.monotonic() + grace

    def _close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def forget(self) -> None:
        """Close the connections in a process forked from this one, which would keep them open after its end."""
        self._left = True
        for key in list(self._selector.get_map().values()):
            with contextlib.suppress(OSError):
                key.fileobj.close()  # type: ignore[union-attr]
        with contextlib.suppress(OSError):
            self._selector.close()


def watch() -> Peers | None:
    """Return the watch of this process over its peers, `None` if it has none or has left them."""
    return None if _watch is None or _watch._left else _watch


def lost_peer(within: float = 10.0) -> str | None:
    """Return a line about a process of this run that ended or does not answer, or `None` if all are well.

    Args:
        within (`float`, defaults to 10): Seconds to wait at most for signs of life of all.
    """
    watch_of_run = watch()
    return None if watch_of_run is None else watch_of_run.seek_lost(within)


def leave() -> None:
    """Tell the other processes that this one goes on or ends alone, if there are others."""
    if _watch is not None:
        _watch.leave()


def speaks(rank: int, world_size: int, absent: list[int]) -> bool:
    """Return whether a process says who is waited for: under a launcher, whose terminal all share, only the first does.

    Args:
        rank (`int`): The number of the process.
        world_size (`int`): How many there are.
        absent (`list[int]`): Those that are waited for.
    """
    return not environment.is_launched() or rank == min(set(range(world_size)) - set(absent), default=0)


def say(text: str) -> None:
    """Print a line about the processes, from any thread, in the name of the command."""
    ending.write(("\n" if sys.stderr is not None and sys.stderr.isatty() else "") + f"{here.command}: {text}\n")


def tell_lost(line: str) -> None:
    """Print the line about a lost peer as the error of the command, unless another process has already printed one."""
    environment.print_error_once(f"{here.command}: error: {line}")


def _worth(seconds: float) -> float:
    """Return the seconds of computing in so many seconds below which a process counts as idle."""
    return max(0.002, IDLE * seconds)


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _has(ranks: list[int]) -> str:
    return "has" if len(ranks) == 1 else "have"


def _forget() -> None:
    global _watch
    if _watch is not None:
        _watch.forget()
        _watch = None


_watch: Peers | None = None
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
