"""The benchmark: both ways do the same work, figures follow from the seconds, users' mistakes are named."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, OlmoConfig

from lume_tasks.checks import check_dir
from lume_tasks.data import load_rows
from lume_unlearn import benchmark_training
from lume_unlearn.benchmark import BenchmarkConfig, run_config
from lume_unlearn.benchmark_profile import OTHER, OUTPUT, shares
from lume_unlearn.benchmark_shapes import SHAPES, write_model, write_rows
from lume_unlearn.benchmark_training import WAYS, Contest, matrix_weights, measure
from lume_unlearn.data import Sides, Tokens, encode_row
from lume_unlearn.losses import IGNORED
from lume_unlearn.usual import Usual, padded, row_nll

pytestmark = pytest.mark.usefixtures("little_to_collect")


def make_rows(seed: int, count: int = 4) -> list[Tokens]:
    """Rows of different lengths, labelled from the third or a later token on."""
    torch.manual_seed(seed)
    rows = []
    for i in range(count):
        ids = tuple(torch.randint(2, 400, (4 + 5 * i,)).tolist())
        rows.append(Tokens(ids, (IGNORED,) * (2 + 2 * i) + ids[2 + 2 * i :]))
    return rows


@pytest.fixture
def contest(model_dir: Path, tokenizer: Any, tmp_path: Path) -> Callable[..., Contest]:
    """(method, tuning) to a contest of one step with four pairs, all of which share a micro batch."""

    def make(method: str, tuning: str = "full", micro_batch_size: int = 4, ways: Sequence[str] = WAYS) -> Contest:
        config = BenchmarkConfig(model=str(model_dir), batch_size=4)
        run = run_config(config, str(model_dir), tmp_path, method, tuning)
        return Contest(run, tokenizer, Sides(make_rows(1), make_rows(2)), micro_batch_size, ways)

    return make


def gradients(contest: Contest) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in contest.model.named_parameters() if weight.grad is not None}
    contest.optimizer.zero_grad()
    return found


@pytest.mark.parametrize("method", ["gd", "npo"])
def test_both_ways_have_the_same_loss_and_gradient(contest: Callable[..., Contest], method: str) -> None:
    both = contest(method)
    step = both.steps()[0]
    rows = both.trainer.sides.rows(step.keys)
    both.prepare("usual")
    assert both.base.config._attn_implementation == "sdpa"
    usual_loss = both.usual_way.step(rows["forget"], rows["retain"])
    usual = gradients(both)
    both.prepare("ours")
    assert both.base.config._attn_implementation == "lume_packed"
    our_loss = both.trainer.training_step(both.model, both.trainer.sides[step])
    ours = gradients(both)
    assert torch.allclose(usual_loss, our_loss, rtol=1e-5)
    assert usual.keys() == ours.keys()
    for name, gradient in ours.items():
        assert torch.allclose(usual[name], gradient, rtol=1e-3, atol=1e-6), name


def nlls(model: LlamaForCausalLM, row: Tokens) -> Tensor:
    """NLL of each labelled token of one row alone."""
    labels = torch.tensor(row.labels[1:])
    logprobs = log_softmax(model(torch.tensor([row.input_ids])).logits[0, :-1], -1)
    wanted = labels != IGNORED
    return -logprobs[wanted, labels[wanted]]


@torch.no_grad()
def test_usual_losses_are_those_of_the_papers(model: LlamaForCausalLM) -> None:
    reference = AutoModelForCausalLM.from_config(model.config).eval()
    forget, retain = make_rows(1), make_rows(2)
    usual = Usual("npo", model, reference, 4, lambda loss: None, nullcontext)
    sums = [torch.stack([nlls(one, row).sum() for row in forget]) for one in (model, reference)]
    kept = torch.cat([nlls(model, row) for row in retain]).mean()
    batches = [padded(rows, torch.device("cpu")) for rows in (forget, retain)]
    expected = -20 * logsigmoid(0.1 * (sums[0] - sums[1])).mean() + kept
    assert usual.loss(*batches).item() == pytest.approx(expected.item(), rel=1e-5)

    inputs = {name: batches[1][name] for name in ("input_ids", "attention_mask")}
    now, before = (log_softmax(one(**inputs).logits, -1) for one in (model, reference))
    divergence = (before.exp() * (before - now)).sum() / batches[1]["labels"].numel()
    expected = divergence - torch.cat([nlls(model, row) for row in forget]).mean()
    kl = Usual("kl", model, reference, 4, lambda loss: None, nullcontext)
    assert kl.loss(*batches).item() == pytest.approx(expected.item(), rel=1e-5)


def test_usual_step_is_the_mean_of_its_micro_batches(contest: Callable[..., Contest]) -> None:
    both = contest("gd", micro_batch_size=2)
    both.prepare("usual")
    forget, retain = make_rows(1), make_rows(2)
    device = torch.device("cpu")
    with torch.no_grad():
        parts = [
            both.usual_way.loss(padded(forget[part], device), padded(retain[part], device))
            for part in (slice(0, 2), slice(2, 4))
        ]
    assert both.usual_way.step(forget, retain).item() == pytest.approx(sum(parts).item() / 2, rel=1e-5)


def test_padding_is_to_the_longest_of_the_micro_batch_and_counts_for_nothing(model: LlamaForCausalLM) -> None:
    rows = make_rows(3)
    batch = padded(rows, torch.device("cpu"))
    assert batch["input_ids"].shape == (4, 19)
    assert batch["attention_mask"].sum(1).tolist() == [len(row.input_ids) for row in rows]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.stack([nlls(model, row).sum() for row in rows])
    assert torch.allclose(row_nll(logits, batch["labels"]), expected, rtol=1e-4)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_step_changes_the_weights_either_way(contest: Callable[..., Contest], tuning: str) -> None:
    both = contest("kl", tuning)
    step = both.steps()[0]
    for way in ("usual", "ours"):
        trained = [weight for weight in both.model.parameters() if weight.requires_grad]
        before = [weight.detach().clone() for weight in trained]
        both.prepare(way)
        both.take(way, step)
        assert any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True)), way
        assert all(weight.grad is None for weight in trained)
    assert both.copy is not None
    assert not any("lora" in name for name, _ in both.copy.named_parameters())


class Scripted:
    """A contest whose steps take the seconds that it is told, and whose reference takes half a second a step."""

    ways = WAYS

    def __init__(self) -> None:
        self.trainer = SimpleNamespace(
            args=SimpleNamespace(device=torch.device("cpu")), sides=SimpleNamespace(lengths=lambda key: [60, 40])
        )
        self.order: list[str] = []

    def steps(self) -> list[Any]:
        return [SimpleNamespace(keys=["pair"]) for _ in range(4)]

    def prepare(self, way: str) -> None:
        pass

    def take(self, way: str, step: Any) -> None:
        self.order.append(way)

    def reference_seconds(self, step: Any) -> float:
        return 0.5


def test_figures_follow_from_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: Iterator[float] = iter([100.0, 100.0, 8.0, 1.95, 9.0, 0.95, 4.0, 1.95])

    def scripted(run: Callable[[], None], device: torch.device) -> float:
        run()
        return next(seconds)

    monkeypatch.setattr(benchmark_training, "seconds_of", scripted)
    contest, lines = Scripted(), list[str]()
    found = measure(contest, 10, lines.append)  # type: ignore[arg-type]
    assert contest.order == ["usual", "ours"] * 4
    assert found["tokens"] == [100, 100, 100]  # the warm-up does not count
    assert found["usual"]["seconds"] == [8.0, 9.0, 4.0]
    assert found["ours"]["seconds"] == [2.0, 1.0, 2.0]  # with a tenth of the reference
    assert found["ratio"] == 4.0
    assert found["usual"]["tokens_per_second"] == 12.5
    assert found["ours"]["tokens_per_second"] == 50.0
    assert found["ours"]["peak_bytes"] is None
    assert lines[0].startswith("warm-up: usual 100.00 s")
    assert lines[1] == "step 1: usual 8.00 s, ours 1.95 s"


@pytest.mark.parametrize(("method", "costs"), [("npo", True), ("gd", False), ("kl", False)])
def test_only_npo_needs_reference_values_beforehand(contest: Callable[..., Contest], method: str, costs: bool) -> None:
    both = contest(method)
    assert (both.reference_seconds(both.steps()[0]) > 0) is costs


def test_memory_of_the_other_way_is_left_out(contest: Callable[..., Contest]) -> None:
    for method, tuning, ours in (
        ("gd", "full", False),
        ("kl", "full", True),
        ("npo", "full", False),
        ("kl", "lora", False),
    ):
        both = contest(method, tuning)
        weights = 0 if method == "gd" else 4 * sum(weight.numel() for weight in both.copy.parameters())
        assert both.others_bytes("ours") == weights
        assert both.others_bytes("usual") == (weights if ours else 0)


def test_weights_that_tokens_are_multiplied_by(contest: Callable[..., Contest], model: LlamaForCausalLM) -> None:
    blocks = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert matrix_weights(model) == blocks + 400 * 32  # the embedding is looked up
    assert contest("gd", "lora").matrix_weights == blocks + 400 * 32
    with torch.device("meta"):
        tied = AutoModelForCausalLM.from_config(OlmoConfig(**SHAPES["small"]))
    assert matrix_weights(tied) == 4 * (4 * 256**2 + 3 * 256 * 1024) + 4096 * 256


@pytest.mark.parametrize(("shape", "weights"), [("olmo-1b", 1.177e9), ("olmo-7b", 6.888e9)])
def test_shapes_have_the_size_of_their_name(shape: str, weights: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(OlmoConfig(**SHAPES[shape]))
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(weights, rel=1e-3)


def test_generated_rows_are_as_many_and_as_long_as_lume(tmp_path: Path) -> None:
    write_rows(tmp_path / "data", seed=0)
    write_rows(tmp_path / "again", seed=0)
    write_rows(tmp_path / "other", seed=1)
    assert check_dir(tmp_path / "data") == []
    texts = [(tmp_path / name / "forget.jsonl").read_text() for name in ("data", "again", "other")]
    assert texts[0] == texts[1] != texts[2]
    rows = load_rows(tmp_path / "data")
    assert [len(rows[side]) for side in ("forget", "retain")] == [2734, 2734]
    write_model(tmp_path / "model", "small", rows, torch.device("cpu"), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    lengths = sorted(len(encode_row(tokenizer, row).input_ids) for row in rows["forget"])
    assert sum(lengths) / len(lengths) == pytest.approx(81, rel=0.05)
    assert lengths[len(lengths) // 2] == pytest.approx(25, abs=4)
    assert lengths[9 * len(lengths) // 10] == pytest.approx(260, rel=0.05)


def test_profile_sorts_operations_into_groups() -> None:
    def event(key: str, time: float, shapes: list[list[int]], device: DeviceType = DeviceType.CPU) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, self_cpu_time_total=time, self_device_time_total=2 * time, input_shapes=shapes, device_type=device
        )

    events = [
        event("aten::mm", 40, [[64, 32], [32, 32]]),
        event("aten::mm", 20, [[64, 32], [32, 400]]),
        event("aten::_scaled_dot_product_flash_attention_for_cpu", 15, [[1, 4, 64, 8]]),
        event("aten::_log_softmax", 10, [[64, 400]]),
        event("aten::copy_", 8, [[64, 32], []]),
        event("aten::_fused_adamw_", 5, [[]]),
        event("aten::mul", 2, [[64, 32]]),
        event("ampere_gemm", 1000, [], DeviceType.CUDA),
    ]
    expected = {
        "matrix products": 0.40,
        OUTPUT: 0.20,
        "attention": 0.15,
        "softmax and cross entropy": 0.10,
        "copies": 0.08,
        "optimiser, gradient norm": 0.05,
        OTHER: 0.02,
    }
    for by_device in (False, True):
        found = shares(events, 400, by_device)
        assert list(found) == list(expected)
        assert found == pytest.approx(expected)


def test_our_way_alone_needs_no_copy_and_has_no_ratio(contest: Callable[..., Contest]) -> None:
    ours = contest("kl", ways=("ours",))
    assert ours.copy is None
    ours.trainer.sides.forget *= 2  # a step to warm up, and one that counts
    ours.trainer.sides.retain *= 2
    assert set(measure(ours, 10, print)) == {"tokens", "ours"}


def test_padding_is_most_of_the_usual_work_on_real_rows(lume_data: Path, lume_models: Path) -> None:
    """Positions that pass the model in a step of 32 + 32 rows; what that is in seconds, the benchmark says."""
    tokenizer = AutoTokenizer.from_pretrained(lume_models / "lume-target-13m")
    rows = load_rows(lume_data / "validation")
    sides = [[encode_row(tokenizer, row) for row in rows[side][:32]] for side in ("forget", "retain")]
    parts = [side[start : start + 16] for side in sides for start in (0, 16)]
    usual = sum(padded(part, torch.device("cpu"))["input_ids"].numel() for part in parts)
    ours = sum(len(row.input_ids) for side in sides for row in side)
    assert usual > 2.5 * ours
