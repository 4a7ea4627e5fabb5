"""``embed``: build the embedding bank of every sentence in the terminology, for any text encoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.errors import InputError
from scripts.text.terminology import Terminology

from .output import console

if TYPE_CHECKING:
    from scripts.text import EmbeddingBank, TextEncoder

logger = logging.getLogger(__name__)


def embed(
    encoder: Annotated[str, typer.Option(help="Folder or hub name of a transformers sentence encoder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bank to write, a safetensors file.")],
    identity: Annotated[
        str | None,
        typer.Option(
            help="Name of the encoder to keep in the bank; default: the last part of --encoder, and the head's hash."
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(help="The published text_encoder.pth; of --encoder only configuration and tokenizer are read."),
    ] = None,
    terminology_file: Annotated[
        Path | None, typer.Option("--terminology", help="Terminology file; default: configs/terminology.json.")
    ] = None,
    prompts_json: Annotated[
        Path | None,
        typer.Option(help="Prompts of a training data set: {dataset: {label: [sentence, ...]}}; embedded too."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that another encoder's bank is in.")] = False,
) -> None:
    """Build an embedding bank: one vector for each name and synonym of the terminology.

    With a bank, the model needs the text encoder only for sentences that are not in it.

    The file appears complete or not at all; the same encoder and terminology give the same bytes.

    Examples:
      python -m scripts.cli embed --encoder FOLDER/all-MiniLM-L6-v2 \\
          --output bank.safetensors
      python -m scripts.cli embed --encoder FremyCompany/BioLORD-2023-C \\
          --head text_encoder.pth --output published.safetensors
    """
    terminology = Terminology.load(terminology_file)
    sentences = terminology.all_sentences()
    if prompts_json is not None:
        from scripts.data.prompt_sentences import PromptSentences

        sentences = list(dict.fromkeys([*sentences, *PromptSentences.load(prompts_json, terminology).all_sentences()]))
    text_encoder = _encoder(encoder, head, identity)
    _check_output(output, text_encoder.identity, force)
    bank = build_with_progress(sentences, text_encoder.load())
    bank.save(output)
    size = output.stat().st_size
    console().print(
        f"{len(bank)} sentences of width {bank.width} by {bank.encoder_identity} -> {output} ({size:,} bytes)",
        soft_wrap=True,
    )


def _encoder(model: str, head: Path | None, identity: str | None) -> TextEncoder:
    # Both bring torch, which the other commands do without.
    if head is None:
        from scripts.text.text_encoder import TextEncoder

        return TextEncoder(model, identity=identity)
    from scripts.text.published_encoder import load_published_encoder

    return load_published_encoder(model, head, identity)


def _check_output(output: Path, identity: str, force: bool) -> None:
    """Refuse, before any work, a place that cannot be written or that holds something else than this encoder's bank.

    Raises:
        InputError: no such folder, a folder, or (without ``force``) another file or another encoder's bank.
    """
    if not output.parent.is_dir():
        raise InputError(f"embed: no folder {output.parent}; make it, or give another --output")
    if output.is_dir():
        raise InputError(f"embed: {output} is a folder; give the name of a file in it")
    if force or not output.exists():
        return
    from scripts.text import EmbeddingBank

    try:
        made_by = EmbeddingBank.load(output).encoder_identity
    except ValueError as error:
        raise InputError(f"embed: {output} exists and is no embedding bank; overwrite it with --force") from error
    if made_by != identity:
        raise InputError(
            f"embed: {output} is a bank of {made_by!r}, not of {identity!r}; "
            "give another --output, the right --identity, or overwrite it with --force"
        )


def build_with_progress(sentences: list[str], encoder: TextEncoder) -> EmbeddingBank:
    """The sentences' embedding bank, made under a progress bar on the error stream."""
    from scripts.text import EmbeddingBank

    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as progress:
        task = progress.add_task("embedding", total=len(sentences))
        hook = encoder.register_forward_hook(lambda *_: progress.advance(task))  # the bank embeds one at a time
        try:
            return EmbeddingBank.build(sentences, encoder)
        finally:
            hook.remove()
