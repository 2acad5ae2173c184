"""Time stock vLLM beside ZipAR end to end on a GPU, over a random model of Emu3-Gen's shape.

    python -m benchmarks.gpu.engines [--rows 45] [--requests 1 4]

Both engines load the same configuration with random weights (vLLM's ``dummy`` format), each in a
process of its own. Pictures have 45 x 45 tokens with terminators, a quarter of Emu3's, so that the
whole takes minutes; everything is greedy and without guidance, which stock vLLM does not have.

Goal: raster order, the widest window, takes at most 1.05 times as long as stock vLLM.

Needs vLLM. Writes ``engines.json`` and ``engines.md`` into ``benchmarks/results/gpu/``; if one
engine fails, what the other gave is written all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.gpu.step import SHAPES
from benchmarks.latency import MODES, ROOT, measure, read_records, say
from benchmarks.latency_report import Record, Setting, make_tables
from benchmarks.report import RESULTS, command_line, write_results
from benchmarks.shapes import Shape
from benchmarks.tether import run_tethered
from server.cli.environment import set_environment
from zipar_vllm.models import DEMO_PATH

TEXT_TOKENS = 8
"""Ids that are words, the terminator among them; all others are image tokens or unused."""
TERMINATOR = 3
GOAL = 1.05


def write_model(folder: Path, shape: Shape, rows: int, columns: int) -> None:
    """Write all files of an image model but its weights; its pixel decoder is the embedded one's.

    That one knows fewer codes than the model draws, so its pictures cannot be rendered.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.columns,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": None,
        "dtype": "bfloat16",
    }
    layout = {
        "family": "zipar-demo",
        "grids": [{"size": f"{8 * columns}x{8 * rows}", "rows": rows, "columns": columns}],
        "row_terminator_id": TERMINATOR,
        "image_token_start": shape.columns - shape.num_codes,
        "image_token_count": shape.num_codes,
        "prompt_prefix_ids": [1],
        "prompt_suffix_ids": [2],
        "max_text_tokens": 64,
        "defaults": {"window": shape.window, "guidance_scale": 1.0, "temperature": 0.0},
        "styles": [],
        "concepts": [],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "image_model.json").write_text(json.dumps(layout))
    words = {f"w{index}": index for index in range(TEXT_TOKENS - 1)} | {"[UNK]": TEXT_TOKENS - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vq").symlink_to(DEMO_PATH / "vq")


def settings_of(mode: str, columns: int, requests: Sequence[int]) -> list[Setting]:
    """Stock vLLM; or raster order and windows 8 and 4."""
    windows = [None] if mode == "stock" else [columns, *(w for w in (8, 4) if w < columns)]
    return [Setting(window, count, False) for window in windows for count in requests]


def run_engine(mode: str, folder: Path, options: argparse.Namespace) -> list[Record]:
    """Measure an engine in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu.engines", *options.words]
    command += ["--engine", mode, "--model", str(folder), "--command", options.command]
    environment = dict(os.environ) | ({"VLLM_PLUGINS": ""} if mode == "stock" else {})
    return read_records(run_tethered(command, ROOT, environment))


def report(records: Sequence[Record], shape: str, failed: Sequence[str]) -> str:
    """The latency benchmark's tables under this title, and what failed."""
    lines = [f"# Stock vLLM beside ZipAR on a GPU: a random model of {shape}'s shape", ""]
    lines += [f"{mode} failed: see the output." for mode in failed]
    if records:
        lines += make_tables(records).splitlines()[2:]
    return "\n".join(
        [*lines, "", f"Goal: the widest window takes at most {GOAL}x stock's time.", ""]
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="emu3")
    parser.add_argument("--rows", type=int, default=45)
    parser.add_argument("--columns", type=int, default=45)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="without torch.compile and graphs")
    parser.add_argument("--kv-cache-memory-bytes", type=int, help="default: what is left")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--engine", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--command", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.words, options.instructions = list(words), None
    options.command = options.command or command_line("benchmarks.gpu.engines", words)
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if words is None else words)
    if options.engine:
        if options.engine == "zipar":
            set_environment()
        settings = settings_of(options.engine, options.columns, options.requests)
        length = options.rows * (options.columns + 1)
        records = measure(
            options.engine,
            options,
            settings,
            options.model,
            load_format="dummy",
            max_model_len=length + 64,
            kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        )
        print(json.dumps([asdict(record) for record in records]))
        return 0
    records, failed = [], []
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), SHAPES[options.shape], options.rows, options.columns)
        for mode in MODES:
            say(f"starting {mode}")
            try:
                records += run_engine(mode, Path(name), options)
            except Exception as problem:  # the other engine is measured
                say(f"{mode}: {type(problem).__name__}: {problem}"[:500])
                failed.append(mode)
            listing = [asdict(record) for record in records]
            text = report(records, SHAPES[options.shape].name, failed)
            write_results(options.output, "engines", listing, text)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
