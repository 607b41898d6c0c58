"""Labels as token ids: GENRE and STYLE in their own ranges, every other label in RESERVED.

Which names there are is frozen in the encoding of a dataset; the vocabulary only has numbers.
"""

import re

from megatron_music.tokens import vocabulary

# Each label with its names: (("GENRE", ("JAZZ", "ROCK")), ("MOOD", ("HAPPY",))).
LabelNames = tuple[tuple[str, tuple[str, ...]], ...]

RANGES = {block.name: block for block in vocabulary.BLOCKS if block.name in ("STYLE", "GENRE", "RESERVED")}
_OTHER_BLOCKS = {block.name for block in vocabulary.BLOCKS} - {"STYLE", "GENRE"}
_LABEL = re.compile("[A-Z_]+")
# What AutoTokenizer cuts out of the text before it looks at spaces.
_SPECIAL = re.compile(r"(?<!\w)(PAD|PIECE_START|DOCUMENT_END)(?!\w)")


def label_ids(labels: LabelNames) -> dict[str, int]:
    """The token of every name, such as ``GENRE=JAZZ``, and its id: the range's ids in the order of the names.

    Raises:
        ValueError: more names than ids, a label that is no word of capitals, or a name that reads like another token.
    """
    used = dict.fromkeys(RANGES, 0)
    ids: dict[str, int] = {}
    for place, (label, names) in enumerate(labels):
        if label in dict(labels[:place]):
            raise ValueError(f"the label {label} is there twice; name each label once, with all its names")
        if not _LABEL.fullmatch(label) or label in _OTHER_BLOCKS:
            raise ValueError(
                f"the label {label!r} cannot be a token; use capital letters and underscores, and no word of the "
                f"vocabulary's "
                f"own ({', '.join(sorted(_OTHER_BLOCKS - {''}))})"
            )
        block = label if label in RANGES else "RESERVED"
        for name in names:
            token, token_id = f"{label}={name}", vocabulary.IDS[f"{block}=0"] + used[block]
            used[block] += 1
            if used[block] > len(RANGES[block].values):
                others = f"the labels other than GENRE and STYLE, {label} among them, have"
                which = f"{label} has" if block == label else others
                raise ValueError(
                    f"{which} more than {len(RANGES[block].values)} names; group the rarest under one name such as "
                    f"OTHER, "
                    "or leave a label out"
                )
            if vocabulary.IDS.get(token, token_id) != token_id or _SPECIAL.search(token):
                raise ValueError(f"{token} reads like another token; spell the name otherwise, such as {name}_")
            if name.split() != [name] or token in ids:
                raise ValueError(
                    f"{label} has the name {name!r}, which is empty, has spaces or is there twice; spell it otherwise"
                )
            ids[token] = token_id
    return ids
