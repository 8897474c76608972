"""Shards as WebDataset has them: tar archives in which files with one name and other suffixes are one sample."""

from __future__ import annotations

import glob
import itertools
import os
import re
from pathlib import Path
from typing import NamedTuple

from datamodules.common.errors import UserError
from datamodules.decoding.archive_index import refuse_compressed
from datamodules.decoding.archives import ARCHIVE, COMPRESSED, list_members
from datamodules.decoding.files import IMAGE_SUFFIXES, is_image_name, is_visible

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
#: What stands between a mask's name and its suffix.
MASKS = ("seg", "mask", "segmentation")
_LAYOUT = "Files with one name up to the first dot are one sample"


class Sample(NamedTuple):
    """Files of one sample by what stands behind the first dot of their names, in lower case: ``jpg``, ``seg.png``."""

    name: str  # printable: archive and name without suffixes
    files: dict[str, str]


def is_shards(source: str) -> bool:
    """Whether a source is an archive, a pattern of archives, or a folder of nothing else but archives."""
    if source.lower().endswith((ARCHIVE, *COMPRESSED)):
        return True
    return os.path.isdir(source) and bool(_in_folder(Path(source)))


def find_shards(source: str) -> list[Path]:
    """The archives of a source, sorted.

    Args:
        source: An archive, a pattern (``train-{000..009}.tar``, ``{train,val}-*.tar``, ``**/*.tar``), or a folder with
            archives, or with ``train``, ``val`` and ``test`` folders of archives, in it.

    Raises:
        UserError: If it is a stream, an archive is missing, or there is none.
        ArchiveError: If it is compressed.
    """
    if "://" in source or source.startswith("pipe:"):
        raise UserError(
            f"'{source}' is a stream, which can only be read from the start on, but order, resume and ranks need"
            " pictures from any place. Download the archives, and give their folder."
        )
    if os.path.isdir(source):
        found = _in_folder(Path(source))
    else:
        names = _expand(source)
        found = [
            Path(name) for pattern in names for name in (_matching(pattern) if glob.has_magic(pattern) else [pattern])
        ]
    packed = next((path for path in found if str(path).lower().endswith(COMPRESSED)), None)
    if packed is not None:
        refuse_compressed(packed)
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(found)} archives of '{source}' do not exist, for example {missing[0]} (looked in"
            f" {Path.cwd()})."
        )
    if not found:
        raise UserError(f"'{source}' matches no archive (looked in {Path.cwd()}).")
    return sorted(dict.fromkeys(found))


def _matching(pattern: str) -> list[str]:
    return [name for name in glob.glob(pattern, recursive=True) if not os.path.basename(name).startswith(".")]


def _expand(pattern: str) -> list[str]:
    """The texts that a pattern with ``{000..009}`` and ``{a,b}`` stands for, as shells have it."""
    parts: list[list[str]] = []
    end = 0
    for match in _BRACES.finditer(pattern):
        parts.append([pattern[end : match.start()]])
        end = match.end()
        first, last, words = match.groups()
        if words is not None:
            parts.append(words.split(","))
        else:
            parts.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
    parts.append([pattern[end:]])
    return ["".join(words) for words in itertools.product(*parts)]


def _in_folder(folder: Path) -> list[Path]:
    """The archives of a folder without pictures: some folders of pictures have the archive that they are from."""
    found: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_visible(entry.name):
                continue
            if entry.is_dir():
                inner = _in_folder(Path(entry.path))
                if not inner:
                    return []
                found += inner
            elif is_image_name(entry.name):
                return []
            elif entry.name.lower().endswith((ARCHIVE, *COMPRESSED)):
                found.append(Path(entry.path))
    return found


def read_samples(shard: Path) -> list[Sample]:
    """The samples of an archive, in its order; hidden files and those of systems are left out.

    Raises:
        ArchiveError: As ``archives.list_members``.
    """
    samples: dict[str, Sample] = {}
    for member in list_members(shard):
        name = member[len(str(shard)) + 1 :]
        if not all(map(is_visible, name.split("/"))):
            continue
        folder, _, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        samples.setdefault(key, Sample(f"{shard}#{key}", {})).files[suffix.lower()] = member
    return list(samples.values())


def picture_of(sample: Sample) -> str | None:
    """The picture of a sample: its JPEG, or else its PNG, ...; masks (``seg.png``) are none.

    Raises:
        UserError: If there are several, by names such as ``12.left.jpg`` or ``2020.01.02.jpg``.
    """
    for suffix in IMAGE_SUFFIXES:
        if suffix[1:] in sample.files:
            return sample.files[suffix[1:]]
    found = [suffix for suffix in sample.files if is_image_name(f"_.{suffix}") and not is_mask(suffix)]
    if len(found) > 1:
        raise UserError(
            f"{sample.name} has several pictures: {', '.join(found[:5])}. {_LAYOUT}; name each picture without further"
            " dots, as in 12_left.jpg."
        )
    return sample.files[found[0]] if found else None


def is_mask(suffix: str) -> bool:
    """Whether what stands behind a sample's name is that of a mask."""
    return suffix.rpartition(".")[0] in MASKS


def list_pictures(source: str) -> list[str]:
    """The pictures of all archives of a source.

    Raises:
        UserError: As ``find_shards`` and ``picture_of``, or if there is none.
    """
    samples = (sample for shard in find_shards(source) for sample in read_samples(shard))
    pictures = [picture for sample in samples if (picture := picture_of(sample)) is not None]
    if not pictures:
        raise UserError(f"'{source}' holds no picture. {_LAYOUT}: 12.jpg, 12.cls.")
    return pictures
