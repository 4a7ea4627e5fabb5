"""Import published weights: find the files, convert and check each, and put all results in place together or none."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from scripts.errors import InputError
from scripts.metadata import program, read_metadata
from scripts.published.checkpoint_file import open_checkpoint
from scripts.published.hub import download, match_one
from scripts.published.import_report import ImportedBank, ImportReport
from scripts.published.network_file import DTYPES, import_network
from scripts.published.overlay import BUNDLE, NETWORK_ROLES, TEXT_ROLE, PublishedModel, read_overlay
from scripts.text.embedding_bank import EmbeddingBank
from scripts.text.published_encoder import TOWER_PREFIX, load_published_encoder
from scripts.text.terminology import Terminology
from scripts.text.text_encoder import TextEncoder
from scripts.weights import sha256_of

logger = logging.getLogger(__name__)
MODELS = BUNDLE / "models"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
BankBuilder = Callable[[list[str], TextEncoder], EmbeddingBank]


@dataclass
class Request:
    """What to import.

    Attributes:
        source: folder with the released files, or a hub repository; None where ``files`` says all.
        files: single files by role, in place of what ``source`` has.
        language_model: folder or hub name; by default a folder of its name in ``source``, else its hub name.
        overlay: which release, see ``read_overlay``.
        output: folder of the results.
        dtype: one of ``DTYPES``, or None to keep the checkpoints'.
        revision: of the hub repository.
        hashes: file name to the SHA-256 that it has to have.
        download_folder: where downloads go, by default the hub client's cache.
        force: overwrite.
    """

    source: str | None = None
    files: dict[str, Path] = field(default_factory=dict)
    language_model: str | None = None
    overlay: str = "published"
    output: Path = MODELS
    dtype: str | None = None
    revision: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    download_folder: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class _Sources:
    files: dict[str, Path]
    hashes: dict[str, str]
    language_model: str
    repository: str | None = None
    revision: str | None = None


def import_weights(request: Request, build_bank: BankBuilder = EmbeddingBank.build) -> tuple[ImportReport, list[Path]]:
    """Convert released files to those that an overlay reads.

    Nothing appears in the output folder before everything was converted and checked.

    Args:
        request: what and where.
        build_bank: makes the embedding bank of sentences and an encoder.

    Returns:
        The report, and the files written: the weights, the bank, and the report as JSON and as text.

    Raises:
        InputError: a file that is missing, damaged, unsafe or of another layout; or that would be overwritten.
    """
    model = read_overlay(request.overlay)
    _check_request(request, model)
    wanted = [role for role in model.outputs if request.source is not None or role in request.files]
    outputs = {role: request.output / model.outputs[role] for role in wanted}
    reports = [request.output / f"{model.name}_import.{kind}" for kind in ("json", "txt")]
    _check_output(request, list(outputs.values()))
    sources = _find(request, model)
    _check_roles(sources.files, model)
    report = ImportReport(model.name, sources.repository, sources.revision, _versions())
    with _together([*outputs.values(), *reports]) as partial:
        # The encoder first, as it is refused in a second, while a network is computed with.
        encoder = _encoder(sources) if TEXT_ROLE in sources.files else None
        for role in NETWORK_ROLES:
            if role in sources.files:
                file = sources.files[role]
                checkpoint = open_checkpoint(file, sources.hashes.get(file.name))
                target = outputs[role]
                report.networks.append(
                    import_network(checkpoint, model.network(), role, partial[target], target.name, request.dtype)
                )
        if encoder is not None:
            target = outputs[TEXT_ROLE]
            report.bank = _bank(encoder, sources.language_model, partial[target], target.name, build_bank)
        report.keep(_earlier_report(reports[0]), lambda name, sha256: _is(request.output / name, sha256))
        partial[reports[0]].write_text(report.to_json(), encoding="utf-8")
        partial[reports[1]].write_text(report.to_text(), encoding="utf-8")
    return report, [*outputs.values(), *reports]


def _check_request(request: Request, model: PublishedModel) -> None:
    if request.source is None and not request.files:
        raise InputError(
            f"nothing to import: give a folder with the released files, the repository {model.repository}, or single "
            "files with --coarse, --fine and --text-encoder"
        )
    if request.dtype is not None and request.dtype not in DTYPES:
        raise InputError(f"dtype {request.dtype!r} is none of {', '.join(DTYPES)}")
    for name, value in request.hashes.items():
        if not SHA256.fullmatch(value):
            raise InputError(f"the SHA-256 of {name} has to be 64 hexadecimal digits, got {value!r}")
    if unknown := [role for role in request.files if role not in model.patterns]:
        raise InputError(f"overlay {model.name} has no {', '.join(unknown)}; it has {', '.join(model.patterns)}")


def _check_output(request: Request, files: list[Path]) -> None:
    """Refuse, before any work, an output folder that cannot be used."""
    request.output.mkdir(parents=True, exist_ok=True)
    there = [file.name for file in files if file.exists()]
    if there and not request.force:
        raise InputError(f"{', '.join(there)} in {request.output} would be overwritten; allow it with --force")
    if not os.access(request.output, os.W_OK):
        raise InputError(f"cannot write to {request.output}; give another folder with --output")


def _find(request: Request, model: PublishedModel) -> _Sources:
    """Where every file is, downloading those of a repository that were not given."""
    files = {role: Path(file).expanduser() for role, file in request.files.items()}
    absent = {role: pattern for role, pattern in model.patterns.items() if role not in files}
    language_model = request.language_model or model.language_model
    if request.source is None:
        return _Sources(files, _hashes(request, files), language_model)
    folder = Path(request.source).expanduser()
    if folder.is_dir():
        paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        files |= {role: paths[match_one(list(paths), pattern, folder.name)] for role, pattern in absent.items()}
        if request.language_model is None:
            language_model = _local_language_model(paths, model.language_model) or language_model
        return _Sources(files, _hashes(request, files), language_model)
    if not REPOSITORY.fullmatch(request.source):
        raise InputError(f"no folder {folder}; give one with the released files, or a repository such as owner/name")
    fetched = download(request.source, absent, request.revision, request.download_folder)
    files |= {role: file.path for role, file in fetched.items()}
    known = {file.path.name: file.sha256 for file in fetched.values() if file.sha256 is not None}
    for name, given in request.hashes.items():
        if name in known and known[name] != given.strip().lower():
            raise InputError(f"{name}: the repository states SHA-256 {known[name]}, --sha256 says {given}")
    commit = next((file.revision for file in fetched.values()), request.revision)
    return _Sources(files, known | _hashes(request, files), language_model, request.source, commit)


def _local_language_model(paths: Mapping[str, Path], name: str) -> str | None:
    """The folder of that name which holds a model's configuration, if there is one."""
    wanted = name.rsplit("/", 1)[-1]
    return next((str(p.parent) for p in paths.values() if p.name == "config.json" and p.parent.name == wanted), None)


def _hashes(request: Request, files: Mapping[str, Path]) -> dict[str, str]:
    names = {file.name for file in files.values()}
    if unused := sorted(set(request.hashes) - names):
        raise InputError(f"a SHA-256 was given for {', '.join(unused)}, but the files are {', '.join(sorted(names))}")
    return dict(request.hashes)


def _check_roles(files: Mapping[str, Path], model: PublishedModel) -> None:
    """The two networks have one layout: only a file's name tells which it is, so a mix-up has to be caught here."""
    for role in NETWORK_ROLES:
        for other in NETWORK_ROLES:
            if other != role and role in files and Path(files[role]).match(model.patterns.get(other, "\0")):
                raise InputError(
                    f"{files[role].name} is called as the file for {other} is, but was given for {role}; exchange them"
                )
    if len({file.resolve() for file in files.values()}) < len(files):
        raise InputError("one file was given twice; each of the networks and the text encoder has its own")


@dataclass(frozen=True)
class _Encoder:
    """A loaded text encoder and the file that it is of."""

    model: TextEncoder
    source: str
    sha256: str
    size: int


def _encoder(sources: _Sources) -> _Encoder:
    file = sources.files[TEXT_ROLE]
    checkpoint = open_checkpoint(file, sources.hashes.get(file.name))
    if not any(name.startswith(TOWER_PREFIX) for name in checkpoint.state):
        raise InputError(f"{file.name} is no text encoder: it has no {TOWER_PREFIX}*; a network goes with --coarse")
    if file.suffix == ".safetensors":
        raise InputError(f"{file.name}: the text encoder is read as torch.save writes it; give the published .pth file")
    model = load_published_encoder(sources.language_model, file).load()
    return _Encoder(model, checkpoint.name, checkpoint.sha256, checkpoint.size)


def _bank(encoder: _Encoder, language_model: str, target: Path, output: str, build_bank: BankBuilder) -> ImportedBank:
    terminology = Terminology.load()
    bank = build_bank(terminology.all_sentences(), encoder.model)
    targets = list(terminology.targets())
    if absent := [target.sentence for target in targets if target.sentence not in bank]:
        raise InputError(f"embedding bank: {len(absent)} targets have no sentence in it, such as {absent[0]!r}")
    bank.save(target)
    return ImportedBank(
        source=encoder.source,
        source_sha256=encoder.sha256,
        source_size=encoder.size,
        language_model=Path(language_model).name,
        output=output,
        output_sha256=sha256_of(target),
        output_size=target.stat().st_size,
        encoder=bank.encoder_identity,
        sentences=len(bank),
        structures=len(terminology.concepts),
        targets=len(targets),
        width=bank.width,
    )


def _earlier_report(file: Path) -> dict[str, Any]:
    """The report of an import before this one; empty where there is none, or none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is(file: Path, sha256: str) -> bool:
    return file.is_file() and sha256_of(file) == sha256


def _versions() -> dict[str, str]:
    own = program(read_metadata(BUNDLE))
    return {own["name"]: own["version"], **{name: version(name) for name in ("torch", "monai", "transformers")}}


@contextlib.contextmanager
def _together(files: list[Path]) -> Iterator[dict[Path, Path]]:
    """Names to write to, renamed to ``files`` when all is well; otherwise nothing stays."""
    partial = {file: file.with_name(f"{file.name}.{os.getpid()}.partial") for file in files}
    for file in files:  # what a killed import left, as large as a network
        for left in file.parent.glob(f"{file.name}.*.partial"):
            number = left.name.removeprefix(f"{file.name}.").removesuffix(".partial")
            if number.isdecimal() and not psutil.pid_exists(int(number)):
                left.unlink(missing_ok=True)
    try:
        yield partial
        for file, temporary in partial.items():
            temporary.replace(file)
    finally:
        for temporary in partial.values():
            temporary.unlink(missing_ok=True)
