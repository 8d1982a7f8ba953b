"""Plain-text tables whose columns line up: `veason.tables` under the name that scores know it by."""

from veason.tables import Cell, aligned

__all__ = ["Cell", "aligned"]
