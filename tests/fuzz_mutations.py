"""Damaged and hostile inputs of every format, each made of a good one: bytes, JSON, YAML, tables, lines, safetensors,
sqlite, archives.

A mutant is a function of its seeds, its number and the seed of the random numbers alone. Half of them keep their format
and are wrong in
what it says: another type, a number beyond every bound, NaN, a key that is missing or twice, deep nesting, a path that
leads outside.
"""

import gzip
import hashlib
import json
import os
import random
import re
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Sequence

import mutants
import yaml

WILD_NUMBERS = (
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "7",
    "0.5",
    "-0.0",
    "1.0",
    "1e-320",
    "1e308",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809",
    "1" + "0" * 40,
    "9" * 400,
    "9" * 5000,
)
WILD_TEXTS = (
    "",
    " ",
    "x",
    "null",
    "nan",
    "-1",
    "5",
    "1e5",
    "../../../../etc/passwd",
    "/dev/zero",
    "/",
    ".",
    "..",
    "~",
    "a/b",
    "a\\b",
    "\x00",
    "a\x00b",
    "\x1b[31mred\x1b]0;title\x07",
    "\r\n",
    "\u202egnp.exe",
    "\ud800",
    "\U0001f3b5",
    "e\u0301",
    "<script>alert(1)</script>",
    "=1+1",
    "%s%n{0}{x}",
    "$(id)",
    "`id`",
    "; id",
    "-esystem",
    "x" * 300,
    "y" * 70_000,
    "((((((((((a+)+)+)+)+)+)+)+)+)+b",
)
WILD_JSON = (
    *WILD_NUMBERS,
    *(json.dumps(text) for text in WILD_TEXTS),
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[{}]",
    '{"": null}',
    "[" * 500 + "]" * 500,
    '{"a":' * 300 + "1" + "}" * 300,
    "[" + "0," * 5_000 + "0]",
)
DEEP = ("[" * 200_000, "[" * 200_000 + "]" * 200_000, '{"a":' * 200_000 + "1" + "}" * 200_000)
SEAL = re.compile(rb'\{"sha256": "[0-9a-f]{64}",')
_RARE = 0.01  # share of the inputs of a megabyte or more


def mutant_of(kind: str, contents: Sequence[bytes], number: int, seed: int = 0) -> bytes:
    """The mutant of that number.

    Args:
        kind: a key of KINDS.
        contents: good files of the format; the first is the one that is altered, the others lend parts.
    """
    chance = random.Random(f"{seed}:{kind}:{number}")
    if kind == "midi":
        return mutants.mutant(contents, number, seed)[1]
    content = contents[0]
    if (
        seal := SEAL.match(content)
    ) and chance.random() < 0.8:  # who alters the file can write the hash in front of it anew
        return sealed(_json(b"{" + content[seal.end() :], chance))
    if chance.random() < (0.0 if kind == "bytes" else 0.65):
        content = KINDS[kind](content, chance)
        if chance.random() < 0.9:
            return content
    return _bytes(content, chance, contents)


def sealed(content: bytes) -> bytes:
    """A JSON object with the hash of itself in front, as plans and records carry it."""
    rest = content.removeprefix(b"{")
    return b'{"sha256": "%s",' % hashlib.sha256(rest).hexdigest().encode() + rest


def kind_of(name: str) -> str:
    """How a file of this name is altered."""
    suffixes = {
        ".json": "json",
        ".jsonl": "jsonl",
        ".yaml": "yaml",
        ".csv": "table",
        ".safetensors": "safetensors",
        ".sqlite": "sqlite",
        ".gz": "gzip",
        ".txt": "lines",
        ".log": "lines",
        ".sbatch": "lines",
        ".mid": "midi",
        ".lst": "lines",
    }
    return suffixes.get(os.path.splitext(name)[1], "bytes")


# Bytes.


def _bytes(content: bytes, chance: random.Random, others: Sequence[bytes] = ()) -> bytes:
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(_BYTE_CHANGES)(content, chance, others)
    if chance.random() < _RARE:
        content += chance.choice((b"\0", b"[", b"x", b"\n")) * (2 << 20)
    return bytes(content)


def _place(content: bytearray, chance: random.Random) -> int:
    """A place in the file, of which its beginning is hit as often as all the rest."""
    return min(chance.randrange(64) if chance.random() < 0.5 else chance.randrange(len(content) + 1), len(content))


def _flip(content, chance, others):
    for _ in range(chance.randint(1, 8)):
        if content:
            content[min(_place(content, chance), len(content) - 1)] ^= 1 << chance.randrange(8)


def _overwrite(content, chance, others):
    size = chance.choice((1, 1, 2, 4, 8))
    value = chance.choice(
        (
            0,
            1,
            (1 << 8 * size) - 1,
            1 << 8 * size - 1,
            (1 << 8 * size - 1) - 1,
            chance.getrandbits(8 * size),
            len(content),
        )
    )
    place = _place(content, chance)
    content[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, chance.choice(("little", "big")))


def _cut(content, chance, others):
    del content[_place(content, chance) :]


def _drop(content, chance, others):
    place = _place(content, chance)
    del content[place : place + chance.choice((1, 4, 30, 300))]


def _repeat(content, chance, others):
    place = _place(content, chance)
    piece = content[place : place + chance.choice((1, 8, 60))]
    content[place:place] = piece * chance.choice((1, 2, 50, 1000))


def _insert(content, chance, others):
    place = _place(content, chance)
    content[place:place] = chance.choice(
        (
            b"\0",
            b"\xff" * 8,
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"\n",
            b'"',
            b"{",
            b"-",
            bytes(chance.randrange(256) for _ in range(16)),
        )
    )


def _splice(content, chance, others):
    other = chance.choice(others) if others else bytes(content)
    start, place = chance.randrange(len(other) + 1), _place(content, chance)
    content[place : place + chance.choice((0, 40))] = other[start : start + chance.randint(1, 400)]


def _zeros(content, chance, others):
    place = chance.randrange(len(content) + 1)
    content[place:] = bytes(len(content) - place)


_BYTE_CHANGES = (_flip, _flip, _overwrite, _overwrite, _cut, _drop, _repeat, _insert, _splice, _zeros)


# JSON: a tree in which an object is a list of pairs, so that a key may be there twice.


class _Pairs(list):
    """An object."""


class _Raw(str):
    """JSON as it stands."""


def _parsed(content: bytes):
    return json.loads(content, object_pairs_hook=_Pairs)


def _written(node, depth: int = 0) -> str:
    """A tree as JSON; one that an alteration put into itself ends after 300 levels."""
    if isinstance(node, _Raw):
        return node
    if depth > 300:
        return "null"
    if isinstance(node, _Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_written(value, depth + 1)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(_written(value, depth + 1) for value in node) + "]"
    return json.dumps(node)


def _places_of(node, found=None) -> list[tuple[list, int]]:
    """Every list and object with the place of each part."""
    found = [] if found is None else found
    for place, part in enumerate(node):
        found.append((node, place))
        inner = part[1] if isinstance(node, _Pairs) else part
        if isinstance(inner, list):
            _places_of(inner, found)
    return found


def _alter_tree(tree, chance: random.Random):
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = _places_of(tree) if isinstance(tree, list) else []
        if not places or chance.random() < 0.02:
            return _Raw(chance.choice(WILD_JSON))
        holder, place = chance.choice(places)
        is_object = isinstance(holder, _Pairs)
        key, value = holder[place] if is_object else (None, holder[place])
        change = chance.random()
        if change < 0.5:
            new = _other_value(value, chance)
            holder[place] = (key, new) if is_object else new
        elif change < 0.62:
            del holder[place]
        elif change < 0.7:  # twice, or many times
            new = (key, _other_value(value, chance)) if is_object else value
            holder[place:place] = [new] * (1 if is_object else chance.choice((1, 2, 300)))
        elif change < 0.8 and is_object:
            holder[place] = (chance.choice((*WILD_TEXTS, key.upper(), key + "x", key[:-1])), value)
        elif change < 0.88:
            other, elsewhere = chance.choice(places)
            if elsewhere < len(other) and place < len(holder):
                first, second = _value(holder, place), _value(other, elsewhere)
                if not (isinstance(first, list) or isinstance(second, list)):
                    _set(holder, place, second)
                    _set(other, elsewhere, first)
        elif change < 0.94:
            holder.clear()
        else:
            _set(holder, place, chance.choice(([value], _Pairs([("x", value)]), [value, value])))
    return tree


def _value(holder, place):
    return holder[place][1] if isinstance(holder, _Pairs) else holder[place]


def _set(holder, place, value) -> None:
    holder[place] = (holder[place][0], value) if isinstance(holder, _Pairs) else value


def _other_value(value, chance: random.Random):
    near = chance.random() < 0.4
    if near and isinstance(value, bool):
        return _Raw(chance.choice(("0", "1", "null", '"true"')))
    if near and isinstance(value, int | float):
        return chance.choice(
            (value + 1, value - 1, -value, value * 2, value * 1000, float(value) + 0.5, str(value), [value])
        )
    if near and isinstance(value, str):
        return chance.choice(
            (
                value[:-1],
                value + "x",
                value.upper(),
                value * 50,
                value + "\x00",
                value.replace("/", "\\"),
                [value],
                value[::-1],
            )
        )
    return _Raw(chance.choice(WILD_JSON))


def _json(content: bytes, chance: random.Random) -> bytes:
    if chance.random() < _RARE:
        return chance.choice(DEEP).encode()
    try:
        tree = _parsed(content)
    except ValueError:  # one object a line, under the name .json
        return _jsonl(content, chance)
    return _written(_alter_tree(tree, chance)).encode("utf-8", "surrogatepass")


def _jsonl(content: bytes, chance: random.Random) -> bytes:
    lines = content.split(b"\n")
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.randrange(len(lines))
        change = chance.random()
        if change < 0.75 and lines[place].strip():
            try:
                lines[place] = _written(_alter_tree(_parsed(lines[place]), chance)).encode("utf-8", "surrogatepass")
            except ValueError:  # altered before
                lines[place] = _bytes(lines[place], chance)
        elif change < 0.85:
            lines[place:place] = [lines[place]] * chance.choice((1, 3, 200))
        elif change < 0.9:
            lines[place:place] = [chance.choice((b"", b"\0" * 40, b"{", b"[]", b"1", b"null", b'"x"', b"\xff\xfe"))]
        elif change < 0.95:
            del lines[place]
            lines = lines or [b""]
        else:
            chance.shuffle(lines)
    return b"\n".join(lines)


_YAML_BOMBS = (
    "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)),
    "a: &a [*a]\n",
    "a: &a {<<: *a}\n",
    "!!python/object/apply:os.system ['id']\n",
    "!!python/name:os.system\n",
    "--- 1\n--- 2\n",
    "? [a]\n: 1\n",
    "x: !!binary aWQ=\n",
    "x: !!set {a, b}\n",
    "x: 2001-13-99\n",
    "x: !!timestamp 9999999\n",
    "x: !!int 1_0__\n",
    "x: 1:2:3:4\n",
    "\t- x\n",
    "%YAML 9.9\n---\nx: 1\n",
    "x: |9\n  a\n",
    "'\\x'",
    '"\\U00110000"',
    "x: 0o8\n",
    "x: 0x\n",
    "x: .inf\n",
    "x: !!float 'x'\n",
    "- - - - -\n",
    "x: {",
    "&a *a",
    "!!str",
    "!<tag:yaml.org,2002:int> ''",
)


def _yaml(content: bytes, chance: random.Random) -> bytes:
    change = chance.random()
    if change < 0.06:
        bomb = chance.choice(_YAML_BOMBS).encode()
        return bomb if chance.random() < 0.5 else content + bomb
    tree = _alter_tree(_parsed(json.dumps(yaml.safe_load(content)).encode()), chance)
    text = _written(tree)
    if change < 0.4:  # a block for each section, so that scalars are YAML's own
        text = re.sub(
            r"(?<![\w\"])(NaN|-?Infinity)(?![\w\"])",
            lambda found: {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}[found[1]],
            text,
        )
    return text.encode("utf-8", "surrogatepass")


# Tables and lines.


def _table(content: bytes, chance: random.Random) -> bytes:
    rows = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(chance.choice((1, 1, 2, 4))):
        row = chance.choice(rows)
        place = chance.randrange(len(row)) if row else 0
        change = chance.random()
        if change < 0.5 and row:
            row[place] = chance.choice(
                (*WILD_TEXTS, *WILD_NUMBERS, '"', '""', '"a"b', '"a,b"', "'", "a;b", "a|b")
            ).encode("utf-8", "surrogatepass")
        elif change < 0.6 and row:
            del row[place]
        elif change < 0.7:
            row[place:place] = [b"extra"] * chance.choice((1, 3, 500))
        elif change < 0.8:
            rows[chance.randrange(len(rows))] = list(chance.choice(rows))
        elif change < 0.9:
            rows.remove(row)
            rows = rows or [[]]
        else:
            rows.append(list(rows[0]))
    text = chance.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\x0b", b"\x85")).join(
        chance.choice((b",",) * 8 + (b";", b"\t")).join(row) for row in rows
    )
    change = chance.random()
    if change < 0.05:
        return text.decode("utf-8", "replace").encode(chance.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
    return text


_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def _lines(content: bytes, chance: random.Random) -> bytes:
    lines = content.split(b"\n")
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(lines))
        words = lines[place].split(b" ")
        change = chance.random()
        if change < 0.35:
            found = list(_NUMBER.finditer(lines[place]))
            if found:
                number = chance.choice(found)
                wild = chance.choice((*WILD_NUMBERS, "1.2.3", ".", "1e", "0x10", "\u0663")).encode()
                lines[place] = lines[place][: number.start()] + wild + lines[place][number.end() :]
        elif change < 0.5:
            words[chance.randrange(len(words))] = chance.choice((*WILD_TEXTS, *WILD_NUMBERS)).encode(
                "utf-8", "surrogatepass"
            )
            lines[place] = b" ".join(words)
        elif change < 0.6:
            other = chance.choice(lines).split(b" ")
            words[chance.randrange(len(words))] = chance.choice(other)
            lines[place] = b" ".join(words)
        elif change < 0.7:
            del words[chance.randrange(len(words))]
            lines[place] = b" ".join(words)
        elif change < 0.8:
            lines[place:place] = [lines[place]] * chance.choice((1, 3, 100))
        elif change < 0.88:
            del lines[place]
            lines = lines or [b""]
        elif change < 0.94:
            middle = chance.randrange(len(lines[place]) + 1)
            lines[place] = (
                lines[place][:middle]
                + chance.choice((b"\n", b"\r", b"\x1b[31m", b"\x00", b"\xe2\x80\xa8", b"\t"))
                + lines[place][middle:]
            )
        else:
            chance.shuffle(lines)
    return b"\n".join(lines)


# Formats with a header.


def _safetensors(content: bytes, chance: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header, data = _json(content[8 : 8 + size], chance), content[8 + size :]
    if chance.random() < 0.15:
        data = _bytes(data, chance)
    length = len(header) if chance.random() < 0.9 else chance.choice((0, 1, len(header) + 1, 1 << 40, (1 << 64) - 1))
    return struct.pack("<Q", length) + header + data


def _gzip(content: bytes, chance: random.Random) -> bytes:
    if chance.random() < _RARE:
        return gzip.compress(b'{"traceEvents": [' + b" " * (64 << 20) + b"]}", 1, mtime=0)
    content = gzip.decompress(content)
    return gzip.compress(_json(content, chance) if content.startswith(b"{") else _bytes(content, chance), 1, mtime=0)


def _sqlite(content: bytes, chance: random.Random) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as file:
        file.write(content)
        file.flush()
        base = sqlite3.connect(file.name)
        try:
            base.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
            tables = [
                row[0] for row in base.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            ]
            for _ in range(chance.choice((1, 1, 2, 3))):
                table = chance.choice(tables)
                columns = [row[1] for row in base.execute(f'PRAGMA table_info("{table}")')]
                if columns:
                    _alter_table(base, table, chance.choice(columns), chance)
            base.commit()
        except sqlite3.Error:  # what was altered before stands in the way
            pass
        finally:
            base.close()
        with open(file.name, "rb") as altered:
            return altered.read()


def _alter_table(base: sqlite3.Connection, table: str, column: str, chance: random.Random) -> None:
    endless = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id, 'x' || id AS value FROM n"
    large = (
        "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n LIMIT 50) SELECT id, zeroblob(100000000) AS "
        "value FROM n"
    )
    value = chance.choice(
        (
            "NULL",
            "-1",
            "1e999",
            "9223372036854775807",
            "'text'",
            "x'ff00fe'",
            "''",
            "zeroblob(100000)",
            "0.5",
            f'"{column}" || char(27)',
            f'-"{column}"',
        )
    )
    where = chance.choice(("", "", " WHERE rowid = 1", " WHERE rowid % 2"))
    base.execute(
        chance.choice(
            (
                f'UPDATE "{table}" SET "{column}" = {value}{where}',
                f'UPDATE "{table}" SET "{column}" = {value}{where}',
                f'UPDATE "{table}" SET "{column}" = {value}{where}',
                f'DELETE FROM "{table}"{where}',
                f'DROP TABLE "{table}"',
                f'ALTER TABLE "{table}" DROP COLUMN "{column}"',
                f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO other',
                f'INSERT INTO "{table}" SELECT * FROM "{table}"',
                f'ALTER TABLE "{table}" RENAME TO elsewhere',
            )
        )
    )
    if chance.random() < 0.05:
        base.execute(f'DROP TABLE IF EXISTS "{table}"')
        base.execute(f'CREATE VIEW "{table}" AS {chance.choice((endless, large))}')


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": _bytes,
    "json": _json,
    "jsonl": _jsonl,
    "yaml": _yaml,
    "table": _table,
    "lines": _lines,
    "safetensors": _safetensors,
    "gzip": _gzip,
    "sqlite": _sqlite,
}
