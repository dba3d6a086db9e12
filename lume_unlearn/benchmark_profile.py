"""Where the time of a step goes: torch's profile of single steps, its operations sorted into a few groups."""

from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from lume_unlearn.benchmark_training import Contest

OTHER = "element by element, and the rest"
# The first group with a word that is part of an operation's name.
GROUPS = {
    "attention": ("attention", "flash_attn", "varlen"),
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "::_addmm", "linear"),
    "softmax and cross entropy": ("softmax", "nll_loss", "cross_entropy", "kl_div", "logsumexp"),
    "optimiser, gradient norm": ("adam", "_foreach_", "vector_norm"),
    "copies": ("copy_", "::cat", "clone", "fill_", "zero_", "index", "gather", "embedding", "slice", "_to_copy"),
}
OUTPUT = "matrix products of the output layer"
TOP = 25
"""Operations listed one by one below the groups."""


def profiled(contest: Contest) -> dict[str, Any]:
    """The last step once more, both ways: for each its groups' shares of the time, and a table of operations."""
    step = contest.steps()[-1]
    found = {}
    for way in contest.ways:
        contest.prepare(way)
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        with profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True) as record:
            contest.take(way, step)
        contest.prepare("ours")
        by_device = bool(cuda)
        vocabulary = contest.base.config.get_text_config().vocab_size
        order = "self_device_time_total" if by_device else "self_cpu_time_total"
        found[way] = {
            "groups": shares(record.key_averages(group_by_input_shape=True), vocabulary, by_device),
            "table": record.key_averages().table(sort_by=order, row_limit=TOP, max_name_column_width=60),
        }
    return found


def shares(events: Any, vocabulary: int, by_device: bool) -> dict[str, float]:
    """Each group's share of the time spent in operations themselves (on the GPU, where ``by_device``), largest first.

    Args:
        events: averages of the profile by operation and input shapes.
        vocabulary: size of the output layer, by which its matrix products are told from the others.
        by_device: count the time of the kernels that an operation started, not the operation's own.
    """
    times: dict[str, float] = {}
    for event in events:
        if event.device_type != DeviceType.CPU:  # a kernel: counted with the operation that started it
            continue
        group = _group(event, vocabulary)
        spent = event.self_device_time_total if by_device else event.self_cpu_time_total
        times[group] = times.get(group, 0.0) + spent
    total = sum(times.values()) or 1.0
    return {group: spent / total for group, spent in sorted(times.items(), key=lambda item: -item[1]) if spent}


def _group(event: Any, vocabulary: int) -> str:
    group = next((group for group, words in GROUPS.items() if any(word in event.key for word in words)), OTHER)
    if group == "matrix products" and any(vocabulary in shape for shape in event.input_shapes if shape):
        return OUTPUT
    return group


def as_text(profiles: dict[str, dict[str, Any]]) -> str:
    """All profiles for a file: groups and operations of each contest and way."""
    parts = []
    for name, ways in profiles.items():
        for way, found in ways.items():
            lines = [f"{share:6.1%}  {group}" for group, share in found["groups"].items()]
            parts += [f"{name}, {way}", *lines, found["table"], ""]
    return "\n".join(parts)
