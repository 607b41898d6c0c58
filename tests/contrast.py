"""Contrast of colours as WCAG 2 measures it, how far two colours are apart for readers of several kinds of vision, and
a page's own colours.
"""

import re

import numpy as np

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _linear(colour: str) -> np.ndarray:
    if len(colour) == 4:
        colour = "#" + "".join(2 * digit for digit in colour[1:])
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """1 to 21."""
    low, high = sorted(float(_linear(colour) @ (0.2126, 0.7152, 0.0722)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def distance(one: str, other: str, vision: str) -> float:
    """In OKLab, times 100: 2 is hardly seen, 10 is plain."""
    seen = [_LAB @ np.cbrt(_LMS @ np.clip(VISIONS[vision] @ _linear(colour), 0, 1)) for colour in (one, other)]
    return 100 * float(np.linalg.norm(seen[0] - seen[1]))


def schemes(page: str) -> dict[str, dict[str, str]]:
    """The CSS variables of a page that are colours, in its light and its dark scheme."""
    found = {"light": {}, "dark": {}}
    for dark, rules in re.findall(r"(@media\(prefers-color-scheme:dark\)\{)?:root\{([^}]*)\}", page):
        found["dark" if dark else "light"] |= dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})\b", rules))
    return found
