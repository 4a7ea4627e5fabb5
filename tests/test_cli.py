"""The command line: what it lists, understands and builds, for people, pipes and programs, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, BertTokenizerFast
from typer.testing import CliRunner

from scripts.cli import Commands, app
from scripts.errors import InputError
from scripts.text import EmbeddingBank, Terminology, TextHead

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "kidney", "liver", "cyst"]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine that runs the tests says about its terminal, output is taken to go into a pipe."""
    for name in ("FORCE_COLOR", "PY_COLORS", "COLUMNS", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: object, env: dict[str, str] | None = None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def output_of(*arguments: object, env: dict[str, str] | None = None) -> str:
    result = run(*arguments, env=env)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def error_of(*arguments: object) -> str:
    """The one line by which a call is refused."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("command", ["targets", "parse", "embed"])
def test_help_has_examples(command: str) -> None:
    assert command in output_of("--help")
    assert f"python -m scripts.cli {command} " in output_of(command, "--help").partition("Examples:")[2]


# targets


@pytest.mark.parametrize(
    ("arguments", "filters"),
    [
        ([], {}),
        (["--modality", "ct", "--group", "Vessels"], {"modality": "CT", "group": "vessels"}),
        (["-m", "MR", "-k", "lesion"], {"modality": "MRI", "kind": "lesion"}),
    ],
)
def test_targets_as_json(arguments: list[str], filters: dict[str, str]) -> None:
    records = json.loads(output_of("targets", "--json", *arguments))
    concepts = {target.id: target.concept for target in Terminology.load().targets(**filters)}
    assert [record["id"] for record in records] == list(concepts)
    for record in records:
        concept = concepts[record["id"]]
        assert (record["name"], record["kind"], record["group"]) == (concept.name, concept.kind, concept.group)
        assert (record["side"], record["pair"]) == (concept.laterality, concept.pair)
        assert record["modalities"] == list(concept.modalities)
        assert record["synonyms"] == list(concept.synonyms)
        assert tuple(record["color"]) == concept.color
        codes = concept.codes
        assert (record["codes"] or {}).get("type", {}).get("value") == (codes and codes.type.value)


@pytest.mark.parametrize(("text", "name"), [("VENA CAVA INF", "Inferior vena cava"), ("ivc", "Inferior vena cava")])
def test_text_is_sought_in_names_and_synonyms(text: str, name: str) -> None:
    records = json.loads(output_of("targets", text, "--json"))
    assert name in [record["name"] for record in records]
    for record in records:
        assert any(text.lower() in term.lower() for term in (record["name"], *record["synonyms"]))


def test_piped_list_is_whole_and_plain() -> None:
    heading, *lines = output_of("targets").splitlines()
    concepts = Terminology.load().concepts
    assert heading.split()[:2] == ["id", "name"]
    assert len(lines) == len(concepts)
    for line, concept in zip(lines, concepts, strict=True):
        assert line.split()[0] == str(concept.id)
        assert concept.name in line
        assert "#{:02x}{:02x}{:02x}".format(*concept.color) in line
        assert set(line.rpartition("  ")[2].split("; ")) >= set(concept.synonyms)
        assert "\x1b" not in line
        assert line == line.rstrip()


@pytest.mark.parametrize("arguments", [("targets", "kidney"), ("targets",), ("parse", "kidneys and IVC", "-m", "CT")])
@pytest.mark.parametrize("width", [80, 120])
def test_terminal_gets_colours_within_its_width(arguments: tuple[str, ...], width: int) -> None:
    terminal = {"FORCE_COLOR": "1", "COLUMNS": str(width), "TERM": "xterm-256color"}
    text = output_of(*arguments, env=terminal)
    assert "\x1b[" in text
    assert max(len(line) for line in ESCAPE.sub("", text).splitlines()) <= width
    assert "kidney" in text


def test_what_matched_is_the_first_synonym_shown() -> None:
    (line,) = [line for line in output_of("targets", "IVC").splitlines() if "Inferior vena cava" in line]
    assert line.rpartition("  ")[2].startswith("IVC; ")


def test_groups_are_counted() -> None:
    groups = json.loads(output_of("targets", "--groups", "--json"))
    concepts = Terminology.load().concepts
    assert sum(group["targets"] for group in groups) == len(concepts)
    assert {group["group"] for group in groups} == {concept.group for concept in concepts}
    brain = next(group for group in groups if group["group"] == "brain")
    assert brain["modalities"]["MRI"] == sum("MRI" in c.modalities for c in concepts if c.group == "brain")
    assert re.search(rf"^brain +{brain['targets']} +.*MRI \d+", output_of("targets", "--groups"), re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["splen of the patient"], "nearest names: Spleen"),
        (["spleen", "-m", "PET"], "without the filters: Spleen (organs; CT, MRI"),
        (["qqqq"], "list the groups with --groups"),
        (["-m", "PET", "-g", "bones"], "there is none of modality PET, group bones"),
        (["-g", "vesels"], "unknown group 'vesels'; known: bones, brain"),
        (["-k", "organ"], "unknown kind 'organ'; known: anatomy, lesion"),
        (["-m", "X-ray"], "unknown modality 'X-ray'; known: CT"),
        (["--terminology", "absent.json"], "cannot read absent.json"),
    ],
)
def test_targets_refuses_and_helps(arguments: list[str], says: str) -> None:
    assert says in error_of("targets", *arguments)


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1", "COLUMNS": "80"}])
def test_brackets_in_words_are_no_markup(small_terminology: Path, tmp_path: Path, env: dict[str, str]) -> None:
    content = json.loads(small_terminology.read_text(encoding="utf-8"))
    content["concepts"][0]["synonyms"] = ["hepar [bold] :heart: [/red]"]
    (tmp_path / "odd.json").write_text(json.dumps(content), encoding="utf-8")
    assert "hepar [bold] :heart: [/red]" in output_of("targets", "--terminology", tmp_path / "odd.json", env=env)
    assert "[/red]" in error_of("targets", "kidneys [/red]")


# parse


def test_parse_shows_what_is_understood() -> None:
    heading, *lines = output_of("parse", "both kidneys and the IVC", "--modality", "CT").splitlines()
    assert re.split(r"  +", heading) == ["target", "modality", "kind", "id", "matched words", "how", "score"]
    rows = [re.split(r"  +", line) for line in lines]
    assert [row[0] for row in rows] == ["Left kidney", "Right kidney", "Inferior vena cava"]
    assert [row[4] for row in rows] == ["both kidneys", "both kidneys", "IVC"]
    assert rows[2][1:3] == ["CT", "anatomy"]
    assert rows[2][5] == "synonym"


def test_parse_as_json() -> None:
    result = run("parse", "rigth kidney", "-m", "ct", "--json")
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["modality"] == {"given": "CT", "understood": "CT", "text_won": False}
    (target,) = found["targets"]
    assert target.pop("score") < 1
    expected = Terminology.load().target("Right kidney")
    assert target == {
        "id": expected.id,
        "name": "Right kidney",
        "modality": "CT",
        "kind": "anatomy",
        "matched": "rigth kidney",
        "how": "fuzzy",
    }


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_modality_in_the_text_wins_and_is_said(options: list[str]) -> None:
    result = run("parse", "the liver on this MRI", "-m", "CT", *options)
    assert result.exit_code == 0
    assert result.stderr == "note: the text names MRI, which wins over the given CT\n"
    if options:
        assert json.loads(result.stdout)["modality"] == {"given": "CT", "understood": "MRI", "text_won": True}
    else:
        assert result.stdout.splitlines()[1].split()[:2] == ["Liver", "MRI"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_unknown_text_is_refused_with_suggestions(options: list[str]) -> None:
    line = error_of("parse", "kidney\nstones", "-m", "CT", *options)
    assert "did you mean" in line
    assert "Left kidney" in line
    assert "unknown modality" in error_of("parse", "liver", "-m", "X-ray", *options)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.sampled_from(["liver", "L1-L3", "\ud800 spleen", "ribs [bold]", "🫀 heart"]))
def test_any_text_is_understood_or_refused_in_one_line(text: str) -> None:
    result = run("parse", "--json", "--", text)
    if result.exit_code == 0:
        assert json.loads(result.stdout)["targets"]
    else:
        assert result.exit_code == 1
        assert result.stdout == ""
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr)


# embed


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny randomly initialised BERT with its tokenizer, as a transformers folder."""
    target = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(VOCABULARY), **sizes)).save_pretrained(target)
    (target / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(vocab=str(target / "vocab.txt")).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def small_terminology(tmp_path_factory: pytest.TempPathFactory, bundle_dir: Path) -> Path:
    """The bundle's terminology with three of its concepts."""
    content = json.loads((bundle_dir / "configs" / "terminology.json").read_text(encoding="utf-8"))
    names = ("Liver", "Left kidney", "Right kidney")
    content["concepts"] = [entry for entry in content["concepts"] if entry["name"] in names]
    content["collections"] = []
    file = tmp_path_factory.mktemp("terminology") / "small.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_embed_writes_a_bank_of_all_sentences(encoder: Path, small_terminology: Path, tmp_path: Path) -> None:
    file = tmp_path / "bank.safetensors"
    call = ("embed", "--encoder", encoder, "--output", file, "--terminology", small_terminology)
    said = output_of(*call)
    bank = EmbeddingBank.load(file, "tiny-bert")
    sentences = Terminology.load(small_terminology).all_sentences()
    assert list(bank.sentences) == sentences
    assert bank.width == 16
    assert f"{len(sentences)} sentences of width 16 by tiny-bert -> {file}" in said
    content = file.read_bytes()
    output_of(*call)  # the same encoder's bank may be renewed
    assert file.read_bytes() == content
    assert [item.name for item in tmp_path.iterdir()] == [file.name]


def test_embed_takes_the_sentences_of_a_data_set_too(encoder: Path, small_terminology: Path, tmp_path: Path) -> None:
    concept = Terminology.load(small_terminology).concepts[0]
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"CT_Some": {"1": [f"Outline of the {concept.name} in CT"], "instance_label": 0}}))
    file = tmp_path / "bank.safetensors"
    call = ("embed", "--encoder", encoder, "--output", file, "--terminology", small_terminology)
    output_of(*call, "--prompts-json", prompts)
    assert f"outline of the {concept.name.lower()} in ct" in EmbeddingBank.load(file).sentences


def test_embed_with_the_published_layout(encoder: Path, small_terminology: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    head = TextHead(width=16).state_dict()
    tower = BertModel.from_pretrained(encoder).state_dict()
    torch.save({**{f"text_tower.biolord.{k}": v for k, v in tower.items()}, **head}, tmp_path / "text_encoder.pth")
    file = tmp_path / "bank.safetensors"
    options = ("--head", tmp_path / "text_encoder.pth", "--identity", "published", "--terminology", small_terminology)
    output_of("embed", "--encoder", encoder, "--output", file, *options)
    bank = EmbeddingBank.load(file, "published")
    torch.testing.assert_close(bank.modality_embedding.float(), head["modality_embed.weight"], atol=2e-3, rtol=1e-3)
    assert "no file" in error_of("embed", "--encoder", encoder, "--output", file, "--head", tmp_path / "absent.pth")


def test_another_encoders_bank_is_overwritten_only_by_force(
    encoder: Path, small_terminology: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bank.safetensors"
    call = ("embed", "--encoder", encoder, "--output", file, "--terminology", small_terminology)
    EmbeddingBank(["liver"], torch.zeros(1, 4), "other").save(file)
    content = file.read_bytes()
    assert "is a bank of 'other', not of 'tiny-bert'" in error_of(*call)
    assert file.read_bytes() == content
    output_of(*call, "--force")
    assert EmbeddingBank.load(file).encoder_identity == "tiny-bert"
    file.write_text("my notes")
    assert "is no embedding bank" in error_of(*call)
    assert file.read_text() == "my notes"


def test_embed_refuses_before_it_works(encoder: Path, tmp_path: Path) -> None:
    assert "no folder" in error_of("embed", "--encoder", encoder, "--output", tmp_path / "absent" / "bank.safetensors")
    assert "is a folder" in error_of("embed", "--encoder", encoder, "--output", tmp_path)
    (tmp_path / "empty").mkdir()
    output = tmp_path / "bank.safetensors"
    assert "text encoder: cannot load" in error_of("embed", "--encoder", tmp_path / "empty", "--output", output)
    assert not output.exists()


# the program as a whole


def test_only_errors_of_ours_become_a_line() -> None:
    other = typer.Typer(cls=Commands)

    @other.command()
    def refuse() -> None:
        raise RuntimeError("wrapped") from InputError("give\nanother")

    @other.command()
    def fail() -> None:
        raise KeyError("a bug")

    refused, failed = (CliRunner().invoke(other, [name]) for name in ("refuse", "fail"))
    assert (refused.exit_code, refused.stderr) == (1, "error: give another\n")
    assert isinstance(failed.exception, KeyError)


def test_wrong_usage_is_told_apart() -> None:
    result = run("parse")
    assert result.exit_code == 2
    assert "Missing argument 'TEXT'" in result.stderr


def test_as_a_program_from_another_folder(bundle_dir: Path, tmp_path: Path) -> None:
    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(bundle_dir)}
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )

    listed = python("-m", "scripts.cli", "targets", "ivc", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert json.loads(listed.stdout)[0]["name"] == "Inferior vena cava"
    refused = python("-m", "scripts.cli", "parse", "kidney stones", "-m", "CT")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", refused.stderr)


def test_listing_and_parsing_do_without_torch(bundle_dir: Path) -> None:
    program = (
        "import sys\n"
        "from scripts.cli import app\n"
        "app(['targets', 'kidney'], standalone_mode=False)\n"
        "app(['parse', 'both kidneys', '-m', 'CT'], standalone_mode=False)\n"
        "heavy = {'torch', 'monai', 'numpy', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=bundle_dir, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Right kidney" in done.stdout
