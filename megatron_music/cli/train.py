"""`train` and `recipes`."""

import json

from megatron_music.config.errors import REQUEUE
from megatron_music.config.log import LOADING, announce, logger, print_text


def recipes(options) -> None:
    from dataclasses import asdict

    from megatron_music.config.load import description_of, load_run, recipe_names
    from megatron_music.config.reference import as_yaml

    if options.name is not None:
        run, description = load_run(options.name), description_of(options.name)
        tree = {"description": description, **asdict(run)}
        print_text(json.dumps(tree, indent=1) if options.json else as_yaml(run, description).rstrip("\n"))
        return
    names = recipe_names()
    if options.json:
        print(json.dumps(names, indent=1))
        return
    width = max(map(len, names))
    for name, description in names.items():
        print_text(f"{name:{width}}  {description}")


def train(options) -> int:
    from megatron_music.config.load import load_run

    run = load_run(options.recipe, options.overrides)
    if options.profile_steps and options.profile_steps[0] > run.train.train_iters:
        raise ValueError(
            f"--profile-steps begins at iteration {options.profile_steps[0]}, and train.train_iters is "
            f"{run.train.train_iters}; use a window "
            "within it, or more iterations"
        )
    announce(LOADING)
    try:
        from megatron_music.training.loop import train

        return train(run, profile_steps=options.profile_steps)
    except KeyboardInterrupt:  # before the first step, or a second signal: else the loop ends the step and saves
        if run.checkpoint.save is None:
            raise
        logger.warning(
            f"stopped before a checkpoint was saved; the same command goes on from what {run.checkpoint.save} holds"
        )
        return REQUEUE
