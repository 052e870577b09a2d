"""What a server tells on standard error: lines for people on a terminal, JSON lines elsewhere."""

import json
import logging
import sys
from datetime import UTC, datetime
from queue import Full, Queue
from threading import Thread
from typing import Any, TextIO

from vitrail.data.listing import one_line

_MOST = 10_000  # lines that wait to be written


class Log:
    """Writes in a thread of its own: who reads standard error may be slow, the loop may not."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.for_people = self.stream.isatty()
        self.lines: Queue[str | None] = Queue(_MOST)
        self.lost = 0
        self.thread = Thread(target=self._write, name="log", daemon=True)
        self.thread.start()

    def __call__(self, event: str, level: str = "info", **values: Any) -> None:
        """Tell one event; where lines come faster than they are read, some are left out."""
        line = (self._text if self.for_people else self._json)(event, level, values)
        try:
            self.lines.put_nowait(line)
        except Full:
            self.lost += 1

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits."""
        if self.lost:
            self("lost", "warning", lines=self.lost)
        try:
            self.lines.put(None, timeout=seconds)
        except Full:
            return
        self.thread.join(seconds)

    def _json(self, event: str, level: str, values: dict[str, Any]) -> str:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Letters beyond ASCII are escaped, line ends among them: a request writes no line of ours.
        return json.dumps({"time": now, "level": level, "event": event} | values)

    def _text(self, event: str, level: str, values: dict[str, Any]) -> str:
        shown = "  ".join(f"{name} {one_line(str(value))}" for name, value in values.items())
        return f"{datetime.now():%H:%M:%S}  {event:9}  {shown}"

    def _write(self) -> None:
        while (line := self.lines.get()) is not None:
            try:
                self.stream.write(line + "\n")
                self.stream.flush()
            except (OSError, ValueError):  # nobody reads any more: that stops no server
                return


class Handler(logging.Handler):
    """What the HTTP library says, as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        more = {} if trace is None else {"trace": trace}
        self.log("http", record.levelname.lower(), message=record.getMessage(), **more)
