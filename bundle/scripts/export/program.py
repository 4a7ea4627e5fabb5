"""Turn the network into a program of torch.export: any batch, any number of queries, any patch that it takes."""

from __future__ import annotations

import logging
import warnings
from typing import cast

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

from scripts.networks import MedalS

logger = logging.getLogger(__name__)

# Bounds that torch.export writes down; far above what fits any machine.
MAX_BATCH, MAX_QUERIES, MAX_CELLS = 1024, 4096, 1024
# All different, and none of them 1: an extent of an example is taken for a constant where it equals another or 1.
EXAMPLE_BATCH, EXAMPLE_QUERIES, EXAMPLE_CELLS = 2, 3, (4, 5, 6)
KEPT_META = ("val", "tensor_meta", "from_node")


class _Prompted(nn.Module):
    """The network with its three tensors as positional arguments and one result."""

    def __init__(self, network: MedalS) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.network(image, queries, prompts))


def export_program(network: MedalS, query_width: int) -> ExportedProgram:
    """Export ``network(image, queries, prompts)`` in evaluation mode.

    Args:
        network: with its weights, on the CPU; it is left in evaluation mode.
        query_width: length L of a query vector.

    Returns:
        A program of image ``[B, 1, H, W, D]``, queries ``[B, N, L]`` and prompts ``[B, N, H, W, D]``, float32, that
        gives logits ``[B, N, H, W, D]``. B and N are free; sides are multiples of the network's divisor, from two of
        them on. It holds no example tensors and no paths of this machine.
    """
    cell = network.divisor
    sides = [cells * cell for cells in EXAMPLE_CELLS]
    example = (
        torch.zeros(EXAMPLE_BATCH, 1, *sides),
        torch.zeros(EXAMPLE_BATCH, EXAMPLE_QUERIES, query_width),
        torch.zeros(EXAMPLE_BATCH, EXAMPLE_QUERIES, *sides),
    )
    batch, queries = Dim("batch", min=1, max=MAX_BATCH), Dim("queries", min=1, max=MAX_QUERIES)
    extent = {2 + axis: cell * Dim(f"cells_{axis}", min=2, max=MAX_CELLS) for axis in range(3)}
    shapes = ({0: batch, **extent}, {0: batch, 1: queries}, {0: batch, 1: queries, **extent})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said by torch of its own machinery
        program = export(_Prompted(network).eval(), example, dynamic_shapes=shapes, strict=False)
    _strip(program)
    logger.info("exported a graph of %d nodes", len(program.graph.nodes))
    return program


def _strip(program: ExportedProgram) -> None:
    """Leave the arithmetic alone: no source lines and paths, no example tensors, no code to be run as guards.

    The checks of tensor types go too: they know float32 only and would refuse autocast.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and "_assert_tensor_metadata" in str(node.target):
            graph.erase_node(node)
        else:
            node.meta = {key: value for key, value in node.meta.items() if key in KEPT_META}
    program.graph_module.recompile()
    program.example_inputs = None
    # Guards repeat the sizes' limits as Python expressions; ``ExportedNetwork`` checks sizes itself.
    program._guards_code = []
