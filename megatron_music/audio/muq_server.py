"""MuQ-MuLan behind a pipe. Run by a Python that has ``muq`` installed, not by ours: imports nothing of this package.

A message is its length in 8 bytes, little-endian, and safetensors: ``audio`` (float32, 24 kHz, mono) or ``text``
(UTF-8) comes in, ``embedding`` (float32 [512]) goes out, after an empty one that says it is ready.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl: the signal to get when the parent dies


def main(model: str) -> None:
    if sys.platform == "linux":  # elsewhere it ends when it next reads: loading the weights may take minutes
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes elsewhere,
    sys.stdout = sys.stderr  # and at once: what is said last is why it failed
    import torch
    from muq import MuQMuLan
    from safetensors.torch import load, save

    device = "cuda" if torch.cuda.is_available() else "cpu"
    mulan = MuQMuLan.from_pretrained(model).to(device).eval()

    def send(tensors: dict) -> None:
        content = save(tensors)
        answers.write(len(content).to_bytes(8, "little") + content)
        answers.flush()

    send({"ready": torch.ones(1)})
    while head := sys.stdin.buffer.read(8):
        asked = load(sys.stdin.buffer.read(int.from_bytes(head, "little")))
        with torch.no_grad():
            if "audio" in asked:
                found = mulan(wavs=asked["audio"][None].to(device))
            else:
                found = mulan(texts=[bytes(asked["text"].tolist()).decode()])
        send({"embedding": found[0].float().cpu().contiguous()})


if __name__ == "__main__":
    main(sys.argv[1])
