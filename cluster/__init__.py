"""Where work runs: an embedded Ray cluster or a running one.

Importing the package applies Ray's settings. ``orchestrator`` imports it before any of its own modules, so they are in
place whichever module imports Ray first.
"""

from cluster.ray_settings import apply_settings

apply_settings()
