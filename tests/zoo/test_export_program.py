"""Networks as files of torch.export: the same logits for any sizes, and nothing in a file that can act."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from scripts.errors import InputError
from scripts.export import ExportedNetwork, ProgramFacts, export_program, load_exported, write_archive
from scripts.networks import MaskHead, MedalS, PlainUNet, QueryDecoder, TextProjection

WIDTH = 12
FACTS = ProgramFacts(4, WIDTH, "tiny.pt", "0" * 64, "Medal S 0", torch.__version__)


def tiny(**head: Any) -> MedalS:
    """The network's parts at their smallest."""
    torch.manual_seed(0)
    features = (4, 8, 8)
    decoder = QueryDecoder(sum(features), 16, num_layers=2, num_heads=2, feedforward=32, dropout=0.1)
    backbone = PlainUNet(2, features, (1, 2, 2))
    return MedalS(backbone, decoder, MaskHead(16, 8, 4, **head), TextProjection(WIDTH, 16)).eval()


@pytest.fixture(scope="module")
def network() -> MedalS:
    """A network to compare with."""
    return tiny()


@pytest.fixture(scope="module")
def program(network: MedalS) -> ExportedProgram:
    """The same network, exported."""
    return export_program(network, WIDTH)


@pytest.fixture(scope="module")
def file(program: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved."""
    return write_archive(program, FACTS, tmp_path_factory.mktemp("exported") / "tiny.pt2")


@pytest.fixture(scope="module")
def exported(file: Path) -> ExportedNetwork:
    """Loaded again."""
    return load_exported(file)


def question(batch: int, count: int, *sides: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, queries and prompts of random numbers."""
    prompts = (torch.rand(batch, count, *sides) > 0.8).float()
    return torch.randn(batch, 1, *sides), torch.randn(batch, count, WIDTH), prompts


SIZES = [(1, 1, 8, 8, 8), (1, 5, 12, 8, 20), (3, 2, 8, 16, 12), (2, 33, 8, 8, 12)]


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_the_networks_own(network: MedalS, exported: ExportedNetwork, size: tuple[int, ...]) -> None:
    image, queries, prompts = question(*size)
    with torch.no_grad():
        for asked, start in ((queries, prompts), (queries[0], prompts), (queries[:1], torch.zeros_like(prompts))):
            torch.testing.assert_close(
                exported(image, asked, start),
                network(image, asked.expand(size[0], -1, -1), start),
                atol=1e-5,
                rtol=1e-5,
            )


def test_autocast_reaches_the_program(network: MedalS, exported: ExportedNetwork) -> None:
    ask = question(1, 2, 8, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        given, wanted = exported(*ask), network(*ask)
    assert given.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(given, wanted, atol=0.05, rtol=0.05)


def test_it_behaves_as_a_network_in_evaluation(exported: ExportedNetwork) -> None:
    assert not exported.train().training
    assert not exported.eval().training
    assert not any(parameter.requires_grad for parameter in exported.parameters())
    assert (exported.divisor, exported.facts) == (4, FACTS)


WRONG = {
    "channels": ((torch.zeros(1, 2, 8, 8, 8), torch.zeros(1, 1, WIDTH), torch.zeros(1, 1, 8, 8, 8)), "image must be"),
    "odd side": ((torch.zeros(1, 1, 8, 9, 8), torch.zeros(1, 1, WIDTH), torch.zeros(1, 1, 8, 9, 8)), "multiple of 4"),
    "one cell": ((torch.zeros(1, 1, 8, 4, 8), torch.zeros(1, 1, WIDTH), torch.zeros(1, 1, 8, 4, 8)), "at least 8"),
    "width": ((torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 7), torch.zeros(1, 1, 8, 8, 8)), "queries must be"),
    "count": ((torch.zeros(1, 1, 8, 8, 8), torch.zeros(2, WIDTH), torch.zeros(1, 1, 8, 8, 8)), "prompts must be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sizes_are_told(exported: ExportedNetwork, case: str) -> None:
    tensors, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        exported(*tensors)


def test_another_head_exports_too(tmp_path: Path) -> None:
    """GELU after the head's second layer, as published, and no prompt fusion, as in SAT."""
    variant = tiny(final_activation=True, fusion=False)
    path = write_archive(export_program(variant, WIDTH), FACTS, tmp_path / "variant.pt2")
    ask = question(1, 2, 8, 12, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_exported(path)(*ask), variant(*ask), atol=1e-5, rtol=1e-5)


def test_a_file_tells_no_path_and_is_the_same_each_time(file: Path, program: ExportedProgram, tmp_path: Path) -> None:
    content = file.read_bytes()
    for telltale in (b".py", b"/home", str(Path(__file__).parents[2]).encode()):
        assert telltale not in content
    again = write_archive(program, FACTS, tmp_path / "other_name.pt2")
    assert again.read_bytes() == content


def test_other_endings_and_absent_folders_are_refused(program: ExportedProgram, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="end its name in"):
        write_archive(program, FACTS, tmp_path / "model.pt")
    with pytest.raises(InputError, match="cannot write to"):
        write_archive(program, FACTS, tmp_path / "absent" / "model.pt2")
    with pytest.raises(InputError, match="no exported network at"):
        load_exported(tmp_path / "absent.pt2")


# --- files that must not be loaded ---


class Bomb:
    """Makes a file where its pickle is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


Edit = Callable[[dict[str, bytes], Path], None]


def edit_graph(change: Callable[[dict[str, Any], str], None]) -> Edit:
    """Change the parsed graph; the text is Python that would make a file."""

    def edit(entries: dict[str, bytes], trace: Path) -> None:
        model = json.loads(entries["models/model.json"])
        change(model, f"__import__('pathlib').Path({str(trace)!r}).touch()")
        entries["models/model.json"] = json.dumps(model).encode()

    return edit


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def pickle_a_weight(mark: object = True) -> Edit:
    """A weight that is marked as pickled; other texts than true are true to torch as well."""

    def edit(entries: dict[str, bytes], trace: Path) -> None:
        config = json.loads(entries["data/weights/model_weights_config.json"])
        next(iter(config["config"].values()))["use_pickle"] = mark
        entries["data/weights/model_weights_config.json"] = json.dumps(config).encode()
        entries["data/weights/weight_0"] = pickled(Bomb(trace))

    return edit


def first_node(model: dict[str, Any]) -> dict[str, Any]:
    return model["graph_module"]["graph"]["nodes"][0]


def edit_size(model: dict[str, Any], code: str) -> None:
    sizes = [
        size["as_expr"]
        for value in model["graph_module"]["graph"]["tensor_values"].values()
        for size in value["sizes"]
        if "as_expr" in size
    ]
    sizes[0]["expr_str"] = code


HOSTILE: dict[str, tuple[Edit, str]] = {
    "pickled examples": (
        lambda entries, trace: entries.update({"data/sample_inputs/model.pt": pickled(Bomb(trace))}),
        "sample_inputs",
    ),
    "pickled weight": (pickle_a_weight(), "pickled tensors"),
    "pickled weight, said otherwise": (pickle_a_weight("yes"), "pickled tensors"),
    "opaque constant": (
        lambda entries, trace: entries.update({"data/constants/opaque_obj_0": pickle.dumps(Bomb(trace))}),
        "opaque_obj_0",
    ),
    "compiled code": (
        lambda entries, trace: entries.update({"data/aotinductor/model/model.so": b"\x7fELF"}),
        "aotinductor",
    ),
    "old layout": (
        lambda entries, trace: entries.update({"data/weights/model.pt": pickled(Bomb(trace))}),
        "weights/model.pt",
    ),
    "code as a size": (edit_graph(edit_size), "it has a size"),
    "code as a symbol": (edit_graph(lambda m, code: edit_size(m, f"Symbol({code!r})")), "it has a size"),
    "code behind a continued line": (
        edit_graph(lambda m, code: edit_size(m, "'s0\\\n' #' + str(" + code + ")")),
        "it has a size",
    ),
    "endless power as a size": (edit_graph(lambda m, _: edit_size(m, "Pow(9, Pow(9, Pow(9, 9)))")), "it has a size"),
    "code as a guard": (edit_graph(lambda m, code: m["guards_code"].append(code)), "guards_code"),
    "function of the system": (
        edit_graph(lambda m, _: first_node(m).update(target="torch.os.system")),
        "torch.os.system",
    ),
    "operator that opens files": (
        edit_graph(lambda m, _: first_node(m).update(target="torch.ops.aten.from_file.default")),
        "from_file",
    ),
    "code as a name": (edit_graph(lambda m, code: first_node(m).update(name=code)), "at 'name'"),
    "notes": (edit_graph(lambda m, _: first_node(m).update(metadata={"custom": "{}"})), "notes"),
    "another container": (
        edit_graph(
            lambda m, _: m["graph_module"]["module_call_graph"][0]["signature"].update(
                out_spec='[1, {"type": "os.system", "context": "null", "children_spec": []}]'
            )
        ),
        "arguments of type",
    ),
    "other facts": (
        lambda entries, trace: entries.update({"extra/medal_s.json": b'{"divisor": "4"}'}),
        "description cannot be read",
    ),
    "no graph": (lambda entries, trace: entries.pop("models/model.json") and None, "lacks models/model.json"),
}


def rewrite(source: Path, goal: Path, edit: Edit, trace: Path, folder: str = "tiny") -> None:
    with zipfile.ZipFile(source) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(entries, trace)
    with zipfile.ZipFile(goal, "w") as archive:
        for name, value in entries.items():
            archive.writestr(f"{folder}/{name}", value)


def test_an_archive_made_anew_loads(file: Path, network: MedalS, tmp_path: Path) -> None:
    """What the hostile files below are made with does not itself spoil a file."""
    rewrite(file, tmp_path / "same.pt2", lambda *_: None, tmp_path / "trace")
    ask = question(1, 2, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_exported(tmp_path / "same.pt2")(*ask), network(*ask))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(file: Path, tmp_path: Path, case: str) -> None:
    edit, message = HOSTILE[case]
    rewrite(file, tmp_path / "bad.pt2", edit, tmp_path / "trace")
    with pytest.raises(InputError, match=message) as refused:
        load_exported(tmp_path / "bad.pt2")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "trace").exists()


def test_torch_itself_runs_such_a_file(file: Path, tmp_path: Path) -> None:
    """Why files are checked before torch sees them; should this fail, torch has become careful."""
    edit, _ = HOSTILE["pickled weight"]
    rewrite(file, tmp_path / "bad.pt2", edit, tmp_path / "trace")
    with pytest.raises(Exception, match=r".*"):
        torch.export.load(tmp_path / "bad.pt2")
    assert (tmp_path / "trace").exists()


def test_damaged_files_are_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for name, damaged in {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "weights": pickled({"a": torch.zeros(1)}),
        "noise": bytes(range(256)) * 9,
    }.items():
        (tmp_path / f"{name}.pt2").write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name}.pt2: (damaged|refused)"):
            load_exported(tmp_path / f"{name}.pt2")
    nested = b'{"a":' * 100_000
    rewrite(file, tmp_path / "deep.pt2", lambda e, _: e.update({"models/model.json": nested}), tmp_path / "trace")
    with pytest.raises(InputError, match=r"deep.pt2: (damaged|refused)"):
        load_exported(tmp_path / "deep.pt2")


def test_a_compressed_entry_is_refused(file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "z.pt2", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(InputError, match="compressed"):
        load_exported(tmp_path / "z.pt2")
