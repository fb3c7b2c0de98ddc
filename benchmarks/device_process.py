"""One device process from start to finish, to be measured from outside: load a bundle, read a prompt, write tokens.

Run by decode.py in fresh interpreters. Prints a line when the first token is there, and one with the peak memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Do what `cogenesis generate` does on the device, with a prompt of an exact length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt-file", type=Path, required=True, help="text to take the prompt from")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()

    import edge_runtime
    from edge_runtime.machine.peak_memory import peak_rss_bytes

    assistant = edge_runtime.load(arguments.bundle, threads=arguments.threads)
    decoder = assistant.decoder
    text = arguments.prompt_file.read_text(encoding="utf-8")
    token_ids = assistant.tokenizer.encode(text[: 8 * arguments.prompt_tokens])
    row = decoder.extend(token_ids[: arguments.prompt_tokens])
    token = int(row[0].argmax())
    print(json.dumps({"first_token": token}), flush=True)
    for _ in range(arguments.new_tokens - 1):
        token = int(decoder.extend([token])[0].argmax())
    print(json.dumps({"tokens": decoder.length + 1, "peak_rss_mb": peak_rss_bytes() / 1e6}), flush=True)


if __name__ == "__main__":
    main()
