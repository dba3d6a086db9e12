"""Time optimiser steps of unlearning: padded (the baseline), packed by transformers, packed by lume_unlearn."""

import gc
import json
import random
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from common import DEVICE, alternate, figures, length, parser, prepared, write
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

from lume_tasks.data.locate import load_rows
from lume_tasks.data.rows import Row
from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.schedule import cut
from lume_unlearn.methods.base import in_batches
from lume_unlearn.model import load
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.run import load_trained
from lume_unlearn.training.trainer import UnlearningTrainer

IGNORED = -100
BETA = 0.1  # of NPO
FLOPS = {"full": 6, "lora": 4}  # for each weight and token: forward 2, gradient of the input 2, of the weight 2
WAYS = ("padded", "transformers", "packed")


class Case:
    """One method with one tuning; all ways share the model, the optimiser and the rows."""

    def __init__(
        self, args: Any, name: str, tuning: str, method: str, arguments: UnlearningArguments, rows: dict[str, list[Row]]
    ) -> None:
        self.args, self.tuning, self.method = args, tuning, method
        model, tokenizer = load_trained(name, arguments, tuning=tuning)
        self.trainer = UnlearningTrainer(model, method, arguments, **rows, processing_class=tokenizer)
        self.trainer.run_reference()
        packed = model.config._attn_implementation
        self.attention = {"padded": "sdpa", "transformers": args.attention, "packed": packed}
        self.collators = {"padded": DataCollatorForSeq2Seq(tokenizer), "transformers": DataCollatorWithFlattening()}
        self.trainer.create_optimizer()
        self.accelerator = self.trainer.accelerator
        self.model, self.optimizer = self.accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.reference: Any = None  # of the other two ways; packed has its own
        if method != "gd" and set(args.ways) != {"packed"}:
            dtype = model.get_input_embeddings().weight.dtype
            self.reference = load.load_model(name, dtype).eval().requires_grad_(False).to(DEVICE)
            self.reference.set_attn_implementation(args.attention)

    def step(self, way: str, step: Any) -> float:
        """Take one optimiser step, from rows to new weights; return the loss."""
        self.model.set_attn_implementation(self.attention[way])
        if way == "packed":
            loss = self.trainer.training_step(self.model, self.trainer.examples[step])
        else:
            loss = self.gradients(way, self.trainer.examples.rows(step.pairs))
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.optimizer.step()
        self.model.zero_grad()
        return loss.item()

    def gradients(self, way: str, sides: dict[str, list[Tokens]]) -> torch.Tensor:
        """Compute the gradients of one step as a script on top of transformers does; return the loss."""
        self.model.train()
        total = torch.zeros((), device=DEVICE)
        for side in ("forget", "retain"):
            rows, scored = sides[side], sum(row.scored for row in sides[side])
            parts = in_batches(rows, self.args.micro_batch_size)
            if way == "transformers":
                rows = sorted(rows, key=lambda row: len(row.input_ids))
                parts = cut(rows, lambda row: [len(row.input_ids)], self.args.pack_tokens)
            for part in parts:
                loss = self.loss(way, side, part, len(rows), scored)
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def loss(self, way: str, side: str, part: list[Tokens], rows: int, scored: int) -> torch.Tensor:
        """Compute the share of a forward pass in the step's loss; ``rows`` and ``scored`` tokens are the step's."""
        now = self.forward(way, self.model, part)
        if (self.method, side) not in (("npo", "forget"), ("kl", "retain")):
            return (-1 if side == "forget" else 1) * row_nll(*now, len(part)).sum() / scored
        with torch.no_grad(), self.accelerator.autocast():
            before = self.forward(way, self.reference, part)
        if side == "forget":
            gap = row_nll(*now, len(part)) - row_nll(*before, len(part))
            return -2 / BETA * logsigmoid(BETA * gap).sum() / rows
        logprobs, reference = (log_softmax(logits.float(), -1) for logits in (now[0], before[0]))
        divergence = kl_div(logprobs, reference, reduction="none", log_target=True).sum(-1)
        return divergence[now[1] != IGNORED].sum() / scored

    def forward(self, way: str, model: Any, rows: list[Tokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits (n, V), labels (n,) and row numbers (n,): padded at all positions, else at labelled ones."""
        features = [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows]
        batch = {name: value.to(DEVICE) for name, value in self.collators[way](features).items()}
        labels = batch.pop("labels")[:, 1:]
        if way == "padded":
            owners = torch.arange(len(rows), device=DEVICE)[:, None].expand_as(labels)
            logits = model(**batch, use_cache=False).logits[:, :-1]
            return logits.flatten(0, 1), labels.flatten(), owners.flatten()
        keep = (labels[0] != IGNORED).nonzero()[:, 0]
        owners = (batch["position_ids"][0] == 0).cumsum(0) - 1
        logits = model(**batch, logits_to_keep=keep, use_cache=False).logits[0]
        return logits, labels[0, keep], owners[keep]

    def measure(self, share: float) -> list[dict[str, Any]]:
        """Time the steps of one epoch; every way takes each of them."""
        steps = [batch[0] for batch in self.trainer.get_train_dataloader().batch_sampler]
        found = alternate({way: partial(self.step, way) for way in self.args.ways}, steps, self.args.clock)
        tokens = [sum(length(rows) for rows in self.trainer.examples.rows(step.pairs).values()) for step in steps[1:]]
        rows = figures(f"{self.tuning} {self.method}", found, tokens, share)
        losses = [[one.value for one in taken] for taken in found.values()]
        spread = max(max(step) - min(step) for step in zip(*losses, strict=True))
        print(f"{'':10} losses of the ways differ by at most {spread:.1e}")
        return rows


def row_nll(logits: torch.Tensor, labels: torch.Tensor, owners: torch.Tensor, rows: int) -> torch.Tensor:
    """Sum the NLL over the labelled tokens of each row: (rows,)."""
    nll = cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
    return nll.new_zeros(rows).index_add(0, owners, nll)


def numbered(rows: list[Row]) -> list[Row]:
    """Return rows with other ids, since rows that were drawn twice have the same."""
    return [replace(row, id=f"{number} {row.id}") for number, row in enumerate(rows)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=["gd", "kl", "npo"], default=["gd", "kl", "npo"])
    options.add_argument("--tunings", nargs="+", choices=FLOPS, default=list(FLOPS))
    options.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="the first one is the baseline")
    options.add_argument("--steps", type=int, default=3, help="optimiser steps that count; one more warms up")
    options.add_argument("--batch_size", type=int, default=32, help="forget rows of a step, and as many retain rows")
    options.add_argument("--micro_batch_size", type=int, default=16, help="rows of a padded forward pass")
    options.add_argument("--pack_tokens", type=int, default=512, help="of transformers; 8192 with flash attention")
    options.add_argument("--attention", default="sdpa", help="of transformers' packs; flash_attention_2 on GPUs")
    options.add_argument("--run_options", type=json.loads, default={}, help='as JSON: {"weights": "bfloat16"}')
    args = options.parse_args()
    torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for every length, which slows padding most
    results = []
    with prepared(args) as (model, data, peak, weights):
        draw = random.Random(args.seed)
        count = (args.steps + 1) * args.batch_size
        rows = {side: numbered(draw.choices(given, k=count)) for side, given in load_rows(data).items()}
        shared = {"num_train_epochs": 1, "per_device_train_batch_size": args.batch_size, "seed": args.seed}
        # With this learning rate the model stays as it is.
        shared |= {"bf16": args.dtype == "bfloat16", "learning_rate": 1e-7} | args.run_options
        for tuning, method in product(args.tunings, args.methods):
            arguments = UnlearningArguments(output_dir=f"{args.work}/output", **shared)
            case = Case(args, model, tuning, method, arguments, rows)
            results += case.measure(FLOPS[tuning] * weights / peak)
            gc.collect()
    write(args, peak, results)


if __name__ == "__main__":
    main()
