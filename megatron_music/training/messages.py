"""Sentences that a run says at its start and its end: where it begins, what it reads, what was kept, what to do
next.
"""

import math
from pathlib import Path

from megatron_music.checkpoints.folder import CONFIG, checkpoint_name, read_latest
from megatron_music.config.errors import counted
from megatron_music.config.load import read_run
from megatron_music.config.log import command_line
from megatron_music.config.sections import Run
from megatron_music.training.task import Work

MANY_EPOCHS = 100  # so often a model of music reads each sample before it knows it by heart, if not earlier


def opening(config: Run, work: Work, iteration: int, origin: Path | None, is_own: bool, has_valid: bool) -> list[str]:
    """What is to be known before the first step.

    Args:
        iteration: that the run goes on from.
        origin: the checkpoint it starts from, if any; ``is_own`` where it resumes it.
        has_valid: whether there is something to evaluate on.
    """
    train, save = config.train, config.checkpoint.save
    if is_own:
        found = [f"resuming from iteration {iteration} of {save}, to iteration {train.train_iters}"]
    else:
        weights = f"from the weights of {origin}" if origin else "from new weights"
        found = [f"training {weights}, {counted(train.train_iters, 'iteration')}" + (f", into {save}" if save else "")]
    if not save:
        found.append(
            "checkpoint.save is not set: the model will be discarded at the end; checkpoint.save=RUN keeps it in the "
            "folder RUN"
        )
    samples = math.ceil(work.train_tokens / work.tokens_per_sample)
    epochs = train.train_iters * train.global_batch_size * work.tokens_per_sample / work.train_tokens
    noun, length = (
        ("sequence", f" of {work.tokens_per_sample:,} tokens")
        if hasattr(config.model, "seq_length")
        else ("sample", "")
    )
    found.append(f"the training data are {counted(samples, noun)}{length}{_read(epochs)}")
    if epochs >= MANY_EPOCHS:
        found.append(
            f"{counted(samples, noun)} x {epochs:,.0f} epochs: the model will memorise them; add data, or lower "
            f"train.train_iters, "
            "and keep the checkpoint with the lowest valid_loss"
        )
    if train.eval_iters and not has_valid:
        found.append("there is nothing to evaluate on: the validation split is empty, so valid_loss is left out")
    return found


def _read(epochs: float) -> str:
    """How often a run reads its training data."""
    if epochs >= 1:
        times = f"{epochs:,.3g}"
        return f", each read {'once' if times == '1' else f'{times} times (epochs)'}"
    return f"; {epochs:.0%} of them are read once" if epochs >= 0.005 else "; less than 1% of them are read once"


def finished(config: Run, iteration: int) -> list[str]:
    """What a run says that was complete before it was started."""
    sentence = (
        f"already finished at iteration {iteration} of {config.checkpoint.save}; a larger train.train_iters trains on"
    )
    return [sentence, next_step(config)]


def done(config: Run) -> list[str]:
    """What a run says after its last step."""
    train, save = config.train, config.checkpoint.save
    if not save:
        return [
            f"finished {counted(train.train_iters, 'iteration')}; the model was discarded, since checkpoint.save is "
            f"not set"
        ]
    return [
        f"finished; iteration {train.train_iters} is saved in {Path(save) / checkpoint_name(train.train_iters)}",
        next_step(config),
    ]


def stopped(config: Run, iteration: int) -> list[str]:
    """What a run says that a signal has stopped after a step."""
    save = config.checkpoint.save
    if not save:
        return [f"stopped after iteration {iteration}; nothing was kept, since checkpoint.save is not set"]
    return [
        f"stopped; iteration {iteration} is saved in {Path(save) / checkpoint_name(iteration)}: the same command "
        f"resumes from there"
    ]


def next_step(config: Run) -> str:
    """The command that makes music with a trained model."""
    save, kind = config.checkpoint.save, getattr(config.model, "kind", "gpt")
    if kind == "gpt":
        return f"next: {command_line('generate', 'midi', save, '-o', 'new')}"
    if kind == "dit":
        stages = [save] if config.model.conditions != "music" else [_other_stage("text2muq", config) or "STAGE1", save]
    else:
        stages = [save, _other_stage("dit", config)]
        if not stages[1]:
            recipe = "demo-dit" if config.model.size in ("tiny", "demo") else "stable-audio-open"
            return f"next: {command_line('train', recipe, f'data.path={config.data.path}', 'checkpoint.save=STAGE2')}"
    return f'next: {command_line("generate", "audio", *stages, "-o", "new", "--prompt")} "..."'


def _other_stage(kind: str, config: Run) -> str | None:
    """The run of another kind on the same data beside a run; None where there is none or more than one."""
    save = Path(config.checkpoint.save)
    beside = [folder for folder in sorted(save.absolute().parent.iterdir()) if folder.name != save.name]
    found = [str(save.parent / folder.name) for folder in beside if _is_run(folder, kind, config)]
    return found[0] if len(found) == 1 else None


def _is_run(folder: Path, kind: str, config: Run) -> bool:
    """Whether a folder is a run of a kind of model on a run's data."""
    checkpoint = read_latest(folder)[0]
    try:
        run = read_run(checkpoint / CONFIG) if checkpoint else None
    except (ValueError, OSError):
        return False
    return getattr(getattr(run, "model", None), "kind", "") == kind and _same_path(run.data.path, config.data.path)


def _same_path(one: str | None, other: str | None) -> bool:
    return bool(one and other) and Path(one).absolute() == Path(other).absolute()
