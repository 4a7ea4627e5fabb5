"""Build the embedding bank of every sentence in the terminology: ``python -m scripts.text.build_bank --help``.

The shipped bank is rebuilt, byte for byte, by running in ``bundle/``::

    python -m scripts.text.build_bank --encoder FOLDER/all-MiniLM-L6-v2 --identity all-MiniLM-L6-v2 \
        --output models/text_embeddings.safetensors
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from .embedding_bank import EmbeddingBank
from .terminology import Terminology
from .text_encoder import TextEncoder

logger = logging.getLogger(__name__)


def build_bank(encoder: TextEncoder, output: Path, terminology: Terminology | None = None) -> EmbeddingBank:
    """Embed all sentences of a terminology with ``encoder`` and save them; returns the bank."""
    sentences = (terminology or Terminology.load()).all_sentences()
    bank = EmbeddingBank.build(sentences, encoder)
    bank.save(output)
    logger.info("%d sentences of width %d -> %s (%d bytes)", len(bank), bank.width, output, output.stat().st_size)
    return bank


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m scripts.text.build_bank", description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="folder or hub name of a transformers sentence encoder")
    parser.add_argument("--output", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--identity", help="name of the encoder to keep in the file; default: the folder's name")
    parser.add_argument("--terminology", type=Path, help="terminology file; default: configs/terminology.json")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    encoder = TextEncoder(options.encoder, identity=options.identity)
    build_bank(encoder, options.output, Terminology.load(options.terminology))


if __name__ == "__main__":
    main()
