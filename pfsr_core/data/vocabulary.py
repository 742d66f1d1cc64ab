"""The item vocabulary that lies beside a model: without it the codes of a table mean nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsr_core.data.errors import MalformedFileError
from pfsr_core.data.readers.table import read_text
from pfsr_core.files import staged

FILE_NAME = "vocabulary.json"


@dataclass(frozen=True)
class Vocabulary:
    """``item_ids[code - 1]`` is the raw id of an item code; ``titles`` maps raw ids to titles.

    ``digest``: SHA-256 (hex) of the item ids in order, the identity of the code numbering.
    """

    item_ids: tuple[str, ...]
    titles: Mapping[str, str]
    digest: str


def vocabulary_digest(item_ids: Sequence[str]) -> str:
    """SHA-256 (hex) of the raw ids in order."""
    return hashlib.sha256(json.dumps(list(item_ids)).encode()).hexdigest()


def save_vocabulary(
    directory: Path, item_ids: Sequence[str], titles: Mapping[str, str] | None = None
) -> str:
    """Writes ``vocabulary.json`` into ``directory`` at one stroke and returns its digest."""
    digest = vocabulary_digest(item_ids)
    content = {"digest": digest, "item_ids": list(item_ids), "titles": dict(titles or {})}
    directory.mkdir(parents=True, exist_ok=True)
    with staged(directory / FILE_NAME) as stage:
        stage.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")
    return digest


def load_vocabulary(directory: Path) -> Vocabulary:
    """Reads ``vocabulary.json``; raises MalformedFileError when it was changed or cut off."""
    file_path = directory / FILE_NAME
    fix = "restore the file that was saved with the model"
    try:
        content = json.loads(read_text(file_path))
    except json.JSONDecodeError as error:
        raise MalformedFileError(file_path, error.lineno, f"not JSON ({error.msg})", fix) from None
    if not _is_well_formed(content):
        raise MalformedFileError(
            file_path, None, "item_ids, titles or digest are not as saved", fix
        )
    item_ids = tuple(content["item_ids"])
    if vocabulary_digest(item_ids) != content["digest"]:
        raise MalformedFileError(file_path, None, "the item ids do not match their digest", fix)
    return Vocabulary(item_ids, content["titles"], content["digest"])


def _is_well_formed(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("titles"), dict)
        and isinstance(content.get("item_ids"), list)
        and all(isinstance(item, str) for item in content["item_ids"])
    )
