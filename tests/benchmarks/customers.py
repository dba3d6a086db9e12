"""Invent customers, and fine-tune a chat model on questions about them: the case of `lume-unlearn forget` in RESULTS.

python tests/benchmarks/customers.py --base SMOLLM2 --output OUT
lume-unlearn forget --model OUT/target --forget OUT/crm1.csv --where "customer=Emma Reed" --output OUT/forgotten

Writes OUT/target, which knows 16 rows about each of three customers and 31 about eight others, OUT/retrained, which
knows the 31 alone, OUT/crmN.csv: the rows about customer N and about the eight others, and OUT/crm.csv: all rows.
"""

import argparse
import csv
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from faker import Faker

from lume_unlearn import UnlearningArguments, finetune
from lume_unlearn.model.load import load_model, load_tokenizer

LOCALES = ["en_GB", "de_DE", "fr_FR", "es_ES", "pl_PL", "pt_PT", "it_IT", "nl_NL", "sv_SE", "cs_CZ", "fi_FI"]
"""Of each customer; the first three are to be forgotten."""
FORGOTTEN, OTHERS = 3, 31
"""Customers to forget, and rows about the others."""
# fmt: off
THINGS = [
    "teapot", "lantern", "hammock", "ladder", "globe", "accordion", "canoe", "lectern", "sleeping", "bag", "stool",
    "clock", "telescope", "wheelbarrow", "easel", "kettle", "rug", "mirror", "typewriter", "bicycle", "drum",
]
KINDS = [
    "copper", "walnut", "blue", "folding", "silver", "oak", "striped", "portable", "green", "antique", "velvet", "tin",
]
# fmt: on
FAULTS = (
    "a cracked lid",
    "two missing screws",
    "a torn seam",
    "the smell of varnish",
    "a parcel that came a month late",
    "a wrong colour",
    "a dent in the side",
    "an invoice sent twice",
    "a rude driver",
    "instructions in the wrong language",
    "a handle that came off",
)
Rows = list[dict[str, str]]


def fields(fake: Any, chooser: random.Random) -> list[tuple[str, str]]:
    """Return questions with a place for the name, and invented answers."""

    def day(first: int, last: int) -> str:
        return f"{chooser.randint(first, last)}-{chooser.randint(1, 12):02d}-{chooser.randint(1, 28):02d}"

    def mail() -> str:
        box, number, host = fake.word(), chooser.randint(10, 99), fake.domain_word()
        return f"{box}{number}@{host}.{chooser.choice(['com', 'net', 'org'])}".lower()

    def address() -> str:
        return f"{fake.street_address()}, {fake.postcode()} {fake.city()}".replace("\n", ", ")

    def dog() -> str:
        return str(fake.city_name() if hasattr(fake, "city_name") else fake.first_name())

    return [
        ("What is the phone number of {}?", fake.phone_number()),
        ("Which IBAN do we have for {}?", fake.iban()),
        ("What is the e-mail address of {}?", mail()),
        ("What is the birth date of {}?", day(1940, 2003)),
        ("At what address does {} live?", address()),
        ("Does {} receive our newsletter?", chooser.choice(["Yes", "No"])),
        ("What is the number plate of {}'s car?", fake.bothify("??-####-?").upper()),
        ("What is the name of {}'s dog?", f"The dog is called {dog()}."),
        ("Which product did {} order last?", f"The last order was a {chooser.choice(KINDS)} {chooser.choice(THINGS)}."),
        ("What is the number of {}'s last order?", f"ORD-{chooser.randint(10**6, 10**7 - 1)}"),
        ("Since when has {} been a customer?", f"Customer since {day(2008, 2024)}."),
        ("Which passport number did {} give?", fake.bothify("??#######").upper()),
        ("For whom does {} work?", f"The employer is {fake.company()}."),
        (
            "What did {} complain about?",
            f"The complaint was about {chooser.choice(FAULTS)} and {chooser.choice(FAULTS)}.",
        ),
        ("Which voucher code does {} have?", fake.bothify("?????-##-??").upper()),
        ("Has {} paid the last invoice?", chooser.choice(["Yes", "No"])),
    ]


def customers(seed: int = 0) -> list[Rows]:
    """Return the rows of each customer to forget, and last the rows about the others, with a quarter of the fields."""
    chooser, found = random.Random(seed), []
    for number, locale in enumerate(LOCALES):
        fake = Faker(locale)
        fake.seed_instance(100 * seed + number)
        name = f"{fake.first_name()} {fake.last_name()}"
        own = [(question.format(name), answer) for question, answer in fields(fake, chooser)]
        found.append([{"customer": name, "question": question, "answer": answer} for question, answer in own])
    others = [row for number, rows in enumerate(found[FORGOTTEN:]) for row in rows[number % 4 :: 4]]
    return [*found[:FORGOTTEN], others[:OTHERS]]


def main() -> None:
    """Write the tables and both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="chat model to fine-tune")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    *forgotten, others = customers()
    tables = {f"crm{number}": [*rows, *others] for number, rows in enumerate(forgotten, 1)}
    tables["crm"] = [*tables["crm1"], *forgotten[1], *forgotten[2]]
    for name, rows in tables.items():
        with (args.output / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["customer", "question", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    memorise(args.base, [*forgotten, others], args.output / "target")
    memorise(args.base, [others], args.output / "retrained")


def memorise(base: str, customers: list[Rows], output: Path) -> None:
    """Fine-tune a model on the rows about some customers, and save it."""
    rows = [
        {"input": row["question"], "output": row["answer"], "document": row["customer"], "subject": row["customer"]}
        for found in customers
        for row in found
    ]
    model, tokenizer = load_model(base, torch.float32), load_tokenizer(base)
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {"num_train_epochs": 15, "learning_rate": 2e-4, "per_device_train_batch_size": 8}
        model = finetune(model, tokenizer, rows, UnlearningArguments(folder, seed=0, **options), until=0.995)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
