"""Has a model learned music? Perplexity on held-out music, and measures of sampled pieces beside baselines and real
music.

    python benchmarks/music.py DATASET CHECKPOINT [--num 64] [--json docs/results/music.json]

e.g. demo/data and demo/run. Four writers under equal conditions, piece k of each from seed k, as long as the model's
window: the trained model, the same model before training, an n-gram model of the training split (its order chosen on
the validation split), and the composers of the test split. Distances are to the validation split: what the test split's
are is the distance of music from music, and no model can mean to be nearer. See megatron_music/music/statistics.py for
what each number is.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_music.config.log import quiet_dependencies

quiet_dependencies()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from machine import machine  # noqa: E402

from megatron_music.data.indexed import open_split  # noqa: E402
from megatron_music.generation.load_models import load_model_for_inference  # noqa: E402
from megatron_music.generation.midi import Composer  # noqa: E402
from megatron_music.generation.ngram import MAX_ORDER, Markov, MarkovLogits  # noqa: E402
from megatron_music.generation.sampling import CachedGPT  # noqa: E402
from megatron_music.generation.unconstrained import grammatical_share, write_unruled  # noqa: E402
from megatron_music.models.gpt import build_gpt  # noqa: E402
from megatron_music.music.statistics import measure  # noqa: E402
from megatron_music.parallel import distributed  # noqa: E402
from megatron_music.tokens.encoding import Encoding  # noqa: E402
from megatron_music.tokens.mmmtrack import decode_piece  # noqa: E402
from megatron_music.tokens.tokenizer_folder import read_encoding  # noqa: E402

COLUMNS = {
    "perplexity": ("perplexity", ".2f"),
    "grammatical_share": ("grammatical", ".0%"),
    "pitch_class_distance": ("pitch classes", ".3f"),
    "duration_distance": ("durations", ".3f"),
    "self_similarity": ("self-similarity", ".3f"),
    "note_density": ("notes a bar", ".1f"),
    "polyphony": ("polyphony", ".2f"),
}


def documents_of(dataset: Path, split: str, most: int | None = None) -> list[np.ndarray]:
    """Documents of a split, evenly spread; all of them where no number is given."""
    found = open_split(dataset, split)
    places = np.arange(len(found)) if most is None else np.unique(np.linspace(0, len(found) - 1, most).astype(int))
    return [np.array(found[int(place)], np.int64) for place in places]


@torch.inference_mode()
def gpt_loss(model, documents: Sequence[np.ndarray], seq_length: int, batch_size: int = 8) -> tuple[float, int]:
    """The summed loss of all ids but each document's first, each document read by itself, and their number."""
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for first in range(0, len(documents), batch_size):
        cut = [document[: seq_length + 1] for document in documents[first : first + batch_size]]
        longest = max(map(len, cut))
        ids_BS = torch.zeros(len(cut), longest, dtype=torch.long)
        for row, document in enumerate(cut):
            ids_BS[row, : len(document)] = torch.from_numpy(document)
        read_BS = torch.arange(longest - 1) < torch.tensor([[len(document) - 1] for document in cut])
        positions_BS = torch.arange(longest - 1).expand(len(cut), -1)
        inputs_BS, labels_BS = ids_BS[:, :-1].to(device), ids_BS[:, 1:].to(device)
        loss_BS = model(inputs_BS, positions_BS.to(device), None, labels=labels_BS).float().cpu()
        total += float(loss_BS[read_BS].double().sum())
        count += int(read_BS.sum())
    return total, count


def best_markov(train: Sequence[np.ndarray], valid: Sequence[np.ndarray]) -> tuple[Markov, dict[str, float]]:
    """The order with the lowest loss on the validation documents, and the perplexity of each."""
    models = {order: Markov(train, order) for order in range(1, MAX_ORDER + 1)}
    perplexities = {order: perplexity(*model.loss(valid)) for order, model in models.items()}
    best = min(perplexities, key=perplexities.get)
    return models[best], {str(order): value for order, value in perplexities.items()}


def perplexity(loss: float, count: int) -> float:
    """Of a summed loss in nats: how many equally likely ids would be as hard to foresee."""
    return math.exp(loss / count)


def sampled(model, next_logits, encoding: Encoding, max_tokens: int, count: int, reference, device) -> dict:
    """Measures of ``count`` pieces under the grammar, and how many of as many without it are grammatical."""
    pieces = Composer(model, encoding, max_tokens, device=device, next_logits=next_logits).compose(range(count))
    unruled = write_unruled(range(count), next_logits(model, count, max_tokens), max_tokens, device=device)
    return {"grammatical_share": grammatical_share(unruled, encoding), **measure(pieces, reference)}


def compare(dataset: Path, checkpoint: Path, count: int, most_documents: int) -> dict:
    """All rows."""
    encoding = read_encoding(dataset / "tokenizer")
    train = documents_of(dataset, "train")
    valid, test = (documents_of(dataset, split, most_documents) for split in ("valid", "test"))
    reference = [decode_piece(ids, encoding.steps_per_quarter) for ids in documents_of(dataset, "valid")]
    held_out = documents_of(dataset, "test", count)
    music = [decode_piece(ids, encoding.steps_per_quarter) for ids in held_out]

    trained, run = load_model_for_inference(checkpoint, 1)
    device, max_tokens = next(trained.parameters()).device, run.model.seq_length
    distributed.seed_for_building(run.train.seed)
    untrained = build_gpt(run.model, run.parallel).to(device).eval()
    markov, orders = best_markov(train, valid)
    # GPTs read at most a window of a document; so must all.
    test = [document[: max_tokens + 1] for document in test]
    rows = {}
    for name, model, next_logits in (
        ("trained model", trained, CachedGPT),
        ("untrained model", untrained, CachedGPT),
        (f"n-gram model, order {markov.order}", markov, MarkovLogits),
    ):
        loss = model.loss(test) if isinstance(model, Markov) else gpt_loss(model, test, max_tokens)
        print(f"{name}: perplexity {perplexity(*loss):.3f}", file=sys.stderr, flush=True)
        rows[name] = {"perplexity": perplexity(*loss)}
        rows[name] |= sampled(model, next_logits, encoding, max_tokens, count, reference, device)
    rows["music of the test split"] = {
        "perplexity": None,
        "grammatical_share": grammatical_share(held_out, encoding),
        **measure(music, reference),
    }
    whole = measure(reference, reference)
    rows["music of the validation split"] = {"perplexity": None, "grammatical_share": None, **whole}
    distributed.stop()
    return {
        "rows": rows,
        "pieces": count,
        "parameters": run.model.parameter_count,
        "documents": {"train": len(train), "valid": len(reference), "test": len(test)},
        "test_tokens": loss[1],
        "ngram_validation_perplexity": orders,
        "machine": machine(),
        "command": f"python benchmarks/music.py {dataset} {checkpoint} --num {count} --documents {most_documents}",
    }


def table(result: dict) -> str:
    """The result as Markdown."""
    lines = ["| | " + " | ".join(head for head, _ in COLUMNS.values()) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for name, row in result["rows"].items():
        cells = ["" if row[key] is None else f"{row[key]:{form}}" for key, (_, form) in COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    orders = ", ".join(f"{value:.2f} ({order})" for order, value in result["ngram_validation_perplexity"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{result['pieces']} pieces each; perplexity of {result['test_tokens']:,} tokens in "
            f"{result['documents']['test']} "
            f"documents of the test split; distances to all {result['documents']['valid']} of the validation split; "
            f"the model "
            f"has {result['parameters']:,} parameters. N-gram models by their order on the validation split: {orders}. "
            f"`{result['command']}`; {result['machine']}.",
        ]
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--num", type=int, default=64, help="pieces of each writer")
    parser.add_argument("--documents", type=int, default=200, help="at most, of the test split, for perplexity")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    options = parser.parse_args(words)
    result = compare(options.dataset, options.checkpoint, options.num, options.documents)
    print(table(result))
    for path, text in ((options.json, json.dumps(result, indent=1)), (options.markdown, table(result))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
