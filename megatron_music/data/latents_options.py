"""The options of `build latents`."""

from dataclasses import dataclass

MAX_SECONDS = 3600  # of a sample
SPECTRAL, OOBLECK_SIZES = "spectral", ("tiny", "small", "stable-audio-open")


@dataclass(frozen=True)
class LatentsOptions:
    """What makes two builds of the same sounds differ.

    Args:
        seconds: of a sample, brought to whole latent frames.
        autoencoder: a folder, or ``spectral`` or one of ``OOBLECK_SIZES`` to fit one to these sounds.
        autoencoder_steps: of an Oobleck's fit.
        music_encoder: ``small`` to fit one, ``muq:PYTHON`` for MuQ-MuLan in that Python, or a folder.
        text_encoder: ``words`` to fit one, or a folder or name of Hugging Face's.
        min_seconds: shorter sounds are left out.
        crops_per_file: at most, evenly spread; 0: all.
    """

    seconds: float = 4.096
    autoencoder: str = SPECTRAL
    autoencoder_steps: int = 300
    music_encoder: str = "small"
    text_encoder: str = "words"
    min_seconds: float = 1.0
    crops_per_file: int = 0
    files_per_shard: int = 64
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self):
        for name in ("seconds", "autoencoder_steps", "files_per_shard"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; use more than 0")
        if self.seconds > MAX_SECONDS:
            raise ValueError(f"seconds is {self.seconds}; use {MAX_SECONDS} or less")
        if self.crops_per_file < 0 or not 0 <= self.min_seconds < float("inf"):
            raise ValueError(
                f"crops_per_file is {self.crops_per_file} and min_seconds {self.min_seconds}; use 0 or more"
            )
        if min(self.valid_fraction, self.test_fraction) < 0 or self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid and test take {self.valid_fraction} and {self.test_fraction}; leave a share for training"
            )
