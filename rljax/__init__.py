"""The core of rljax: types, maths, networks, environments, loops, devices, checkpoints, metrics.

Names are imported from the module where they live: `from rljax.types import Trajectory`.
"""

__version__ = "0.1.0"
