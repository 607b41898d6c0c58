"""A process that parses and encodes: ``python -m megatron_music.data.worker OUT.building [OWNER]``, started by
``worker_pool.py``.

It may use 1 GiB and no more; a file that needs more goes to quarantine.
"""

import json
import sys
from collections.abc import Callable

from megatron_music.corpora.archives import Entry
from megatron_music.corpora.labels import Labels
from megatron_music.corpora.midi_files import ChangedSource, Reader
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.encode import EncodedFile, encode_content
from megatron_music.data.plan import Plan, read_plan
from megatron_music.data.shard import write_shard
from megatron_music.data.worker_process import live_within_bounds, private_channel, say


def main(building: str, owner: str = "") -> None:
    """Write the shards that standard input asks for, until it ends; ``owner`` as in ``write_shard``."""
    live_within_bounds()
    channel, requests = private_channel()
    plan = read_plan(building)
    try:
        encode = _encoder(plan)
    except ChangedSource as error:
        requests.readline()
        say(channel, json.dumps({"refused": str(error)}))
        return
    warm_up = encode(Entry("warm-up.mid"), _warm_up_file(plan.options))
    if warm_up.damage:  # no fault of any file: none would be encoded
        sys.exit(f"a good file {warm_up.damage}")
    reader = Reader(beat=lambda: say(channel, "."))

    def tell(entry: int | None) -> None:
        say(channel, "-" if entry is None else str(entry))

    for line in requests:
        asked = json.loads(line)
        skip = {int(entry): reason for entry, reason in asked["skip"].items()}
        try:
            write_shard(plan, asked["shard"], reader, encode, skip, tell, owner)
            answer = {"done": asked["shard"]}
        except BrokenPipeError:
            return  # nobody waits for the shard
        except ChangedSource as error:
            answer = {"refused": str(error)}
        except OSError as error:
            answer = {"error": error.strerror or str(error), "errno": error.errno, "filename": error.filename}
        except Exception as error:  # a fault of ours: all that is wrong with a file is in its record
            answer = {
                "error": f"a worker failed on shard {asked['shard']} ({type(error).__name__}: {error})",
                "errno": None,
            }
        say(channel, json.dumps(answer))


def _encoder(plan: Plan) -> Callable[[Entry, bytes], EncodedFile]:
    options = plan.options
    if not options.labels:
        return lambda entry, content: encode_content(content, options)
    labels = Labels.read(options.labels)
    plan.check_labels(labels)

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


if __name__ == "__main__":
    main(*sys.argv[1:])
