"""The events of a Chrome trace one by one, however large the file is: what is in memory is a window of the text.

What profilers get wrong is forgiven: control characters and single backslashes in names, an array left open.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

UNPACKED_BYTES = 64 << 30  # of the whole file; a packed file of a few MiB may state any size
VALUE_CHARACTERS = 16 << 20  # of one event
_PIECE_BYTES = 1 << 20
_ESCAPE = re.compile(r'((?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))+)|\\')  # any number of whole ones, or a single backslash
_CUT_ESCAPE = re.compile(r"(u[0-9a-fA-F]{0,3})?")
_SPACE = re.compile(r"[ \t\n\r]*")


class TraceEvents:
    """The events in a file, as they come.

    Args:
        file: of JSON: an array of events, or an object with ``traceEvents``.
        keep: another member of the object, which is in ``kept`` once the events have been read.
    """

    def __init__(self, file: BinaryIO, keep: str):
        self._text, self._keep = _Window(file), keep
        self.kept: Any = None
        self.has_events = False

    def __iter__(self) -> Iterator[Any]:
        """
        Raises:
            ValueError: it is not JSON, or is nested too deeply, or larger than the limits above.
            OSError, EOFError, zlib.error: it cannot be read.
        """
        text = self._text
        if text.next() == "[":
            yield from self._array()
        elif text.next() == "{":
            yield from self._object()
        else:
            text.value()
        if text.next():
            raise ValueError("more follows after its end")

    def _object(self) -> Iterator[Any]:
        text = self._text
        text.take("{")
        while text.next() != "}":
            key = text.value()
            text.take(":")
            if key == "traceEvents" and text.next() == "[":
                yield from self._array()
                if not text.next():  # left open, as a profiler does that is stopped
                    return
            else:
                value = text.value()
                if key == self._keep:
                    self.kept = value
            if text.next() != "}":
                text.take(",")
        text.take("}")

    def _array(self) -> Iterator[Any]:
        text, self.has_events = self._text, True
        text.take("[")
        while text.next() not in ("]", ""):
            yield text.value()
            if text.next() not in ("]", ""):
                text.take(",")
        if text.next():
            text.take("]")


class _Window:
    """A text that is read forward, of which only what has not been taken is kept."""

    def __init__(self, file: BinaryIO):
        self._file, self._decode = file, codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text, self._at, self._has_ended, self._num_bytes = "", 0, False, 0
        self._rest = ""  # an escape of which the end has not been read
        self._parse = json.JSONDecoder(strict=False).raw_decode

    def next(self) -> str:
        """The character that comes after white space, which is passed over; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def take(self, wanted: str) -> None:
        if self.next() != wanted:
            raise ValueError(f"{wanted} is wanted where {self._text[self._at : self._at + 20]!r} is")
        self._at += 1

    def value(self) -> Any:
        """The value that comes next."""
        self.next()
        while True:
            try:
                found, end = self._parse(self._text, self._at)
            except RecursionError:
                raise ValueError("its JSON is nested too deeply") from None
            except ValueError:
                size = len(self._text) - self._at
                if size > VALUE_CHARACTERS or not self._read(size):
                    raise
                continue
            if end < len(self._text) or not self._read():  # else a number may go on
                self._at = end
                return found

    def _read(self, size: int = 1) -> bool:
        """Reads up to this number of characters more; returns whether there were any."""
        pieces = [self._text[self._at :]]
        while size > 0 and not self._has_ended:
            content = self._file.read(_PIECE_BYTES)
            self._num_bytes += len(content)
            if self._num_bytes > UNPACKED_BYTES:
                raise ValueError(f"it has more than {UNPACKED_BYTES >> 30} GiB unpacked")
            self._has_ended = not content
            pieces.append(self._mended(self._rest + self._decode(content, not content)))
            size -= len(pieces[-1])
        self._text, self._at = "".join(pieces), 0
        return any(pieces[1:])

    def _mended(self, text: str) -> str:
        """The text with single backslashes doubled; an escape that is cut off at its end waits for the rest."""
        cut = len(text)

        def mend(escape: re.Match) -> str:
            nonlocal cut
            if escape[1]:
                return escape[0]
            if not self._has_ended and _CUT_ESCAPE.fullmatch(text, escape.end()):
                cut = escape.start()
            return r"\\"

        mended = _ESCAPE.sub(mend, text)
        if cut == len(text):
            self._rest = ""
            return mended
        self._rest = text[cut:]
        return _ESCAPE.sub(mend, text[:cut])
