# SPDX-License-Identifier: MIT
"""Makes the demo model's corpus and tokenizer from Jane Austen's six novels.

Reads the novels from Debian's package r-cran-janeaustenr, takes off headings and editors'
notes, rejoins hard-wrapped lines, splits by whole chapters, trains a byte-level BPE on the
training chapters alone, and writes token files for train.py. Never trains a model.

Invariant: no byte of a validation or held-out chapter is seen by the tokenizer's or the
model's training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rdata
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

logger = logging.getLogger("corpus")

END_OF_TEXT = "<|endoftext|>"

# The last chapters of each novel are kept away from training. Those of three novels choose
# the checkpoint (validation), those of the other three are the held-out text of the model
# card, used for nothing but its figures.
VALIDATION = {"emma": 2, "mansfieldpark": 1, "sensesensibility": 2}
HELD_OUT = {"prideprejudice": 2, "northangerabbey": 2, "persuasion": 1}

CHAPTER_HEADING = re.compile(r"^\s*chapter\s+([ivxlc]+|\d+)\.?\s*$", re.IGNORECASE)
VOLUME_HEADING = re.compile(r"^\s*volume\s+[ivx]+\s*$", re.IGNORECASE)
# Lines that end a novel: what follows is an editor's.
END_OF_NOVEL = re.compile(r"^\s*(the end|finis|a note on the text)\.?\s*$", re.IGNORECASE)
# Paragraphs that are no prose: ornaments, footnotes, "[End volume one of this edition…".
NOT_PROSE = re.compile(r"^(\*|\[(End|At this point))")


@dataclass
class Split:
    """The documents (chapters) of one part of the corpus."""

    documents: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All documents, a blank line between two."""
        return "\n\n".join(self.documents) + "\n"


def read_r_package_data(folder: Path) -> dict[str, list[str]]:
    """Reads the character vectors of an installed R package's data.

    R stores each object of a package in one file `Rdata.rdb`: four bytes with the length
    after decompression (big-endian), then a zlib stream; `Rdata.rdx` is the index.

    Args:
        folder: The `data` folder of the installed package.

    Returns:
        Lines of each object, by its name.
    """
    index = rdata.conversion.convert(rdata.parser.parse_file(folder / "Rdata.rdx"))
    stored = (folder / "Rdata.rdb").read_bytes()
    objects = {}
    for name, (offset, size) in index["variables"].items():
        packed = stored[int(offset) + 4 : int(offset) + int(size)]
        parsed = rdata.parser.parse_data(zlib.decompress(packed))
        objects[str(name)] = [str(line) for line in rdata.conversion.convert(parsed)]
    return objects


def paragraphs(lines: list[str]) -> list[str]:
    """Joins hard-wrapped lines; a blank line ends a paragraph; `_italics_` lose their marks."""
    blocks = "\n".join(line.strip() for line in lines).split("\n\n")
    joined = (" ".join(block.replace("_", "").split()) for block in blocks)
    return [text for text in joined if text and not NOT_PROSE.match(text)]


def chapters(lines: list[str]) -> list[str]:
    """Splits a novel; what stands before the first chapter or after the end is dropped.

    Args:
        lines: The novel as typeset.

    Returns:
        One text a chapter, without heading, a blank line between paragraphs.
    """
    found: list[list[str]] = []
    for line in lines:
        if END_OF_NOVEL.match(line):
            break
        if CHAPTER_HEADING.match(line):
            found.append([])
        elif found and not VOLUME_HEADING.match(line):
            found[-1].append(line)
    return ["\n\n".join(paragraphs(chapter)) for chapter in found]


def split_novels(novels: dict[str, list[str]]) -> dict[str, Split]:
    """Shares the chapters out.

    Args:
        novels: Lines of each novel, by its name in the R package.

    Returns:
        Splits "train", "validation" and "heldout".
    """
    splits = {"train": Split(), "validation": Split(), "heldout": Split()}
    for name, lines in novels.items():
        texts = chapters(lines)
        kept_away = VALIDATION.get(name, 0) + HELD_OUT.get(name, 0)
        splits["train"].documents += texts[: len(texts) - kept_away]
        part = "validation" if name in VALIDATION else "heldout"
        splits[part].documents += texts[len(texts) - kept_away :]
        logger.info("%s: %d chapters, %d kept away", name, len(texts), kept_away)
    return splits


def calibration_text(novels: dict[str, list[str]]) -> str:
    """The first chapter of each novel: text of training's kind, to choose int4 weights by."""
    return Split([chapters(lines)[0] for lines in novels.values()]).text


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE, so that any text has tokens; `<|endoftext|>` is id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def write_corpus(
    splits: dict[str, Split], tokenizer: Tokenizer, output: Path, sources: dict[str, str]
) -> None:
    """Writes tokens (uint16), texts, tokenizer and a summary.

    Args:
        splits: Parts of the corpus.
        tokenizer: Trained on the split "train".
        output: Folder, made if need be.
        sources: SHA-256 of each source file, by its name.
    """
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(output / "tokenizer.json"))
    summary: dict[str, object] = {"sources": sources, "vocab_size": tokenizer.get_vocab_size()}
    for name, split in splits.items():
        if name == "train":
            # <|endoftext|> after each chapter teaches where a text stops; the other two splits
            # are plain text, so that any scorer can repeat their figures from the text file.
            encoded = [[*tokenizer.encode(text).ids, 0] for text in split.documents]
            ids = [token for document in encoded for token in document]
        else:
            ids = tokenizer.encode(split.text).ids
        np.array(ids, dtype=np.uint16).tofile(output / f"{name}.bin")
        (output / f"{name}.txt").write_text(split.text, encoding="utf-8")
        summary[name] = {
            "documents": len(split.documents),
            "bytes": len(split.text.encode()),
            "tokens": len(ids),
        }
        logger.info("%s: %s", name, summary[name])
    (output / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[1],
        epilog="Next: python models/demo/train.py --corpus build/demo-corpus",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--austen",
        type=Path,
        default=Path("/usr/lib/R/site-library/janeaustenr/data"),
        help="data folder of the R package janeaustenr (Debian: r-cran-janeaustenr)",
    )
    parser.add_argument("--vocab-size", type=int, default=3072, help="tokens of the BPE")
    parser.add_argument(
        "--output", type=Path, default=Path("build/demo-corpus"), help="folder to write"
    )
    return parser.parse_args()


def main() -> None:
    """Reads, splits, trains the tokenizer, writes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    novels = read_r_package_data(arguments.austen)
    splits = split_novels(novels)
    tokenizer = train_tokenizer(splits["train"].documents, arguments.vocab_size)
    stored = arguments.austen / "Rdata.rdb"
    sources = {stored.name: hashlib.sha256(stored.read_bytes()).hexdigest()}
    write_corpus(splits, tokenizer, arguments.output, sources)
    calibration = arguments.output / "calibration.txt"
    calibration.write_text(calibration_text(novels), encoding="utf-8")


if __name__ == "__main__":
    main()
