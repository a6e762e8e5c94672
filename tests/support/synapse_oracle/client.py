"""The tests' end of the pipe to the oracle process."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".peers" / "synapse" / "bin" / "python"


def is_installed() -> bool:
    """Whether the venv with Synapse is there (`make peers`)."""
    return PYTHON.exists()


class OracleError(Exception):
    """The oracle process failed on a request."""


class Oracle:
    """A running oracle process; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [str(PYTHON), "-W", "ignore", str(Path(__file__).with_name("process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()

    def ask(self, operation: str, **arguments: Any) -> Any:
        """One request, one answer. Raises ``OracleError`` with the process's traceback."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise OracleError(answer["error"])
        return answer["result"]

    def replay(
        self,
        version: str,
        events: Sequence[Mapping[str, Any]],
        merges: Sequence[Sequence[str]] = (),
        *,
        soft_fail: bool = False,
    ) -> dict[str, Any]:
        """Judge events in order: `accepted` ids, `refused` id -> reason, `before` id -> {"type|key": id}.

        `soft_failed` id -> reason, if ``soft_fail``: of those accepted what the current state refuses.

        `merged`: for each of ``merges`` (event ids) the resolution of the states after those events.
        """
        result: dict[str, Any] = self.ask(
            "replay", room_version=version, events=events, merges=merges, soft_fail=soft_fail
        )
        return result
