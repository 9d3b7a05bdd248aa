"""medquant: medical segmentation networks whose every layer computes with few bits, as one exact integer program.

Importing the package costs nothing: torch and MONAI load with the parts that compute.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
