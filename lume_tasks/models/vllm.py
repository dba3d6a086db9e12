"""``--model lume-vllm``: the harness's ``vllm`` whose log-likelihoods are ``TokenScores``.

vLLM gives the log-probability of each prompt token and of the most probable one, which Min-K% and the memorisation
metrics need. It does not give the whole distribution: Min-K%++ and the gradient norm need ``lume-hf``.
"""

from typing import Any

import numpy as np
from lm_eval.models.vllm_causallms import VLLM

from lume_tasks.errors import DataError
from lume_tasks.metrics.token_scores import TokenScores


class LumeVLLM(VLLM):
    """The stock class with the same arguments and sums."""

    @staticmethod
    def _parse_logprobs(tokens: list[int], outputs: Any, ctxlen: int) -> tuple[TokenScores, bool]:
        """Return the answer to one request, as the stock method does; ``ctxlen`` tokens precede the scored ones."""
        if ctxlen < 1:
            raise DataError(
                f"lume-vllm: a text to score is longer than the {len(tokens)} tokens that the model reads at once, and "
                "rows are never cut to fit. Raise max_length in --model_args if the model can take it, else leave the "
                "text out."
            )
        positions = [
            {token: getattr(entry, "logprob", entry) for token, entry in position.items()}
            for position in outputs.prompt_logprobs[ctxlen:]
        ]
        scored = tokens[ctxlen:]
        logprobs = np.array([position[token] for token, position in zip(scored, positions, strict=True)], np.float32)
        greedy = np.array([max(p, key=p.__getitem__) == token for token, p in zip(scored, positions, strict=True)])
        return TokenScores(logprobs, None, None, greedy), bool(greedy.all())
