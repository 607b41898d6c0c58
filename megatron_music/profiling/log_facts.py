"""The facts a host's log states about its run: shape, batch size, number of GPUs, precision.

Megatron-LM prints its arguments as ``name ....... value`` before the tokenizer is built; the padded vocabulary size
follows in a line of its own. An architecture that no formula here counts is refused, never counted as a dense GPT.
"""

import json
import re
from collections.abc import Sequence

# Megatron-LM's arguments and the names they have here.
_ARGUMENTS = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "ffn_hidden_size",
    "seq_length": "seq_length",
    "padded_vocab_size": "vocab_size",
    "global_batch_size": "global_batch_size",
    "world_size": "num_gpus",
}
_RECOMPUTATIONS = {"full": "full", "selective": "selective", "None": "none"}
_ARGUMENT = re.compile(r"\b(\w+) \.{3,} (\S.*?)\s*$")
_PADDED_VOCABULARY = re.compile(r"> padded vocab \(size: \d+\) with \d+ dummy tokens \(new size: (\d+)\)")
_BATCH = re.compile(r"global[ _]batch[ _]size:\s*(\d+)")
_EXPERTS_OF_BRIDGE = re.compile(r"\bnum_moe_experts[:=] ?([2-9]|\d{2,})\b")
# Arguments that change what a step computes and that no formula here counts, with the values that leave it unchanged.
_NOT_COUNTED = {
    "multi_latent_attention": ("False", "None"),
    "hybrid_layer_pattern": ("None", ""),
    "hybrid_override_pattern": ("None", ""),
    "is_hybrid_model": ("False", "None"),
    "hybrid_attention_ratio": ("0.0", "0", "None"),
    "hybrid_mlp_ratio": ("0.0", "0", "None"),
    "experimental_attention_variant": ("None",),
    "linear_attention_type": ("None",),
    "window_size": ("None",),
    "mtp_num_layers": ("None", "0"),
    "encoder_num_layers": ("None", "0"),
}
_OFF = ("None", "False", "")


def facts_of(lines: Sequence[str]) -> dict:
    """The facts in the lines of a log, by the names of the command line's options.

    Beyond those: ``variant``, the keyword arguments of ``flops.Variant``; ``low_precision``, such as ``fp8 hybrid``;
    ``batch_sizes``, where a log has several; ``not_counted``, the reason why no formula here counts the model.
    """
    facts: dict = {}
    arguments = dict(match.groups() for line in lines if " ..." in line and (match := _ARGUMENT.search(line)))
    for name, ours in _ARGUMENTS.items():
        if arguments.get(name, "").isdigit():
            facts[ours] = int(arguments[name])
    for line in lines:
        if padded := _PADDED_VOCABULARY.search(line):
            facts["vocab_size"] = int(padded[1])
    if "num_layers" in facts:
        facts |= _shape(arguments, facts)
    elif any(_EXPERTS_OF_BRIDGE.search(line) for line in lines):
        facts["not_counted"] = (
            "num_moe_experts in the log: experts are counted from Megatron-LM's list of arguments alone"
        )
    batches = sorted({int(match[1]) for line in lines for match in _BATCH.finditer(line)})
    if len(batches) == 1:
        facts["global_batch_size"] = batches[0]
    elif batches:
        facts.pop("global_batch_size", None)
        facts["batch_sizes"] = batches
    return facts


def _shape(arguments: dict[str, str], facts: dict) -> dict:
    found: dict = {}
    if arguments.get("group_query_attention") == "True" and (groups := _whole(arguments, "num_query_groups")):
        found["num_query_groups"] = groups
    found["swiglu"] = arguments.get("swiglu") == "True"
    found["recomputation"] = _RECOMPUTATIONS.get(arguments.get("recompute_granularity", "None"), "none")
    low = [f"{name} {arguments[name]}" for name in ("fp8", "fp4") if arguments.get(name, "None") not in _OFF]
    if low:
        found["low_precision"] = ", ".join(low)
    others = [
        f"{name} {arguments[name]}"
        for name, usual in _NOT_COUNTED.items()
        if arguments.get(name, usual[0]) not in usual
    ]
    if others:
        found["not_counted"] = ", ".join(others)
    try:
        variant = _head_size(arguments, facts) | _experts(arguments, facts)
    except ValueError as error:
        return found | {"not_counted": str(error)}
    return found | ({"variant": variant} if variant else {})


def _head_size(arguments: dict[str, str], facts: dict) -> dict:
    channels = _whole(arguments, "kv_channels")
    heads = facts.get("num_attention_heads")
    if channels is None or not heads or channels * heads == facts.get("hidden_size"):
        return {}
    return {"kv_channels": channels}


def _experts(arguments: dict[str, str], facts: dict) -> dict:
    """Megatron-LM lists ``moe_router_topk`` of dense models too: ``num_experts`` decides."""
    if not _whole(arguments, "num_experts"):
        return {}
    width = _whole(arguments, "moe_ffn_hidden_size") or facts.get("ffn_hidden_size")
    top_k = _whole(arguments, "moe_router_topk")
    if width is None or top_k is None:
        raise ValueError(f"num_experts {arguments['num_experts']} without moe_router_topk or a feed-forward size")
    return {
        "num_moe_layers": _moe_layers(arguments.get("moe_layer_freq", "1"), facts["num_layers"]),
        "moe_router_topk": top_k,
        "moe_ffn_hidden_size": width,
        "moe_shared_expert_intermediate_size": _whole(arguments, "moe_shared_expert_intermediate_size") or 0,
    }


def _moe_layers(frequency: str, num_layers: int) -> int:
    """Layers with experts: every n-th from the first for a number; or a list with 1 for each of them."""
    try:
        parsed = json.loads(frequency)
    except ValueError:
        parsed = None
    if isinstance(parsed, int) and parsed > 0:
        return -(-num_layers // parsed)
    if isinstance(parsed, list) and len(parsed) == num_layers and all(item in (0, 1) for item in parsed):
        return sum(parsed)
    raise ValueError(f"moe_layer_freq {frequency}")


def _whole(arguments: dict[str, str], name: str) -> int | None:
    value = arguments.get(name, "")
    return int(value) if value.isdigit() else None
