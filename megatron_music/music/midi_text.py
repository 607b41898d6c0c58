"""Text in MIDI files, whose bytes carry no encoding: UTF-8, Shift-JIS (Windows code page 932) or Latin-1 (1252)."""

import unicodedata

_FIRST_RARE_LEAD = 0xA0  # kana and the common kanji have lead bytes 0x81 to 0x9F, which Latin text hardly uses
_MIN_HALF_WIDTH = 3


def decode_text(content: bytes) -> str:
    """The text without trailing NULs; every byte string is text, and none of it becomes a replacement character.

    UTF-8 where it is valid. Else Shift-JIS where it decodes and looks Japanese: two neighbouring full-width characters
    or one that touches no Latin letter, of the common ones; or three neighbouring half-width kana. Else Latin-1.
    """
    content = content.rstrip(b"\0")
    try:
        return content.decode()
    except UnicodeDecodeError:
        pass
    for encoding in ("cp932", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "cp1252" or _looks_japanese(text):
            return text
    return content.decode("latin-1")


def _looks_japanese(text: str) -> bool:
    if any(unicodedata.category(char) in ("Co", "Cn") for char in text):
        return False
    half = full = 0
    for place, char in enumerate(text):
        encoded = char.encode("cp932")
        half = half + 1 if "\uff61" <= char <= "\uff9f" else 0
        is_full = len(encoded) == 2
        full = full + 1 if is_full else 0
        is_common = is_full and encoded[0] < _FIRST_RARE_LEAD
        neighbours = text[max(place - 1, 0) : place] + text[place + 1 : place + 2]
        is_alone = is_common and not any(other.isascii() and other.isalpha() for other in neighbours)
        is_pair = full > 1 and min(encoded[0], text[place - 1].encode("cp932")[0]) < _FIRST_RARE_LEAD
        if half >= _MIN_HALF_WIDTH or is_pair or is_alone:
            return True
    return False
