"""The command ``convert``: checkpoints of ours and of other projects, one door each."""


def convert(options) -> None:
    CONVERSIONS[options.to](options)


def _to_huggingface(options) -> None:
    if options.tokenizer:
        raise ValueError("--tokenizer goes with --to megatron: a checkpoint of ours holds its tokenizer; leave it out")
    from megatron_music.hosts.huggingface import convert_to_huggingface

    form = convert_to_huggingface(options.source, options.output)
    print(f"a {form.class_name} with its tokenizer in {options.output}")


def _to_megatron(options) -> None:
    from megatron_music.hosts.huggingface import convert_to_megatron

    form = convert_to_megatron(options.source, options.output, options.tokenizer)
    print(f"a {form.class_name} as a run in {options.output}; train on from it with checkpoint.load={options.output}")


CONVERSIONS = {"huggingface": _to_huggingface, "megatron": _to_megatron}
