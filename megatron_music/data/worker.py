"""A process that parses and encodes: ``python -m megatron_music.data.worker OUT.building [OWNER]``, started by ``workers.py``.

It may use 1 GiB and no more; a file that needs more goes to quarantine.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable

from megatron_music.data.archives import Entry
from megatron_music.data.corpus import Reader
from megatron_music.data.encode import EncodedFile, encode_content
from megatron_music.data.labels import Labels
from megatron_music.data.options import BuildOptions
from megatron_music.data.plan import read_plan
from megatron_music.data.shard import write_shard

MEMORY_LIMIT = 1 << 30
_PR_SET_PDEATHSIG = 1  # prctl: the signal to get when the parent dies


def main(building: str, owner: str = "") -> None:
    """Write the shards that standard input asks for, until it ends; ``owner`` as in ``write_shard``."""
    _live_within_bounds()
    channel, requests = _private_channel()
    plan = read_plan(building)
    encode = _encoder(plan.options)
    warm_up = encode(Entry("warm-up.mid"), _warm_up_file(plan.options))
    if warm_up.damage:  # no fault of any file: none would be encoded
        sys.exit(f"a good file {warm_up.damage}")
    reader = Reader(beat=lambda: _say(channel, "."))

    def tell(entry: int | None) -> None:
        _say(channel, "-" if entry is None else str(entry))

    for line in requests:
        asked = json.loads(line)
        skip = {int(entry): reason for entry, reason in asked["skip"].items()}
        try:
            write_shard(plan, asked["shard"], reader, encode, skip, tell, owner)
            answer = {"done": asked["shard"]}
        except BrokenPipeError:
            return  # nobody waits for the shard
        except OSError as error:
            answer = {"error": error.strerror or str(error), "errno": error.errno, "filename": error.filename}
        except Exception as error:  # a fault of ours: all that is wrong with a file is in its record
            answer = {"error": f"a worker failed on shard {asked['shard']} ({type(error).__name__}: {error})", "errno": None}
        _say(channel, json.dumps(answer))


def _encoder(options: BuildOptions) -> Callable[[Entry, bytes], EncodedFile]:
    if not options.labels:
        return lambda entry, content: encode_content(content, options)
    labels = Labels.read(options.labels)

    def encode(entry: Entry, content: bytes) -> EncodedFile:
        path = f"{entry.path}/{entry.member}" if entry.member else entry.path
        return encode_content(content, options, labels.ids_for(path, content))

    return encode


def _warm_up_file(options: BuildOptions) -> bytes:
    """A MIDI file of two notes over a window and more, in a meter that is encoded.

    Encoded before the first file, so that the time to load and compile is not counted as that file's.
    """
    numerator, denominator = options.encoding.meter_set[0]
    quarters = 4 * numerator * (options.encoding.bars + 1) // denominator + 1
    ticks = 24
    rest = bytes([0x80 | quarters * ticks >> 14 & 0x7F, 0x80 | quarters * ticks >> 7 & 0x7F, quarters * ticks & 0x7F])
    events = b"".join(
        (
            bytes([0, 0xFF, 0x58, 4, numerator, denominator.bit_length() - 1, 24, 8]),
            bytes([0, 0x90, 60, 64, ticks, 0x80, 60, 0, 0, 0x90, 64, 64]),
            rest + bytes([0x80, 64, 0]),
            bytes([0, 0xFF, 0x2F, 0]),
        )
    )
    header = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 0, 0, 1, 0, ticks])
    return header + b"MTrk" + len(events).to_bytes(4, "big") + events


def _live_within_bounds() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_LIMIT if most == resource.RLIM_INFINITY else min(MEMORY_LIMIT, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _private_channel():
    """Where to answer, and what is asked. What a parser prints goes to standard error, and it finds nothing to read."""
    channel, requests = os.dup(1), os.dup(0)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return channel, open(requests, "rb", closefd=True)  # noqa: SIM115 (as long as the process)


def _say(channel: int, line: str) -> None:
    os.write(channel, line.encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
