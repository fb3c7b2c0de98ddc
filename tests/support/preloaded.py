"""Imports the modules that most commands need; `warm_process` forks a process with them for each command.

No import here may start a thread, because a fork has only one thread.
"""

import cloud_bridge.server.engines.transformers_engine  # noqa: F401
import cogenesis.cli  # noqa: F401
import export.onnx.export  # noqa: F401
import personalization.models.base_model  # noqa: F401
