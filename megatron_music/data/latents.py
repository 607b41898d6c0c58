"""DRAFT reader, to be replaced."""
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
import numpy as np
from safetensors import safe_open
INDEX="index.json"
@dataclass(frozen=True)
class LatentsInfo:
    latent_channels:int; latent_length:int; sample_rate:int; channels:int; downsampling:int
    embedding_size:int; text_length:int; text_size:int
class LatentItem(NamedTuple):
    latents: np.ndarray; embedding: np.ndarray; captions: tuple; seconds_start: float; seconds_total: float
class LatentDataset:
    def __init__(self, folder, split):
        self.folder=Path(folder)
        index=json.loads((self.folder/INDEX).read_text())
        self.info=LatentsInfo(**{f.name:index[f.name] for f in fields(LatentsInfo)})
        self.shards=index["splits"][split]; self.split=split
        self.starts=np.cumsum([0,*[s["count"] for s in self.shards]])
        self._open={}
    def __len__(self): return int(self.starts[-1])
    def __getitem__(self,i):
        k=int(np.searchsorted(self.starts,i,side="right"))-1; j=i-int(self.starts[k])
        f=self._open.setdefault(k, safe_open(self.folder/self.split/self.shards[k]["name"],"np"))
        a,b=f.get_slice("caption_starts")[j:j+2]
        return LatentItem(f.get_slice("latents")[j],f.get_slice("embeddings")[j],tuple(int(x) for x in f.get_slice("caption_numbers")[a:b]),float(f.get_slice("seconds_start")[j]),float(f.get_slice("seconds_total")[j]))
    @cached_property
    def _texts(self): return safe_open(self.folder/"texts.safetensors","np")
    def text(self,u): return self._texts.get_slice("states")[u], int(self._texts.get_slice("lengths")[u])
