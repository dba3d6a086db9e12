"""How near the teachers of `counterfactual` come to a model that never saw the forget rows.

python tests/benchmarks/teachers.py --model TARGET --retrained RETRAINED --data DATA

It prints, for each task and kind of row, the mean over its output tokens, in nats, of

- NLL: that of the retrained model, and that of each teacher;
- KL: the divergence of each teacher's prediction from the retrained model's, ``sum_v r (log r - log q)``.

Teachers are the model itself ("itself"), the same with substituted names, places, dates and numbers ("substitutes"),
the model that sees the last `WINDOW` tokens alone ("window"), the model itself with the right token's probability of
"substitutes", in prose of "window" ("blend", the default), and with ``--base`` the model before fine-tuning ("base").
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lume_tasks.data.rows import Row
from lume_tasks.data.source import load_data
from lume_unlearn.data.contexts import WINDOW, Context, aligned, teacher_contexts, window
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.substitutes import variants
from lume_unlearn.methods.common import token_nll
from lume_unlearn.methods.counterfactual import blended
from lume_unlearn.methods.retain import kl_tokens
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.load import load_model, load_tokenizer
from lume_unlearn.model.teacher import run_teacher

CONTEXTS = 4
TOKENS_A_PASS = 4096

Contexts = Mapping[Tokens, Sequence[Context]]


def predictions(name: str, contexts: Contexts) -> list[Tensor]:
    """Return for each row the log-probabilities of a model that reads these contexts: (n, V) on the CPU."""
    model: Any = load_model(name, torch.float32).eval()
    teacher, seen = run_teacher(model, Passes(model), contexts, TOKENS_A_PASS)
    rows = [(row, teacher.at(seen[row], torch.tensor(row.targets))) for row in contexts]
    return [at(slice(0, row.scored)) for row, at in rows]


def main() -> None:
    """Print a table of teachers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--retrained", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--base")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data, tokenizer = load_data(Path(args.data)), load_tokenizer(args.model)
    encode, forget, retain = Encoder(tokenizer), list(data.forget), list(data.retain)
    tokens = [encode.one(row) for row in forget]
    plain = {row: [aligned(row, row)] for row in tokens}
    changed = variants(forget, retain, CONTEXTS, args.seed, None)
    teachers: dict[str, tuple[str, Contexts]] = {
        "itself": (args.model, plain),
        "substitutes": (args.model, teacher_contexts(forget, tokens, retain, changed, encode, prose=False)),
        "window": (args.model, {row: [window(row, WINDOW, tokenizer.bos_token_id)] for row in tokens}),
        "blend": (args.model, teacher_contexts(forget, tokens, retain, changed, encode)),
    }
    if args.base:
        teachers["base"] = args.base, plain
    retrained = predictions(args.retrained, plain)
    print_row(["", *kinds(forget)])
    print_row(["NLL (retrained)", *by_kind(forget, list(map(nll, retrained, tokens)))])
    said = {name: predictions(model, contexts) for name, (model, contexts) in teachers.items()}
    targets = [torch.tensor(row.targets) for row in tokens]
    rights = map(nll, said["blend"], tokens)
    said["blend"] = [
        blended(*given) for given in zip(said["itself"], targets, (-right for right in rights), strict=True)
    ]
    for name, found in said.items():
        print_row([f"NLL {name}", *by_kind(forget, list(map(nll, found, tokens)))])
        print_row([f"KL {name}", *by_kind(forget, list(map(kl_tokens, found, retrained)))])


def nll(logp: Tensor, row: Tokens) -> Tensor:
    """Return the NLL of a row's output tokens: (n,)."""
    return token_nll(logp, torch.tensor(row.targets))


def kinds(rows: Sequence[Row]) -> list[str]:
    """Return the tasks and kinds of rows, and "all"."""
    return [*sorted({f"{row.task} {row.kind}" for row in rows}), "all"]


def by_kind(rows: Sequence[Row], values: Sequence[Tensor]) -> list[str]:
    """Return the mean over the tokens of each of `kinds`."""
    found: dict[str, list[float]] = defaultdict(list)
    for row, own in zip(rows, values, strict=True):
        for kind in (f"{row.task} {row.kind}", "all"):
            found[kind] += own.tolist()
    return [f"{fmean(found[kind]):.2f}" for kind in kinds(rows)]


def print_row(cells: Sequence[str]) -> None:
    """Print a row of the table in Markdown."""
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
