"""Processes that meet, watch each other, and end by signals: here as threads of one process, over real sockets."""

import os
import signal
import socket
import threading
import time

import pytest

from hf_orthossl.cli import run
from hf_orthossl.distributed import ending, peers, rendezvous
from hf_orthossl.distributed.ending import REPEAT, SignalGuard
from hf_orthossl.distributed.peers import Peers
from hf_orthossl.distributed.progress import here


@pytest.fixture(autouse=True)
def _alone_again():
    yield
    peers._watch = None
    here.begin("orthossl")


@pytest.fixture
def ends(monkeypatch):
    """The ends of this process that were asked for, which do not take place."""
    asked = []

    def end_now(code, last_words):
        last_words()
        asked.append(code)
        for watch in list(threading.enumerate()):
            if isinstance(watch, Peers):
                watch._left = True

    monkeypatch.setattr(ending, "end_now", end_now)
    return asked


def pair(limit=300.0, start=(0, 1)):
    listener = socket.create_server(("127.0.0.1", 0))
    main = Peers(0, 2, limit, listener, "secret")
    other = Peers(1, 2, limit, socket.create_connection(listener.getsockname()), "secret")
    for rank in start:
        (main, other)[rank].start()
    assert main.complete.wait(10)
    return main, other


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"RANK": None}, "RANK is not set, and WORLD_SIZE is 2"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2: RANK must be from 0 to 1"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is '0'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_an_environment_that_describes_no_process_is_refused(variables, words, monkeypatch):
    described = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} | variables
    for name, value in described.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        rendezvous.Place.of_environment()


@pytest.mark.parametrize(("rank", "missing"), [("0", "rank 1"), ("1", "rank 0")])
def test_a_process_says_whom_it_waits_for_and_gives_up(rank, missing, monkeypatch, capfd):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "NOTICE", 0.2)
    with pytest.raises(ConnectionError, match=rf"1 of 2 processes \({missing}\) did not come to 127.0.0.1:{port}"):
        rendezvous.meet(0.7)
    assert f"waiting for 1 of 2 processes ({missing}) at 127.0.0.1:{port}" in capfd.readouterr().err


def test_a_process_that_ended_is_named_with_the_way_on_but_not_one_that_left():
    here.step, here.remedy = 12, lambda: "start the command again with --resume"
    main, other = pair()
    until(lambda: other.complete.is_set())
    assert main.seek_lost(10) is None
    other._lines[0].connection.shutdown(socket.SHUT_RDWR)
    assert main.seek_lost(10) == "process 1 of 2 ended at step 12: start the command again with --resume"
    main._left = other._left = True
    main, other = pair()
    other.leave()
    until(lambda: main.peers[1].left)
    assert main.seek_lost(0.1) is None
    main.leave()


def test_a_silent_process_is_waited_for_to_the_limit(ends, capfd):
    main, _ = pair(limit=1.5, start=[0])
    until(lambda: ends)
    said = capfd.readouterr().err
    assert "waiting for 1 of 2 processes: rank 1 has not answered for" in said
    assert "process 1 of 2 has not answered for 1.5 s: start the command again" in said
    assert ends[0] == 2
    main._left = True


def test_a_process_that_computes_is_waited_for_and_two_that_wait_for_each_other_are_not(ends, monkeypatch):
    # What one of the two computes to know it would count as the other's work: they are one process here.
    monkeypatch.setattr(ending, "children_work", lambda: 0.0)
    main, other = pair(limit=1.0)
    here.training, computing = True, time.monotonic() + 2.5
    while time.monotonic() < computing:
        sum(range(10_000))
    assert not ends
    # Asking more often would be work.
    time.sleep(3)
    until(lambda: ends)
    assert "have done nothing for 1 s" in str(main.lost or other.lost)


def test_processes_of_another_run_are_not_taken_in():
    main, other = pair()
    stranger = Peers(1, 2, 300.0, socket.create_connection(main.listener.getsockname()), "another secret")
    stranger.start()
    until(lambda: not stranger.peers[0].connected)
    with socket.create_connection(main.listener.getsockname()) as noise:
        noise.sendall(b"GET / HTTP/1.1\r\n\r\n")
        noise.settimeout(5)
        assert noise.recv(100) == b""
    assert main.peers[1].connected
    for watch in (main, other, stranger):
        watch.leave()


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_a_signal_ends_a_command_in_one_line(number, capfd):
    before = signal.getsignal(number)

    def command(argv):
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(SystemExit) as end:
        run("orthossl test", command, [])
    assert end.value.code == 128 + number
    assert capfd.readouterr().err.strip() == f"orthossl test: ended by {number.name}: start the command again"
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_a_process_that_runs_no_python(ends):
    """The handlers do nothing here, as in a collective they would not be called."""
    with SignalGuard(), ending.deferred() as by_itself:
        assert by_itself
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * REPEAT)
        assert not ends
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: ends)
    assert ends[0] == 128 + signal.SIGTERM


def test_a_forked_process_does_not_speak_for_this_one():
    """A data loader's process gets the signals of the whole group: they are not this process's."""
    with SignalGuard() as guard:
        child = os.fork()
        if child == 0:
            try:
                time.sleep(30)
            finally:
                os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
        assert guard.received is None
