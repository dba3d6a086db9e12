"""Parts of other packages that are not documented, and which of our modules breaks without them.

A failure here says what a new version of a package changed. The part is private if a name in it begins with an
underscore; the others are public names without documentation, or parameters of one.
"""

import importlib
import importlib.util
import inspect
import re
from functools import reduce
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

# module:attribute(parameters that it must have): what we do with it
PARTS = {
    "lm_eval.evaluator:evaluate(lm)": "model_checks finds the model in this function's frame (sys._getframe)",
    "lm_eval.evaluator:get_git_commit_hash": "scoring.score replaces it: outside a repository git complains",
    "lm_eval.models.huggingface:HFLM._loglikelihood_tokens(requests, disable_tqdm)": "lume-hf overrides it",
    "lm_eval.models.huggingface:HFLM.tok_encode(string)": "model_checks counts tokens",
    "lm_eval.tasks:TaskManager.__init__(include_path, include_defaults, metadata)": "the hook patches it",
    "lm_eval.tasks:TaskManager.all_tasks": "the hook and scoring.score look tasks up",
    "lm_eval.api.registry:model_registry.register(target)": "the hook registers lume-hf and lume-vllm",
    "lm_eval.api.task:ConfigurableTask.download(dataset_kwargs)": "tasks.base overrides it",
    "lm_eval.api.task:ConfigurableTask.build_all_requests": "tasks.base refuses options in it",
    "lm_eval.api.task:ConfigurableTask.aggregation": "tasks.base notes the number of documents",
    "lm_eval.api.group:Group.aggregate(task_metrics)": "lume_score computes scores across tasks in it",
    "lm_eval.api.group:Group.has_aggregation": "lume_score overrides it",
    "lm_eval.config.group:AggMetricConfig(metric, weight_by_size)": "lume_mmlu is a micro average",
    "lm_eval.api.model:CachingLM.__init__(lm, cache_db)": "model_checks reads lm, cache_db and dbdict",
    "lm_eval.api.model:CacheHook.add_partial(attr, req, res)": "lume-hf fills the cache",
    "lm_eval.loggers:EvaluationTracker.save_results_samples(task_name, samples)": "scoring.score saves results",
    "transformers:Trainer._save_checkpoint(model, trial)": "training.saving writes checkpoints whole",
    "transformers:Trainer._get_output_dir(trial)": "training.saving redirects checkpoints",
    "transformers:Trainer._load_from_checkpoint(resume_from_checkpoint, model)": "training.saving overrides it",
    "transformers:Trainer.save_model(output_dir, _internal_call)": "training.saving overrides it",
    "transformers:Trainer.training_step(num_items_in_batch)": "training.trainer overrides it",
    "transformers:Trainer.compute_loss_context_manager": "training.trainer computes losses in it",
    "transformers:Trainer.__init__(optimizer_cls_and_kwargs)": "training.trainer passes an optimiser",
    "transformers:TrainingArguments.get_warmup_steps(num_training_steps)": "training.trainer warms up",
    "transformers:PreTrainedModel.set_attn_implementation": "model.forward switches to packed attention",
    "transformers:PreTrainedModel._supports_attention_backend": "model.packing decides whether rows are packed",
    "transformers:PretrainedConfig._attn_implementation": "model.packing reads the attention in use",
    "transformers.trainer_callback:ExportableState": "the monitor keeps its state in checkpoints",
    "transformers.training_args:OptimizerNames.ADAMW_TORCH_8BIT": "training.setup knows torchao's",
    "transformers.integrations.integration_utils:get_available_reporting_integrations": "--report_to is checked",
    "transformers.integrations.sdpa_attention:sdpa_attention_forward(scaling)": "model.packing calls it",
    "transformers.masking_utils:sdpa_mask": "model.packing registers it",
    "accelerate.state:GradientState._set_sync_gradients(sync_gradients)": "training.trainer: DeepSpeed steps",
    "accelerate.utils.memory:should_reduce_batch_size(exception)": "training.failures knows out-of-memory errors",
    "peft.tuners.lora:LoraLayer": "model.load knows adapted layers",
    "torch:_foreach_copy_": "model.masters rounds all weights at once",
}


@pytest.mark.parametrize("part", PARTS)
def test_part_is_there(part):
    module, path, parameters = re.fullmatch(r"(.+?):(.+?)(?:\((.*)\))?", part).groups()
    try:
        found = reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{part} is gone ({error}): {PARTS[part]}")
    missing = set(parameters.split(", ")) - set(inspect.signature(found).parameters) if parameters else ()
    assert not missing, f"{part} lacks {missing}: {PARTS[part]}"


def test_loglikelihood_passes_texts_and_tokens_to_the_method_that_lume_hf_overrides(model, tokenizer):
    """``((context, continuation), context tokens, continuation tokens)``, and all further arguments by name."""
    passed = []

    class Stub(HFLM):
        def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
            passed.extend(requests)
            return [(0.0, True)] * len(requests)

    Stub(pretrained=model, tokenizer=tokenizer).loglikelihood([Instance("loglikelihood", {}, ("The fox", " jumps"), 0)])
    assert passed == [(("The fox", " jumps"), tokenizer.encode("The fox"), tokenizer.encode(" jumps"))]


def test_vllm_parses_the_log_probabilities_of_a_prompt_in_one_method():
    """Read from the source: the package vllm need not be installed."""
    spec = importlib.util.find_spec("lm_eval.models.vllm_causallms")
    source = Path(str(spec and spec.origin)).read_text(encoding="utf-8")
    assert "def _parse_logprobs(tokens" in source, "VLLM._parse_logprobs changed: lume-vllm overrides it"
