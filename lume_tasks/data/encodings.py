"""Decode text files by their byte-order mark, as UTF-8, in the encoding that the user names, or in a detected one."""

import codecs
from itertools import islice

from lume_tasks.data.files import Fault, utf8_lines
from lume_tasks.data.text import WORD

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMON = [f"cp125{i}" for i in range(8)] + ["koi8_r", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"]
EXAMPLES = 3
"""Words that show the user whether an encoding is right."""
_USUAL = "cp1252"  # Windows in Western Europe and the Americas; preferred, since short texts fit several encodings


def encoding_problem(name: str) -> str | None:
    """Return what is wrong with the name of an encoding, None if Python knows it."""
    try:
        b"a".decode(name, errors="replace")  # decoding no bytes would not check the name
    except (LookupError, ValueError):  # a name may hold a null character
        return f"--encoding {name}: is not known; use a name such as cp1252, utf-16, latin-1, gb18030 or shift_jis"
    return None


def decoded(content: bytes, hint: str | None) -> tuple[str, str, list[Fault]]:
    """Return the text of a file, its encoding with the origin ("" for UTF-8), and its faults.

    The encoding is the first of these that applies: the byte-order mark; UTF-8, if the whole file is valid; ``hint``;
    UTF-8 with faults, if at least half of the lines with non-ASCII characters are valid; one that charset-normalizer
    detects.
    """
    mark = next((name for bom, name in _MARKS if content.startswith(bom)), None)
    if mark:
        return _strict(content, mark, "from its byte-order mark")
    content = content.removeprefix(codecs.BOM_UTF8)
    binary = b"\0" in content[:8000]
    lines, faults = ({}, []) if binary else utf8_lines(content)
    # ASCII bytes may be escape sequences of another encoding, so the hint takes precedence for them.
    if not binary and not faults and not (hint and content.isascii()):
        return "\n".join(lines.values()), "", []
    if hint:
        return _strict(content, hint, "from --encoding")
    if binary:
        advice = "save it as UTF-8, uncompressed; for UTF-16 without a byte-order mark, give --encoding utf-16-le"
        return "", "", [(0, f"is not a text file: {advice}")]
    if sum(not line.isascii() for line in lines.values()) >= len(faults):
        return "", "", faults
    found = _detected(content)
    if found is None:
        return "", "", [(line, f"{fault}, or name its encoding: --encoding cp1252") for line, fault in faults]
    return _strict(content, found, "detected")


def _strict(content: bytes, name: str, origin: str) -> tuple[str, str, list[Fault]]:
    try:
        text = content.decode(name)
    except ValueError as error:
        at = f" (byte {error.start + 1})" if isinstance(error, UnicodeDecodeError) else ""
        return "", "", [(0, f"is not valid {name}{at} (encoding {origin}): save the file as UTF-8")]
    if content.isascii() and text == content.decode("ascii"):
        return text, "", []
    words = (found.group() for found in WORD.finditer(text) if not found.group().isascii())
    example = ", ".join(dict.fromkeys(islice(words, EXAMPLES)))
    return text, f"{name} ({origin})" + f", with words such as {example}" * bool(example), []


def _detected(content: bytes) -> str | None:
    """Return the most likely encoding of a text that is not UTF-8; None if no known one fits."""
    from charset_normalizer import from_bytes

    matches = from_bytes(content, cp_isolation=_COMMON) or from_bytes(content)
    best = matches.best()
    if best is None:
        return None
    equal = {name for match in matches if match.chaos <= best.chaos for name in match.could_be_from_charset}
    return _USUAL if _USUAL in equal else best.encoding
