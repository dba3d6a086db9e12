"""The public names and their signatures: to change one is a decision, and changes this list."""

import inspect

import pytest

import lume_unlearn

SIGNATURES = {
    "UnlearningTrainer": "model, method, args, forget, retain=None, *, processing_class, alternatives=None, "
    "substitutes=None, unseen=None, forgotten=None, base=None, eval_data=None, callbacks=()",
    "audit": "model, tokenizer, data, *, probes=None, split='all', limit=0, seed=0, output=None, name=None, **options",
    "forget": "model, tokenizer, forget, retain, *, base=None, unseen=None, output=None, method='swap', tuning='lora', "
    "tries=3, minutes=None, retrain=False, earlier=(), probes=None, controls=99, chat=True, batch_size=64, seed=0, "
    "**probing",
    "compare": "model, methods, data, output, *, tokenizer=None, retrained=None, split='all', tunings=('lora',), "
    "alternatives=None, trials=8, seeds=3, tuning_share=0.25, probes=('quantised', 'relearn_forget', "
    "'repair'), relearn_rows=32, relearn_steps=40, relearn_rate=0.0001, per_device_eval_batch_size=64, "
    "storage=None, seed=0, trust_remote_code=False, **options",
    "finetune": "model, processing_class, rows, args, *, until=0.99, callbacks=()",
    "merge": "model=None, adapter=None, output=None, dtype='float32'",
    "score": "model, tokenizer, data, *, tasks=None, split='all', chat=True, batch_size=64, limit=None, "
    "gen_kwargs=None, seed=None, log_samples=False, metadata=None, quiet=False",
    "unlearn": "model_path, output_path, forget_dir, retain_dir, **options",
    "verdict": "model, tokenizer, *, forget, retain, before, control=None, members=(), nonmembers=(), mmlu=None, "
    "split='all', probes=None, tasks=(), require=(), forgotten=(), keep=0.9, controls=99, limit=0, chat=True, "
    "batch_size=64, seed=0, resume=None, after_each=None, **options",
}


def signature(name: str) -> str:
    """The parameters of a public name, without annotations."""
    parameters = inspect.signature(getattr(lume_unlearn, name)).parameters.values()
    words, starred = [], False
    for parameter in parameters:
        if parameter.kind == parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        words.append(f"{prefix}{parameter.name}{default}")
    return ", ".join(words)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    assert signature(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", [*lume_unlearn.__all__])
def test_public_names_are_documented(name):
    assert len(inspect.getdoc(getattr(lume_unlearn, name)) or "") > 40


def test_every_shipped_method_is_a_public_name():
    from lume_unlearn.methods.registry import METHODS

    assert all(getattr(lume_unlearn, method.__name__) is method for method in METHODS.values())
