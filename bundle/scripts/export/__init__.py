"""The network as a file that runs without its Python code, and the loader that puts it in the network's place."""

from scripts.export.archive import PROGRAM_SUFFIX, read_archive, write_archive
from scripts.export.facts import ProgramFacts
from scripts.export.network import ExportedNetwork, load_exported
from scripts.export.program import export_program

__all__ = [
    "PROGRAM_SUFFIX",
    "ExportedNetwork",
    "ProgramFacts",
    "export_program",
    "load_exported",
    "read_archive",
    "write_archive",
]
