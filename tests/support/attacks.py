"""Attack the package through the doors that users have, and count what held, by kind of attack."""

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Seconds after which an attack counts as a hang.
PATIENCE = 120


class Hang(BaseException):
    """The command did not end in time. No `Exception`, so that no handler of the package takes it for an error."""


@dataclass
class Outcome:
    """How a command ended.

    Args:
        code (`int`): Its exit code; negative for a signal.
        out (`str`): What it printed.
        err (`str`): What it printed to stderr.
        seconds (`float`): How long it took.
    """

    code: int
    out: str
    err: str
    seconds: float

    def refused(self, *words: str) -> None:
        """Asserts exit code 2 and one line of error that contains the words, and no traceback."""
        assert self.code == 2, f"code {self.code}, not 2: {self.tail}"
        errors = [line for line in self.err.splitlines() if ": error: " in line]
        assert len(errors) == 1, f"{len(errors)} lines of error: {self.tail}"
        assert "Traceback" not in self.err, self.tail
        for word in words:
            assert word in errors[0], f"no {word!r} in {errors[0]!r}"

    def answered(self) -> None:
        """Asserts exit code 0 or 2, and no traceback."""
        assert self.code in (0, 2), f"code {self.code}: {self.tail}"
        assert "Traceback" not in self.err, self.tail

    def worked(self, *words: str) -> None:
        """Asserts exit code 0 and output that contains the words."""
        assert self.code == 0, f"code {self.code}: {self.tail}"
        for word in words:
            assert word in self.out + self.err, f"no {word!r} in {self.out[-2000:]!r}"

    @property
    def tail(self) -> str:
        """The end of what it printed to stderr."""
        return self.err[-1500:]


@dataclass
class Attacks:
    """The attacks of one kind: each may fail, and all are tried before the test fails.

    Args:
        kind (`str`): What is attacked, a row of the table of counts.
    """

    kind: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Counts the block as one attack, which failed if the block raises."""
        self.tried += 1
        try:
            yield
        except (Exception, Hang):
            self.failures.append(f"{name}: {traceback.format_exc(limit=-1).strip()}")

    def check(self) -> None:
        """Fails with the attacks that did not hold."""
        assert not self.failures, f"{len(self.failures)} of {self.tried} attacks on {self.kind}:\n" + "\n".join(
            self.failures
        )


def command(*argv: object, seconds: float = PATIENCE, memory: int | None = None) -> Outcome:
    """Runs `orthossl` in this process, which saves the seconds that imports take.

    Args:
        argv: The arguments, as text.
        seconds (`float`): When it counts as a hang.
        memory (`int`, *optional*): The bytes of address space that it may take beyond those of this process.
    """
    from hf_orthossl.cli import main

    out, err = io.StringIO(), io.StringIO()
    with limits(seconds, memory), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        began, code = time.monotonic(), 0
        try:
            main([str(argument) for argument in argv])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except Hang as error:
            raise Hang(f"still running after {seconds} s: {err.getvalue()[-500:]}") from error
        except Exception:
            code = 1
            traceback.print_exc()
    return Outcome(code, out.getvalue(), err.getvalue(), time.monotonic() - began)


def start(*argv: object, program: list[str] | None = None, **environment: str) -> subprocess.Popen:
    """Starts `orthossl` as a process of its own, which can be killed, in a process group of its own.

    Args:
        argv: The arguments, as text.
        program (`list[str]`, *optional*): What to run instead, such as `["scripts/pretrain.py"]`.
        environment: Further variables.
    """
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(path for path in (str(root), os.environ.get("PYTHONPATH", "")) if path)
    return subprocess.Popen(
        [sys.executable, *(program or ["-m", "hf_orthossl"]), *map(str, argv)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen, seconds: float = PATIENCE) -> Outcome:
    """Waits for a started process; its whole group is killed if it does not end in time."""
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate()
        raise Hang(f"still running after {seconds} s: {err[-500:]}") from error
    return Outcome(process.returncode, out, err, time.monotonic() - began)


@contextlib.contextmanager
def limits(seconds: float, memory: int | None) -> Iterator[None]:
    def hang(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)
