"""Ordinary training on texts, for `lume-unlearn finetune`; not an unlearning method, so not in the registry."""

from lume_unlearn.methods.spec import Method

FINETUNE = Method(
    "finetune",
    "fine-tuning",
    "-",
    "NLL, token mean",
    retain="none",
    retain_terms=("none",),
    defaults={"learning_rate": {"full": 1e-4, "lora": 1e-3}},
)
