"""What most commands import. A process that has it loaded is copied for each command (`warm_process`).

Nothing here may start a thread, because copies of a process have one thread alone.
"""

import cloud_bridge.server.engines.transformers_engine  # noqa: F401
import cogenesis.cli  # noqa: F401
import export.onnx.export  # noqa: F401
import personalization.models.base_model  # noqa: F401
