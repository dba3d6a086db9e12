"""The command `lume-unlearn`: each command's file has its options and the few lines that call the library."""

COMMANDS = {
    "quickstart": "Run every step once, offline, on a miniature LUME and a tiny model, in about a minute.",
    "forget": "Delete rows from a model in one command: unlearn, find the settings, judge the result.",
    "run": "Unlearn the forget rows from a model.",
    "finetune": "Make a model memorise rows: a target model, or its retrained model.",
    "compare": "Tune several methods with the same budget, and compare them in one table.",
    "merge": "Fold a LoRA adapter into its model.",
    "methods": "List the methods.",
    "alternatives": "Sample other answers to the forget rows from a model, for altpo and dpo.",
    "audit": "Test whether forgetting holds: quantisation, relearning, repair, paraphrases, sampling; give a verdict.",
    "verify": "Check that a verdict belongs to this model and these rows.",
    "report": "Turn results of lm_eval into a page with pictures.",
    "card": "Write a model card with the scores into the folder of a run.",
    "path": "Print the folder of recipes/ and accelerate/ (configurations of accelerate).",
}
"""Name and description of each command. The module of that name has ``add_options(parser)`` and ``execute(options)``.

Only these two functions import packages that take long to import (torch, transformers).
"""
