"""MLflow's entry point to a registered router.

Registered routers name this module as their ``loader_module``, so its name is part of stored files and stays.
"""

from orchestrator.predict.mlflow_model import load_router_model as _load_pyfunc

__all__ = ["_load_pyfunc"]
