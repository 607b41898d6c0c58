"""The command ``convert``: checkpoints to and from the formats of other projects."""

from pathlib import Path

from megatron_music.cli.console import print_result


def convert(options) -> None:
    CONVERSIONS[options.to](options)


def _to_huggingface(options) -> None:
    if options.tokenizer:
        raise ValueError("--tokenizer goes with --to megatron: a checkpoint of ours holds its tokenizer; omit it")
    from megatron_music.hosts.huggingface import convert_to_huggingface

    if _is_flow_run(options.source):
        from megatron_music.hosts.stable_audio import convert_to_stable_audio

        convert_to_stable_audio(options.source, options.output)
        sentence = (
            f"transformer/ and projection_model/ in {options.output}; put them in place of those in a copy of the "
            f"published folder"
        )
        _print(options, "StableAudioDiTModel", sentence)
        return
    form = convert_to_huggingface(options.source, options.output)
    _print(options, form.class_name, f"a {form.class_name} with its tokenizer in {options.output}")


def _to_megatron(options) -> None:
    if (Path(options.source) / "model_index.json").is_file():
        if options.tokenizer:
            raise ValueError("--tokenizer is of a GPT's data, and this folder has its own; omit it")
        from megatron_music.hosts.stable_audio import convert_from_stable_audio

        parameters = convert_from_stable_audio(options.source, options.output)
        sentence = (
            f"a dit of {parameters:,} parameters with its encoders as a run in {options.output}; try it with generate "
            f"audio"
        )
        _print(options, "StableAudioDiTModel", sentence)
        return
    from megatron_music.hosts.huggingface import convert_to_megatron

    form = convert_to_megatron(options.source, options.output, options.tokenizer)
    _print(
        options,
        form.class_name,
        f"a {form.class_name} as a run in {options.output}; train on from it with checkpoint.load={options.output}",
    )


def _print(options, model: str, sentence: str) -> None:
    print_result(options, {"output": options.output, "form": options.to, "model": model}, sentence)


def _is_flow_run(source: str) -> bool:
    from megatron_music.checkpoints.find import find_checkpoint
    from megatron_music.checkpoints.folder import CONFIG
    from megatron_music.config.load import read_run
    from megatron_music.config.run import FlowRunConfig

    return isinstance(read_run(find_checkpoint(source) / CONFIG), FlowRunConfig)


CONVERSIONS = {"huggingface": _to_huggingface, "megatron": _to_megatron}
