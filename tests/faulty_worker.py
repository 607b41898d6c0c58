"""The worker process, with a parser that fails on chosen contents: ``python faulty_worker.py OUT.building``."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from megatron_music.data import worker

encode_content = worker.encode_content


def faulty(content: bytes, options, label_ids=()):
    if content == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if content == b"leave":
        os._exit(7)
    if content == b"hang":
        time.sleep(600)
    if content == b"memory":
        np.ones(1 << 28)  # 2 GiB
    if content == b"chatter":
        os.write(1, b'17\n{"done": 0}\n')
        os.write(2, b"x" * 100_000)
    if content.startswith(b"killed"):  # once: what follows is the name of a file that remembers
        remembers = Path(os.fsdecode(content.removeprefix(b"killed ")))
        if not remembers.exists():
            remembers.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return encode_content(content, options, label_ids)


worker.encode_content = faulty
if __name__ == "__main__":
    worker.main(sys.argv[1])
