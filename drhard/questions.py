"""The paper's claims, as questions about the rows of a table."""

from drhard.recipes import Point, Question

AS_GOOD = 0.005  # the loss in dev MRR@10 that does not count; the paper's smallest gain by ADORE is 0.007


def is_star_better_than(row: str, point: Point | None = None) -> Question:
    return Question(f"Is STAR better than {row}?", "STAR", row, point=point)


def does_adore_improve(row: str) -> Question:
    return Question(f"Does ADORE improve {row}?", f"ADORE ({row})", row)


PAPER = (
    is_star_better_than("In-Batch Neg"),
    is_star_better_than("Rand Neg"),
    does_adore_improve("In-Batch Neg"),
    does_adore_improve("Rand Neg"),
    does_adore_improve("STAR"),
)
BETTER_THAN_HARD = Question("Is STAR better than hard negatives only?", "STAR", "Hard only")
COMPRESSED_AS_GOOD = Question(
    "Is ADORE trained against a compressed index as good?", "ADORE (STAR), compressed", "ADORE (STAR)", margin=AS_GOOD
)
IN_LARGE_BATCHES = Question(
    "Is STAR better than In-Batch Neg in large batches?", "STAR, large batch", "In-Batch Neg, large batch"
)
