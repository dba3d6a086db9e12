"""What only a GPU runs: bfloat16 kernels, compilation, low-memory options, sharding, quantised models."""

from functools import partialmethod
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from torch import nn

from lume_tasks.models.hf import LumeHF
from lume_unlearn.audit.probes import audit
from lume_unlearn.data.packs import pack_rows
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model import forward, packing
from lume_unlearn.model.forward import labelled_logits, use_packing
from lume_unlearn.model.load import load_model, load_tokenizer
from tests.conftest import logged_steps, make_model, start_run
from tests.faults.runs import assert_equal, broken_off, make
from tests.gpu.conftest import ON_GPU
from tests.tasks.test_lume_hf import score
from tests.unlearn.test_distributed import ROUNDING, in_one_process, runs_of, start

# These tests run on whatever device there is.
from tests.unlearn.test_forget import (  # noqa: F401
    target,
    test_a_model_in_bfloat16_is_judged_while_it_is_trained_with_autocast,
)
from tests.unlearn.test_masters import (  # noqa: F401
    test_a_rollback_restores_the_masters,
    test_a_task_vector_is_made_of_the_masters,
    test_masters_are_as_near_to_float32_arithmetic_as_autocast,
)
from tests.unlearn.test_run import (  # noqa: F401
    test_a_small_step_of_bfloat16_weights_survives_in_expectation,
    test_kinds_of_reference_copies,
    test_training_and_resuming_follow_float32,
    torchao,
)
from tests.unlearn.training import FORGET, RETAIN, build, entries

pytestmark = [pytest.mark.gpu]
pytestmark += [pytest.mark.filterwarnings("ignore:.*deterministic")]
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_packed_rows_train_as_padded_ones(method, tuning, tmp_path):
    found = []
    for packed in (True, False):
        with mock.patch.object(forward, "can_pack", return_value=packed):
            trainer = build(tmp_path, method, tuning, torch.float32, bf16=True, num_train_epochs=1)
        assert trainer.passes.packs == packed
        trainer.train()
        first = entries(trainer)[0]
        found.append([first[name] for name in ("forget_loss", "grad_norm", "retain_loss") if name in first])
    assert found[0] == pytest.approx(found[1], rel=2 * ROUNDING, abs=ROUNDING)


ATTENTION = {"auto": None, "flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_3"}
FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "olmo": {}, "mistral": {"sliding_window": 16}}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", [*ATTENTION, "flex_attention"])
def test_packed_attention_keeps_rows_apart(attention, family):
    package = ATTENTION.get(attention)
    if package is not None and not find_spec(package):
        pytest.skip(f"no {package}")
    if ON_GPU and attention == "auto" and packing.varlen_attn is None:
        pytest.skip("this torch has no attention of variable length")
    model = make_model(family=family, hidden_size=64, head_dim=16, **FAMILIES[family]).to(DEVICE)
    batch = pack_rows({"forget": FORGET, "retain": RETAIN}).to(DEVICE)
    kernel = mock.patch.object(packing, "varlen_attn", wraps=packing.varlen_attn)
    with torch.autocast(DEVICE.type, torch.bfloat16), kernel as varlen:
        own = _logits_and_gradient(model, batch)
        assert use_packing(model, attention)
        # torch's flex attention has no backward pass on CPUs.
        found = _logits_and_gradient(model, batch, backward=ON_GPU or attention != "flex_attention")
    assert bool(varlen.call_count) == (ON_GPU and attention == "auto")
    for ours, theirs in zip(found, own, strict=False):
        assert (ours - theirs).norm() < 2 * ROUNDING * theirs.norm()


def _logits_and_gradient(model: Any, batch: Any, backward: bool = True) -> list[torch.Tensor]:
    model.zero_grad()
    with torch.set_grad_enabled(backward):
        logits = labelled_logits(model, model.config, batch).float()
    if not backward:
        return [logits]
    logits.logsumexp(-1).sum().backward()
    return [logits.detach(), model.model.layers[0].self_attn.q_proj.weight.grad.clone()]


def test_compiled_layers_train_the_same(tmp_path, monkeypatch):
    if not ON_GPU:  # its kernels take minutes to build
        monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    logs = []
    for on in (False, True):
        options = {"bf16": True, "num_train_epochs": 2, "max_tokens": 60, "torch_compile": on}
        trainer = build(tmp_path / str(on), "kl", "full", torch.float32, **options)
        trainer.train()
        logs.append([entry["loss"] for entry in entries(trainer)])
    torch.compiler.reset()
    assert logs[1] == pytest.approx(logs[0], rel=2 * ROUNDING)


@pytest.mark.parametrize(
    ("tuning", "options"), [("full", {}), ("lora", {}), ("full", {"weights": "masters", "bf16": True})]
)
def test_resumed_run_equals_uninterrupted_run(tuning, options, inputs, tmp_path):
    """On a GPU up to rounding: some of its kernels add up in any order."""
    whole, broken = (make(inputs, tmp_path / name, "npo", tuning, **options) for name in ("whole", "broken"))
    broken_off(broken, 3)
    results = [whole(), broken(resume=True)]
    if not ON_GPU:
        assert_equal(*results)
    losses = [[entry["loss"] for entry in logged_steps(output)] for output in results]
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=2 * ROUNDING)


def test_a_sharded_process_equals_an_unsharded_one(model_dir, tmp_path):
    processes = 1 if ON_GPU else 2
    runs = [{"bf16": False} | options for options in runs_of("fsdp2", model_dir, tmp_path)]
    start("fsdp2", runs, tmp_path, processes)
    for options in runs:
        one = in_one_process(options, processes)
        start_run(**one)
        off = 2 * ROUNDING if options["bf16"] else 2e-3
        for expected, found in zip(logged_steps(one["output"]), logged_steps(options["output"]), strict=True):
            assert found == pytest.approx(expected, rel=off, abs=off / 5), options["output"]


def test_both_model_classes_give_the_same_scores(tokenizer):
    models = [
        kind(
            pretrained=make_model().to(DEVICE),
            tokenizer=tokenizer,
            device=DEVICE.type,
            batch_size=4,
            logits_cache=False,
        )
        for kind in (HFLM, LumeHF)
    ]
    stock, ours = (score(lm) for lm in models)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], rel=1e-5)


@pytest.mark.usefixtures("short_answers")
def test_quantised_models_are_scored(model_dir, data_dir):
    how = "bitsandbytes" if ON_GPU and find_spec("bitsandbytes") else "rounded"
    model = load_model(str(model_dir), torch.float32).to("cuda" if ON_GPU else "cpu").eval()
    tokenizer = load_tokenizer(str(model_dir))
    found = audit(model, tokenizer, data_dir, probes=["quantised"], batch_size=16)
    assert list(found) == ["plain", f"8-bit ({how})", f"4-bit ({how})"]
