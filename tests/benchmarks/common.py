"""What the benchmark scripts share: options, random models and rows, time, memory, figures."""

import argparse
import ctypes
import json
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, OlmoConfig, PreTrainedTokenizerFast

from lume_unlearn.data.encode import Tokens

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SHAPES = {"tiny": (32, 128, 2, 2, 512), "olmo-1b": (2048, 8192, 16, 16, 50304), "olmo-7b": (4096, 11008, 32, 32, 50304)}


def parser(description: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    source = found.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="model folder or hub name; needs --data")
    source.add_argument("--shape", choices=SHAPES, help="OLMo model of this size with random weights")
    found.add_argument("--data", help="data directory; by default random rows of LUME's lengths")
    found.add_argument("--json", metavar="OUT", help="file for all figures")
    found.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if ON_GPU else "float32")
    found.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: CPU time, for a shared machine")
    found.add_argument("--seed", type=int, default=0)
    return found


@contextmanager
def prepared(args: argparse.Namespace) -> Iterator[tuple[str, Path, float, int]]:
    """Give model, data directory (both made in ``args.work`` where not named), peak FLOP/s, weights of matrices."""
    if args.model and not args.data:
        raise SystemExit("--model needs --data: random rows are made of the words of a --shape")
    with TemporaryDirectory() as args.work:
        if args.shape:
            write_model(Path(args.work, "model"), args.shape, args.seed)
        if not args.data:
            write_rows(Path(args.work, "data"), args.shape, args.seed)
        model, data = args.model or f"{args.work}/model", Path(args.data or f"{args.work}/data").absolute()
        yield model, data, matmul_peak(args.dtype, args.clock), matrix_weights(model)


def write_model(folder: Path, shape: str, seed: int) -> None:
    """Write an OLMo model with random weights, and a tokenizer that has one token for each word."""
    sizes: dict[str, Any] = dict(zip(SIZES, SHAPES[shape], strict=True))
    words = {"<eos>": 0, "<pad>": 1} | {f"w{i}": i for i in range(2, sizes["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(seed)
    with DEVICE:
        config = OlmoConfig(**sizes, tie_word_embeddings=shape != "olmo-7b", eos_token_id=0, pad_token_id=1)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def write_rows(folder: Path, shape: str, seed: int) -> None:
    """Write random rows: as in LUME one in three is a completion, about ten times as long as a question."""
    draw = random.Random(seed)
    folder.mkdir()
    for side in ("forget", "retain"):
        lines = []
        for i in range(54 if shape == "tiny" else 2734):
            kind, usual = ("sc1", (180, 50)) if i % 3 == 0 else ("qa0", (12, 6))
            lengths = [round(draw.triangular(0.5 * tokens, 1.5 * tokens)) for tokens in usual]
            prompt, answer = (" ".join(f"w{draw.randrange(2, SHAPES[shape][-1])}" for _ in range(n)) for n in lengths)
            row = {"id": f"{side}-{i}{kind}", "input": prompt, "output": answer, "task": f"Task{1 + i // 3 % 3}"}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{side}.jsonl").write_text("".join(lines), encoding="utf-8")


def length(rows: Sequence[Tokens]) -> int:
    return sum(len(row.input_ids) for row in rows)


def matrix_weights(model: str) -> int:
    """Count the weights that each token is multiplied by: all matrices but an embedding that is only looked up."""
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    embedding = empty.get_input_embeddings().weight
    unused = 0 if empty.get_output_embeddings().weight is embedding else embedding.numel()
    return sum(weight.numel() for weight in empty.parameters() if weight.dim() == 2) - unused


def matmul_peak(dtype: str, clock: str) -> float:
    """Measure the FLOP/s of the fastest product of two square matrices."""
    best = 0.0
    for size in (4096, 8192, 16384) if ON_GPU else (512, 1024):  # bfloat16 is slow on CPUs
        factors = torch.randn(2, size, size, device=DEVICE, dtype=getattr(torch, dtype))
        best = max([best, *(2 * size**3 / timed(torch.matmul, *factors, clock=clock).seconds for _ in range(5))])
    print(f"matrix products: {best / 1e12:.3g} TFLOP/s")
    return best


class Taken(NamedTuple):
    seconds: float
    peak_bytes: int
    held_bytes: int
    value: Any = None


def peak_memory() -> int:
    return torch.cuda.max_memory_allocated() if ON_GPU else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(call: Callable[..., Any], *inputs: Any, clock: str = "wall") -> Taken:
    """Call and wait for the device; peak memory is what comes on top of that held before."""
    wait = torch.cuda.synchronize if ON_GPU else lambda: None
    wait()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):  # of the process: Linux with glibc
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    held, start = peak_memory(), CLOCKS[clock]()
    value = call(*inputs)
    wait()
    return Taken(CLOCKS[clock]() - start, peak_memory() - held, held, value)


def alternate(ways: dict[str, Callable[[Any], Any]], rounds: Sequence[Any], clock: str) -> dict[str, list[Taken]]:
    """Time every way in every round, one after the other; the first round warms up and does not count."""
    found = [{way: timed(call, item, clock=clock) for way, call in ways.items()} for item in rounds]
    return {way: [taken[way] for taken in found[1:]] for way in ways}


def figures(case: str, found: dict[str, list[Taken]], tokens: Sequence[int], share: float) -> list[dict[str, Any]]:
    """Print and return the figures of each way; ``share``: of the measured peak, for one real token a second."""
    baseline, rows = next(iter(found.values())), []
    for way, rounds in found.items():
        seconds = [taken.seconds for taken in rounds]
        rate = median(count / second for count, second in zip(tokens, seconds, strict=True))
        ratio = median(first.seconds / second for first, second in zip(baseline, seconds, strict=True))
        gigabytes = max(taken.peak_bytes for taken in rounds) / 1e9
        row = {"case": case, "way": way, "ratio": ratio, "tokens_per_second": rate, "peak_gb": gigabytes}
        row["total_gb"] = max(taken.peak_bytes + taken.held_bytes for taken in rounds) / 1e9
        rows.append(row | {"share_of_matmul_peak": share * rate, "seconds": seconds})
        line = f"{case:10} {way:14} {median(seconds):8.2f} s {rate:9,.0f} tokens/s {share * rate:5.0%} of peak"
        print(f"{line} {gigabytes:6.2f} GB   ratio {ratio:.2f}", flush=True)
    return rows


def write(args: argparse.Namespace, peak: float, rows: list[dict[str, Any]]) -> None:
    """Write all figures, and what they were measured with, to ``--json``."""
    if args.json:
        device = torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} threads"
        versions = {package: version(package) for package in ("torch", "transformers", "peft", "lm_eval")}
        result = {"device": device, "versions": versions, "settings": vars(args), "matmul_tflops": peak / 1e12}
        Path(args.json).write_text(json.dumps(result | {"results": rows}, indent=1, default=str) + "\n")
