"""Lets the browser's tests build the same worlds on disk as those of the pages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ui"))
