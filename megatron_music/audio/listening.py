"""Pieces to listen to: WAV files, and one HTML page with a player and a moving piano roll for each.

The page holds its sound, its style and its script; it opens from the disk and needs no network.
"""

import base64
import html
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.audio.render import MAX_SECONDS, render
from megatron_music.audio.render import Rendered as Sound
from megatron_music.audio.waveform import Waveform, wav_bytes, write_waveform
from megatron_music.config.errors import counted
from megatron_music.music.instruments import (
    PALETTE_CSS,
    css_colour,
    track_colour,
    track_labels,
)
from megatron_music.music.midi import read_midi
from megatron_music.music.names import printable
from megatron_music.music.score import Score
from megatron_music.music.tempo import seconds_at
from megatron_music.storage.writing import write_whole

PAGE_SAMPLE_RATE = 22050  # of the sound inside the page, mono
_PIXELS_PER_SECOND, _ROW_HEIGHT = 60, 4
_SECONDS_PER_NUMBER = 0.95  # of the roll, at the narrowest 2.6rem per second


class Rendered(NamedTuple):
    """A MIDI file with its sound."""

    path: Path
    score: Score
    waveform: Waveform
    synthesiser: str


def render_files(
    files: Sequence[tuple[Path, Path]],
    sample_rate: int = 44100,
    sound_font: str | os.PathLike | None = None,
    *,
    own: bool = False,
    bits: int = 16,
    max_seconds: float = MAX_SECONDS,
    on_failure: Callable[[Path, str], None] | None = None,
) -> Iterator[Rendered]:
    """Render each MIDI file to its audio file, one after another; the folder of an audio file is made with it.

    Args:
        files: (MIDI file, WAV or FLAC file).
        max_seconds: a longer piece cannot be rendered.
        on_failure: receives a file that cannot be rendered and the reason, which names it; the others are rendered. If
            omitted, the first such file is an error.

    Raises:
        ValueError: a file that cannot be read or has no notes; names it.
    """
    for midi, target in files:
        try:
            score, found = _rendered(midi, sample_rate, sound_font, own, max_seconds)
        except ValueError as error:
            if on_failure is None:
                raise
            on_failure(midi, str(error))
            continue
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        write_waveform(target, *found.waveform, bits=bits, metadata={"synthesiser": found.synthesiser})
        yield Rendered(Path(midi), score, found.waveform, found.synthesiser)


def _rendered(
    midi: Path, sample_rate: int, sound_font: str | os.PathLike | None, own: bool, max_seconds: float
) -> tuple[Score, Sound]:
    score = read_midi(midi)
    try:
        return score, render(score, sample_rate, sound_font, own=own, max_seconds=max_seconds)
    except ValueError as error:
        raise ValueError(f"{midi}: {error}") from None


def write_listening_page(path: str | os.PathLike, title: str, about: str, pieces: Sequence[Rendered]) -> None:
    """Write the page, under a temporary name first.

    Args:
        title, about: plain text for the heading and the line below it.
    """
    cards = "\n".join(_card(number, piece) for number, piece in enumerate(pieces, 1))
    synthesisers = " and ".join(sorted({piece.synthesiser for piece in pieces}))
    which = "the framed piece; click another to choose it" if len(pieces) > 1 else "the piece"
    hint = f"<kbd>Space</kbd> plays and pauses {which}. Click a roll to move to that moment."
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{html.escape(printable(title))}</title>
<style>{PALETTE_CSS}{_STYLE}</style>
</head>
<body>
<header><h1>{html.escape(printable(title))}</h1><p>{html.escape(about)}</p></header>
<main>
{cards}
</main>
<footer>{counted(len(pieces), "piece")}, rendered by {html.escape(synthesisers)}. <span class="hint">{hint}</span></footer>
<script>{_SCRIPT}</script>
</body>
</html>
"""
    write_whole(Path(path), page.encode())


def _card(number: int, piece: Rendered) -> str:
    name, score = html.escape(printable(piece.path.name)), piece.score
    tracks = [track for track in score.tracks if len(track)]
    colours = [css_colour(track_colour(track, place)) for place, track in enumerate(tracks)]
    legend = "".join(
        f'<li><i style="--c:{colour}"></i>{html.escape(label)}</li>'
        for label, colour in zip(track_labels(tracks), colours, strict=True)
    )
    seconds = piece.waveform.seconds
    sheet = _roll(score, tracks, colours, seconds, name) + _bar_numbers(score, seconds)
    tempo = f"{score.tempos[0].quarters_per_minute:.0f} BPM" if score.tempos else ""
    facts = " · ".join(filter(None, (counted(score.num_bars, "bar"), tempo, counted(score.num_notes, "note"))))
    sound = base64.b64encode(_small(piece.waveform)).decode()
    return f"""<section class="piece" aria-labelledby="t{number}">
<div class="head">
<button class="play" type="button" aria-label="Play {name}"><svg viewBox="0 0 24 24" aria-hidden="true"><path class="go" d="M8 5.1v13.8L19 12z"/><path class="halt" d="M7 5h3.6v14H7zm6.4 0H17v14h-3.6z"/></svg></button>
<div class="name"><h2 id="t{number}">{name}</h2><p>{facts}</p></div>
<ul class="legend" aria-label="Tracks">{legend}</ul>
</div>
<div class="window" tabindex="0" role="region" aria-label="Piano roll of {name}"><div class="sheet" style="--seconds:{seconds:.2f}">{sheet}</div></div>
<div class="seek"><input type="range" min="0" max="{seconds:.2f}" step="0.01" value="0" aria-label="Position in {name}"><output aria-live="off">0:00 / {_clock(seconds)}</output></div>
<audio preload="metadata" controls src="data:audio/wav;base64,{sound}"></audio>
</section>"""


def _roll(score: Score, tracks: Sequence, colours: Sequence[str], seconds: float, name: str) -> str:
    """The notes as SVG: x in seconds times ``_PIXELS_PER_SECOND``, so that the script reads times from it."""
    low = min((int(track.notes[:, 2].min()) for track in tracks), default=60) - 2
    high = max((int(track.notes[:, 2].max()) for track in tracks), default=60) + 2
    width, height = math.ceil(seconds * _PIXELS_PER_SECOND), (high - low + 1) * _ROW_HEIGHT
    at = lambda steps: seconds_at(score, np.asarray(steps)) * _PIXELS_PER_SECOND
    rows = "".join(
        f'<rect class="black" y="{(high - pitch) * _ROW_HEIGHT}" width="{width}" height="{_ROW_HEIGHT}"/>'
        for pitch in range(low, high + 1)
        if pitch % 12 in (1, 3, 6, 8, 10)
    )
    bars = "".join(f'<path class="bar" d="M{x:.1f} 0V{height}"/>' for x in at(score.bar_starts).tolist() if x <= width)
    notes = []
    for track, colour in zip(tracks, colours, strict=True):
        begins, ends = at(track.notes[:, 0]).tolist(), at(track.notes[:, 1]).tolist()
        boxes = "".join(
            f'<rect x="{begin:.1f}" y="{(high - pitch) * _ROW_HEIGHT}" width="{max(end - begin - 1.5, 1.5):.1f}" '
            f'height="{_ROW_HEIGHT}" rx="1.6"/>'
            for begin, end, pitch in zip(begins, ends, track.notes[:, 2].tolist(), strict=True)
        )
        notes.append(f'<g class="notes" style="--c:{colour}">{boxes}</g>')
    label = (
        f"{name}: {counted(score.num_bars, 'bar')}, {counted(score.num_notes, 'note')}, {counted(len(tracks), 'track')}"
    )
    return (
        f'<svg class="roll" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'data-scale="{_PIXELS_PER_SECOND}" '
        f'preserveAspectRatio="none">{rows}{bars}{"".join(notes)}<path class="head-line" d="M0 0V{height}"/></svg>'
    )


def _bar_numbers(score: Score, seconds: float) -> str:
    """Numbers of bars below the roll, at least ``_SECONDS_PER_NUMBER`` apart."""
    spans, latest = [], -math.inf
    for number, begin in enumerate(seconds_at(score, np.asarray(score.bar_starts[:-1])).tolist(), 1):
        if begin - latest >= _SECONDS_PER_NUMBER and begin < seconds:
            spans.append(f'<span style="left:{100 * begin / seconds:.2f}%">{number}</span>')
            latest = begin
    return f'<div class="numbers" aria-hidden="true">{"".join(spans)}</div>'


def _small(waveform: Waveform) -> bytes:
    """The sound as it stands in the page: mono, at half the rate or less where that is a whole number of times less."""
    mono = waveform.samples.mean(0, keepdims=True)
    times = max(waveform.sample_rate // PAGE_SAMPLE_RATE, 1)
    if times > 1:  # a moving average keeps what lies above the new rate from folding down
        mono = mono[:, : mono.shape[1] // times * times].reshape(1, -1, times).mean(2)
    peak = float(np.abs(mono).max(initial=0.0))
    return wav_bytes(mono * (0.89 / peak if peak else 1.0), waveform.sample_rate // times)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


_STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#1d2025;--soft:#5c636e;--line:#e4e1da;--row:#f4f2ed;--accent:#1d2025;--on:#fff;--focus:#1d64d8;--lift:0 1px 2px #0000000d,0 8px 24px #0000000d}
@media(prefers-color-scheme:dark){:root{--paper:#121417;--card:#1a1d22;--ink:#eceef1;--soft:#a2aab5;--line:#2d323a;--row:#171a1f;--accent:#eceef1;--on:#15181c;--focus:#7cb0ff;--lift:none}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main,footer{max-width:64rem;margin:0 auto;padding:0 clamp(.8rem,4vw,2rem)}
header{padding-top:clamp(1.8rem,6vw,3.5rem);padding-bottom:1.4rem}
h1{font-size:clamp(1.7rem,5vw,2.5rem);line-height:1.15;letter-spacing:-.02em;margin:0 0 .4rem;overflow-wrap:anywhere}
header p{color:var(--soft);margin:0}footer{color:var(--soft);font-size:.875rem;padding-top:.4rem;padding-bottom:3rem}
kbd{border:1px solid var(--line);border-radius:.3rem;padding:0 .35rem;font:inherit;background:var(--card)}
.scripted .piece.chosen{border-color:var(--soft)}
.piece{background:var(--card);border:1px solid var(--line);border-radius:1rem;box-shadow:var(--lift);margin:0 0 1.1rem;padding:1rem clamp(.8rem,2.5vw,1.25rem)}
.head{display:flex;align-items:center;gap:.5rem .9rem;flex-wrap:wrap;margin-bottom:.8rem}
.name{flex:1 1 9rem;min-width:0}h2{font-size:1.05rem;line-height:1.3;margin:0;overflow-wrap:anywhere}
.name p{margin:0;color:var(--soft);font-size:.85rem;font-variant-numeric:tabular-nums}
.play{flex:none;width:3rem;height:3rem;border:0;border-radius:50%;background:var(--accent);color:var(--on);cursor:pointer;padding:0;transition:transform .12s}
.play:hover{transform:scale(1.06)}.play svg{width:1.6rem;height:1.6rem;fill:currentColor;display:block;margin:auto}
.halt,.playing .go{display:none}.playing .halt{display:inline}
:focus-visible{outline:3px solid var(--focus);outline-offset:2px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem .9rem;margin:0;padding:0;color:var(--soft);font-size:.85rem}
.legend li{display:flex;align-items:center;gap:.4rem}.legend i{width:.7rem;height:.7rem;border-radius:.2rem;background:var(--c)}
.window{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;scrollbar-width:thin}
.sheet{width:max(100%,calc(var(--seconds)*2.6rem))}
.roll{display:block;height:clamp(9rem,24vw,12rem);width:100%}.scripted .roll{cursor:pointer}
.numbers{position:relative;height:1.25rem;overflow:hidden;border-top:1px solid var(--line);color:var(--soft);font-size:.75rem;
  font-variant-numeric:tabular-nums}
.numbers span{position:absolute;padding-left:.2rem}
.black{fill:var(--row)}.bar{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.notes rect{fill:var(--c)}.playing .notes rect{opacity:.5}.playing .notes rect.on{opacity:1}
.head-line{stroke:var(--ink);stroke-width:2;vector-effect:non-scaling-stroke;visibility:hidden}.begun .head-line{visibility:visible}
.hint{display:none}.scripted .hint{display:inline}
.seek{display:none;align-items:center;gap:.8rem;margin-top:.6rem}.seek input{flex:1;min-width:0;accent-color:var(--accent);height:1.5rem;margin:0}
output{color:var(--soft);font-size:.85rem;font-variant-numeric:tabular-nums;white-space:nowrap}
.play{display:none}audio{display:block;width:100%;margin-top:.7rem}
.scripted .play{display:block}.scripted .seek{display:flex}.scripted audio{display:none}
@media(prefers-reduced-motion:reduce){.play{transition:none}.play:hover{transform:none}}
"""

_SCRIPT = """
const clock = s => Math.floor(s / 60) + ':' + String(Math.floor(s % 60)).padStart(2, '0');
const pieces = [...document.querySelectorAll('.piece')].map(card => {
  const [audio, button, range, output, view, roll, line] =
    ['audio', '.play', 'input', 'output', '.window', '.roll', '.head-line'].map(name => card.querySelector(name));
  const scale = +roll.dataset.scale, total = +range.max, label = button.getAttribute('aria-label').replace('Play ', '');
  const notes = [...card.querySelectorAll('.notes rect')].map(rect => {
    const begin = +rect.getAttribute('x') / scale;
    return {rect, begin, end: begin + (+rect.getAttribute('width') + 1.5) / scale};
  });
  const show = (follow = !audio.paused) => {
    const now = audio.currentTime, x = now * scale;
    card.classList.toggle('begun', now > 0);
    line.setAttribute('transform', `translate(${x} 0)`);
    for (const note of notes) note.rect.classList.toggle('on', note.begin <= now && now < note.end);
    range.value = now;
    range.setAttribute('aria-valuetext', clock(now) + ' of ' + clock(total));
    output.textContent = clock(now) + ' / ' + clock(total);
    if (follow) view.scrollLeft = now / total * roll.clientWidth - view.clientWidth / 3;
  };
  const frame = () => { show(); if (!audio.paused) requestAnimationFrame(frame); };
  const sign = () => {
    card.classList.toggle('playing', !audio.paused);
    button.setAttribute('aria-label', (audio.paused ? 'Play ' : 'Pause ') + label);
    frame();
  };
  const toggle = () => {
    if (!audio.paused) return audio.pause();
    audio.play();
  };
  const seek = (seconds, follow) => { audio.currentTime = Math.min(Math.max(seconds, 0), total); show(follow); };
  button.onclick = toggle;
  range.oninput = () => seek(+range.value, true);
  roll.onclick = event => seek((event.clientX - roll.getBoundingClientRect().left) / roll.clientWidth * total, false);
  audio.onplay = () => { for (const other of pieces) if (other.audio !== audio) other.audio.pause(); sign(); };
  audio.onpause = sign;
  audio.onended = () => { audio.currentTime = 0; sign(); };
  return {card, audio, toggle};
});
let chosen;
const choose = piece => {
  chosen = piece;
  for (const other of pieces) other.card.classList.toggle('chosen', other === piece && pieces.length > 1);
};
choose(pieces[0]);
for (const piece of pieces) for (const name of ['pointerdown', 'focusin']) piece.card.addEventListener(name, () => choose(piece));
document.addEventListener('keydown', event => {
  if (event.code !== 'Space' || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest('button, audio')) return;
  event.preventDefault();
  if (chosen && !event.repeat) chosen.toggle();
});
document.documentElement.classList.add('scripted');
"""
