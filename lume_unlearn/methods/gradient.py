"""Methods that raise the NLL of forget rows, GA, GD and KL, which differ in the retain term; and ordinary training."""

from lume_unlearn.methods.base import Batch, Defaults, Method
from lume_unlearn.methods.common import Tensor, token_mean


class Ascent(Method):
    """Base class of the methods with gradient ascent on forget rows."""

    formula = "-NLL, token mean"

    def forget_loss(self, batch: Batch) -> Tensor:
        """Compute ``-(1/N) sum nll``: the loss of ordinary training with the sign reversed; unbounded below.

        Worked example: NLLs (1, 2, 6) give -3.

        Source: Jang et al. 2022 (arXiv 2210.01504), who average over examples; a baseline of TOFU (Maini et al. 2024,
        arXiv 2401.06121). This is the token mean of TOFU's and the benchmark's baselines.
        """
        return -token_mean(batch.forget.values, batch.counts.tokens("forget"))


class GA(Ascent):
    """Gradient ascent."""

    title = "gradient ascent"
    source = "Jang et al. 2022, arXiv 2210.01504"
    retain_term = "none"


class GD(Ascent):
    """Gradient difference: gradient ascent, and the NLL on retain rows."""

    title = "gradient difference"
    source = "Liu et al. 2022, arXiv 2203.12817"


class KL(Ascent):
    """KL minimisation: gradient ascent, and the KL divergence from the reference model on retain rows."""

    title = "KL minimisation"
    source = "Maini et al. 2024, arXiv 2401.06121"
    retain_term = "kl"


class Finetune(Method):
    """Ordinary training on the forget rows, for `lume-unlearn finetune`; it unlearns nothing."""

    title = "fine-tuning"
    formula = "NLL, token mean"
    retain_term = "none"
    retain_terms = ("none",)
    defaults = Defaults(
        num_train_epochs=20.0,
        per_device_train_batch_size=16,
        learning_rate={"full": 1e-4, "lora": 1e-3},
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
    )
