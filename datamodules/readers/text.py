"""Text, XML and JSON files as people have them, and the words that stand in them for numbers and truth values.

Every reader takes its files from here, so that a byte order mark, Windows' line ends, another encoding and `True` where
1 is meant are one thing in all formats.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datamodules.common.errors import UserError

_MARKS = (  # UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED = re.compile(rb"\s*<\?xml[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)[\"']", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_TRUE, _FALSE = ("1", "true", "yes", "t", "y"), ("", "0", "false", "no", "f", "n", "unspecified")  # the last: VOC's


def read_text(file: str | Path) -> str:
    """The text of a file in UTF-8, or in what its byte order mark says; line ends are as they stand.

    Raises:
        UserError: If it is in another encoding.
    """
    return _decode(Path(file).read_bytes(), file, "utf-8")


def read_lines(file: str | Path) -> list[str]:
    """The lines of ``read_text``, with the line ends of any system, without blanks around them; empty ones too."""
    text = read_text(file).replace("\r\n", "\n").replace("\r", "\n")
    return [line.strip() for line in text.split("\n")]


def _decode(data: bytes, file: str | Path, encoding: str) -> str:
    for mark, marked in _MARKS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], marked
            break
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"'{file}' cannot be decoded as {encoding.upper()} (byte {error.start}: {error.reason}). Save it as UTF-8."
        ) from error
    except LookupError as error:
        raise UserError(f"'{file}' names the encoding '{encoding}', which is unknown. Save it as UTF-8.") from error
    if "\0" in text:
        raise UserError(f"'{file}' holds zero bytes: it is no text, or UTF-16 without a mark. Save it as UTF-8.")
    return text


def parse_xml(file: str | Path) -> ElementTree.Element:
    """The root of an XML file in any encoding that it declares; namespaces are left out.

    Raises:
        UserError: If it cannot be decoded, or is no XML.
        FileNotFoundError: If there is no such file.
    """
    data = Path(file).read_bytes()
    declared = _DECLARED.match(data)
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if encoding.startswith(("utf-16", "utf-32", "ucs", "unicode")):
        encoding = "utf-8"  # the declaration was read as single bytes, so it is not true
    try:
        root = ElementTree.fromstring(_decode(data, file, encoding))  # text: expat knows few encodings
    except ElementTree.ParseError as error:
        raise UserError(f"'{file}' cannot be read as XML ({error}). Correct or write it again.") from error
    if b"xmlns" in data:
        for element in root.iter():
            element.tag = str(element.tag).rpartition("}")[2]
    return root


def load_json(file: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: If it cannot be decoded, or is no JSON.
        FileNotFoundError: If there is no such file.
    """
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:  # damage, or a number of more digits than Python reads
        raise UserError(
            f"'{file}' cannot be read as JSON ({error}). It may be cut off: fetch or write it again."
        ) from error


def flag(value: object, what: str) -> bool:
    """A truth value as any format writes it: 0 or 1, true or false, yes or no; nothing is false.

    Args:
        value: As it stands in the file.
        what: What an error calls it: file, place and name.

    Raises:
        UserError: If it is anything else.
    """
    word = "" if value is None else str(value).strip().lower()
    word = {"0.0": "0", "1.0": "1"}.get(word, word)
    if word not in (*_TRUE, *_FALSE):
        raise UserError(f"{what} is {value!r}; it must be 0 or 1, or true or false.")
    return word in _TRUE


def number(value: object, what: str) -> float:
    """A number, or text that is one.

    Args:
        value: As it stands in the file.
        what: What an error calls it: file, place and name.

    Raises:
        UserError: If it is anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):  # float() would take 1_000, too
        return float(value)
    raise UserError(f"{what} is {'missing' if value is None else repr(value)}; it must be a number.")


def whole(value: object, what: str) -> int:
    """A whole number, as 3, 3.0 or text.

    Raises:
        UserError: If it is anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = number(value, what)
    if not found.is_integer():
        raise UserError(f"{what} is {value!r}; it must be a whole number.")
    return int(found)
