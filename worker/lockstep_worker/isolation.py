"""Nodes in processes of their own: they can be killed, take no other node with them, and see no LOCKSTEP_* variables."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Pipe
from typing import Any

from lockstep.compiled import NodeSpec
from lockstep.config import environment_without_settings
from lockstep.core.records import Failure
from lockstep.errors import ConfigurationError, NodeFailedError, StateError, text_of
from lockstep.interrupts import Question
from lockstep.records import Chunk, Task
from lockstep_worker.child import Asked, Call, Raised, Returned, Streamed, where_is
from lockstep_worker.context import NodeContext

CLOSE_SECONDS = 5.0
"""How long a process that was killed may take to be gone."""


class NodeRaised(Exception):
    """A node has raised in its process; `failure` says what."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.get("message"))
        self.failure = failure


class Child:
    """A process that executes one call at a time."""

    def __init__(self) -> None:
        self._is_killed = False
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lockstep_worker.child", str(theirs.fileno())],
            env={**environment_without_settings(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=[theirs.fileno()],
            # Ctrl-C in a terminal is for the worker, which lets its nodes finish.
            start_new_session=True,
        )
        theirs.close()

    def call(self, call: Call, streamed: Callable[[Chunk], None]) -> Returned | Asked | Raised:
        """Make the call. Raises NodeFailedError if the process ends meanwhile."""
        try:
            self._connection.send(call)
            while True:
                answer: Returned | Asked | Raised | Streamed = pickle.loads(self._connection.recv_bytes())
                if not isinstance(answer, Streamed):
                    return answer
                streamed(answer.chunk)
        except (EOFError, OSError):
            raise self._ended(call.task) from None

    def _ended(self, task: Task) -> NodeFailedError:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return NodeFailedError(
            f"node {task.node_id!r} ended its process ({how}); look at its memory, and at what it calls",
            error_type="ProcessEnded",
        )

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self._is_killed = True
        self._process.kill()

    def close(self) -> None:
        """End the process and wait until it is gone."""
        self.kill()
        self._process.wait(CLOSE_SECONDS)
        self._connection.close()

    @property
    def is_alive(self) -> bool:
        """Whether the process can be called again. One that was killed may take a moment to be gone."""
        return not self._is_killed and self._process.poll() is None


class Loan:
    """A child while it executes one call: who wants that call to end kills it, and never the next one in the same process."""

    def __init__(self, child: Child) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = child

    def kill(self) -> None:
        """End the call with its process, if it is still under way."""
        with self._lock:
            if self._child is not None:
                self._child.kill()

    def end(self) -> None:
        """The call is over."""
        with self._lock:
            self._child = None


class Children:
    """Processes for isolated nodes, made when needed and kept for the next one: never more than nodes that run at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._closed = False

    def call(self, spec: NodeSpec, argument: Any, context: NodeContext, started: Callable[[Loan], None]) -> Any:
        """What a node returns; `context` gets what else it has done, `started` is told what to kill if it takes too long.

        Raises NodeRaised for what it raises, and NodeFailedError if it ends its process.
        """
        call = Call(where_is(spec.function), spec.takes_context, _pickled(argument), context.task, sys.path, context.replays)
        child = self._acquire()
        loan = Loan(child)
        try:
            started(loan)
            answer = child.call(call, context.forward)
        finally:
            loan.end()
            self._release(child)
        context.usage += answer.usage
        if isinstance(answer, Asked):
            raise Question(answer.number, answer.value, answer.calls, answer.timer)
        if isinstance(answer, Raised):
            raise NodeRaised(answer.failure) from answer.error
        context.events += answer.events
        if answer.begun:
            context.recorder.adopt(answer.begun, answer.calls)
        return answer.value

    def _acquire(self) -> Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        if "lockstep_worker.child" in sys.orig_argv:
            raise ConfigurationError(
                "a script that was loaded for an isolated node starts an engine; put that under if __name__ == '__main__'",
                option="isolation",
            )
        return Child()

    def _release(self, child: Child) -> None:
        with self._lock:
            if child.is_alive and not self._closed:
                self._idle.append(child)
                return
        child.close()

    def close(self) -> None:
        """End the processes that nobody uses; the others end with their calls. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()


def _pickled(argument: Any) -> bytes:
    try:
        return pickle.dumps(argument)
    except Exception as error:
        raise StateError(f"what an isolated node gets cannot be sent to its process: {text_of(error)}") from error
