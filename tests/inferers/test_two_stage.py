"""The two-stage system with networks whose answer is known: they find the voxels whose grey value is the query's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.inferers import PromptWindowInferer, RefinementInferer
from scripts.inferers.stage import Stage
from scripts.inferers.two_stage import TwoStageInferer
from scripts.request import Request, RequestedTarget, decode_request, encode_request
from scripts.text import Terminology
from scripts.transforms.grid_merger import pack_masks, unpack_mask
from scripts.transforms.resampling import DynamicSpacing

AFFINE = np.array([[-1.0, 0, 0, 40], [0, 1, 0, -30], [0, 0, 2, 5], [0, 0, 0, 1]])
SHAPE = (40, 36, 24)


@pytest.fixture(scope="module")
def terminology() -> Terminology:
    return Terminology.load()


class Finder(torch.nn.Module):
    """Logits +8 where the image is within 10 of the query's value, else -8; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict] = []

    def forward(self, image, queries, prompts=None, foreground=None):
        queries = queries.expand(len(image), -1, -1) if queries.ndim == 3 else queries[None].expand(len(image), -1, -1)
        value = queries[..., 0][..., None, None, None]
        self.calls.append({"shape": tuple(image.shape[2:]), "prompts": prompts, "n": queries.shape[1]})
        return torch.where((image - value).abs() < 10, 8.0, -8.0)


class Windows:
    """All of a grid as one window."""

    def __init__(self, **options) -> None:
        self.inner = RefinementInferer(iterations=0, **options)

    def __call__(self, image, network, queries, prompts=None, iterations=0, return_disagreement=False, keep=None):
        inner = RefinementInferer(iterations=iterations, first_pass=self.inner.first_pass)
        if prompts is not None:
            prompts = torch.stack([unpack_mask(prompts[0], n) for n in range(len(queries))])[None].float()
        out = inner(image, network, queries, prompts)
        return out if keep is None else out[:, keep]


def stage(number: int, spacing: float, first_pass: str = "plain") -> Stage:
    grid = DynamicSpacing((16, 16, 16), (spacing,) * 3, number, mode="fixed")
    return Stage(number, grid, Windows(first_pass=first_pass))


def system(terminology: Terminology, **options) -> TwoStageInferer:
    return TwoStageInferer(terminology, stage(1, 2.0), stage(2, 1.0, "masked"), **options)


def networks() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"coarse": Finder(), "fine": Finder()})


def asked(terminology: Terminology, names: list[str], modality: str = "CT", kind: str | None = None) -> str:
    targets = [terminology.target(name, modality, kind) for name in names]
    records = [RequestedTarget(t.name, t.id, t.modality, t.kind, t.key, "", "name", 1.0, t.color) for t in targets]
    return encode_request(Request(("",), modality, tuple(records)))


def volume(*boxes: tuple[float, tuple[slice, slice, slice]]) -> MetaTensor:
    image = torch.zeros(1, *SHAPE)
    for value, box in boxes:
        image[(0, *box)] = value
    return MetaTensor(image, affine=torch.as_tensor(AFFINE))[None]


MORE = ["Gallbladder", "Left kidney", "Right kidney", "Urinary bladder", "Esophagus", "Duodenum", "Trachea"]
LEFT = (slice(4, 16), slice(6, 20), slice(4, 12))
RIGHT = (slice(22, 34), slice(10, 24), slice(8, 18))


def queries(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def truth(box: tuple[slice, slice, slice]) -> torch.Tensor:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[box] = True
    return mask


def test_both_stages_find_structures_on_the_images_own_grid(terminology: Terminology) -> None:
    nets = networks()
    image = volume((100, LEFT), (200, RIGHT))
    text = asked(terminology, ["Liver", "Spleen"])
    out = system(terminology)(image, nets, queries=queries(100, 200), request=[text])
    ids = [terminology.target(name, "CT").id for name in ("Liver", "Spleen")]
    labels = out["label_map"][0, 0]
    assert labels.shape == SHAPE
    assert torch.allclose(out["label_map"].affine.squeeze().double(), torch.as_tensor(AFFINE))
    for id_, box in zip(ids, (LEFT, RIGHT), strict=True):
        assert dice(labels == id_, truth(box)) > 0.9
    assert set(labels.unique().tolist()) == {0, *ids}
    inside = out["probability"][0, 0][labels != 0]
    assert inside.min() >= 0.5


def test_the_fine_stage_works_on_the_region_with_the_coarse_masks_as_prompts(terminology: Terminology) -> None:
    nets = networks()
    out = system(terminology)(volume((100, LEFT)), nets, queries=queries(100), request=asked(terminology, ["Liver"]))
    shapes = [call["shape"] for call in nets["fine"].calls]
    assert set(shapes) == {
        (15, 17, 18)
    }  # a crop: the box grown by 1.1, or a patch less the rim, 18 mm = 9 slices of 2 mm
    shown = sum(call["prompts"].sum(dim=0)[0] for call in nets["fine"].calls)
    assert shown.max() == 1  # two passes, whose halves never both show a block
    volume_fine = float(shown.sum())
    assert volume_fine == pytest.approx(12 * 14 * 16, rel=0.25)  # LEFT at 1 mm
    assert dice(out["label_map"][0, 0] != 0, truth(LEFT)) > 0.9


def test_nothing_found_sends_the_fine_stage_over_the_whole_volume(terminology: Terminology) -> None:
    nets = networks()
    image = volume((100, LEFT))
    found = system(terminology)(image, nets, queries=queries(50), request=asked(terminology, ["Liver"]))
    assert found["label_map"].max() == 0
    assert nets["fine"].calls[0]["shape"] == (40, 36, 48)
    assert all(call["prompts"].sum() == 0 for call in nets["fine"].calls)


@pytest.mark.parametrize(("stages", "used"), [((1,), "coarse"), ((2,), "fine")])
def test_one_stage_alone(terminology: Terminology, stages: tuple[int, ...], used: str) -> None:
    nets = networks()
    inferer = system(terminology, stages=stages)
    out = inferer(volume((100, LEFT)), nets, queries=queries(100), request=asked(terminology, ["Liver"]))
    assert dice(out["label_map"][0, 0] != 0, truth(LEFT)) > 0.85
    other = "fine" if used == "coarse" else "coarse"
    assert len(nets[used].calls) == 1
    assert not nets[other].calls


def test_policy_decides_which_stages_a_target_sees(terminology: Terminology) -> None:
    """Soleus (ultrasound) ends with stage 1, the thyroid beside it goes through both."""
    nets = networks()
    text = asked(terminology, ["Soleus", "Thyroid"], "US")
    image = volume((100, LEFT), (200, RIGHT))
    out = system(terminology)(image, nets, queries=queries(100, 200), request=text)
    assert nets["coarse"].calls[0]["n"] == 2
    assert nets["fine"].calls[0]["n"] == 1
    soleus, thyroid = (terminology.target(name, "US").id for name in ("Soleus", "Thyroid"))
    assert dice(out["label_map"][0, 0] == soleus, truth(LEFT)) > 0.85
    assert dice(out["label_map"][0, 0] == thyroid, truth(RIGHT)) > 0.85


def test_lesions_are_refined_as_their_policy_says(terminology: Terminology) -> None:
    nets = networks()
    text = asked(terminology, ["Liver", "Liver tumors"])
    system(terminology, stages=(1,))(volume((100, LEFT)), nets, queries=queries(100, 200), request=text)
    assert nets["coarse"].calls[0]["n"] == 1  # the liver
    assert len(nets["coarse"].calls) >= 3  # the tumours once, and again with the masked halves
    nets = networks()
    system(terminology, stages=(1,), refinements=0)(volume((100, LEFT)), nets, queries=queries(100, 200), request=text)
    assert [call["n"] for call in nets["coarse"].calls] == [2]


def test_memory_budget_splits_the_targets_and_changes_nothing(terminology: Terminology) -> None:
    names = ["Liver", "Spleen", "Pancreas", "Stomach", "Aorta"]
    image = volume((100, LEFT), (200, RIGHT))
    values = queries(100, 200, 40, 205, 20)
    whole = system(terminology)(image, networks(), queries=values, request=asked(terminology, names))
    nets = networks()
    tight = system(terminology, memory_gb=3 * 2 * 20 * 18 * 24 / 2**30)  # two targets and their disagreement
    parts = tight(image, nets, queries=values, request=asked(terminology, names))
    assert max(call["n"] for call in nets["coarse"].calls) == 2
    assert torch.equal(whole["label_map"].as_tensor(), parts["label_map"].as_tensor())
    assert torch.equal(whole["probability"].as_tensor(), parts["probability"].as_tensor())


class Neighbourly(torch.nn.Module):
    """Each target's logits depend on what it and every other one was prompted with, as in the real network."""

    def forward(self, image, queries, prompts):
        value = queries[..., 0].reshape(1, -1, 1, 1, 1)
        others = prompts.sum(dim=1, keepdim=True) - 0.5 * prompts
        return torch.where((image - value).abs() < 10, 1.0, -1.0) + (others * value / 100).sin()


@pytest.mark.parametrize("stages", [(1,), (1, 2)])
@pytest.mark.parametrize("drawn", [False, True])
def test_memory_budget_changes_nothing_where_targets_see_each_others_prompts(
    terminology: Terminology, stages: tuple[int, ...], drawn: bool
) -> None:
    names = ["Liver", "Spleen", "Aorta", "Liver tumors", "Kidney lesions"]
    values = queries(100, 200, 104, 195, 98)
    masks = [truth(LEFT), torch.zeros(SHAPE), truth(RIGHT), torch.zeros(SHAPE), truth(LEFT)]
    prompts = MetaTensor(pack_masks(masks), affine=torch.as_tensor(AFFINE))[None] if drawn else None
    answers = []
    for memory_gb in (4.0, 1e-6):
        parts = []
        for number, first_pass in ((1, "plain"), (2, "masked")):
            windows = PromptWindowInferer(
                (16, 16, 16), window_inferer=RefinementInferer(iterations=0, first_pass=first_pass), progress=False
            )
            parts.append(
                Stage(number, DynamicSpacing((16, 16, 16), (3.0 - number,) * 3, number, mode="fixed"), windows)
            )
        inferer = TwoStageInferer(terminology, *parts, stages=stages, memory_gb=memory_gb, keep_disagreement=True)
        text = asked(terminology, names)
        image = volume((100, LEFT), (200, RIGHT))
        answers.append(inferer(image, Neighbourly(), queries=values, request=text, prompts=prompts))
    whole, split = answers
    assert whole["label_map"].max() > 0
    for name in ("label_map", "probability"):
        assert torch.equal(whole[name].as_tensor(), split[name].as_tensor()), name


def test_a_block_of_targets_fits_the_window_inferers_own_budget(terminology: Terminology) -> None:
    """Else every block that was cut to fit the GPU's share of memory would be added up on the host."""
    memory_gb = 10 * 2 * 20 * 18 * 24 / 2**30
    windows = PromptWindowInferer((16, 16, 16), accumulate="float16", memory_gb=memory_gb, progress=False)
    coarse = Stage(1, DynamicSpacing((16, 16, 16), (2.0,) * 3, 1, mode="fixed"), windows)
    inferer = TwoStageInferer(terminology, coarse, stages=(1,), memory_gb=memory_gb)
    grid = coarse.on_grid(volume((100, LEFT))[0], [])
    text = asked(terminology, ["Liver", "Spleen", "Pancreas", "Stomach", "Aorta", *MORE])
    case = SimpleNamespace(targets=decode_request(text).targets)
    sizes = []
    for _, _, block in inferer._blocks(coarse, case, range(12), grid):
        question = SimpleNamespace(image=torch.zeros(1, *grid.shape, device="meta"), classes=len(block))
        assert windows._place(question).type == "meta"
        sizes.append(len(block))
    assert sizes == [9, 3]


def test_a_mask_of_the_users_is_the_prompt_in_both_stages(terminology: Terminology) -> None:
    nets = networks()
    drawn = MetaTensor(pack_masks([torch.zeros(SHAPE), truth(RIGHT)]), affine=torch.as_tensor(AFFINE))
    text = asked(terminology, ["Liver", "Spleen"])
    system(terminology)(volume((100, LEFT)), nets, queries=queries(100, 200), request=text, prompts=drawn[None])
    first = nets["coarse"].calls[0]["prompts"]
    assert first.shape[1] == 2
    assert first[0, 0].sum() == 0
    assert first[0, 1].sum() == pytest.approx(6 * 7 * 10, rel=0.3)  # RIGHT at 2 mm
    second = sum(call["prompts"].sum(dim=0) for call in nets["fine"].calls)
    assert second[0].sum() > 0  # the liver, from stage 1
    assert second[1].sum() == pytest.approx(12 * 14 * 20, rel=0.25)  # the spleen, from the user


def test_masks_of_structures_that_overlap(terminology: Terminology) -> None:
    text = asked(terminology, ["Liver", "Liver tumors"])
    inferer = system(terminology, keep_masks=True, refinements=0)
    out = inferer(volume((100, LEFT)), networks(), queries=queries(100, 101), request=text)
    bits = out["mask_bits"][0]
    assert dice(unpack_mask(bits, 0), truth(LEFT)) > 0.9
    assert dice(unpack_mask(bits, 1), truth(LEFT)) > 0.9


def test_one_network_may_serve_both_stages(terminology: Terminology) -> None:
    net = Finder()
    system(terminology)(volume((100, LEFT)), net, queries=queries(100), request=asked(terminology, ["Liver"]))
    assert len(net.calls) >= 2


@pytest.mark.parametrize("options", [{"stages": ()}, {"stages": (3,)}, {"refinements": "often"}])
def test_options_that_make_no_sense(terminology: Terminology, options: dict) -> None:
    with pytest.raises(ValueError, match=r"stages is|refinements is"):
        system(terminology, **options)


def test_a_stage_that_is_not_there(terminology: Terminology) -> None:
    with pytest.raises(ValueError, match="stages is"):
        TwoStageInferer(terminology, coarse=stage(1, 2.0))
