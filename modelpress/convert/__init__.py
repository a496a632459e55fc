"""Configurations of NNI, Auptimizer and Neural Compressor as CompressionJobs and CompressionSweeps.

Pure but for reading the files. A Python file is never run: what it says in literals is read.
"""

from .files import TOOLS, Converted, convert_files
from .notes import Note

__all__ = ["TOOLS", "Converted", "Note", "convert_files"]
